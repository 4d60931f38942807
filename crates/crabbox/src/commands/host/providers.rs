//! `providers`, `providers describe`.

use crabbox_core::config::Provider;
use crabbox_core::config::key::{Group, KEYS, Key, Kind};
use crabbox_engine::provider::capability::Capability;
use crabbox_engine::provider::registry;
use schemars::JsonSchema;
use serde::Serialize;

use crate::args::{ProvidersArgs, ProvidersCommand, ProvidersDescribeArgs};
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// What a provider is and can do, in the words of the Go program's catalogue.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct Entry {
    provider: &'static str,
    family: &'static str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    aliases: &'static [&'static str],
    kind: &'static str,
    category: &'static str,
    targets: &'static [&'static str],
    features: &'static [&'static str],
    runtime: &'static [&'static str],
    reachability: &'static [&'static str],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    lifecycle: &'static [&'static str],
    coordinator: &'static str,
    class_catalog: ClassCatalog,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ClassCatalog {
    disposition: &'static str,
    profiles: [&'static str; 0],
}

const UNMAPPED: ClassCatalog = ClassCatalog {
    disposition: "unmapped",
    profiles: [],
};

fn entry(provider: Provider) -> Entry {
    let can = registry::capabilities(provider);
    let (features, lifecycle): (&[_], &[_]) = if can.has(Capability::Cleanup) {
        (&["ssh", "crabbox-sync", "cleanup"], &["cleanup"])
    } else {
        (&["ssh", "crabbox-sync"], &[])
    };
    Entry {
        provider: provider.name(),
        family: provider.name(),
        aliases: provider.aliases(),
        kind: "ssh-lease",
        category: can.category,
        targets: &["linux"],
        features,
        runtime: &["ssh-host"],
        reachability: &["ssh-tunnel"],
        lifecycle,
        coordinator: "never",
        class_catalog: UNMAPPED,
    }
}

impl Entry {
    fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            self.provider.to_owned(),
            format!("  family: {}", self.family),
            format!("  kind: {}", self.kind),
            format!("  category: {}", self.category),
            format!("  targets: {}", self.targets.join(", ")),
            format!("  features: {}", self.features.join(", ")),
            format!("  runtime: {}", self.runtime.join(", ")),
            format!("  reachability: {}", self.reachability.join(", ")),
        ];
        if !self.lifecycle.is_empty() {
            lines.push(format!("  lifecycle: {}", self.lifecycle.join(", ")));
        }
        lines.push(format!("  coordinator: {}", self.coordinator));
        if !self.aliases.is_empty() {
            lines.push(format!("  aliases: {}", self.aliases.join(", ")));
        }
        lines
    }
}

/// `providers describe`, version 2 of the Go program's schema.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct Description {
    schema_version: u32,
    provider: Identity,
    runnable: bool,
    kind: &'static str,
    family: &'static str,
    targets: &'static [&'static str],
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
    input_alias: bool,
    aliases: &'static [&'static str],
    deprecated: bool,
    replacement: &'static str,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Capabilities {
    features: &'static [&'static str],
    runtime: &'static [&'static str],
    reachability: &'static [&'static str],
    workspace: [&'static str; 0],
    evidence: [&'static str; 0],
    lifecycle: &'static [&'static str],
    coordinator: &'static str,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct FlagEntry {
    name: &'static str,
    r#type: &'static str,
    value_shape: &'static str,
    default: &'static str,
    repeatable: bool,
    usage: &'static str,
    deprecated: bool,
    replacement: &'static str,
    routing: bool,
    creation_only: bool,
}

/// `providers` and `providers describe`.
pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &ProvidersArgs) -> Result<Exit, CommandError> {
    if let Some(ProvidersCommand::Describe(args)) = &args.command {
        return describe(ctx, args);
    }
    let entries = Vec::from(Provider::ALL.map(entry));
    if args.json {
        ctx.printer.json(&entries)?;
    } else {
        entries
            .iter()
            .flat_map(Entry::lines)
            .for_each(|line| ctx.printer.line(line));
    }
    Ok(Exit::SUCCESS)
}

fn describe(ctx: &Ctx<'_>, args: &ProvidersDescribeArgs) -> Result<Exit, CommandError> {
    let provider = Provider::by_name(&args.provider)?;
    let entry = entry(provider);
    let own = |key: &Key| key.path.split('.').next() == Some(provider.name());
    let flags = |group: &[Group], filter: &dyn Fn(&Key) -> bool| {
        KEYS.iter()
            .filter(|key| filter(key))
            .filter_map(|key| flag_entry(key, group))
            .collect::<Vec<_>>()
    };
    let shared = flags(
        &[Group::Provider, Group::Target, Group::Network, Group::Create],
        &|_| true,
    );
    let provider_flags = flags(&[Group::ProviderOptions], &own);
    if !args.json {
        entry.lines().iter().for_each(|line| ctx.printer.line(line));
        for flag in &provider_flags {
            ctx.printer.line(format_args!(
                "  --{} ({}, default {:?}): {}",
                flag.name, flag.r#type, flag.default, flag.usage
            ));
        }
        return Ok(Exit::SUCCESS);
    }
    let description = Description {
        schema_version: 2,
        provider: Identity {
            requested: args.provider.clone(),
            canonical: provider.name(),
            input_alias: args.provider != provider.name(),
            aliases: provider.aliases(),
            deprecated: false,
            replacement: "",
        },
        runnable: true,
        kind: entry.kind,
        family: entry.family,
        targets: entry.targets,
        capabilities: Capabilities {
            features: entry.features,
            runtime: entry.runtime,
            reachability: entry.reachability,
            workspace: [],
            evidence: [],
            lifecycle: entry.lifecycle,
            coordinator: entry.coordinator,
        },
        class_catalog: entry.class_catalog,
        shared_flags: shared,
        provider_flags,
    };
    ctx.printer.json(&description)?;
    Ok(Exit::SUCCESS)
}

fn flag_entry(key: &'static Key, groups: &[Group]) -> Option<FlagEntry> {
    let flag = key.flag.filter(|flag| groups.contains(&flag.group))?;
    let (r#type, value_shape) = match key.kind {
        Kind::Text | Kind::Path | Kind::Program | Kind::List | Kind::Ports | Kind::Port | Kind::Choice(_) => {
            ("string", "string")
        }
        Kind::Integer => ("int", "integer"),
        Kind::Bool => ("bool", "boolean"),
        Kind::Duration => ("duration", "duration"),
    };
    Some(FlagEntry {
        name: flag.name,
        r#type,
        value_shape,
        default: key.default,
        repeatable: matches!(key.kind, Kind::List | Kind::Ports),
        usage: key.doc,
        deprecated: false,
        replacement: "",
        routing: flag.group == Group::Provider,
        creation_only: flag.group == Group::Create,
    })
}
