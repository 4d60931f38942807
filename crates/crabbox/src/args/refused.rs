//! Flags of the Go program whose feature does not exist here.
//!
//! They are known by name, so that a script gets a clear answer and exit code 2 instead of a machine without what it asked for.
//! A boolean one that is given as false asks for nothing and passes, and so does an empty requirement on the image.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::keys::boolean;
use crate::goflags::Refused;

/// A flag that is refused.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flag {
    name: &'static str,
    is_boolean: bool,
}

const fn value(name: &'static str) -> Flag {
    Flag {
        name,
        is_boolean: false,
    }
}

const fn switch(name: &'static str) -> Flag {
    Flag {
        name,
        is_boolean: true,
    }
}

/// Of commands that create leases.
pub(super) const CREATE: &[Flag] = &[
    value("market"),
    value("pond"),
    value("image-min-os"),
    value("image-sdk"),
    value("image-runtime"),
    switch("image-require-browser"),
    switch("image-require-webview2"),
    switch("image-require-desktop"),
    switch("tailscale"),
    value("tailscale-tags"),
    value("tailscale-hostname-template"),
    value("tailscale-auth-key-env"),
    value("tailscale-exit-node"),
    switch("tailscale-exit-node-allow-lan-access"),
];

/// Of `warmup`.
pub(super) const WARMUP: &[Flag] = &[value("lease-id"), switch("actions-runner")];

/// Of `prewarm`: all about the Actions workflow that hydrates a lease.
pub(super) const PREWARM: &[Flag] = &[
    switch("github-runner"),
    value("job"),
    value("repo"),
    value("ref"),
    value("workflow"),
    value("keep-alive-minutes"),
    value("wait-timeout"),
];

/// Of `stop`: what a coordinator knows.
pub(super) const STOP: &[Flag] = &[
    value("expected-provider-scope"),
    value("expected-coordinator-registration-url"),
    switch("confirmed-absent-local-cleanup"),
];

/// Of `run`.
pub(super) const RUN: &[Flag] = &[
    value("lease-output"),
    value("pool"),
    value("pool-compatibility-key"),
    value("pool-return"),
    value("fresh-pr"),
    switch("apply-local-patch"),
];

/// Of `list`.
pub(super) const LIST: &[Flag] = &[value("pond")];

/// Of `doctor`.
pub(super) const DOCTOR: &[Flag] = &[value("from-run"), value("pond")];

const ALL: &[&[Flag]] = &[CREATE, WARMUP, PREWARM, STOP, RUN, LIST, DOCTOR];

/// Adds the flags to a command, out of sight of its help.
pub(super) fn register(command: Command, flags: &[Flag]) -> Command {
    command.args(flags.iter().map(|flag| {
        let arg = Arg::new(flag.name).long(flag.name).hide(true);
        if flag.is_boolean {
            boolean(arg)
        } else {
            arg.action(ArgAction::Append)
        }
    }))
}

/// Whether one of `sets` has the flag called `name`.
pub(super) fn has(sets: &[&[Flag]], name: &str) -> bool {
    sets.iter().copied().flatten().any(|flag| flag.name == name)
}

/// Refuses matches in which one of the flags was given.
pub(super) fn check(matches: &ArgMatches) -> Result<(), Refused> {
    let mut matches = matches;
    while let Some((_, inner)) = matches.subcommand() {
        matches = inner;
    }
    let given = ALL.iter().copied().flatten().find(|flag| {
        let present = matches.try_contains_id(flag.name).unwrap_or(false)
            && matches.value_source(flag.name) == Some(ValueSource::CommandLine);
        present && !asks_for_nothing(flag, matches)
    });
    let text = |name| matches.try_get_one::<String>(name).ok().flatten();
    match given {
        Some(flag) => Err(Refused {
            flag: flag.name,
            provider: text("provider").cloned(),
            reuses: text("id").is_some(),
        }),
        None => Ok(()),
    }
}

/// Whether the flag is given in a way that asks for nothing.
fn asks_for_nothing(flag: &Flag, matches: &ArgMatches) -> bool {
    let mut values = matches.get_many::<String>(flag.name).into_iter().flatten();
    if flag.is_boolean {
        values.all(|value| value == "false")
    } else {
        flag.name == "image-min-os" && values.all(|value| value.trim().is_empty())
    }
}
