//! `run`: a command in a lease, with the working tree as it stands here.
//!
//! ```text
//!  look      what can be wrong here is found out before a machine is leased: request, variables, repository, places of files
//!  enter     the lease that was named, or a new one, claimed
//!  own       nobody else is in its tree
//!  sync      the tree as it is now; the look at it goes on while the lease's side makes ready
//!  command   with its variables, its streams and their tails
//!  collect   test reports, required files and what schemas say of them, downloads, artifacts, proof, receipt
//!  finish    digest and bundle of a failure, the tree given back, the lease given back where that is due
//! ```
//!
//! Whatever happens is told as an event ([`event`]), for the caller to word; what came of it is a [`RunEnd`]. Nothing here may
//! print, or hide why a run failed: the command's own exit code wins over what goes wrong behind it.

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

use crabbox_core::config::Settings;
use crabbox_core::id::RunId;
use crabbox_core::state::LeaseState;
use crabbox_host::signals::Interrupts;
use crabbox_machine::context::Engine;
use crabbox_machine::lease::find::ResolveError;
use crabbox_machine::protocol;
use crabbox_workspace::owner::Owner;
use crabbox_workspace::preflight;
use crabbox_workspace::sync::{self, Repo};

use crate::entry::{Entry, EntryError, EntryEvent, Wanted};
use crate::host::prepare::NewLease;
use crate::provider::lease::Lease;
use crate::provider::{MachineStart, Provider};
use crate::stage::Stage;
use command::Variables;
use error::{RunError, RunFailure};
use event::{CommandEvent, EndEvent, RunEvents, StartEvent, TreeEvent};
use evidence::{Base, Evidence};
use finish::Finish;
use report::RunReport;
use request::{RunRequest, Work};
use tree::LOOK_HOLDS;

/// Where a run is started from.
#[derive(Debug, Clone)]
pub struct Here {
    /// The current directory, absolute.
    pub cwd: PathBuf,
    /// The variables of this process that are text, in order of their names.
    pub variables: Vec<(String, String)>,
    /// The names of those that are none.
    pub not_text: Vec<String>,
    /// Whether a sync may delete most of what is in the lease.
    pub allow_mass_deletions: bool,
}

/// What a run is given by its caller.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    /// What it is asked to do.
    pub request: &'a RunRequest,
    /// The configuration.
    pub settings: &'a Settings,
    /// Where it is started from.
    pub here: &'a Here,
    /// Hears of it.
    pub events: &'a dyn RunEvents,
    /// When the command began of which it is a part.
    pub started: Instant,
}

impl fmt::Debug for Given<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Given")
            .field("request", self.request)
            .finish_non_exhaustive()
    }
}

/// A run of which everything was looked at that needs no machine.
#[derive(Debug)]
pub struct Looked<'a> {
    given: Given<'a>,
    work: Work,
    variables: Variables,
    repo: Repo,
}

/// A run on its way in a lease.
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
    id: RunId,
}

/// A run that had a lease, at its end.
#[derive(Debug)]
pub struct RunEnd {
    /// The lease, which may have ended meanwhile.
    pub lease: Lease,
    /// What became of the run.
    pub report: RunReport,
    /// Why it failed, if it did.
    pub outcome: Result<(), RunError>,
}

/// Looks at all that can be wrong before a machine is leased. `work` is what was made of the request.
pub fn look(given: Given<'_>, work: Work) -> Result<Looked<'_>, RunError> {
    let preset = given.request.command.preset.as_deref();
    let work = work.configured(given.settings, given.request)?;
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
    let variables = command::variables(&given)?;
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
    /// Enters the lease, runs there, and gives back what is due. `Err` means that there was no lease.
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
            Err(error) => {
                if let Some(class) = report::class_of(&error) {
                    events.end(&EndEvent::Blocked(class));
                }
                return Err(error.into());
            }
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

/// The lease that a run works in.
struct Entered {
    provider: Box<dyn Provider>,
    lease: Lease,
    /// What is told of how it was made, where it is a new one.
    made: Made,
}

/// How a new lease was made; empty for one that was there.
#[derive(Default)]
struct Made {
    /// How its machine started.
    start: Option<MachineStart>,
    /// Where the time went.
    stages: Vec<protocol::Stage>,
    /// What the guest said of its own boot.
    guest_stages: Vec<(String, u64)>,
}

/// The lease that was named, or a new one, with its provider.
fn enter(entry: &Entry<'_>, request: &RunRequest, events: &dyn RunEvents) -> Result<Entered, EntryError> {
    let wish = &request.lease;
    if let Some(name) = &wish.id {
        let (provider, lease) = entry.named(name, wish.reclaim)?;
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
    let (provider, acquired) = entry.new_lease(&Wanted {
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

    /// Everything that happens in the lease.
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
        let owner = owner.insert(self.own(lease, &target, (!brings).then_some(workdir.as_str()))?);
        report.owned = Some(Instant::now());
        report.stage = None;
        if let Some(look) = bringing {
            report.stage = Some("sync");
            // Whoever waited for the tree wants it as it is now.
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
