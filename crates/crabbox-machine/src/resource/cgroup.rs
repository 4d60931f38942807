//! The control groups of a lease: where they are, and an end of what is in one. The jailer makes them, teardown and cleanup remove
//! them.
//!
//! Nothing here may be called for a group that is not named with the tag of a lease.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use crabbox_host::process;
use rustix::process::Signal;

/// Where control groups are mounted.
pub(crate) const CGROUPS: &str = "/sys/fs/cgroup";

/// Kills all processes in the group at `path` and below it; a group that does not exist has none.
pub(crate) fn end_members(path: &Path) -> io::Result<()> {
    // Never made: on a host without the second version of control groups the directory may be an ordinary one.
    let kill = File::options().write(true).open(path.join("cgroup.kill"));
    match kill {
        Ok(mut kill) => kill.write_all(b"1"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => end_one_by_one(path),
        Err(error) => Err(error),
    }
}

/// The same on a kernel before 5.14, which has no `cgroup.kill`; a lease's group has none below it.
fn end_one_by_one(path: &Path) -> io::Result<()> {
    for pid in members(path)? {
        let Some(id) = process::identify(pid).map_err(io::Error::other)? else {
            continue;
        };
        let handle = process::open(&id).map_err(io::Error::other)?;
        // The number may have become somebody else's between the two looks.
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

    /// The hierarchy of control groups, where the test has mounted it: hosts with both versions have it anywhere.
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
        std::fs::remove_dir(&group).unwrap();
        assert!(end_members(&group).is_ok(), "none is there any more");
        assert!(beside.0.try_wait().unwrap().is_none());
    }
}
