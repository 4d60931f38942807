//! `doctor`: whether this host can lease machines, and what mends it where it cannot.

use std::path::PathBuf;

use crabbox_core::config::key::Name;
use crabbox_core::config::{FlagValue, Provider as Which};
use crabbox_core::fault::{Fault, Kind};
use crabbox_engine::context::Engine;
use crabbox_engine::doctor::{self, Check, Options};
use crabbox_engine::resolve::Purpose;
use schemars::JsonSchema;
use serde::Serialize;

use crate::args::DoctorArgs;
use crate::commands::{acquire, route};
use crate::context::Ctx;
use crate::env::EnvError;
use crate::ui::{CommandError, Exit};

/// The document of `--json`.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct DoctorView<'a> {
    /// Whether no check came out as `missing` or `failed`.
    ok: bool,
    /// The provider that was chosen; empty when none was.
    provider: &'a str,
    /// The checks, in the order in which they are shown.
    checks: &'a [Check],
}

/// How the doctor fails.
#[derive(Debug, thiserror::Error)]
enum DoctorError {
    /// A check found something.
    #[error("doctor found problems")]
    Problems,
    /// A flag for another provider than the one that was chosen.
    #[error("--doctor-probe-ssh needs provider=ssh")]
    NotSsh,
}

impl Fault for DoctorError {
    fn kind(&self) -> Kind {
        match self {
            Self::Problems => Kind::Problems,
            Self::NotSsh => Kind::Usage,
        }
    }
}

pub(super) fn run(ctx: &Ctx<'_>, args: &DoctorArgs) -> Result<Exit, CommandError> {
    let mut flags = args.keys.values.clone();
    flags.extend(args.profile.iter().map(|profile| FlagValue {
        key: Name::Profile,
        values: vec![profile.clone()],
    }));
    let settings = ctx.settings(&flags)?.settings;
    if args.doctor_probe_ssh && settings.provider() != Ok(Which::Ssh) {
        return Err(DoctorError::NotSsh.into());
    }
    let engine = onlooker(ctx)?;
    let options = Options {
        config_file: ctx.env.user_config()?,
        ssh_key: ctx.env.os("CRABBOX_SSH_KEY").map(PathBuf::from),
        probe: args.probe,
        prepare: args.prepare_check,
        probe_ssh: args.doctor_probe_ssh,
    };
    let mut checks = doctor::run(&engine, &settings, &options);
    if let Some(lease) = &args.id {
        let provider = route::of_lease(&acquire::looking_engine(ctx)?, &settings, lease, "doctor")?;
        let remote = doctor::remote(&provider.resolve(lease, Purpose::Use)?)?;
        let place = checks
            .iter()
            .position(|check| check.check == "ssh-key")
            .unwrap_or(checks.len());
        checks.insert(place, remote);
    }
    let ok = doctor::is_well(&checks);
    if args.json {
        let provider = settings.provider().map_or("", |provider| provider.name());
        ctx.printer.json(&DoctorView {
            ok,
            provider,
            checks: &checks,
        })?;
    } else {
        show(ctx, &checks);
    }
    if ok {
        Ok(Exit::SUCCESS)
    } else {
        Err(DoctorError::Problems.into())
    }
}

/// An engine that only looks: opening a real one makes the directory for the sockets of SSH connections.
fn onlooker(ctx: &Ctx<'_>) -> Result<Engine, EnvError> {
    Ok(Engine {
        places: ctx.env.places()?,
        exe: PathBuf::new(),
        path: ctx.env.path().to_owned(),
        control_dir: PathBuf::new(),
        failpoint: String::new(),
    })
}

/// The lines that the Go program prints, on standard output; what mends a check follows on standard error.
fn show(ctx: &Ctx<'_>, checks: &[Check]) {
    for check in checks {
        ctx.printer.line(check);
        if let Some(fix) = check.details.get("fix") {
            ctx.printer.note(format_args!("        fix: {fix}"));
        }
    }
}
