//! Leasing a machine for a command: configuration to request, request to lease, with the words for what happens on the way.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_core::config::{Provider as Which, ProviderError, Settings};
use crabbox_core::fault::{Fault, Kind};
use crabbox_engine::adopt;
use crabbox_engine::context::{Engine, OpenError};
use crabbox_engine::event::Event as Made;
use crabbox_engine::firecracker::AcquiredLease;
use crabbox_engine::lease::Lease;
use crabbox_engine::prepare::NewLease;
use crabbox_engine::provider::{self, LeaseError, Notice, Provider};
use crabbox_host::command::Cmd;
use crabbox_host::signals::{Interrupts, SignalError};

use crate::commands::setup;
use crate::context::Ctx;
use crate::env::EnvError;
use crate::ui::{CommandError, Event};

/// What a command wants of a new lease beyond its configuration.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// The slug asked for.
    pub(super) slug: Option<String>,
    /// Whether to keep it.
    pub(super) keep: bool,
    /// Whether to set this host up when it never was.
    pub(super) set_up: bool,
    /// Whether a claim of another repository is taken over.
    pub(super) reclaim: bool,
}

/// The engine for this environment, after leases whose supervisor has died were given a new one.
pub(super) fn engine(ctx: &Ctx<'_>) -> Result<Engine, EngineError> {
    let engine = looking_engine(ctx)?;
    // Records that cannot be read are told by the commands that need them.
    adopt::orphans(&engine).ok();
    Ok(engine)
}

/// The engine for a command that changes nothing at all.
pub(super) fn looking_engine(ctx: &Ctx<'_>) -> Result<Engine, EngineError> {
    let exe = std::env::current_exe().map_err(EngineError::Exe)?;
    let runtime = ctx.env.os("XDG_RUNTIME_DIR").map(Path::new);
    let failpoint = ctx.env.text("CRABBOX_TEST_FAILPOINT").unwrap_or_default();
    Ok(Engine::open(
        ctx.env.places()?,
        exe,
        ctx.env.path(),
        runtime,
        failpoint,
    )?)
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub(super) enum EngineError {
    /// This program cannot find itself.
    #[error("cannot find this program's own file")]
    Exe(#[source] std::io::Error),
    /// The environment does not say where state is.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// There is no place for SSH sockets.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Signals cannot be watched.
    #[error(transparent)]
    Signals(#[from] SignalError),
}

impl Fault for EngineError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Env(error) => error.hints(),
            _ => Vec::new(),
        }
    }
}

/// Watches for Ctrl-C from here on.
pub(super) fn interrupts() -> Result<Interrupts, EngineError> {
    Ok(Interrupts::install()?)
}

/// Leases a machine and claims it for the repository we stand in.
pub(super) fn acquire(
    ctx: &Ctx<'_>,
    engine: &Engine,
    settings: &Settings,
    wanted: &Wanted,
    interrupts: &Interrupts,
) -> Result<(Box<dyn Provider>, AcquiredLease), CommandError> {
    let stage = ctx.printer.stage("lease");
    let which = match settings.provider() {
        // A user who has chosen nothing yet and wants the host set up gets what setup chooses.
        Err(ProviderError::NotSelected) if wanted.set_up => {
            setup::offer(ctx, engine, settings, true, None)?;
            Which::Firecracker
        }
        chosen => chosen?,
    };
    let provider = provider::open(which, engine, settings);
    let new = NewLease {
        slug: wanted.slug.clone(),
        keep: wanted.keep,
        reclaim: wanted.reclaim,
    };
    let repo = repository(ctx.env.cwd()?);
    let acquire = || provider.acquire(&new, &repo, interrupts, &mut |notice| show(ctx, notice));
    let mut acquired = acquire();
    if let Err(LeaseError::Prepare(error)) = &acquired
        && setup::offer(ctx, engine, settings, wanted.set_up, Some(error))?
    {
        acquired = acquire();
    }
    // Once, as the Go program does when a machine does not come up.
    if let Err(LeaseError::Acquire(error)) = &acquired
        && error.is_passing()
        && interrupts.caught().is_none()
    {
        ctx.printer.warn(format_args!(
            "bootstrap failed; retrying with fresh lease: {error}"
        ));
        acquired = acquire();
    }
    let acquired = acquired.inspect_err(|error| show_console(ctx, error))?;
    stage.end(true);
    leased(ctx, &acquired.lease, true);
    if which == Which::Firecracker {
        let lease = &acquired.lease;
        ctx.printer.note(format_args!(
            "provisioned provider=firecracker lease={} vmid={} ip={}",
            lease.id, lease.name, lease.address
        ));
    }
    Ok((provider, acquired))
}

/// Tells a program which lease a command is about.
pub(super) fn leased(ctx: &Ctx<'_>, lease: &Lease, new: bool) {
    ctx.printer.event(&Event::Leased {
        lease: &lease.id,
        slug: &lease.slug,
        provider: lease.provider,
        address: &lease.address,
        new,
    });
}

/// What a provider tells on the way.
fn show(ctx: &Ctx<'_>, notice: &Notice<'_>) {
    match notice {
        Notice::Machine(Made::Stage(stage)) => {
            let name = format!("lease/{}", stage.name);
            ctx.printer.event(&Event::StageEnded {
                stage: &name,
                seconds: Duration::from_micros(stage.micros).as_secs_f64(),
                ok: true,
            });
        }
        Notice::Machine(_) => {}
        Notice::Using {
            lease,
            slug,
            host,
            keep,
        } => ctx.printer.note(format_args!(
            "using static target lease={lease} slug={slug} target=linux windows_mode=normal host={host} keep={keep}"
        )),
        Notice::Waiting(progress) => ctx.printer.note(progress),
    }
}

/// A machine that did not come up has something to say; its console is gone with it otherwise.
fn show_console(ctx: &Ctx<'_>, error: &LeaseError) {
    let lines = error.console();
    if lines.is_empty() {
        return;
    }
    ctx.printer
        .note(format_args!("console tail last {} lines:", lines.len()));
    for line in lines {
        ctx.printer.note(format_args!("  {line}"));
    }
}

/// The root of the git repository around `cwd`, else `cwd` itself.
pub(super) fn repository(cwd: &Path) -> PathBuf {
    let asked = Cmd::new("git")
        .args(["rev-parse", "--show-toplevel"])
        .cwd(cwd)
        .run();
    match asked {
        Ok(answer) => {
            use std::os::unix::ffi::OsStringExt as _;
            let mut bytes = answer.stdout;
            bytes.truncate(bytes.trim_ascii_end().len());
            PathBuf::from(OsString::from_vec(bytes))
        }
        Err(_) => cwd.to_owned(),
    }
}
