//! The proof of a successful run: Markdown that says what was run where, and with which result.
//!
//! Its headings are the Go program's, because people and programs search for them. It must never contain
//! terminal control sequences, or let the command's output end the block that it is quoted in.

use std::collections::BTreeMap;

use crabbox_core::config::profiles::ProofTemplate;
use crabbox_host::beneath::Existing;
use crabbox_host::console::harmless;

use crate::provider::lease::Lease;
use crate::run::Run;
use crate::run::error::EvidenceError;
use crate::run::event::ResultEvent;
use crate::run::proof_text::{ProofTextError, filled};
use crate::run::report::{Artifact, RunReport};
use crate::run::witnessed::Captured;

/// The texts of a proof for facts that are not known.
const BEHAVIOR: &str = "What this command does on the machine that it ran on.";
const OBSERVED: &str = "The command ended with exit code 0.";
const NOT_TESTED: &str = "Anything but this run.";
const NO_OUTPUT: &str = "(no console output captured)";

/// The known facts of a run.
struct Facts<'a> {
    /// By the names that templates use.
    values: BTreeMap<&'a str, &'a str>,
    artifacts: &'a [Artifact],
}

impl Run<'_> {
    /// Writes the proof of a successful run, if one was requested.
    pub(super) fn prove(&self, lease: &Lease, report: &mut RunReport) -> Result<(), EvidenceError> {
        let (Some(proof), Some(seen)) = (&self.evidence.proof, &report.witnessed) else {
            return Ok(());
        };
        let (name, template) = match &self.work.proof {
            Some((name, template)) => (Some(name.clone()), template.clone()),
            None => (None, ProofTemplate::default()),
        };
        let (command, log) = (self.work.display(), evidence(&seen.end, &seen.captured));
        let facts = Facts {
            values: BTreeMap::from([
                ("provider", lease.provider),
                ("leaseId", lease.id.as_str()),
                ("slug", lease.slug.as_str()),
                ("runId", report.outcome.run_id.as_str()),
                ("command", command.as_str()),
                ("logExcerpt", log.as_str()),
                ("actionsUrl", ""),
            ]),
            artifacts: &report.outcome.artifacts,
        };
        let text = render(&template, &facts)?;
        proof.place.write(text.as_bytes(), Existing::Replace)?;
        let artifact = Artifact {
            kind: "proof",
            path: proof.name.display().to_string(),
            template: name,
            bytes: text.len() as u64,
        };
        self.events.result(&ResultEvent::Evidence(&artifact));
        report.outcome.artifacts.push(artifact);
        Ok(())
    }
}

/// What was observed of the command: the end of its output, and where the rest is.
fn evidence(end: &str, captured: &[Captured]) -> String {
    let mut lines: Vec<String> = Some(end.to_owned())
        .into_iter()
        .filter(|end| !end.is_empty())
        .collect();
    lines.extend(captured.iter().map(|file| {
        format!(
            "captured stream={} path={} bytes={}",
            file.stream,
            quoted(&file.path),
            file.bytes
        )
    }));
    if lines.is_empty() {
        lines.push(NO_OUTPUT.to_owned());
    }
    lines.join("\n")
}

/// Quotes a path so that it reads as one word and has no meaning in Markdown.
fn quoted(path: &str) -> String {
    let mut out = String::from("\"");
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/.- ".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format_args!("\\x{byte:02x}").to_string());
        }
    }
    out.push('"');
    out
}

fn render(template: &ProofTemplate, facts: &Facts<'_>) -> Result<String, ProofTextError> {
    let of = |name: &str| facts.values.get(name).copied().unwrap_or_default();
    let slug = if of("slug").is_empty() { "-" } else { of("slug") };
    let environment = format!("{} Crabbox lease {} ({slug}).", of("provider"), of("leaseId"));
    let fill = |field, text: &str, otherwise: &str| {
        if text.trim().is_empty() {
            Ok(otherwise.trim().to_owned())
        } else {
            filled(field, text, |name| {
                facts.values.get(name).map(|&value| value.to_owned())
            })
        }
    };
    let behavior = fill("behaviorAddressed", &template.behavior_addressed, BEHAVIOR)?;
    let environment = fill(
        "realEnvironmentTested",
        &template.real_environment_tested,
        &environment,
    )?;
    let steps = fill("exactSteps", &template.exact_steps, of("command"))?;
    let observed = fill("observedResult", &template.observed_result, OBSERVED)?;
    let not_tested = fill("notTested", &template.not_tested, NOT_TESTED)?;
    let log = of("logExcerpt").trim();
    let (steps_fence, log_fence) = (fence(&steps), fence(log));
    let more = if facts.artifacts.is_empty() {
        String::new()
    } else {
        let paths: Vec<&str> = facts.artifacts.iter().map(|one| one.path.as_str()).collect();
        format!("Additional evidence: {}\n\n", paths.join("; "))
    };
    let text = format!(
        "## Real behavior proof\n\n\
         Behavior addressed: {behavior}\n\n\
         Real environment tested: {environment}\n\n\
         Exact steps or command run:\n\n{steps_fence}sh\n{steps}\n{steps_fence}\n\n\
         Evidence: Copied live console output from Crabbox `{run}`:\n\n{log_fence}text\n{log}\n{log_fence}\n\n\
         Observed result: {observed}\n\n\
         {more}What was not tested: {not_tested}\n",
        run = of("runId"),
    );
    // Templates, presets and file names come from a repository, and the proof may be displayed on a terminal.
    Ok(text.split('\n').map(harmless).collect::<Vec<_>>().join("\n"))
}

/// A fence that no line of `text` can close.
fn fence(text: &str) -> String {
    let longest = text
        .split(['\n', '\r'])
        .map(|line| line.trim().chars().take_while(|c| *c == '`').count())
        .max();
    "`".repeat(longest.unwrap_or(0).max(2) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts<'a>(log: &'a str, artifacts: &'a [Artifact]) -> Facts<'a> {
        Facts {
            values: BTreeMap::from([
                ("provider", "ssh"),
                ("leaseId", "cbx_1"),
                ("slug", "jade-krill"),
                ("runId", "run_1"),
                ("command", "make {{slug}}"),
                ("logExcerpt", log),
                ("actionsUrl", ""),
            ]),
            artifacts,
        }
    }

    #[test]
    fn a_proof_says_what_ran_where_and_what_came_of_it() {
        let artifacts = ["a.tgz", "b"].map(|path| Artifact {
            kind: "download",
            path: path.to_owned(),
            template: None,
            bytes: 1,
        });
        let text = render(&ProofTemplate::default(), &facts("done", &artifacts)).unwrap();
        let wanted = format!(
            "## Real behavior proof\n\nBehavior addressed: {BEHAVIOR}\n\nReal environment tested: ssh Crabbox lease cbx_1 \
             (jade-krill).\n\nExact steps or command run:\n\n```sh\nmake {{{{slug}}}}\n```\n\nEvidence: Copied live console \
             output from Crabbox `run_1`:\n\n```text\ndone\n```\n\nObserved result: {OBSERVED}\n\nAdditional evidence: a.tgz; \
             b\n\nWhat was not tested: {NOT_TESTED}\n"
        );
        assert_eq!(text, wanted);
    }

    #[test]
    fn a_template_is_filled_in_once_and_names_what_it_lacks() {
        let template = ProofTemplate {
            behavior_addressed: "{{command}} on {{slug}}, {{ slug }} {{{slug}}} {{".to_owned(),
            ..ProofTemplate::default()
        };
        let text = render(&template, &facts("", &[])).unwrap();
        assert!(
            text.contains("Behavior addressed: make {{slug}} on jade-krill, {{ slug }} {jade-krill} {{\n"),
            "{text}"
        );
        let template = ProofTemplate {
            not_tested: "{{b}} {{a.x}} {{b}} {{slug}}".to_owned(),
            ..ProofTemplate::default()
        };
        let error = render(&template, &facts("", &[])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "proof template notTested has unresolved preset variable(s): {{a.x}}, {{b}}"
        );
    }

    #[test]
    fn output_does_not_end_the_block_that_it_stands_in() {
        let text = render(&ProofTemplate::default(), &facts("a\n  ````\n# b", &[])).unwrap();
        assert!(text.contains("`````text\na\n  ````\n# b\n`````\n"), "{text}");
    }

    #[test]
    fn streams_in_files_are_named_and_not_read() {
        let captured = [Captured {
            stream: "stdout",
            path: "o`ut/ü_1".to_owned(),
            bytes: 7,
        }];
        assert_eq!(
            evidence("end", &captured),
            "end\ncaptured stream=stdout path=\"o\\x60ut/\\xc3\\xbc\\x5f1\" bytes=7"
        );
        assert_eq!(evidence("", &[]), NO_OUTPUT);
    }
}
