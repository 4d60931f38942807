//! Choosing among providers by kind and capability: the filter flags, and `providers filters`.
//!
//! A value that no provider has is an error, reported before anything is printed; it must never pass as an empty result.

use std::collections::BTreeSet;

use crabbox_core::comma_list;
use crabbox_core::fault::{Fault, Kind};
use schemars::JsonSchema;
use serde::Serialize;

use super::catalogue::{self, Entry, joined};
use crate::args::{ProvidersFilterArgs, ProvidersFiltersArgs};
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// A filter: its name, its flag's values, and an entry's values for it.
struct Filter {
    name: &'static str,
    given: fn(&ProvidersFilterArgs) -> &[String],
    of: fn(&Entry) -> &[&'static str],
}

const FILTERS: [Filter; 9] = [
    Filter {
        name: "kind",
        given: |args| &args.kind,
        of: |entry| std::slice::from_ref(&entry.kind),
    },
    Filter {
        name: "category",
        given: |args| &args.category,
        of: |entry| std::slice::from_ref(&entry.category),
    },
    Filter {
        name: "target",
        given: |args| &args.target,
        of: |entry| entry.targets,
    },
    Filter {
        name: "feature",
        given: |args| &args.feature,
        of: |entry| entry.features,
    },
    Filter {
        name: "runtime",
        given: |args| &args.runtime,
        of: |entry| entry.runtime,
    },
    Filter {
        name: "reachability",
        given: |args| &args.reachability,
        of: |entry| entry.reachability,
    },
    Filter {
        name: "workspace",
        given: |args| &args.workspace,
        of: |entry| entry.workspace,
    },
    Filter {
        name: "evidence",
        given: |args| &args.evidence,
        of: |entry| entry.evidence,
    },
    Filter {
        name: "lifecycle",
        given: |args| &args.lifecycle,
        of: |entry| entry.lifecycle,
    },
];

impl Filter {
    /// The requested values; each occurrence of the flag may hold several, separated by commas.
    fn wanted(&self, args: &ProvidersFilterArgs) -> Vec<String> {
        let parts = (self.given)(args)
            .iter()
            .flat_map(|value| comma_list::items(value));
        parts.map(str::to_ascii_lowercase).collect()
    }

    /// All values that some entry has.
    fn values(&self, entries: &[Entry]) -> Vec<&'static str> {
        let all: BTreeSet<_> = entries
            .iter()
            .flat_map(|entry| (self.of)(entry))
            .copied()
            .collect();
        all.into_iter().collect()
    }
}

/// No provider has what a filter asks for.
#[derive(Debug, thiserror::Error)]
#[error("unknown provider {filter} filter {value:?}; {}", choices(.known))]
struct UnknownValue {
    filter: &'static str,
    value: String,
    known: Vec<&'static str>,
}

fn choices(known: &[&str]) -> String {
    if known.is_empty() {
        "no provider of this program has any".to_owned()
    } else {
        format!("try one of: {}", known.join(", "))
    }
}

impl Fault for UnknownValue {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        vec!["`crabbox providers filters` lists the possible values".to_owned()]
    }
}

/// Whether `args` asks for nothing.
pub(super) fn is_empty(args: &ProvidersFilterArgs) -> bool {
    FILTERS.iter().all(|filter| filter.wanted(args).is_empty())
}

/// Those of `entries` (the full list) that match every filter.
pub(super) fn chosen(entries: &[Entry], args: &ProvidersFilterArgs) -> Result<Vec<Entry>, CommandError> {
    let mut left = entries.to_vec();
    for filter in &FILTERS {
        let known = filter.values(entries);
        for value in filter.wanted(args) {
            if !known.contains(&value.as_str()) {
                return Err(UnknownValue {
                    filter: filter.name,
                    value,
                    known,
                }
                .into());
            }
            left.retain(|entry| (filter.of)(entry).contains(&value.as_str()));
        }
    }
    Ok(left)
}

/// The values that each filter accepts.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::commands) struct FilterValues {
    kind: Vec<&'static str>,
    category: Vec<&'static str>,
    target: Vec<&'static str>,
    feature: Vec<&'static str>,
    runtime: Vec<&'static str>,
    reachability: Vec<&'static str>,
    workspace: Vec<&'static str>,
    evidence: Vec<&'static str>,
    lifecycle: Vec<&'static str>,
}

/// `providers filters`.
pub(super) fn run(ctx: &Ctx<'_>, args: &ProvidersFiltersArgs) -> Result<Exit, CommandError> {
    let entries = catalogue::entries();
    if !args.json {
        ctx.printer.line("provider filter values:");
        for filter in &FILTERS {
            let values = joined(&filter.values(&entries));
            ctx.printer.line(format_args!("  {}: {values}", filter.name));
        }
        return Ok(Exit::SUCCESS);
    }
    let [
        kind,
        category,
        target,
        feature,
        runtime,
        reachability,
        workspace,
        evidence,
        lifecycle,
    ] = FILTERS.each_ref().map(|filter| filter.values(&entries));
    ctx.printer.json(&FilterValues {
        kind,
        category,
        target,
        feature,
        runtime,
        reachability,
        workspace,
        evidence,
        lifecycle,
    })?;
    Ok(Exit::SUCCESS)
}
