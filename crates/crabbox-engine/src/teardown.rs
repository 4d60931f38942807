//! Taking a lease back: the journal walked from its end to its beginning.
//!
//! Rollback, `stop`, `cleanup` and the supervisor's own clean-up are all this one walk. Every step bears that its effect
//! never happened or is gone already; an error is collected and never stops the rest; the directory with the journal goes
//! last, and only when nothing is left that it would be needed for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_core::journal::{Journal, Live, Process, Step};
use crabbox_core::record::LeaseRecord;
use crabbox_host::files::{self, FileError};
use crabbox_host::lock::LockError;
use crabbox_host::netns::{self, NetnsError};
use crabbox_host::process::{self, ProcessError, ProcessId};
use crabbox_store::claims::{self, ClaimError};
use crabbox_store::journal::{JournalFile, JournalFileError};
use crabbox_store::leases::{self, RecordError};
use crabbox_store::places::Places;

use crate::connection;
use crate::failpoint::{self, Phase, Who};
use crate::network::{self, DetachError, SavedAttach};
use crate::ownership::OwnedLease;

/// How long a VMM gets between SIGTERM and SIGKILL. Its disk dies with it, so there is nothing for it to save.
const VMM_GRACE: Duration = Duration::from_millis(500);
/// The journal's note that a lease is being taken back: from then on there is no way but to the end.
pub const ENDING: &str = "ending";
/// How long a CNI plugin gets whose runtime has died.
const PLUGIN_GRACE: Duration = Duration::from_secs(10);
/// How long the kernel gets to let go of an empty control group.
const GROUP_LIMIT: Duration = Duration::from_secs(2);
/// How long a supervisor gets to notice that its lease is gone.
const SUPERVISOR_GRACE: Duration = Duration::from_secs(5);

/// Why one step could not be taken back.
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
    /// The shared SSH connection could not be ended.
    #[error(transparent)]
    Connection(#[from] crabbox_ssh::master::ExitError),
    /// The control group could not be removed.
    #[error("cannot remove control group {}", path.display())]
    Cgroup {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The journal names something outside the lease's own places: it is not touched.
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
}

/// How far a teardown goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Everything goes.
    Everything,
    /// The directory with its disk and record stays, marked `released` (`deleteOnRelease: false`).
    KeepDirectory,
}

/// Who tears down, and under which failpoint.
#[derive(Debug, Clone, Copy)]
pub struct Actor<'a> {
    /// The process.
    pub who: Who,
    /// The failpoint that is armed.
    pub failpoint: &'a str,
}

/// What became of a teardown.
#[derive(Debug, Default)]
#[must_use = "leftovers must be reported"]
pub struct Report {
    /// Steps that were taken back, in order.
    pub undone: Vec<&'static str>,
    /// Steps that could not be, with their reasons.
    pub errors: Vec<(&'static str, UndoError)>,
}

impl Report {
    /// Each leftover in one line: the step and the chain of reasons.
    pub fn leftovers(&self) -> Vec<String> {
        self.errors
            .iter()
            .map(|(step, error)| format!("{step}: {}", chain(error)))
            .collect()
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Takes back what was done for `lease`. The lock is given up at the end, with its file when the lease is gone.
pub fn teardown(places: &Places, lease: OwnedLease, extent: Extent, actor: Actor<'_>) -> Report {
    let mut report = Report::default();
    let mut journal = match JournalFile::open(&lease.dir().journal()) {
        Ok(journal) => journal,
        Err(error) => {
            // Without its journal a lease cannot be taken back safely: it is left whole and reported.
            report.errors.push(("journal", error.into()));
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
        // Without this note a later cleanup may take a half-removed lease for a live one, which is the lesser harm.
        report.errors.push(("journal", error.into()));
    }
    let walk = Walk {
        places,
        lease: &lease,
    };
    if journal.is_none()
        && let Err(error) = connection::close_all(places, lease.id().as_str())
    {
        report.errors.push(("connection", error.into()));
    }
    for live in state.teardown() {
        let name = live.step.name();
        if matches!(live.step, Step::Directory { .. } | Step::Supervisor {})
            || (extent == Extent::KeepDirectory && matches!(live.step, Step::Disk { .. }))
        {
            continue;
        }
        failpoint::hit(actor.failpoint, actor.who, &format!("undo-{name}"), Phase::Begun);
        let outcome = walk.undo(live).and_then(|()| match &mut journal {
            Some(journal) => Ok(journal.undone(live.seq)?),
            None => Ok(()),
        });
        match outcome {
            Ok(()) => report.undone.push(name),
            Err(error) => report.errors.push((name, error)),
        }
        failpoint::hit(actor.failpoint, actor.who, &format!("undo-{name}"), Phase::Done);
    }
    if !report.errors.is_empty() {
        lease.release();
        return report;
    }
    finish(lease, &state, extent, &mut report);
    report
}

/// The last part: directory and lock, or the record of a kept directory. The supervisor is the last to be seen off.
fn finish(lease: OwnedLease, state: &Journal, extent: Extent, report: &mut Report) {
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
            if let Err(error) = lease.forget() {
                report.errors.push(("lock", error.into()));
            }
        }
        Err(error) => {
            report.errors.push(("directory", error));
            lease.release();
        }
    }
    if let Some(supervisor) = supervisor
        && let Err(error) = end_supervisor(&supervisor)
    {
        report.errors.push(("supervisor", error));
    }
}

fn mark_released(lease: &OwnedLease) -> Result<(), UndoError> {
    let mut stored = leases::read(lease.dir())?;
    let record = &mut stored.record;
    record.pid = 0;
    record.process_started.clear();
    record.boot_id.clear();
    record.labels.insert("state".to_owned(), "released".to_owned());
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
    // The journal and the record go after everything else, so that a death here leaves a lease that can be taken back.
    let last = [dir.metadata(), dir.journal()];
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

fn end_supervisor(supervisor: &Process) -> Result<(), UndoError> {
    let pid = std::process::id();
    if supervisor.pid == pid {
        return Ok(());
    }
    if let Some(handle) = identity(supervisor).open()? {
        if handle.wait_exit(SUPERVISOR_GRACE)? {
            return Ok(());
        }
        handle.terminate(VMM_GRACE)?;
    }
    Ok(())
}

/// A journal's process in the form that can be opened.
pub fn identity(process: &Process) -> ProcessId {
    ProcessId {
        pid: i32::try_from(process.pid).unwrap_or(0),
        started: process.started.clone(),
        boot_id: process.boot_id.clone(),
    }
}

/// A process's identity in the journal's form.
pub fn recorded(id: &ProcessId) -> Process {
    Process {
        pid: id.pid.unsigned_abs(),
        started: id.started.clone(),
        boot_id: id.boot_id.clone(),
    }
}

struct Walk<'a> {
    places: &'a Places,
    lease: &'a OwnedLease,
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
            Step::Cgroup { path } => remove_cgroup(Path::new(path), self.lease),
            Step::Vmm { dir, vmid } => end_vmm(live.process.as_ref(), self.inside(dir)?, vmid),
            Step::Connection { control } => Ok(connection::close(Path::new(control))?),
            Step::Claim {} => {
                claims::remove(self.places, self.lease.id().as_str(), None)?;
                Ok(())
            }
        }
    }

    /// `path`, if it lies inside the lease directory.
    fn inside<'p>(&self, path: &'p str) -> Result<&'p Path, UndoError> {
        within(Path::new(path), self.lease.dir().path())
    }

    /// `path`, if it is the lease's key directory.
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

/// Waits for the CNI plugins that a maker who died left running, then ends them: one that went on after the detachment would attach
/// what nobody detaches any more.
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
        if let Some(handle) = id.open()? {
            handle.terminate(VMM_GRACE)?;
        }
    }
    Ok(())
}

/// Ends the VMM by its identity; where it was never written, by its working directory or root, which is the lease's own.
fn end_vmm(process: Option<&Process>, dir: &Path, vmid: &str) -> Result<(), UndoError> {
    let ids = match process {
        Some(process) => vec![identity(process)],
        None => at_home_in(dir, vmid)?,
    };
    for id in ids {
        if let Some(handle) = id.open()? {
            handle.terminate(VMM_GRACE)?;
        }
    }
    Ok(())
}

/// VMMs and their makers whose working directory or root is `dir`, or whose socket lies beside it, as the Go program's does: they have the
/// machine's id among their arguments, or are the supervisor's child that has not become one yet. A user's shell may stand there too and
/// is nothing of ours.
fn at_home_in(dir: &Path, vmid: &str) -> Result<Vec<ProcessId>, ProcessError> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let mut found = Vec::new();
    for candidate in process::list()? {
        let here = |at: Option<&PathBuf>| at.is_some_and(|at| at == dir);
        let ours = candidate
            .cmdline
            .iter()
            .any(|arg| arg == vmid || arg == crate::client::SUPERVISE);
        let lease = dir.parent().unwrap_or(dir);
        let socket = candidate.cmdline.iter().any(|arg| {
            Path::new(arg).parent() == Some(lease) && Path::new(arg).extension() == Some("sock".as_ref())
        });
        if candidate.id.pid != own
            && ours
            && (socket || here(candidate.cwd.as_ref()) || here(candidate.root.as_ref()))
        {
            found.push(candidate.id);
        }
    }
    Ok(found)
}

/// Removes the lease's own control groups: `<root>/crabbox-<tag>/<machine>` and its parent, both named with the tag.
fn remove_cgroup(path: &Path, lease: &OwnedLease) -> Result<(), UndoError> {
    let tag = lease.id().tag();
    let tagged = |path: &Path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().ends_with(&tag))
    };
    let parent = path.parent().unwrap_or(path);
    if !tagged(path) || !tagged(parent) || parent.parent() != Some(Path::new(crate::vmm::CGROUPS)) {
        return Err(UndoError::Outside {
            path: path.to_owned(),
        });
    }
    remove_group(path)?;
    remove_group(parent)
}

/// Removes one control group; the kernel needs a moment after its last process is gone.
fn remove_group(path: &Path) -> Result<(), UndoError> {
    let gone = crabbox_host::clock::poll_until(GROUP_LIMIT, || match std::fs::remove_dir(path) {
        Ok(()) => Some(Ok(())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(Ok(())),
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => None,
        Err(source) => Some(Err(source)),
    });
    let failed = |source| UndoError::Cgroup {
        path: path.to_owned(),
        source,
    };
    gone.unwrap_or_else(|| Err(std::io::ErrorKind::ResourceBusy.into()))
        .map_err(failed)
}

/// What a lease without a journal (made by the Go program, or its maker died before the first line) may have left.
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
    // Without a pid (its maker died before it wrote one) the machine is found by its socket in the lease directory.
    steps.push((
        Step::Vmm {
            vmid: record.vmid.clone(),
            dir: format!("{dir}/vm"),
        },
        process_of(&record),
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

/// The VMM that a record names.
pub fn process_of(record: &LeaseRecord) -> Option<Process> {
    (record.pid > 0 && !record.process_started.is_empty() && !record.boot_id.is_empty()).then(|| Process {
        pid: record.pid,
        started: record.process_started.clone(),
        boot_id: record.boot_id.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
