//! Flags that set configuration keys, made from the registry.
//!
//! A command names its groups; flag names, help and types come from the registry. Given values are passed on as text, for the configuration model to
//! validate.

use std::marker::PhantomData;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};
use crabbox_core::config::FlagValue;
use crabbox_core::config::key::{Flag, Group, KEYS, Key, Kind};

use super::refused;
use crate::goflags::Refused;

/// A set of key groups shared by several commands.
pub(crate) trait FlagSet {
    /// The groups of keys.
    const GROUPS: &'static [Group];
    /// Flags of features that do not exist here.
    const REFUSED: &'static [&'static [refused::Flag]];
}

/// The groups of every command that works on an existing lease.
pub(crate) const LEASE_GROUPS: &[Group] = &[
    Group::Provider,
    Group::ProviderOptions,
    Group::Target,
    Group::Network,
];
/// The groups of `run`.
pub(crate) const RUN_GROUPS: &[Group] = &[
    Group::Provider,
    Group::ProviderOptions,
    Group::Target,
    Group::Network,
    Group::Create,
    Group::Run,
];
const NEW_LEASE: &[Group] = &[
    Group::Provider,
    Group::ProviderOptions,
    Group::Target,
    Group::Network,
    Group::Create,
];

macro_rules! flag_sets {
    ($($(#[$doc:meta])+ $name:ident: $groups:expr, refusing $refused:expr;)+) => {
        $(
            $(#[$doc])+
            #[derive(Debug, Clone, Copy)]
            pub(crate) struct $name;

            impl FlagSet for $name {
                const GROUPS: &'static [Group] = $groups;
                const REFUSED: &'static [&'static [refused::Flag]] = $refused;
            }
        )+
    };
}

flag_sets! {
    /// Commands that work on an existing lease.
    LeaseSet: LEASE_GROUPS, refusing &[];
    /// `config show`.
    ConfigShowSet: LEASE_GROUPS, refusing &[refused::CONFIG_SHOW];
    /// `list`.
    ListSet: LEASE_GROUPS, refusing &[refused::LIST];
    /// `stop`.
    StopSet: LEASE_GROUPS, refusing &[refused::STOP];
    /// `prewarm`.
    PrewarmSet: NEW_LEASE, refusing &[refused::CREATE, refused::WARMUP, refused::PREWARM];
    /// `adapter external`.
    AdapterSet: NEW_LEASE, refusing &[];
    /// `doctor`.
    DoctorSet: &[Group::Provider, Group::ProviderOptions, Group::Target], refusing &[refused::DOCTOR];
    /// `warmup`.
    WarmupSet: NEW_LEASE, refusing &[refused::CREATE, refused::WARMUP];
    /// `run`.
    RunSet: RUN_GROUPS, refusing &[refused::CREATE, refused::RUN];
}

/// The flags of a set that were given, in the order of the registry.
#[derive(Debug, Clone)]
pub(crate) struct KeyFlags<S> {
    /// What was given.
    pub(crate) values: Vec<FlagValue>,
    set: PhantomData<S>,
}

fn keys<S: FlagSet>() -> impl Iterator<Item = (&'static Key, Flag)> {
    KEYS.iter()
        .filter_map(|key| key.flag.map(|flag| (key, flag)))
        .filter(|(_, flag)| S::GROUPS.contains(&flag.group))
}

fn argument(key: &'static Key, flag: Flag) -> Arg {
    let arg = Arg::new(flag.name)
        .long(flag.name)
        .help(key.doc.trim_end_matches('.'))
        .help_heading("Configuration");
    match key.kind {
        Kind::Bool => boolean(arg),
        Kind::List | Kind::Ports => arg.action(ArgAction::Append).value_name("LIST"),
        Kind::Text | Kind::Choice(_) => arg.action(ArgAction::Set).value_name("TEXT"),
        Kind::Path | Kind::Program => arg.action(ArgAction::Set).value_name("PATH"),
        Kind::Integer => arg.action(ArgAction::Set).value_name("NUMBER"),
        Kind::Port => arg.action(ArgAction::Set).value_name("PORT"),
        Kind::Duration => arg.action(ArgAction::Set).value_name("DURATION"),
    }
}

/// The flags for keys that a command was given, whatever its set.
pub(super) fn given(matches: &ArgMatches) -> Vec<FlagValue> {
    let known = |flag: &Flag| matches.try_contains_id(flag.name).is_ok();
    of(
        matches,
        KEYS.iter()
            .filter_map(|key| key.flag.map(|flag| (key, flag)))
            .filter(|(_, flag)| known(flag)),
    )
}

/// The values given for `keys`; the command must define all of them.
fn of(matches: &ArgMatches, keys: impl Iterator<Item = (&'static Key, Flag)>) -> Vec<FlagValue> {
    let given = |name: &str| matches.value_source(name) == Some(ValueSource::CommandLine);
    keys.filter(|(_, flag)| given(flag.name))
        .map(|(key, flag)| FlagValue {
            key: key.name,
            values: matches
                .try_get_many::<String>(flag.name)
                .ok()
                .flatten()
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
        })
        .collect()
}

/// Flags of `run` that set keys, looked up by name, as its argument parser would return them: in registry order, and only the last of a repeated flag
/// unless it takes several values. `Err` names a flag that `run` refuses.
pub(crate) fn flags_of_run(given: &[(&'static str, &str)]) -> Result<Vec<FlagValue>, Refused> {
    let refused = |name: &&(&'static str, &str)| refused::has(RunSet::REFUSED, name.0);
    if let Some((flag, _)) = given.iter().find(refused) {
        let text = |wanted: &str| {
            let last = given.iter().rfind(|(name, _)| *name == wanted);
            last.map(|(_, text)| (*text).to_owned())
        };
        return Err(Refused {
            flag,
            provider: text("provider"),
            lease: text("id"),
        });
    }
    let values = |(key, flag): (&'static Key, Flag)| {
        let values = given.iter().filter(|(name, _)| *name == flag.name);
        let mut values: Vec<String> = values.map(|(_, value)| (*value).to_owned()).collect();
        if !matches!(key.kind, Kind::List | Kind::Ports) {
            values.drain(..values.len().saturating_sub(1));
        }
        (!values.is_empty()).then_some(FlagValue {
            key: key.name,
            values,
        })
    };
    Ok(keys::<RunSet>().filter_map(values).collect())
}

/// A Go-style boolean flag: its value may be omitted, and is then true.
pub(super) fn boolean(arg: Arg) -> Arg {
    arg.action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .value_name("BOOL")
        .hide_possible_values(true)
        .hide_default_value(true)
}

impl<S: FlagSet> clap::Args for KeyFlags<S> {
    fn augment_args(command: Command) -> Command {
        let command = command.args(keys::<S>().map(|(key, flag)| argument(key, flag)));
        S::REFUSED.iter().copied().fold(command, refused::register)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<S: FlagSet> FromArgMatches for KeyFlags<S> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self {
            values: of(matches, keys::<S>()),
            set: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
