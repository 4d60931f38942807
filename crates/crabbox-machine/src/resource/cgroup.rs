//! The control groups of a lease: where they are, and their end. The jailer makes them, one within the other.
//!
//! Nothing here may be ended or removed without the proof that its lease is ours.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_host::clock;
use crabbox_host::process;
use rustix::process::Signal;

use crate::lease::ownership::OwnedLease;

/// Where control groups are mounted.
pub(crate) const CGROUPS: &str = "/sys/fs/cgroup";
/// How long to retry removal of an empty control group that the kernel still reports as busy.
const BUSY_LIMIT: Duration = Duration::from_secs(2);

/// Why control groups could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The journal names a group that is not this lease's: it is not touched.
    #[error("the journal names {}, which is not part of this lease", path.display())]
    Outside {
        /// The path.
        path: PathBuf,
    },
    /// One is still there.
    #[error("cannot remove control group {}", path.display())]
    Remove {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// Removes the lease's own groups, `<root>/crabbox-<tag>/<machine>` and the one around it, which are both
/// named with its tag. Kills what is still in the inner one: a VMM whose start was never recorded, and which
/// cannot be found by its root, because its jailer has made that `/`.
pub(crate) fn remove(path: &Path, lease: &OwnedLease) -> Result<(), GroupError> {
    let tag = lease.id().tag();
    let tagged = |path: &Path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().ends_with(&tag))
    };
    let parent = path.parent().unwrap_or(path);
    if !tagged(path) || !tagged(parent) || parent.parent() != Some(Path::new(CGROUPS)) {
        return Err(GroupError::Outside {
            path: path.to_owned(),
        });
    }
    end_members(path).map_err(|source| GroupError::Remove {
        path: path.to_owned(),
        source,
    })?;
    remove_one(path)?;
    remove_one(parent)
}

/// Removes one group; the kernel needs a moment after its last process has ended.
fn remove_one(path: &Path) -> Result<(), GroupError> {
    let gone = clock::poll_until(BUSY_LIMIT, || match std::fs::remove_dir(path) {
        Ok(()) => Some(Ok(())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(Ok(())),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => None,
        Err(source) => Some(Err(source)),
    });
    gone.unwrap_or_else(|| Err(io::ErrorKind::ResourceBusy.into()))
        .map_err(|source| GroupError::Remove {
            path: path.to_owned(),
            source,
        })
}

/// Kills all processes in the group at `path`; a group that does not exist has none.
fn end_members(path: &Path) -> io::Result<()> {
    // Open without creating: on a host without cgroup v2 the directory may be an ordinary one.
    let kill = File::options().write(true).open(path.join("cgroup.kill"));
    match kill {
        Ok(mut kill) => kill.write_all(b"1"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => end_one_by_one(path),
        Err(error) => Err(error),
    }
}

/// The same on a kernel before 5.14, which has no `cgroup.kill`. A machine's group has no groups below it.
fn end_one_by_one(path: &Path) -> io::Result<()> {
    for pid in members(path)? {
        let Some(id) = process::identify(pid).map_err(io::Error::other)? else {
            continue;
        };
        let handle = process::open(&id).map_err(io::Error::other)?;
        // The pid may have been reused before the handle was opened, so check again that it is in the group.
        if let Some(handle) = handle
            && members(path)?.contains(&pid)
        {
            handle.signal(Signal::KILL).map_err(io::Error::other)?;
        }
    }
    Ok(())
}

fn members(path: &Path) -> io::Result<Vec<u32>> {
    match std::fs::read_to_string(path.join("cgroup.procs")) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Stdio};
    use std::time::Duration;

    use crabbox_host::command::Cmd;
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

    use super::*;

    /// A test directory in place of the cgroup hierarchy, whose mount point differs on hosts with both
    /// versions.
    struct Groups(tempfile::TempDir);

    impl Groups {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            mount("none", dir.path(), "cgroup2", MountFlags::empty(), None).unwrap();
            Self(dir)
        }
    }

    impl Drop for Groups {
        fn drop(&mut self) {
            unmount(self.0.path(), UnmountFlags::DETACH).unwrap();
        }
    }

    /// A process that ends with the test.
    struct Sleeper(Child);

    impl Sleeper {
        fn start() -> Self {
            let cmd = Cmd::new("sleep").arg("600");
            let mut command = cmd.to_std();
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            Self(cmd.spawn(&mut command).unwrap())
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }

    #[test]
    fn what_is_in_a_group_is_ended_either_way_and_what_is_beside_it_lives() {
        let groups = Groups::new();
        let group = groups
            .0
            .path()
            .join(format!("crabbox-test-{}", std::process::id()));
        std::fs::create_dir(&group).unwrap();
        let mut beside = Sleeper::start();
        for end in [end_members, end_one_by_one] {
            let mut member = Sleeper::start();
            std::fs::write(group.join("cgroup.procs"), member.0.id().to_string()).unwrap();
            end(&group).unwrap();
            let ended =
                crabbox_host::clock::poll_until(Duration::from_secs(30), || member.0.try_wait().unwrap());
            assert!(ended.is_some());
        }
        remove_one(&group).unwrap();
        assert!(end_members(&group).is_ok(), "none is there any more");
        assert!(beside.0.try_wait().unwrap().is_none());
    }
}
