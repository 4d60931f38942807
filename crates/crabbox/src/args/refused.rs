//! Flags of the Go program whose feature does not exist here.
//!
//! They are known by name, so that a script gets a clear error and exit code 2 instead of a machine that lacks what it asked for. A boolean given as
//! false, an empty text, or a blank requirement on the image, asks for nothing and passes.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::keys::boolean;
use crate::goflags::Refused;

/// A flag that is refused.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flag {
    name: &'static str,
    shape: Shape,
}

/// The type of its value in the Go program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Text,
    Boolean,
    /// A number or a duration: an empty value is not one.
    Quantity,
}

const fn value(name: &'static str) -> Flag {
    let shape = Shape::Text;
    Flag { name, shape }
}

const fn switch(name: &'static str) -> Flag {
    let shape = Shape::Boolean;
    Flag { name, shape }
}

const fn quantity(name: &'static str) -> Flag {
    let shape = Shape::Quantity;
    Flag { name, shape }
}

/// Flags of commands that create leases.
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

/// Flags of `warmup`.
pub(super) const WARMUP: &[Flag] = &[value("lease-id"), switch("actions-runner")];

/// Flags of `prewarm`: all of them concern the Actions workflow that hydrates a lease.
pub(super) const PREWARM: &[Flag] = &[
    switch("github-runner"),
    value("job"),
    value("repo"),
    value("ref"),
    value("workflow"),
    quantity("keep-alive-minutes"),
    quantity("wait-timeout"),
];

/// Flags of `stop`: they name things that only a coordinator knows.
pub(super) const STOP: &[Flag] = &[
    value("expected-provider-scope"),
    value("expected-coordinator-registration-url"),
    switch("confirmed-absent-local-cleanup"),
];

/// Flags of `run`.
pub(super) const RUN: &[Flag] = &[
    value("lease-output"),
    value("pool"),
    value("pool-compatibility-key"),
    value("pool-return"),
    value("fresh-pr"),
    switch("apply-local-patch"),
];

/// Flags of `list`.
pub(super) const LIST: &[Flag] = &[value("pond")];

/// Flags of `config show`.
pub(super) const CONFIG_SHOW: &[Flag] = &[switch("controller-provider-identity")];

/// Flags of `doctor`.
pub(super) const DOCTOR: &[Flag] = &[value("from-run"), value("pond")];

const ALL: &[&[Flag]] = &[CREATE, WARMUP, PREWARM, STOP, RUN, LIST, CONFIG_SHOW, DOCTOR];

/// Adds the flags to a command, hidden from its help.
pub(super) fn register(command: Command, flags: &[Flag]) -> Command {
    command.args(flags.iter().map(|flag| {
        let arg = Arg::new(flag.name).long(flag.name).hide(true);
        match flag.shape {
            Shape::Boolean => boolean(arg),
            // An empty value is dropped before this check, like that of any other text flag.
            Shape::Text => arg.action(ArgAction::Set),
            Shape::Quantity => arg.action(ArgAction::Append),
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
            lease: text("id").cloned(),
        }),
        None => Ok(()),
    }
}

/// Whether the flag's value asks for nothing (`false`, or an empty requirement).
fn asks_for_nothing(flag: &Flag, matches: &ArgMatches) -> bool {
    let mut values = matches.get_many::<String>(flag.name).into_iter().flatten();
    if flag.shape == Shape::Boolean {
        values.all(|value| value == "false")
    } else {
        flag.name == "image-min-os" && values.all(|value| value.trim().is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_is_refused_with_its_reason() {
        for flag in ALL.iter().copied().flatten() {
            let refused = Refused {
                flag: flag.name,
                provider: None,
                lease: None,
            };
            let said = refused.by("firecracker").to_string();
            // This message is the Go program's own; it says "yet".
            let is_its_own = flag.name == "lease-output";
            assert!(is_its_own || !said.contains("yet"), "{}: {said}", flag.name);
        }
    }
}
