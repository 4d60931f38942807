//! Teardown of a lease: the journal, read from its end to its beginning.
//!
//! Rollback, `stop`, `cleanup` and the supervisor's own teardown are this one walk. Every step must succeed
//! if its effect never happened or is already undone. An error is collected and never stops the rest. The
//! directory with the journal is removed last, and only when no step is left that needs it.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_core::fault;
use crabbox_core::journal::{Journal, Live, Step};
use crabbox_core::labels;
use crabbox_core::record::LeaseRecord;
use crabbox_core::state::LeaseState;
use crabbox_host::files::{self, FileError};
use crabbox_host::lock::LockError;
use crabbox_host::netns::{self, NetnsError};
use crabbox_host::process::{self, ProcessError, ProcessHandle, ProcessId, ProcessInfo};
use crabbox_store::claims::{self, ClaimError};
use crabbox_store::journal::{JournalFile, JournalFileError};
use crabbox_store::leases::{self, RecordError};
use crabbox_store::places::Places;
use crabbox_store::registry::{self, RegistryError};

use crate::failpoint::{self, Phase, Who};
use crate::lease::machine;
use crate::lease::ownership::OwnedLease;
use crate::resource::cgroup::{self, GroupError};
use crate::resource::connection;
use crate::resource::network::{self, DetachError, SavedAttach};
use crate::resource::settle;
use crate::resource::volume::{self, VolumeError};

/// Time between SIGTERM and SIGKILL for a VMM. Its disk is deleted anyway, and the guest has already been
/// asked to write out its volumes.
const VMM_GRACE: Duration = Duration::from_millis(500);
/// The journal entry that a teardown has begun: from then on the lease can only be torn down.
pub(crate) const ENDING: &str = "ending";
/// Time limit for a CNI plugin whose runtime has died.
const PLUGIN_GRACE: Duration = Duration::from_secs(10);
/// How long a supervisor gets to notice that its lease is gone.
const SUPERVISOR_GRACE: Duration = Duration::from_secs(5);

/// Why one step could not be undone.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    /// A process could not be found or ended.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The namespace could not be removed.
    #[error(transparent)]
    Namespace(#[from] NetnsError),
    /// The outer network could not be detached.
    #[error(transparent)]
    Detach(#[from] DetachError),
    /// Files could not be removed.
    #[error(transparent)]
    Files(#[from] FileError),
    /// The claim could not be removed.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The shared SSH connection could not be closed.
    #[error(transparent)]
    Connection(#[from] crabbox_ssh::master::ExitError),
    /// The control groups could not be removed.
    #[error(transparent)]
    Cgroup(#[from] GroupError),
    /// The journal names a path outside the lease's own places: it is not touched.
    #[error("the journal names {}, which is not part of this lease", path.display())]
    Outside {
        /// The path.
        path: PathBuf,
    },
    /// The journal could not be read or written.
    #[error(transparent)]
    Journal(#[from] JournalFileError),
    /// The record could not be written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The lock could not be removed.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A volume could not be given back.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A volume is not given back, because its machine may still run.
    #[error("cannot end its machine")]
    MachineLeft,
    /// The lease's entry in the host's registry could not be removed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// The extent of a teardown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Everything is removed.
    Everything,
    /// The directory with its disk and record is kept, marked `released` (`deleteOnRelease: false`).
    KeepDirectory,
}

impl Extent {
    /// The extent of the teardown when the lease with this record is released.
    pub fn of(record: &LeaseRecord) -> Self {
        if record.delete_on_release {
            Self::Everything
        } else {
            Self::KeepDirectory
        }
    }
}

/// The process that tears down, and its armed failpoint.
#[derive(Debug, Clone, Copy)]
pub struct Actor<'a> {
    /// The process.
    pub who: Who,
    /// The armed failpoint.
    pub failpoint: &'a str,
}

/// The result of a teardown.
#[derive(Debug, Default)]
#[must_use = "leftovers must be reported"]
pub struct Report {
    /// Steps that were undone, in order.
    pub undone: Vec<&'static str>,
    /// Steps that could not be undone, with their reasons.
    pub errors: Vec<(&'static str, UndoError)>,
}

impl Report {
    /// Records a step that could not be undone, here and in the log.
    fn left_over(&mut self, step: &'static str, error: UndoError) {
        tracing::error!(step, "left over: {}", fault::chain(&error));
        self.errors.push((step, error));
    }

    /// Each leftover in one line: the step and the chain of reasons.
    pub fn leftovers(&self) -> Vec<String> {
        self.errors
            .iter()
            .map(|(step, error)| format!("{step}: {}", fault::chain(error)))
            .collect()
    }
}

/// Undoes all effects of `lease`. The lock is released at the end, and its file removed if nothing of the
/// lease is left.
pub fn teardown(places: &Places, lease: OwnedLease, extent: Extent, actor: Actor<'_>) -> Report {
    let _stage = tracing::info_span!("stage", name = "teardown").entered();
    let mut report = Report::default();
    let mut journal = match JournalFile::open(&lease.dir().journal()) {
        Ok(journal) => journal,
        Err(error) => {
            // Without its journal a lease cannot be taken back safely: it is left whole and reported.
            report.left_over("journal", error.into());
            lease.release();
            return report;
        }
    };
    let state = journal.as_ref().map_or_else(
        || foreign_journal(places, &lease),
        |journal| journal.state().clone(),
    );
    if let Some(journal) = &mut journal
        && state.note(ENDING).is_none()
        && let Err(error) = journal.note(ENDING, "yes")
    {
        // Without this note a later cleanup may treat a half-removed lease as live; not tearing it down would
        // be worse.
        report.left_over("journal", error.into());
    }
    let walk = Walk {
        places,
        lease: &lease,
        has_volumes: state.volumes_mib() > 0,
        machine_left: Cell::new(false),
    };
    if journal.is_none()
        && let Err(error) = connection::close_all(places, lease.id().as_str())
    {
        report.left_over("connection", error.into());
    }
    for live in state.teardown() {
        let name = live.step.name();
        if matches!(live.step, Step::Directory { .. } | Step::Supervisor {})
            || (extent == Extent::KeepDirectory && holds_disk(&live.step))
        {
            continue;
        }
        let _step = tracing::info_span!("step", name, undo = true).entered();
        failpoint::hit(actor.failpoint, actor.who, &format!("undo-{name}"), Phase::Begun);
        let outcome = walk.undo(live).and_then(|()| match &mut journal {
            Some(journal) => Ok(journal.undone(live.seq)?),
            None => Ok(()),
        });
        match outcome {
            Ok(()) => {
                tracing::debug!("step undone");
                report.undone.push(name);
            }
            Err(error) => report.left_over(name, error),
        }
        failpoint::hit(actor.failpoint, actor.who, &format!("undo-{name}"), Phase::Done);
    }
    if !report.errors.is_empty() {
        lease.release();
        return report;
    }
    finish(places, lease, &state, (extent, actor), &mut report);
    report
}

/// Whether the lease's disk lies in what this step made: a jailed VMM has it in its jail.
fn holds_disk(step: &Step) -> bool {
    matches!(step, Step::Disk { .. } | Step::Jail { .. })
}

/// The final part: removes directory, registry entry and lock, or writes the record of a kept directory,
/// which keeps its entry. Waits for the supervisor last.
fn finish(
    places: &Places,
    lease: OwnedLease,
    state: &Journal,
    (extent, actor): (Extent, Actor<'_>),
    report: &mut Report,
) {
    let supervisor = state.process("supervisor").cloned();
    let kept = extent == Extent::KeepDirectory && lease.dir().metadata().exists();
    let outcome = if kept {
        mark_released(&lease)
    } else {
        remove_directory(&lease)
    };
    match outcome {
        Ok(()) if kept => lease.release(),
        Ok(()) => {
            report.undone.push("directory");
            failpoint::hit(actor.failpoint, actor.who, "undo-registry", Phase::Begun);
            if let Err(error) = registry::forget(places, lease.id()) {
                report.errors.push(("registry", error.into()));
            }
            failpoint::hit(actor.failpoint, actor.who, "undo-registry", Phase::Done);
            if let Err(error) = lease.forget() {
                report.left_over("lock", error.into());
            }
        }
        Err(error) => {
            report.left_over("directory", error);
            lease.release();
        }
    }
    if let Some(supervisor) = supervisor
        && let Err(error) = end_supervisor(&supervisor)
    {
        report.left_over("supervisor", error);
    }
}

fn mark_released(lease: &OwnedLease) -> Result<(), UndoError> {
    let mut stored = leases::read(lease.dir())?;
    let record = &mut stored.record;
    record.set_process(None);
    labels::set_state(&mut record.labels, &LeaseState::Released);
    stored.save()?;
    files::remove_tree(&lease.dir().cni_cache())?;
    Ok(())
}

fn remove_directory(lease: &OwnedLease) -> Result<(), UndoError> {
    let dir = lease.dir();
    let entries = match std::fs::read_dir(dir.path()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(FileError::Io {
                attempt: "list",
                path: dir.path().to_owned(),
                source,
            }
            .into());
        }
    };
    // Remove journal and record after everything else, so that a lease whose teardown dies here can still be
    // torn down; and the supervisor's log, which says why something could not be removed.
    let last = [dir.metadata(), dir.journal(), dir.supervisor_log()];
    for entry in entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| !last.contains(path))
    {
        files::remove_tree(&entry)?;
    }
    files::remove_tree(dir.path())?;
    Ok(())
}

fn end_supervisor(supervisor: &ProcessId) -> Result<(), UndoError> {
    let pid = std::process::id();
    if supervisor.pid == pid {
        return Ok(());
    }
    if let Some(handle) = process::open(supervisor)? {
        if handle.wait_exit(SUPERVISOR_GRACE)? {
            return Ok(());
        }
        handle.terminate(VMM_GRACE)?;
    }
    Ok(())
}

struct Walk<'a> {
    places: &'a Places,
    lease: &'a OwnedLease,
    /// Whether the lease has volumes, which must survive its machine.
    has_volumes: bool,
    /// Whether its VMM could not be ended.
    machine_left: Cell<bool>,
}

impl Walk<'_> {
    fn undo(&self, live: &Live) -> Result<(), UndoError> {
        match &live.step {
            Step::Directory { .. } | Step::Supervisor {} | Step::Tap { .. } | Step::Mapping { .. } => Ok(()),
            Step::Key { dir } => Ok(files::remove_tree(self.key_dir(dir)?)?),
            Step::Disk { path } | Step::Jail { path } => Ok(files::remove_tree(self.inside(path)?)?),
            Step::Mount { path } => Ok(files::withdraw(self.inside(path)?)?),
            Step::Namespace { path } => Ok(netns::remove(self.inside(path)?)?),
            Step::Attach { saved } => {
                let saved = SavedAttach::from_value(saved)?;
                if !live.done {
                    end_plugins(&saved)?;
                }
                Ok(network::detach(self.places, &saved)?)
            }
            Step::Cgroup { path } => Ok(cgroup::remove(Path::new(path), self.lease)?),
            Step::Vmm { dir, vmid } => self
                .inside(dir)
                .and_then(|dir| self.end_vmm(live.process.as_ref(), dir, vmid))
                .inspect_err(|_| self.machine_left.set(true)),
            Step::Volume { dir, .. } if self.machine_left.get() => {
                tracing::warn!(dir, "a volume stays attached to its machine");
                Err(UndoError::MachineLeft)
            }
            Step::Volume { dir, link, .. } => self.give_back(Path::new(dir), link),
            Step::Connection { control } => Ok(connection::close(Path::new(control))?),
            Step::Claim {} => {
                claims::remove(self.places, self.lease.id().as_str(), None)?;
                Ok(())
            }
        }
    }

    /// Ends the VMM. If its identity was never recorded, it is found by its working directory or root, which
    /// only this lease uses, or by its socket. If the recorded process no longer exists, it is found by its
    /// socket alone: a record by another program, or a damaged one, may name a process that never was the
    /// machine, and removing the directory would remove the last trace of the machine that runs.
    fn end_vmm(&self, process: Option<&ProcessId>, dir: &Path, vmid: &str) -> Result<(), UndoError> {
        let recorded = process.map(process::open).transpose()?.flatten();
        let handles = match recorded {
            Some(handle) => vec![handle],
            // If an identity was recorded, only the socket counts: any other process in the directory is not
            // the machine.
            None => self.found_here(process.is_none().then_some((dir, vmid)))?,
        };
        for handle in handles {
            // Keep the guest's writes frozen until the machine has ended; otherwise it would write again.
            let _settled = self.has_volumes.then(|| settle::settle(dir));
            handle.terminate(VMM_GRACE)?;
        }
        Ok(())
    }

    /// The machines that belong to this lease: those that use its socket, and with `unnoted` also those found
    /// by directory and machine id.
    fn found_here(&self, unnoted: Option<(&Path, &str)>) -> Result<Vec<ProcessHandle>, UndoError> {
        let processes = process::list()?;
        let record = leases::read(self.lease.dir()).ok().map(|stored| stored.record);
        let mut handles = Vec::new();
        for candidate in &processes {
            let on_socket =
                || machine::is_of(candidate, &self.places.leases(), self.lease.id(), record.as_ref());
            let at_home = unnoted.is_some_and(|(dir, vmid)| is_at_home_in(candidate, dir, vmid));
            if at_home || on_socket() {
                handles.extend(process::open(&candidate.id)?);
            }
        }
        Ok(handles)
    }

    /// Gives a volume back, and takes its name out of a directory that is kept.
    fn give_back(&self, dir: &Path, link: &str) -> Result<(), UndoError> {
        remove_link(self.inside(link)?)?;
        Ok(volume::give_back(self.places, dir, self.lease.id())?)
    }

    /// Returns `path` if it is inside the lease directory.
    fn inside<'p>(&self, path: &'p str) -> Result<&'p Path, UndoError> {
        within(Path::new(path), self.lease.dir().path())
    }

    /// Returns `path` if it is the lease's key directory.
    fn key_dir<'p>(&self, path: &'p str) -> Result<&'p Path, UndoError> {
        let path = Path::new(path);
        if path == self.places.keys(self.lease.id().as_str()) {
            Ok(path)
        } else {
            Err(UndoError::Outside {
                path: path.to_owned(),
            })
        }
    }
}

fn remove_link(path: &Path) -> Result<(), FileError> {
    match std::fs::remove_file(path) {
        Err(error)
            if !matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            Err(FileError::io("remove", path, error))
        }
        _ => Ok(()),
    }
}

fn within<'p>(path: &'p Path, dir: &Path) -> Result<&'p Path, UndoError> {
    let plain = path
        .components()
        .all(|part| !matches!(part, std::path::Component::ParentDir));
    if plain && path.starts_with(dir) && path != dir {
        Ok(path)
    } else {
        Err(UndoError::Outside {
            path: path.to_owned(),
        })
    }
}

/// Waits for CNI plugins that a dead maker left running, then ends them: a plugin that continued after the
/// detach would make an attachment that nobody removes.
fn end_plugins(saved: &SavedAttach) -> Result<(), ProcessError> {
    let SavedAttach::Cni(attachment) = saved else {
        return Ok(());
    };
    let entry = format!("CNI_CONTAINERID={}", attachment.container_id);
    let running = || match process::with_environment(&entry) {
        Ok(left) if left.is_empty() => Some(Ok(())),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    };
    if let Some(over) = crabbox_host::clock::poll_until(PLUGIN_GRACE, running) {
        return over;
    }
    for id in process::with_environment(&entry)? {
        if let Some(handle) = process::open(&id)? {
            handle.terminate(VMM_GRACE)?;
        }
    }
    Ok(())
}

/// Whether `candidate` is a VMM or its starting process whose working directory or root is `dir`: either the
/// machine's id is in its arguments, or it is a child of the supervisor before its exec. A user's shell may
/// also have this working directory and must not be ended.
fn is_at_home_in(candidate: &ProcessInfo, dir: &Path, vmid: &str) -> bool {
    let is_ours = candidate
        .cmdline
        .iter()
        .any(|arg| arg == vmid || arg == crate::protocol::SUPERVISE);
    if candidate.id.pid == std::process::id() || !is_ours {
        return false;
    }
    let spellings = machine::spellings(dir);
    let here = |at: &Option<PathBuf>| at.as_ref().is_some_and(|at| spellings.contains(at));
    here(&candidate.cwd) || here(&candidate.root)
}

/// The effects that a lease without a journal may have (it was made by the Go program, or its maker died
/// before writing the first line).
fn foreign_journal(places: &Places, lease: &OwnedLease) -> Journal {
    let record = leases::read(lease.dir())
        .map(|stored| stored.record)
        .unwrap_or_default();
    let dir = lease.dir().path().to_string_lossy().into_owned();
    let mut steps = vec![
        (Step::Directory { path: dir.clone() }, None),
        (
            Step::Key {
                dir: places.keys(lease.id().as_str()).to_string_lossy().into_owned(),
            },
            None,
        ),
        (
            Step::Namespace {
                path: lease.dir().netns().to_string_lossy().into_owned(),
            },
            None,
        ),
    ];
    if let Some(saved) = network::saved_of_record(&record, lease.dir()) {
        steps.push((
            Step::Attach {
                saved: saved.to_value(),
            },
            None,
        ));
    }
    // Without a pid (its maker died before writing one), or with the pid of a process that no longer exists,
    // the machine is found by its socket in the lease directory.
    steps.push((
        Step::Vmm {
            vmid: record.vmid.clone(),
            dir: format!("{dir}/vm"),
        },
        record.process(),
    ));
    steps.push((Step::Claim {}, None));
    let live = steps
        .into_iter()
        .zip(0..)
        .map(|((step, process), seq)| Live {
            seq,
            step,
            done: true,
            process,
        })
        .collect();
    Journal {
        lease: lease.id().to_string(),
        live,
        ..Journal::default()
    }
}

#[cfg(test)]
mod tests {
    use crabbox_core::id::LeaseId;
    use crabbox_core::journal::{Entry, VERSION};
    use crabbox_store::places::LeaseDir;
    use crabbox_store::{locks, volumes};

    use super::*;

    #[test]
    fn a_volume_stays_with_a_machine_that_cannot_be_ended() {
        let home = tempfile::tempdir().unwrap();
        let places = Places::below(home.path());
        let id = LeaseId::parse("cbx_0123456789ab").unwrap();
        let dir = LeaseDir::at(places.lease(&id));
        files::create_private_dir(dir.path()).unwrap();
        let open = Entry::Open {
            version: VERSION,
            lease: id.to_string(),
            at: 1,
            uid: None,
            subnet: None,
            memory_mib: None,
        };
        let volume = volumes::dir_of(&places, "k");
        let mut journal = JournalFile::create(&dir.journal(), &open).unwrap();
        let step = Step::Volume {
            dir: volume.to_string_lossy().into_owned(),
            link: dir.path().join("vm/volume0.ext4").to_string_lossy().into_owned(),
            size_mib: 1,
        };
        drop(journal.begin(step).unwrap());
        // This step fails: its directory is not the lease's, so the machine cannot be looked for.
        let step = Step::Vmm {
            vmid: "m".to_owned(),
            dir: "/elsewhere".to_owned(),
        };
        drop(journal.begin(step).unwrap());
        let locked = volumes::Locked::take(&places, &volume).unwrap();
        let mut about = volumes::About::new("n", "k", 1, 1);
        about.holder = Some(id.to_string());
        locked.save(&about).unwrap();
        std::fs::write(locked.join(volumes::MAKING), "image").unwrap();
        locked.publish().unwrap();
        drop(locked);
        let lock = locks::try_lease(&places, id.as_str()).unwrap().unwrap();
        let lease = OwnedLease::prove(&places, &id, lock).unwrap();
        let actor = Actor {
            who: Who::Cli,
            failpoint: "",
        };
        let report = teardown(&places, lease, Extent::Everything, actor);
        let left: Vec<_> = report.errors.iter().map(|(step, _)| *step).collect();
        assert_eq!(left, ["vmm", "volume"]);
        let locked = volumes::Locked::take(&places, &volume).unwrap();
        assert_eq!(locked.about().unwrap(), Some(about));
    }

    #[test]
    fn only_paths_inside_the_lease_are_touched() {
        let dir = Path::new("/s/leases/cbx_a");
        assert!(within(Path::new("/s/leases/cbx_a/vm"), dir).is_ok());
        for bad in [
            "/s/leases/cbx_a",
            "/s/leases/cbx_ab/vm",
            "/etc",
            "/s/leases/cbx_a/../cbx_b",
            "vm",
        ] {
            assert!(within(Path::new(bad), dir).is_err(), "{bad}");
        }
    }
}
