//! `run`: a command in a lease, with the working tree as it stands here.

mod command;
mod error;
mod failure;
mod finish;
mod profile;
mod report;
mod request;
mod results;
mod streams;

use std::os::fd::AsFd as _;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crabbox_core::config::Settings;
use crabbox_core::id::RunId;
use crabbox_engine::context::Engine;
use crabbox_engine::lease::{Lease, Target};
use crabbox_engine::provider::Provider;
use crabbox_engine::resolve::{Purpose, ResolveError};
use crabbox_engine::run::owner::{self, Owner};
use crabbox_engine::run::preflight;
use crabbox_engine::run::{self, Repo, SyncChoice};
use crabbox_host::signals::Interrupts;

use crate::args::RunArgs;
use crate::commands::acquire::{self, Wanted};
use crate::commands::progress::SyncProgress;
use crate::commands::route;
use crate::context::Ctx;
use crate::go;
use crate::ui::{CommandError, Exit};
use command::Variables;
use error::RunFailure;
pub(super) use failure::BundledRun;
use finish::Finish;
use report::Summary;
use request::Request;

/// How long a look at the tree stays good while the lease's side is waited for.
const LOOK_HOLDS: Duration = Duration::from_secs(1);

/// What a look at the tree gives.
type Looked = Result<(run::Load, Result<(), run::GuardrailError>), run::SyncError>;

/// A run on its way.
struct Run<'a> {
    ctx: &'a Ctx<'a>,
    args: &'a RunArgs,
    request: &'a Request,
    settings: &'a Settings,
    engine: &'a Engine,
    provider: &'a dyn Provider,
    repo: &'a Repo,
    interrupts: &'a Interrupts,
    id: RunId,
    variables: Variables,
}

pub(super) fn run(ctx: &Ctx<'_>, args: &RunArgs) -> Result<Exit, CommandError> {
    if args.results.json_events {
        ctx.printer.tell_events();
    }
    // The words are judged before anything else happens.
    let request = Request::new(args)?;
    run_request(ctx, args, request, &acquire::interrupts()?)
}

/// The same for a command that runs others and watches for Ctrl-C itself.
pub(super) fn within(ctx: &Ctx<'_>, args: &RunArgs, interrupts: &Interrupts) -> Result<Exit, CommandError> {
    run_request(ctx, args, Request::new(args)?, interrupts)
}

fn run_request(
    ctx: &Ctx<'_>,
    args: &RunArgs,
    request: Request,
    interrupts: &Interrupts,
) -> Result<Exit, CommandError> {
    let started = Instant::now();
    let settings = ctx.settings(&args.keys.values)?.settings;
    let request = &request.configured(&settings, args.command.preset.as_deref())?;
    let variables = command::variables(ctx, args, &settings)?;
    let repo = run::look(ctx.env.cwd()?)?;
    if !args.sync.no_sync {
        run::check(&repo)?;
    }
    let engine = acquire::engine(ctx)?;
    let id = RunId::from_random(crabbox_host::random::bytes().map_err(RunFailure::Random)?);
    let (provider, lease, new) = lease(ctx, args, &settings, &engine, &repo, interrupts)
        .inspect_err(|error| report::classification(ctx, error))?;
    let run = Run {
        ctx,
        args,
        request,
        settings: &settings,
        engine: &engine,
        provider: provider.as_ref(),
        repo: &repo,
        interrupts,
        id,
        variables,
    };
    let mut summary = Summary::default();
    summary.outcome.lease = new.then(|| started.elapsed());
    let mut owner = None;
    let outcome = run.inside(&lease, &mut summary, &mut owner);
    run.finish(
        &lease,
        Finish {
            new,
            started,
            summary,
            owner,
            outcome,
        },
    )
}

/// The lease that was named, or a new one, with its provider; and whether it is new.
fn lease(
    ctx: &Ctx<'_>,
    args: &RunArgs,
    settings: &Settings,
    engine: &Engine,
    repo: &Repo,
    interrupts: &Interrupts,
) -> Result<(Box<dyn Provider>, Lease, bool), CommandError> {
    if let Some(name) = &args.id {
        let provider = route::of_lease(engine, settings, name, "run")?;
        let lease = provider.resolve(name, Purpose::Use)?;
        provider.claim(&lease, &repo.root, args.reclaim)?;
        acquire::leased(ctx, &lease, false);
        return Ok((provider, lease, false));
    }
    let wanted = Wanted {
        slug: args.slug.clone(),
        keep: args.keep,
        set_up: args.yes,
        reclaim: args.reclaim,
    };
    let (provider, acquired) = acquire::acquire(ctx, engine, settings, &wanted, interrupts)?;
    Ok((provider, acquired.lease, true))
}

impl Run<'_> {
    /// Everything that happens in the lease.
    fn inside(
        &self,
        lease: &Lease,
        summary: &mut Summary,
        owner: &mut Option<Owner>,
    ) -> Result<(), CommandError> {
        let target = lease
            .target
            .clone()
            .ok_or_else(|| ResolveError::NoAddress { id: lease.id.clone() })?;
        let destination = run::destination(lease, self.repo);
        let workdir = destination.workdir();
        if !self.args.sync.no_sync {
            let root = self.repo.root.display();
            self.ctx
                .printer
                .note(format_args!("syncing {root} -> {}:{workdir}", lease.address));
        }
        report::context(self.ctx, lease, self.id.as_str(), &workdir);
        let outcome = &mut summary.outcome;
        outcome.run_id = self.id.to_string();
        outcome.workdir.clone_from(&workdir);
        outcome.repo_path = self.repo.root.display().to_string();
        outcome.label = self.args.command.label.clone().unwrap_or_default();
        let mut opened = None;
        let bringing = if self.args.sync.no_sync {
            None
        } else {
            // The lease's side starts meanwhile, if that opens no second connection.
            opened = run::is_connected(&target).then(|| self.open(&target, &destination));
            Some(self.look()?)
        };
        self.provider.touch(lease, Some("running"), None)?;
        summary.stage = Some("ssh");
        let owner = owner.insert(self.own(lease, &target, &mut opened)?);
        summary.stage = None;
        if let Some(look) = bringing {
            summary.stage = Some("sync");
            // Whoever waited for the tree wants it as it is now.
            let look = if owner.wait < LOOK_HOLDS {
                look
            } else {
                self.look()?
            };
            let opened = opened.unwrap_or_else(|| self.open(&target, &destination));
            self.sync(lease, opened.begin(), look, summary)?;
            summary.stage = None;
        } else {
            run::make_workdir(&target, &workdir)?;
        }
        if self.args.sync.sync_only {
            self.ctx.printer.line(format_args!("synced {workdir}"));
            return Ok(());
        }
        if self.request.preflight {
            self.ctx.printer.note("preflight:");
            for line in preflight::preflight(&target, &self.settings.preflight_tools.value)? {
                self.ctx
                    .printer
                    .note(format_args!("  {}", crabbox_host::console::harmless(&line)));
            }
        }
        self.command(lease, &target, owner, summary)
    }

    /// Waits until nobody else is in the tree; `opened` is given up where somebody is.
    fn own(
        &self,
        lease: &Lease,
        target: &Target,
        opened: &mut Option<run::Opened>,
    ) -> Result<Owner, CommandError> {
        let printer = self.ctx.printer;
        // sshd has ten sessions for a connection unless it is told otherwise: who waits holds one of them, not two.
        let mut held = || *opened = None;
        let waiting = |elapsed, state: &str| {
            printer.note(format_args!(
                "waiting for reusable workspace owner elapsed={} state={state}",
                go::seconds(i64::try_from(Duration::as_secs(&elapsed)).unwrap_or(i64::MAX))
            ));
        };
        let stage = printer.stage("workspace");
        let owner = owner::own(target, &lease.id, self.interrupts.as_fd(), &mut held, &waiting)?;
        stage.end(true);
        printer.note(format_args!(
            "workspace owner acquired wait={} recovered={}",
            go::milliseconds(owner.wait),
            owner.recovered
        ));
        Ok(owner)
    }

    /// Begins to look at the tree here, which goes on while the lease's side makes ready.
    fn look(&self) -> Result<JoinHandle<Looked>, CommandError> {
        let (repo, settings) = (self.repo.clone(), self.settings.sync.clone());
        let places = self.ctx.env.places()?;
        Ok(std::thread::spawn(move || run::load(&repo, &settings, &places)))
    }

    /// Starts the lease's side of the sync, which waits until the tree is ours.
    fn open(&self, target: &Target, destination: &run::Destination) -> run::Opened {
        run::open(target, destination, &self.settings.sync, self.choice())
    }

    fn choice(&self) -> SyncChoice {
        SyncChoice {
            full_resync: self.args.sync.full_resync,
            allow_mass_deletions: self.ctx.env.text("CRABBOX_ALLOW_MASS_DELETIONS") == Some("1"),
        }
    }

    fn sync(
        &self,
        lease: &Lease,
        begun: run::Begun,
        look: JoinHandle<Looked>,
        summary: &mut Summary,
    ) -> Result<(), CommandError> {
        let started = Instant::now();
        let stage = self.ctx.printer.stage("sync");
        let base_ref = &self.settings.sync.base_ref;
        if !base_ref.value.is_empty() {
            self.ctx.printer.warn(format_args!(
                "sync.baseRef ({}) has no effect: the lease gets the commit of HEAD and no other branch",
                base_ref.origin
            ));
        }
        let looked = look
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let (load, verdict) = looked?;
        for line in &load.lines {
            self.ctx.printer.note(line);
        }
        verdict.map_err(run::SyncError::from)?;
        if self.args.sync.full_resync {
            self.ctx.printer.note(format_args!(
                "full-resync resetting remote workdir {}",
                summary.outcome.workdir
            ));
        }
        let progress = SyncProgress::new(self.ctx.printer);
        let done = run::sync(begun, &load, &progress);
        progress.finish(done.is_ok());
        if let Err(error) = &done
            && error.lost_connection()
            && self.went_down(lease)
        {
            summary.down = true;
            self.ctx
                .printer
                .warn("the machine of the lease went down while files were sent");
        }
        let done = done?;
        stage.end(true);
        let took = started.elapsed();
        summary.outcome.sync = took;
        summary.outcome.sync_skipped = done.skipped;
        summary.steps = std::iter::once(("manifest", load.took))
            .chain(done.steps)
            .collect();
        let took = go::milliseconds(took);
        if self.args.sync.debug {
            for (step, took) in &summary.steps {
                self.ctx
                    .printer
                    .note(format_args!("sync step {step} {}", go::milliseconds(*took)));
            }
        }
        if done.skipped {
            self.ctx
                .printer
                .note(format_args!("No changes detected, skipping sync ({took})"));
        } else {
            self.ctx.printer.note(format_args!("sync complete in {took}"));
        }
        Ok(())
    }
}
