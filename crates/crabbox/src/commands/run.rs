//! `run`: a command in a lease, with the working tree as it stands here.

mod failure;
mod profile;
mod report;
mod request;
mod results;
mod streams;

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crabbox_core::config::Settings;
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::id::RunId;
use crabbox_engine::context::Engine;
use crabbox_engine::lease::{Lease, Target};
use crabbox_engine::provider::{LeaseError, Provider};
use crabbox_engine::resolve::{Purpose, ResolveError};
use crabbox_engine::run::owner::{self, Owner};
use crabbox_engine::run::preflight;
use crabbox_engine::run::{self, Job, RemoteStatus, Repo, Sink, SyncChoice};
use crabbox_host::signals::Interrupts;

use crate::args::{RunArgs, StopAfter};
use crate::commands::acquire::{self, Wanted};
use crate::commands::progress::SyncProgress;
use crate::commands::route;
use crate::context::Ctx;
use crate::go;
use crate::timing::{Outcome, TimingJson};
use crate::ui::{CommandError, Exit};
use profile::ProfileError;
use report::{Ended, Summary};
use request::Request;
use streams::{Phases, Tee, To};

/// Why a run ended without the command's own exit code being enough of an answer.
#[derive(Debug, thiserror::Error)]
enum RunFailure {
    /// The command failed.
    #[error("remote command exited {0}")]
    Exited(u8),
    /// The connection broke.
    #[error("the connection to the lease was lost while the command ran; it may or may not have ended")]
    Lost,
    /// The shell around the command was killed.
    #[error("the command was killed in the lease")]
    Killed,
    /// The user interrupted.
    #[error("interrupted{}", if *.stopped { "; the command in the lease was stopped" } else { "; the command in the lease may still run" })]
    Interrupted {
        /// Whether the remote processes are known to be gone.
        stopped: bool,
    },
    /// No run id could be drawn.
    #[error("cannot draw a run id")]
    Random(#[source] std::io::Error),
    /// A capture file cannot be made.
    #[error("cannot write {}", path.display())]
    Capture {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The lease could not be given back after a run that worked.
    #[error("lease cleanup failed for {id}")]
    Cleanup {
        /// The lease.
        id: String,
        /// Why.
        #[source]
        source: LeaseError,
    },
}

impl Fault for RunFailure {
    fn kind(&self) -> Kind {
        match self {
            Self::Exited(code) => Kind::Passthrough(*code),
            // What ssh itself exits with when its connection breaks.
            Self::Lost => Kind::Passthrough(255),
            // 128 and the signal's number, as shells have it.
            Self::Killed => Kind::Passthrough(137),
            Self::Interrupted { .. } => Kind::Passthrough(130),
            Self::Cleanup { .. } => Kind::Remote,
            Self::Random(_) | Self::Capture { .. } => Kind::Usage,
        }
    }
}

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

/// Variables for the command that come from here.
#[derive(Debug, Default)]
struct Variables {
    /// What may be handed on, by name or `PREFIX*`.
    allow: Vec<String>,
    /// Those of `--env-from-profile`.
    profile: Vec<(String, String)>,
}

pub(super) fn run(ctx: &Ctx<'_>, args: &RunArgs) -> Result<Exit, CommandError> {
    let started = Instant::now();
    let request = Request::new(args)?;
    let settings = ctx.settings(&args.keys.values)?.settings;
    let variables = variables(ctx, args, &settings)?;
    let repo = run::look(ctx.env.cwd()?)?;
    if !args.sync.no_sync {
        run::check(&repo)?;
    }
    let engine = acquire::engine(ctx)?;
    let interrupts = acquire::interrupts()?;
    let id = RunId::from_random(crabbox_host::random::bytes().map_err(RunFailure::Random)?);
    let (provider, lease, new) = lease(ctx, args, &settings, &engine, &repo, &interrupts)
        .inspect_err(|error| report::classification(ctx, error))?;
    let run = Run {
        ctx,
        args,
        request: &request,
        settings: &settings,
        engine: &engine,
        provider: provider.as_ref(),
        repo: &repo,
        interrupts: &interrupts,
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

/// What is there when everything in the lease is done.
struct Finish {
    new: bool,
    started: Instant,
    summary: Summary,
    owner: Option<Owner>,
    outcome: Result<(), CommandError>,
}

/// The variables that the command line and the configuration let through.
fn variables(ctx: &Ctx<'_>, args: &RunArgs, settings: &Settings) -> Result<Variables, CommandError> {
    let command = &args.command;
    let mut allow = settings.env_allow.value.clone();
    allow.extend(
        command
            .allow_env
            .iter()
            .flat_map(|list| list.split(','))
            .map(str::to_owned),
    );
    let mut profile = profile::read(&command.env_from_profile, ctx.env.cwd()?)?;
    profile.retain(|(name, _)| request::is_allowed(name, &allow));
    if let Some(name) = &command.env_helper {
        profile::helper(name)?;
        if profile.is_empty() {
            return Err(ProfileError::NothingForHelper.into());
        }
    }
    Ok(Variables { allow, profile })
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
        self.provider.touch(lease, Some("running"), None)?;
        summary.stage = Some("ssh");
        let owner = owner.insert(self.own(lease, &target)?);
        summary.stage = None;
        if self.args.sync.no_sync {
            run::make_workdir(&target, &workdir)?;
        } else {
            summary.stage = Some("sync");
            self.sync(&target, &destination, summary)?;
            summary.stage = None;
        }
        if self.args.sync.sync_only {
            self.ctx.printer.line(format_args!("synced {workdir}"));
            return Ok(());
        }
        if self.args.command.preflight {
            self.ctx.printer.note("preflight:");
            for line in preflight::preflight(&target, &self.settings.preflight_tools.value)? {
                self.ctx
                    .printer
                    .note(format_args!("  {}", crabbox_host::console::harmless(&line)));
            }
        }
        self.command(lease, &target, owner, summary)
    }

    /// Waits until nobody else is in the tree.
    fn own(&self, lease: &Lease, target: &Target) -> Result<Owner, CommandError> {
        let printer = self.ctx.printer;
        let waiting = |elapsed, state: &str| {
            printer.note(format_args!(
                "waiting for reusable workspace owner elapsed={} state={state}",
                go::seconds(i64::try_from(Duration::as_secs(&elapsed)).unwrap_or(i64::MAX))
            ));
        };
        let owner = owner::own(target, &lease.id, self.interrupts.as_fd(), &waiting)?;
        printer.note(format_args!(
            "workspace owner acquired wait={} recovered={}",
            go::milliseconds(owner.wait),
            owner.recovered
        ));
        Ok(owner)
    }

    fn sync(
        &self,
        target: &Target,
        destination: &run::Destination,
        summary: &mut Summary,
    ) -> Result<(), CommandError> {
        let started = Instant::now();
        let settings = &self.settings.sync;
        let (load, verdict) = run::load(self.repo, settings)?;
        for line in &load.lines {
            self.ctx.printer.note(line);
        }
        verdict.map_err(run::SyncError::from)?;
        let choice = SyncChoice {
            full_resync: self.args.sync.full_resync,
            allow_mass_deletions: self.ctx.env.text("CRABBOX_ALLOW_MASS_DELETIONS") == Some("1"),
        };
        if choice.full_resync {
            self.ctx.printer.note(format_args!(
                "full-resync resetting remote workdir {}",
                destination.workdir()
            ));
        }
        let progress = SyncProgress::new(self.ctx.printer);
        let done = run::sync(target, destination, &load, settings, choice, &progress);
        progress.finish();
        let done = done?;
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

    fn command(
        &self,
        lease: &Lease,
        target: &Target,
        owner: &Owner,
        summary: &mut Summary,
    ) -> Result<(), CommandError> {
        let printer = self.ctx.printer;
        let workdir = summary.outcome.workdir.clone();
        let uploaded = self.upload(target, &workdir)?;
        printer.note(format_args!(
            "running on {} {}",
            lease.address,
            self.request.display()
        ));
        let env = self.env(lease);
        let mut ended = Ended {
            env: env.iter().map(|(name, _)| name.clone()).collect(),
            ..Ended::default()
        };
        let (out, err) = (
            |bytes: &[u8]| printer.bytes(bytes),
            |bytes: &[u8]| printer.note_bytes(bytes),
        );
        let phases = Phases::default();
        let results = &self.args.results;
        let mut stdout = Tee::new(capture(results.capture_stdout.as_deref(), &out)?, &phases);
        let mut stderr = Tee::new(capture(results.capture_stderr.as_deref(), &err)?, &phases);
        let started = Instant::now();
        let status = run::command(
            target,
            Job {
                workdir: workdir.clone(),
                env,
                before: self.before(owner, &workdir),
                form: self.request.form(self.args.command.shell, uploaded.as_deref()),
                stdout: Sink::Writer(&mut stdout),
                stderr: Sink::Writer(&mut stderr),
                cancel: self.interrupts.as_fd(),
            },
        )?;
        let end = Instant::now();
        summary.outcome.command = end - started;
        summary.outcome.phases = phases.ended(end);
        (ended.stdout, ended.stderr) = (stdout.tail(), stderr.tail());
        let failure = match status {
            RemoteStatus::Exited(0) => None,
            RemoteStatus::Exited(code) => Some(RunFailure::Exited(code)),
            RemoteStatus::Killed => Some(RunFailure::Killed),
            RemoteStatus::ConnectionLost => Some(RunFailure::Lost),
            RemoteStatus::Cancelled { stopped } | RemoteStatus::TimedOut { stopped } => {
                Some(RunFailure::Interrupted { stopped })
            }
        };
        let reached = matches!(status, RemoteStatus::Exited(_));
        let report = reached.then(|| self.junit(target, &workdir, owner)).flatten();
        let Some(failure) = failure else {
            return self.bring_back(target, &workdir, report.as_ref(), summary);
        };
        // A tree in which the command may still run is not handed on as it is.
        summary.unquiet = matches!(
            failure,
            RunFailure::Lost | RunFailure::Interrupted { stopped: false }
        );
        if !matches!(failure, RunFailure::Interrupted { .. }) {
            summary.ended = Some(ended);
        }
        Err(failure.into())
    }

    /// Brings the script over, if there is one; answers its path.
    fn upload(&self, target: &Target, workdir: &str) -> Result<Option<String>, CommandError> {
        let Some(script) = &self.request.script else {
            return Ok(None);
        };
        let name = Path::new(&script.source)
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        let path = run::upload_script(target, workdir, &name, &script.content)?;
        self.ctx
            .printer
            .note(format_args!("uploaded script {} -> {path}", script.source));
        Ok(Some(path))
    }

    /// What the command's own script does before the command, so that it costs no execution of its own.
    fn before(&self, owner: &Owner, workdir: &str) -> String {
        let mut before = owner.mark();
        if let Some(name) = &self.args.command.env_helper {
            before.push('\n');
            before.push_str(&profile::helper_lines(
                name,
                self.id.as_str(),
                workdir,
                &self.variables.profile,
            ));
            self.ctx.printer.note(format_args!(
                "env helper remote=.crabbox/env/{name} usage='./.crabbox/env/{name} <command>'"
            ));
        }
        before
    }

    /// Variables of the command: those that are allowed through, then ours.
    fn env(&self, lease: &Lease) -> Vec<(String, String)> {
        let Variables { allow, profile } = &self.variables;
        // A variable of this process wins over the file.
        let own = request::forwarded(&self.ctx.env, allow);
        let mut env = profile.clone();
        env.retain(|(name, _)| own.iter().all(|(known, _)| known != name));
        env.extend(own);
        let command = &self.args.command;
        if !command.allow_env.is_empty()
            || !command.env_from_profile.is_empty()
            || self.ctx.env.os("CRABBOX_ENV_ALLOW").is_some()
        {
            let what = if env.is_empty() {
                format!("matched=none allow={}", allow.join(","))
            } else {
                format!("vars={}", profile::described(&env))
            };
            self.ctx.printer.note(format_args!(
                "env forwarding provider={} behavior=forwarded {what}",
                lease.provider
            ));
        }
        for (name, value) in [
            ("CRABBOX_LEASE_ID", lease.id.as_str()),
            ("CRABBOX_RUN_ID", self.id.as_str()),
            ("CRABBOX_SLUG", &lease.slug),
        ] {
            env.push((name.to_owned(), value.to_owned()));
        }
        env
    }

    /// The last lines, and the lease given back where it is due. The command's own exit code always wins.
    fn finish(&self, lease: &Lease, finish: Finish) -> Result<Exit, CommandError> {
        let Finish {
            new,
            started,
            mut summary,
            owner,
            outcome,
        } = finish;
        let failed = outcome.is_err();
        let code = outcome
            .as_ref()
            .err()
            .map_or(0, |error| i32::from(error.kind().exit_code()));
        summary.outcome.exit_code = code;
        summary.outcome.total = started.elapsed();
        let ran = summary.outcome.command > Duration::ZERO;
        if ran {
            self.ctx.printer.note(format_args!(
                "command complete in {} total={}",
                go::milliseconds(summary.outcome.command),
                go::milliseconds(summary.outcome.total)
            ));
        }
        let keep = self.args.keep || (failed && self.args.keep_on_failure);
        let release = match self.args.stop_after {
            Some(StopAfter::Always) => true,
            Some(StopAfter::Never) => false,
            Some(StopAfter::Success) => !failed,
            Some(StopAfter::Failure) => failed,
            None => new && !keep,
        };
        let kept = new && failed && self.args.keep_on_failure && !release;
        if let Err(error) = &outcome {
            summary.judge(error);
        }
        report::summary(self.ctx, lease, &summary);
        if let Err(error) = &outcome {
            self.failed(lease, &summary, error);
        }
        if kept {
            report::kept(self.ctx, lease);
        }
        if let Some(ended) = &summary.ended {
            report::streams(self.ctx, &self.args.results, ended, code);
        }
        let quiet = match owner {
            Some(owner) if summary.unquiet => owner.abandon(),
            Some(owner) => owner.release(),
            None => false,
        };
        if quiet && !release {
            self.ctx.printer.note("workspace owner released");
        }
        let cleanup = if release {
            self.release(lease, &mut summary.outcome)
        } else {
            self.rest(lease)
        };
        let timing = TimingJson::new(lease, &summary.outcome);
        let recorded = self.record(&timing);
        if self.args.results.timing_json {
            self.ctx.printer.note_json(&timing)?;
        }
        outcome?;
        cleanup?;
        recorded?;
        Ok(Exit::SUCCESS)
    }

    /// What a failed run leaves for its reader. Nothing of it may hide why it failed.
    fn failed(&self, lease: &Lease, summary: &Summary, error: &CommandError) {
        let Some(ended) = &summary.ended else {
            return report::classification(self.ctx, error);
        };
        let again = self.request.script.is_none().then(|| {
            let shell = if self.args.command.shell { " --shell" } else { "" };
            format!("{shell} -- {}", self.request.display())
        });
        report::digest(self.ctx, lease, summary, ended, again.as_deref());
        if let Err(error) = self.bundle(lease, summary, ended) {
            let error = CommandError::from(error).text();
            self.ctx
                .printer
                .warn(format_args!("no failure bundle was written: {error}"));
        }
    }

    /// Appends the timings to the file of `--timing-record`.
    fn record(&self, timing: &TimingJson) -> Result<(), CommandError> {
        let path = match self.args.results.timing_record.as_deref() {
            None | Some("off" | "") => return Ok(()),
            Some("default") => self.engine.places.state.join("timings.jsonl"),
            Some(path) => self.ctx.env.cwd()?.join(path),
        };
        timing.append(&path).map_err(|source| RunFailure::Capture {
            path: path.clone(),
            source,
        })?;
        self.ctx.printer.note(format_args!(
            "benchmark timing record appended path={} observations=1",
            path.display()
        ));
        Ok(())
    }

    fn release(&self, lease: &Lease, outcome: &mut Outcome) -> Result<(), CommandError> {
        let quiet = self.args.results.timing_json;
        let policy = match self.args.stop_after {
            None => "auto",
            Some(StopAfter::Always) => "always",
            Some(StopAfter::Never) => "never",
            Some(StopAfter::Success) => "success",
            Some(StopAfter::Failure) => "failure",
        };
        if !quiet {
            self.ctx.printer.note(format_args!(
                "releasing {} server={}",
                lease.id,
                lease.display_id()
            ));
        }
        let stopped = self.provider.release(&lease.id);
        outcome.stopped = Some(stopped.is_ok());
        let error = stopped
            .as_ref()
            .err()
            .map(|error| crabbox_engine::teardown::chain(error))
            .unwrap_or_default();
        if !quiet {
            let (id, slug) = (&lease.id, &lease.slug);
            let told = if error.is_empty() {
                String::new()
            } else {
                format!(" error={error:?}")
            };
            self.ctx.printer.note(format_args!(
                "lease cleanup stopped={} policy={policy} lease={id} slug={slug}{told}",
                stopped.is_ok()
            ));
        }
        outcome.stop_error = error;
        stopped.map_err(|source| RunFailure::Cleanup {
            id: lease.id.clone(),
            source,
        })?;
        Ok(())
    }

    /// A lease that goes on is ready again.
    fn rest(&self, lease: &Lease) -> Result<(), CommandError> {
        self.provider.touch(lease, Some("ready"), None)?;
        Ok(())
    }
}

fn capture<'a>(path: Option<&Path>, pass: &'a (dyn Fn(&[u8]) + Sync)) -> Result<To<'a>, RunFailure> {
    match path {
        None => Ok(To::Pass(pass)),
        Some(path) => File::create(path)
            .map(To::File)
            .map_err(|source| RunFailure::Capture {
                path: path.to_owned(),
                source,
            }),
    }
}
