//! Fills `{{name}}` in the texts of a proof template, before the run and after it.
//!
//! Unknown names are found before a machine is leased. Inserted values are not expanded again.

use crabbox_core::config::profiles::ProofTemplate;

use super::template::Variables;

/// A template uses an unknown variable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("proof template {field} has unresolved preset variable(s): {}", missing.join(", "))]
pub struct ProofTextError {
    /// The field that uses it.
    pub field: &'static str,
    /// The unknown variables.
    pub missing: Vec<String>,
}

/// The names that templates can use for facts of a run.
const KNOWN: [&str; 7] = [
    "provider",
    "leaseId",
    "slug",
    "runId",
    "command",
    "logExcerpt",
    "actionsUrl",
];

/// Inserts the values of `--preset-var` into the template. Fails if it uses a name that is neither one of
/// them nor a fact of a run.
pub(super) fn prepare(
    template: &ProofTemplate,
    variables: &mut Variables,
) -> Result<ProofTemplate, ProofTextError> {
    let mut fill = |field, text: &str| {
        filled(field, text, |name| {
            if KNOWN.contains(&name) {
                return Some(format!("{{{{{name}}}}}"));
            }
            // A value with braces would be expanded again after the run.
            let value = variables.take(name).filter(|value| !value.contains("{{"));
            value.map(str::to_owned)
        })
    };
    Ok(ProofTemplate {
        behavior_addressed: fill("behaviorAddressed", &template.behavior_addressed)?,
        real_environment_tested: fill("realEnvironmentTested", &template.real_environment_tested)?,
        exact_steps: fill("exactSteps", &template.exact_steps)?,
        observed_result: fill("observedResult", &template.observed_result)?,
        not_tested: fill("notTested", &template.not_tested)?,
    })
}

/// `text` with each `{{name}}` in it replaced by its value. Values are not expanded again.
pub(super) fn filled(
    field: &'static str,
    text: &str,
    mut value: impl FnMut(&str) -> Option<String>,
) -> Result<String, ProofTextError> {
    let (mut out, mut missing, mut rest) = (String::new(), Vec::new(), text);
    while let Some(at) = rest.find("{{") {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let Some(name) = from[2..]
            .split_once("}}")
            .map(|(name, _)| name)
            .filter(|name| is_name(name))
        else {
            out.push('{');
            rest = &from[1..];
            continue;
        };
        match value(name) {
            Some(value) => out.push_str(&value),
            None => missing.push(format!("{{{{{name}}}}}")),
        }
        rest = &from[name.len() + 4..];
    }
    out.push_str(rest);
    missing.sort();
    missing.dedup();
    if missing.is_empty() {
        Ok(out)
    } else {
        Err(ProofTextError { field, missing })
    }
}

/// Whether it can be the name of a variable.
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}
