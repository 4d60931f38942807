//! The flags of `run` with their types and compiled-in defaults, for `providers describe`.
//!
//! They are read from clap's own definition of the command line. A refused flag must never be among them.

use clap::{Arg, ArgAction};
use crabbox_core::config::key::{Group, KEYS, Key, Kind};

use super::keys::{FlagSet, RunSet};
use super::{command, refused};

/// A flag of `run`.
#[derive(Debug)]
pub(crate) struct DescribedFlag {
    /// Its name without dashes.
    pub(crate) name: String,
    /// Whether it belongs to one provider.
    pub(crate) of_provider: bool,
    /// Its help text.
    pub(crate) usage: String,
    /// Its default as it would be typed; empty where there is none.
    pub(crate) default: String,
    /// The type of its value.
    pub(crate) kind: FlagType,
}

/// The type of a flag's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlagType {
    /// Yes or no.
    Bool,
    /// A whole number.
    Int,
    /// A span of time.
    Duration,
    /// Any other single value.
    Text,
    /// Several texts: the flag is repeated, or its values are separated by commas.
    List,
}

/// The flags that `run` takes, other spellings included, sorted by name.
pub(crate) fn described_flags() -> Vec<DescribedFlag> {
    let root = command();
    let run = root.find_subcommand("run");
    let arguments = run.into_iter().flat_map(clap::Command::get_arguments);
    let mut flags: Vec<DescribedFlag> = arguments.flat_map(described).collect();
    flags.sort_by(|one, other| one.name.cmp(&other.name));
    flags
}

/// One entry per name of the argument; none for help, for global flags, and for refused flags.
fn described(arg: &Arg) -> Vec<DescribedFlag> {
    let Some(long) = arg.get_long() else {
        return Vec::new();
    };
    if matches!(long, "help" | "v" | "vv") || refused::has(RunSet::REFUSED, long) {
        return Vec::new();
    }
    let key = KEYS
        .iter()
        .find(|key| key.flag.is_some_and(|flag| flag.name == long));
    let aliases = arg.get_all_aliases().unwrap_or_default();
    let names = std::iter::once(long).chain(aliases);
    names
        .map(|name| DescribedFlag {
            name: name.to_owned(),
            of_provider: key
                .and_then(|key| key.flag)
                .is_some_and(|flag| flag.group == Group::ProviderOptions),
            usage: arg.get_help().map(ToString::to_string).unwrap_or_default(),
            default: key.map_or_else(|| default(arg), |key| key.default.to_owned()),
            kind: key.map_or_else(|| kind(arg), of_key),
        })
        .collect()
}

fn default(arg: &Arg) -> String {
    let first = arg.get_default_values().first();
    first
        .map(|value| value.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn kind(arg: &Arg) -> FlagType {
    if arg.get_num_args().is_some_and(|range| range.min_values() == 0) {
        FlagType::Bool
    } else if matches!(arg.get_action(), ArgAction::Append) {
        FlagType::List
    } else {
        FlagType::Text
    }
}

fn of_key(key: &Key) -> FlagType {
    match key.kind {
        Kind::Bool => FlagType::Bool,
        Kind::Integer => FlagType::Int,
        Kind::Duration => FlagType::Duration,
        Kind::List | Kind::Ports => FlagType::List,
        // The Go program treats ports as texts.
        Kind::Text | Kind::Path | Kind::Program | Kind::Port | Kind::Choice(_) => FlagType::Text,
    }
}
