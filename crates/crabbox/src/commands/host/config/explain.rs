//! `config explain`: where the value of a key comes from, and the other ways to set it.

use crabbox_core::config::key::{KEYS, Key};
use crabbox_core::config::layer::Origin;
use crabbox_core::config::{Resolution, suggest};
use crabbox_core::fault::{Fault, Kind};
use schemars::JsonSchema;
use serde::Serialize;

use crate::args::ConfigExplainArgs;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// No such key.
#[derive(Debug, thiserror::Error)]
#[error("unknown configuration key {key:?}")]
struct UnknownKey {
    key: String,
    suggestion: Option<&'static str>,
}

impl Fault for UnknownKey {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        self.suggestion
            .map(|known| format!("did you mean {known}?"))
            .into_iter()
            .collect()
    }
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct Explanation {
    key: &'static str,
    value: String,
    source: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'static str>,
    default: &'static str,
    variables: &'static [&'static str],
    #[serde(skip_serializing_if = "Option::is_none")]
    flag: Option<&'static str>,
    host_only: bool,
    description: &'static str,
    #[serde(skip)]
    origin: String,
}

/// With a key: everything about it. Without one: a line for each key that some layer sets.
pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &ConfigExplainArgs) -> Result<Exit, CommandError> {
    let resolution = ctx.settings(&args.keys.values)?;
    let Some(path) = &args.key else {
        return all(ctx, args, &resolution);
    };
    let unknown = || UnknownKey {
        key: path.clone(),
        suggestion: suggest(path),
    };
    let explanation = explanation(Key::by_path(path).ok_or_else(unknown)?, &resolution);
    if args.json {
        ctx.printer.json(&explanation)?;
    } else {
        explanation.lines().iter().for_each(|line| ctx.printer.line(line));
    }
    Ok(Exit::SUCCESS)
}

fn all(ctx: &Ctx<'_>, args: &ConfigExplainArgs, resolution: &Resolution) -> Result<Exit, CommandError> {
    let is_set = |key: &&Key| !resolution.explain(key.name).is_default();
    let set: Vec<_> = KEYS
        .iter()
        .filter(is_set)
        .map(|key| explanation(key, resolution))
        .collect();
    if args.json {
        ctx.printer.json(&set)?;
        return Ok(Exit::SUCCESS);
    }
    for explanation in &set {
        ctx.printer.line(format_args!(
            "{}={} source={} from {}",
            explanation.key, explanation.value, explanation.source, explanation.origin
        ));
    }
    Ok(Exit::SUCCESS)
}

fn explanation(key: &'static Key, resolution: &Resolution) -> Explanation {
    let sourced = resolution.explain(key.name);
    let (place, name) = match &sourced.origin {
        Origin::UserFile(place) | Origin::RepoFile(place) => (Some(place), None),
        Origin::Environment(name) | Origin::Flag(name) => (None, Some(*name)),
        Origin::Default | Origin::Lease => (None, None),
    };
    Explanation {
        key: key.path,
        value: sourced.value.to_string(),
        source: sourced.layer().source_name(),
        file: place.map(|place| place.path.display().to_string()),
        line: place.map(|place| place.line),
        column: place.map(|place| place.column),
        name,
        default: key.default,
        variables: key.variables,
        flag: key.flag.map(|flag| flag.name),
        host_only: !key.trust.is_open_to_repositories(),
        description: key.doc,
        origin: sourced.origin.to_string(),
    }
}

impl Explanation {
    fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!("{}={}", self.key, self.value),
            format!("source={} from {}", self.source, self.origin),
            format!(
                "default={}",
                if self.default.is_empty() {
                    "-"
                } else {
                    self.default
                }
            ),
        ];
        if !self.variables.is_empty() {
            lines.push(format!("variable={}", self.variables.join(",")));
        }
        lines.extend(self.flag.map(|flag| format!("flag=--{flag}")));
        if self.host_only {
            lines.push("trust=never taken from a repository file".to_owned());
        }
        lines.push(self.description.to_owned());
        lines
    }
}
