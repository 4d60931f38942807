//! `providers describe`: one provider with the flags that `run` has for it, in version 2 of the Go program's schema (its only version).
//!
//! Flags, types and defaults are those of the command line itself. A default must never come from this host's configuration.

use std::fmt::Write as _;

use crabbox_core::comma_list;
use crabbox_core::config::Provider;
use crabbox_core::duration::GoDuration;
use crabbox_core::fault::{Fault, Kind};
use schemars::JsonSchema;
use serde::Serialize;

use super::catalogue::{self, ClassCatalog, joined};
use crate::args::{self, DescribedFlag, FlagType, ProvidersDescribeArgs};
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// What `providers describe --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct Description {
    schema_version: u32,
    provider: Identity,
    runnable: bool,
    kind: &'static str,
    family: &'static str,
    targets: Vec<&'static str>,
    capabilities: Capabilities,
    class_catalog: ClassCatalog,
    shared_flags: Vec<FlagEntry>,
    provider_flags: Vec<FlagEntry>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Identity {
    requested: String,
    canonical: &'static str,
    /// The alias by which it was asked for; empty where it was its name.
    input_alias: String,
    aliases: Vec<&'static str>,
    deprecated: bool,
    replacement: &'static str,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Capabilities {
    features: Vec<&'static str>,
    runtime: Vec<&'static str>,
    reachability: Vec<&'static str>,
    workspace: Vec<&'static str>,
    evidence: Vec<&'static str>,
    lifecycle: Vec<&'static str>,
    coordinator: &'static str,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct FlagEntry {
    name: String,
    r#type: &'static str,
    value_shape: &'static str,
    default: TypedDefault,
    repeatable: bool,
    usage: String,
    deprecated: bool,
    replacement: &'static str,
    routing: bool,
    creation_only: bool,
}

/// The default of a flag, of the flag's type.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
enum TypedDefault {
    Bool(bool),
    Int(i64),
    Text(String),
    List(Vec<String>),
}

/// Not exactly one name.
#[derive(Debug, thiserror::Error)]
enum DescribeError {
    #[error("usage: crabbox providers describe <provider> [--json]")]
    Usage,
    #[error("provider name must not be empty")]
    Empty,
}

impl Fault for DescribeError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// `providers describe`.
pub(super) fn run(ctx: &Ctx<'_>, args: &ProvidersDescribeArgs) -> Result<Exit, CommandError> {
    let [name] = args.provider.as_slice() else {
        return Err(DescribeError::Usage.into());
    };
    let requested = name.trim().to_ascii_lowercase();
    if requested.is_empty() {
        return Err(DescribeError::Empty.into());
    }
    let description = describe(Provider::by_name(&requested)?, requested);
    if args.json {
        ctx.printer.json(&description)?;
    } else {
        ctx.printer.lines(description.text().trim_end());
    }
    Ok(Exit::SUCCESS)
}

fn describe(provider: Provider, requested: String) -> Description {
    let entry = catalogue::entry(provider);
    // A provider's flags are prefixed with its name; skip those of other providers.
    let prefix = format!("{}-", provider.name());
    let (own, shared): (Vec<_>, Vec<_>) = args::described_flags()
        .into_iter()
        .filter(|flag| !flag.of_provider || flag.name.starts_with(&prefix))
        .partition(|flag| flag.of_provider);
    Description {
        schema_version: 2,
        provider: Identity {
            canonical: provider.name(),
            input_alias: Some(&requested)
                .filter(|name| *name != provider.name())
                .cloned()
                .unwrap_or_default(),
            requested,
            aliases: sorted(provider.aliases()),
            deprecated: false,
            replacement: "",
        },
        runnable: true,
        kind: entry.kind,
        family: entry.family,
        targets: sorted(entry.targets),
        capabilities: Capabilities {
            features: sorted(entry.features),
            runtime: sorted(entry.runtime),
            reachability: sorted(entry.reachability),
            workspace: sorted(entry.workspace),
            evidence: sorted(entry.evidence),
            lifecycle: sorted(entry.lifecycle),
            coordinator: entry.coordinator,
        },
        class_catalog: entry.class_catalog,
        shared_flags: shared.into_iter().map(FlagEntry::new).collect(),
        provider_flags: own.into_iter().map(FlagEntry::new).collect(),
    }
}

fn sorted(values: &[&'static str]) -> Vec<&'static str> {
    let mut values = values.to_vec();
    values.sort_unstable();
    values
}

impl FlagEntry {
    fn new(flag: DescribedFlag) -> Self {
        let DescribedFlag {
            name,
            of_provider,
            usage,
            default,
            kind,
        } = flag;
        let span = |text: &str| {
            text.parse()
                .map_or_else(|_| text.to_owned(), |span: GoDuration| span.to_string())
        };
        let (r#type, value_shape, default) = match kind {
            FlagType::Bool => ("bool", "scalar", TypedDefault::Bool(default == "true")),
            FlagType::Int => ("int", "scalar", TypedDefault::Int(default.parse().unwrap_or(0))),
            // The Go program has the only duration among provider flags as a text.
            FlagType::Duration if of_provider => ("string", "scalar", TypedDefault::Text(span(&default))),
            FlagType::Duration => ("duration", "scalar", TypedDefault::Text(span(&default))),
            FlagType::Text => ("string", "scalar", TypedDefault::Text(default)),
            FlagType::List => {
                let items = comma_list::items(&default).map(str::to_owned).collect();
                ("string", "string-list", TypedDefault::List(items))
            }
        };
        Self {
            name,
            r#type,
            value_shape,
            default,
            repeatable: kind == FlagType::List,
            usage,
            deprecated: false,
            replacement: "",
            // The Go program sets these for providers shared by several adapters, and for sizes that cannot be changed.
            routing: false,
            creation_only: false,
        }
    }

    fn lines(&self) -> String {
        let default = serde_json::to_string(&self.default).unwrap_or_default();
        format!(
            "  --{}\n    type: {}; value shape: {}; default: {default}; repeatable: {}\n    \
             deprecated: {}; replacement: {}; routing: {}; creation-only: {}\n    {}\n",
            self.name,
            self.r#type,
            self.value_shape,
            self.repeatable,
            self.deprecated,
            dash(self.replacement),
            self.routing,
            self.creation_only,
            self.usage
        )
    }
}

impl Description {
    fn text(&self) -> String {
        let (of, can) = (&self.provider, &self.capabilities);
        let head = if of.input_alias.is_empty() {
            of.canonical.to_owned()
        } else {
            format!("{} -> {}", of.requested, of.canonical)
        };
        let mut text = format!(
            "{head}\n  kind: {}\n  runnable: {}\n  family: {}\n  aliases: {}\n  deprecated: {}\n  replacement: {}\n",
            self.kind,
            self.runnable,
            self.family,
            joined(&of.aliases),
            of.deprecated,
            dash(of.replacement)
        );
        let rows = [
            ("targets", &self.targets),
            ("features", &can.features),
            ("runtime", &can.runtime),
            ("reachability", &can.reachability),
            ("workspace", &can.workspace),
            ("evidence", &can.evidence),
            ("lifecycle", &can.lifecycle),
        ];
        // Writing to a string cannot fail.
        for (name, values) in rows {
            writeln!(text, "  {name}: {}", joined(values)).ok();
        }
        writeln!(text, "  coordinator: {}", can.coordinator).ok();
        let own = format!("{} flags", of.canonical);
        for (title, flags) in [
            ("Shared run flags", &self.shared_flags),
            (own.as_str(), &self.provider_flags),
        ] {
            writeln!(text, "\n{title}:").ok();
            if flags.is_empty() {
                text.push_str("  (none)\n");
            }
            text.extend(flags.iter().map(FlagEntry::lines));
        }
        text
    }
}

fn dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}
