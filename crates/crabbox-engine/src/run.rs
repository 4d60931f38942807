//! `run`: runs a command in a lease, with the current local working tree.
//!
//! ```text
//!  look      everything that can be checked here before a machine is leased: request, variables, repository, output files
//!  enter     the named lease, or a new one; claimed
//!  own       waits until no other run uses the lease's tree
//!  sync      the current local tree, examined while the lease's side prepares
//!  command   with its variables, its streams and their tails
//!  collect   test reports, required files and their schemas, downloads, artifacts, proof, receipt
//!  finish    digest and bundle of a failure; gives the tree back, and the lease if it is due
//! ```
//!
//! Everything that happens is reported as an event ([`event`]), which the caller puts into words; the result
//! is a [`RunEnd`]. Nothing here may print, or hide why a run failed: the command's own exit code takes
//! precedence over errors after it.

mod attest;
mod bundle;
mod collect;
mod command;
pub mod error;
pub mod event;
mod evidence;
pub mod failure;
mod finish;
mod proof;
pub mod proof_text;
pub mod report;
pub mod request;
pub mod template;
mod tree;
mod witnessed;

use std::fmt;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::Instant;

use crabbox_core::config::{Provider as Which, Settings};
use crabbox_core::fault::Fault as _;
use crabbox_core::id::RunId;
use crabbox_core::state::LeaseState;
use crabbox_host::console::OpenLog;
use crabbox_host::signals::Interrupts;
use crabbox_machine::context::Engine;
use crabbox_machine::lease::find::ResolveError;
use crabbox_machine::protocol;
use crabbox_workspace::owner::Owner;
use crabbox_workspace::preflight;
use crabbox_workspace::sync::{self, Repo};

use crate::entry::{Entry, EntryError, EntryEvent, LeaseRequest};
use crate::host::prepare::NewLease;
use crate::provider::lease::Lease;
use crate::provider::{MachineStart, Provider, route};
use crate::stage::Stage;
use command::Variables;
use error::{RunError, RunFailure};
use event::{CommandEvent, EndEvent, RunEvents, StartEvent, TreeEvent};
use evidence::{Base, Evidence};
use finish::Finish;
use report::RunReport;
use request::{RunRequest, Work};
use tree::LOOK_HOLDS;

/// The circumstances in which a run is started.
#[derive(Debug, Clone)]
pub struct Here {
    /// The current directory, absolute.
    pub cwd: PathBuf,
    /// The environment variables with valid UTF-8 values, sorted by name.
    pub variables: Vec<(String, String)>,
    /// The names of the other variables.
    pub not_text: Vec<String>,
    /// Whether a sync may delete most of the lease's tree.
    pub allow_mass_deletions: bool,
}

/// The caller's parameters of a run.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    /// The request.
    pub request: &'a RunRequest,
    /// The configuration.
    pub settings: &'a Settings,
    /// The circumstances.
    pub here: &'a Here,
    /// Receives the events.
    pub events: &'a dyn RunEvents,
    /// When the whole command began that the run is a part of.
    pub started: Instant,
}

impl fmt::Debug for Given<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Given")
            .field("request", self.request)
            .finish_non_exhaustive()
    }
}

/// A run that has passed all checks that need no machine.
#[derive(Debug)]
pub struct Looked<'a> {
    given: Given<'a>,
    work: Work,
    variables: Variables,
    repo: Repo,
}

/// A run in progress in a lease.
struct Run<'a> {
    request: &'a RunRequest,
    settings: &'a Settings,
    here: &'a Here,
    events: &'a dyn RunEvents,
    work: Work,
    variables: Variables,
    evidence: Evidence,
    repo: &'a Repo,
    engine: &'a Engine,
    interrupts: &'a Interrupts,
    provider: &'a dyn Provider,
    /// The console of the lease's machine, if it is at hand.
    console: Option<OpenLog>,
    id: RunId,
}

/// Where a run took place.
#[derive(Debug)]
pub enum Ground {
    /// In this lease, which may have ended since.
    Lease(Box<Lease>),
    /// In no lease, because none was available. Names its provider, if known.
    Nowhere(Option<Which>),
}

/// The result of a run that had a lease, or tried to enter one.
#[derive(Debug)]
pub struct RunEnd {
    /// Where it took place.
    pub ground: Ground,
    /// The report.
    pub report: RunReport,
    /// The run's error, if it failed.
    pub outcome: Result<(), RunError>,
}

/// Checks a request as far as that needs no machine, for callers that acquire the lease first and run in it
/// later.
pub fn judge(request: &RunRequest, settings: &Settings, here: &Here) -> Result<(), RunError> {
    judged(request, settings, here, Work::new(request)?).map(drop)
}

/// Combines the request with these settings, if the result can be run at all.
fn judged(
    request: &RunRequest,
    settings: &Settings,
    here: &Here,
    work: Work,
) -> Result<(Work, Variables), RunError> {
    let work = work.configured(settings, request)?;
    let variables = Variables::new(&request.command, settings, here)?;
    if !request.sync.sync_only {
        command::check(&work, &variables)?;
    }
    Ok((work, variables))
}

/// Makes all checks that need no machine, before one is leased. `work` was derived from the request.
pub fn look(given: Given<'_>, work: Work) -> Result<Looked<'_>, RunError> {
    let preset = given.request.command.preset.as_deref();
    let (work, variables) = judged(given.request, given.settings, given.here, work)?;
    for name in work.variables.unused() {
        given.events.start(&StartEvent::Unused { name });
    }
    if let Some(name) = preset {
        given.events.start(&StartEvent::Preset {
            name,
            variables: &work.env,
            command: &work.display(),
        });
    }
    variables.tell(given.settings, given.events);
    let repo = sync::look(&given.here.cwd)?;
    if !given.request.sync.no_sync {
        sync::check(&repo)?;
    }
    Ok(Looked {
        given,
        work,
        variables,
        repo,
    })
}

impl Looked<'_> {
    /// Enters the lease, runs there, and gives the lease back if it is due. `Err` means that no lease was
    /// attempted.
    pub fn run(self, engine: &Engine, interrupts: &Interrupts) -> Result<RunEnd, RunError> {
        let id = RunId::from_random(crabbox_host::random::bytes().map_err(RunFailure::Random)?);
        let Given {
            request,
            settings,
            here,
            events,
            started,
        } = self.given;
        let base = Base {
            cwd: &here.cwd,
            repository: &self.repo.root,
            config: &engine.places.config,
            state: &engine.places.state,
        };
        let evidence = Evidence::prepare(&request.results, &base)?;
        let entry = Entry {
            engine,
            settings,
            repo: &self.repo.root,
            interrupts,
            events,
        };
        let Entered {
            provider,
            lease,
            made,
        } = match enter(&entry, request, events) {
            Ok(entered) => entered,
            Err(error) => return Ok(self.unentered(engine, &id, error.into())),
        };
        let run = Run {
            request,
            settings,
            here,
            events,
            work: self.work,
            variables: self.variables,
            evidence,
            repo: &self.repo,
            engine,
            interrupts,
            provider: provider.as_ref(),
            console: provider.console(&lease),
            id,
        };
        let new = request.lease.id.is_none();
        let mut report = RunReport::default();
        let (entered, took) = (Instant::now(), started.elapsed());
        report.outcome.lease = Some(took);
        report.outcome.start = made.start;
        report.outcome.stages = made.stages;
        report.outcome.guest_stages = made.guest_stages;
        if new {
            events.start(&StartEvent::Made { lease: &lease, took });
        }
        let mut owner = None;
        let outcome = run.inside(&lease, &mut report, &mut owner);
        Ok(run.finish(
            lease,
            Finish {
                new,
                started,
                entered,
                report,
                owner,
                outcome,
            },
        ))
    }
}

impl Looked<'_> {
    /// The end of a run that got no lease.
    fn unentered(&self, engine: &Engine, id: &RunId, error: RunError) -> RunEnd {
        let Given {
            request,
            settings,
            events,
            started,
            ..
        } = self.given;
        let mut report = RunReport::default();
        report.judge(&error);
        if let Some(class) = report.class {
            events.end(&EndEvent::Blocked(class));
        }
        let outcome = &mut report.outcome;
        outcome.exit_code = i32::from(error.kind().exit_code());
        outcome.end_to_end = started.elapsed();
        outcome.run_id = id.to_string();
        outcome.repo_path = self.repo.root.display().to_string();
        outcome.label = request.command.label.clone().unwrap_or_default();
        let which = match &request.lease.id {
            Some(name) => route::provider(&engine.places, settings, name).ok(),
            None => settings.provider().ok(),
        };
        RunEnd {
            ground: Ground::Nowhere(which),
            report,
            outcome: Err(error),
        }
    }
}

/// The lease that a run works in.
struct Entered {
    provider: Box<dyn Provider>,
    lease: Lease,
    /// How it was made, if it is new.
    made: Made,
}

/// How a new lease was made; empty for an existing one.
#[derive(Default)]
struct Made {
    /// How its machine started.
    start: Option<MachineStart>,
    /// How long each stage took.
    stages: Vec<protocol::Stage>,
    /// The guest's report of its own boot.
    guest_stages: Vec<(String, u64)>,
}

/// Enters the named lease, or a new one, and returns it with its provider.
fn enter(entry: &Entry<'_>, request: &RunRequest, events: &dyn RunEvents) -> Result<Entered, EntryError> {
    let wish = &request.lease;
    if let Some(name) = &wish.id {
        let (provider, lease) = if wish.is_entered {
            entry.again(name, wish.reclaim)?
        } else {
            entry.named(name, wish.reclaim)?
        };
        events.entry(&EntryEvent::Leased {
            lease: &lease,
            new: false,
        });
        events.start(&StartEvent::Using(&lease));
        return Ok(Entered {
            provider,
            lease,
            made: Made::default(),
        });
    }
    let (provider, acquired) = entry.new_lease(&LeaseRequest {
        lease: NewLease {
            slug: wish.slug.clone(),
            keep: wish.keep,
            reclaim: wish.reclaim,
            external: None,
        },
        set_up: wish.set_up,
    })?;
    Ok(Entered {
        provider,
        lease: acquired.lease,
        made: Made {
            start: acquired.start,
            stages: acquired.stages,
            guest_stages: acquired.guest_stages,
        },
    })
}

impl Run<'_> {
    fn stage(&self, name: &'static str) -> Stage<'_> {
        Stage::begin(self.events, name)
    }

    /// Everything that happens inside the lease.
    fn inside(
        &self,
        lease: &Lease,
        report: &mut RunReport,
        owner: &mut Option<Owner>,
    ) -> Result<(), RunError> {
        let target = lease
            .target
            .clone()
            .ok_or_else(|| ResolveError::NoAddress { id: lease.id.clone() })?;
        let destination = sync::destination(&lease.work_root, &lease.id, self.repo);
        let workdir = destination.workdir();
        let (brings, root) = (!self.request.sync.no_sync, &self.repo.root);
        if brings {
            self.events.start(&StartEvent::Bringing {
                lease,
                root,
                workdir: &workdir,
            });
        }
        self.events.start(&StartEvent::Context {
            lease,
            run: self.id.as_str(),
            workdir: &workdir,
        });
        let outcome = &mut report.outcome;
        outcome.run_id = self.id.to_string();
        outcome.workdir.clone_from(&workdir);
        outcome.repo_path = root.display().to_string();
        outcome.label = self.request.command.label.clone().unwrap_or_default();
        let bringing = brings.then(|| self.look());
        self.provider.touch(lease, Some(&LeaseState::Running), None)?;
        report.stage = Some("ssh");
        report.outcome.bootstrap = tree::connect(&target, self.interrupts.as_fd())?;
        // Waiting for the tree is not a problem of SSH.
        report.stage = None;
        let owner = owner.insert(self.own(lease, &target, (!brings).then_some(workdir.as_str()))?);
        report.owned = Some(Instant::now());
        if let Some(look) = bringing {
            report.stage = Some("sync");
            // After a long wait, look again so that the current tree is synced.
            let look = if owner.wait < LOOK_HOLDS {
                look
            } else {
                self.look()
            };
            let begun = self.begin(owner, &target, &destination);
            self.sync(lease, owner, begun, look, report)?;
            report.stage = None;
        } else {
            report.outcome.sync_skipped = true;
            crabbox_workspace::command::make_workdir(owner, &workdir)?;
        }
        if self.request.sync.sync_only {
            self.events.tree(&TreeEvent::OnlySynced { workdir: &workdir });
            return Ok(());
        }
        if self.work.preflight {
            self.events.command(&CommandEvent::LookingAtTools);
            for line in preflight::preflight(owner, &workdir, &self.work.tools, self.interrupts.as_fd())? {
                self.events.command(&CommandEvent::Tool(&line));
            }
        }
        self.command(lease, &target, owner, report)
    }
}
