//! Flags of the Go program whose feature does not exist here.
//!
//! They are known by name, so that a script gets a clear answer and exit code 2 instead of a machine without what it asked for.
//! A boolean one that is given as false asks for nothing and passes.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::keys::boolean;
use crate::goflags::Problem;

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
    value("expose"),
    value("cache-volume"),
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

/// Of `run`.
pub(super) const RUN: &[Flag] = &[
    value("require-artifact-schema"),
    value("scenario"),
    value("preset-var"),
    switch("emit-proof"),
    value("proof-template"),
    switch("attest"),
    value("attest-key"),
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

const ALL: &[&[Flag]] = &[CREATE, WARMUP, RUN, LIST, DOCTOR];

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

/// Refuses matches in which one of the flags was given.
pub(super) fn check(matches: &ArgMatches) -> Result<(), Problem> {
    let mut matches = matches;
    while let Some((_, inner)) = matches.subcommand() {
        matches = inner;
    }
    let given = ALL.iter().copied().flatten().find(|flag| {
        let present = matches.try_contains_id(flag.name).unwrap_or(false)
            && matches.value_source(flag.name) == Some(ValueSource::CommandLine);
        present
            && !(flag.is_boolean
                && matches
                    .get_one::<String>(flag.name)
                    .is_some_and(|value| value == "false"))
    });
    match given {
        Some(flag) => Err(Problem::Other {
            message: reason(flag.name),
        }),
        None => Ok(()),
    }
}

/// Why the flag is refused, in the Go program's words where it refuses it too.
fn reason(name: &str) -> String {
    match name {
        "lease-id" => "provider=firecracker does not support fixed idempotent lease IDs".to_owned(),
        "lease-output" => "--lease-output is not supported for provider=firecracker yet".to_owned(),
        "pool" => "--pool requires a coordinator-backed SSH lease provider".to_owned(),
        "from-run" => "doctor --from-run requires a configured coordinator".to_owned(),
        name if name.starts_with("tailscale") => {
            "provider=firecracker does not support tailscale-managed networking".to_owned()
        }
        name => format!("--{name} is not supported by this program yet"),
    }
}
