//! A scan of all processes of the machine, used to find leftovers.
//!
//! It reports the contents of `/proc` and decides nothing. It must never fail because a process ended during
//! the scan.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::{ProcessError, ProcessId, boot_id, is_gone, proc_path, stat};

/// One running process, as seen by a scan. Unreadable fields are empty or `None`.
#[derive(Debug, Clone)]
pub struct ProcessInfo {
    /// Its identity, read before all other fields: if [`super::open`] finds the identity again, all fields
    /// describe that process.
    pub id: ProcessId,
    /// Its effective user. That user controls the arguments and the environment.
    pub uid: u32,
    /// Its arguments; empty for kernel threads, zombies, and for a moment during an exec.
    pub cmdline: Vec<OsString>,
    /// The program file; ` (deleted)` is appended by the kernel when it has been removed.
    pub exe: Option<PathBuf>,
    /// Its working directory.
    pub cwd: Option<PathBuf>,
    /// Its root directory; `/` for a jailed VMM, too, whose jailer has pivoted.
    pub root: Option<PathBuf>,
    /// Inode of its network namespace; a bind mount of that namespace has the same number.
    pub netns: Option<u64>,
}

/// Every process in `/proc`, in no order. One that ends during the scan is left out.
pub fn list() -> Result<Vec<ProcessInfo>, ProcessError> {
    let root = Path::new("/proc");
    let read = |source| ProcessError::Read {
        path: root.to_owned(),
        source,
    };
    let boot_id = boot_id()?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).map_err(read)? {
        let name = entry.map_err(read)?.file_name();
        if let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) {
            found.extend(look_in(pid, &boot_id)?);
        }
    }
    Ok(found)
}

/// The process that has `pid` now, or `None`.
pub fn look(pid: u32) -> Result<Option<ProcessInfo>, ProcessError> {
    look_in(pid, &boot_id()?)
}

fn look_in(pid: u32, boot_id: &str) -> Result<Option<ProcessInfo>, ProcessError> {
    let Some(stat) = stat(pid)? else { return Ok(None) };
    let Ok(owner) = std::fs::metadata(format!("/proc/{pid}")) else {
        return Ok(None);
    };
    let cmdline = match std::fs::read(proc_path(pid, "cmdline")) {
        Ok(bytes) => bytes,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(source) => {
            return Err(ProcessError::Read {
                path: proc_path(pid, "cmdline"),
                source,
            });
        }
    };
    let link = |name| std::fs::read_link(proc_path(pid, name)).ok();
    Ok(Some(ProcessInfo {
        id: ProcessId {
            pid,
            started: stat.started,
            boot_id: boot_id.to_owned(),
        },
        uid: owner.uid(),
        cmdline: split_cmdline(&cmdline),
        exe: link("exe"),
        cwd: link("cwd"),
        root: link("root"),
        netns: std::fs::metadata(proc_path(pid, "ns/net"))
            .ok()
            .map(|meta| meta.ino()),
    }))
}

/// Children that this process had before its exec, for example those of a shell that started one and then
/// called `exec`.
static INHERITED: OnceLock<Vec<u32>> = OnceLock::new();

/// Records the children that exist before this program has started any. Only the first call has an effect.
pub fn note_inherited() {
    INHERITED.get_or_init(|| {
        // After exec all of them belong to the only thread (proc(5)). If the kernel does not have this file,
        // none are known.
        let text = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        text.split_ascii_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect()
    });
}

/// The parent of `pid` and its session, as this process sees them; `None` if it is gone.
///
/// The kernel reports 0 for processes and sessions outside the PID namespace of this process, for example for
/// the session of a program that was started in an existing container. Here 0 is a session like any other,
/// but it must not be passed to getsid(2)'s wrapper.
fn parent_and_session(pid: u32) -> Option<(u32, u32)> {
    let stat = std::fs::read_to_string(proc_path(pid, "stat")).ok()?;
    // pid (name) state ppid pgrp session, see proc(5); the name may contain anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(1);
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    Some((parent, session))
}

/// The children of this process in its own session, except those that were started to outlive it, and those
/// of [`note_inherited`].
pub fn children() -> Result<Vec<ProcessId>, ProcessError> {
    let inherited = INHERITED.get().map_or(&[][..], Vec::as_slice);
    let own = std::process::id();
    let session = parent_and_session(own).map_or(0, |(_, session)| session);
    let is_child = |pid: u32| parent_and_session(pid) == Some((own, session));
    let found = list()?.into_iter().map(|process| process.id);
    Ok(found
        .filter(|id| !inherited.contains(&id.pid) && is_child(id.pid))
        .collect())
}

/// Every process of this user whose initial environment contains `entry` (`NAME=value`), except this one.
pub fn with_environment(entry: &str) -> Result<Vec<ProcessId>, ProcessError> {
    let own = std::process::id();
    let user = rustix::process::geteuid().as_raw();
    let holds = |pid: u32| {
        // A process whose environment we may not read is not ours.
        std::fs::read(proc_path(pid, "environ")).is_ok_and(|bytes| {
            bytes
                .split(|byte| *byte == 0)
                .any(|word| word == entry.as_bytes())
        })
    };
    let mut found = Vec::new();
    for process in list()? {
        if process.id.pid != own && process.uid == user && holds(process.id.pid) {
            found.push(process.id);
        }
    }
    Ok(found)
}

/// Each argument ends with a NUL; if the process has overwritten its arguments, the last one may have none.
fn split_cmdline(bytes: &[u8]) -> Vec<OsString> {
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes
        .split(|byte| *byte == 0)
        .map(|arg| OsString::from_vec(arg.to_vec()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::command::Cmd;
    use std::process::Stdio;
    use std::time::Duration;

    #[test]
    fn the_scan_sees_arguments_program_and_namespace() {
        let mut command = Cmd::new("sleep").args(["600", "0"]).to_std();
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id();
        // Between fork and exec the child has our arguments, or none.
        let arrived = || {
            list()
                .unwrap()
                .into_iter()
                .find(|one| one.id.pid == pid && one.cmdline == ["sleep", "600", "0"])
        };
        let found = clock::poll_until(Duration::from_secs(5), arrived);
        child.kill().unwrap();
        child.wait().unwrap();
        let found = found.expect("the scan sees the child");
        assert_eq!(found.uid, std::fs::metadata("/proc/self").unwrap().uid());
        let program = found.exe.unwrap();
        assert!(program.is_absolute() && program.exists(), "{program:?}");
        let own = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
        assert_eq!(found.netns, Some(own));
        assert_eq!(
            (found.root.unwrap(), found.cwd.unwrap()),
            ("/".into(), std::env::current_dir().unwrap())
        );
    }

    /// A session whose leader is in another PID namespace, as for a program started in an existing container,
    /// or by CI in a new namespace.
    #[test]
    fn children_are_found_where_the_session_s_leader_is_in_another_namespace() {
        let (_, session) = parent_and_session(std::process::id()).unwrap();
        if session != 0 {
            let name =
                "process::scan::tests::children_are_found_where_the_session_s_leader_is_in_another_namespace";
            let again = Cmd::new("unshare")
                .args(["--user", "--map-root-user", "--pid", "--fork", "--mount-proc"])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", name, "--nocapture"])
                .limit(Duration::from_mins(1))
                .capture()
                .unwrap();
            let said = String::from_utf8_lossy(&again.stdout);
            assert!(again.status.success() && said.contains("1 passed"), "{again:?}");
            return;
        }
        let start = |command: &mut std::process::Command| command.stdout(Stdio::null()).spawn().unwrap();
        let mut child = start(&mut Cmd::new("sleep").arg("600").to_std());
        let mut outlives = start(super::super::new_session(
            &mut Cmd::new("sleep").arg("600").to_std(),
        ));
        let apart = clock::poll_until(Duration::from_secs(5), || {
            parent_and_session(outlives.id()).filter(|(_, session)| *session == outlives.id())
        });
        let found: Vec<u32> = children().unwrap().iter().map(|id| id.pid).collect();
        for started in [&mut child, &mut outlives] {
            started.kill().unwrap();
            started.wait().unwrap();
        }
        assert!(apart.is_some());
        // Other tests of this process have children too.
        assert!(
            found.contains(&child.id()) && !found.contains(&outlives.id()),
            "{found:?}: {child:?}, {outlives:?}"
        );
    }

    #[test]
    fn a_process_is_found_by_its_environment() {
        let mut command = Cmd::new("sleep")
            .arg("600")
            .env("CRABBOX_SCAN_TEST", "x1")
            .to_std();
        let mut child = command.spawn().unwrap();
        let found = clock::poll_until(Duration::from_secs(5), || {
            with_environment("CRABBOX_SCAN_TEST=x1").unwrap().pop()
        });
        let none = with_environment("CRABBOX_SCAN_TEST=x").unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.map(|id| id.pid), Some(child.id()));
        assert!(none.is_empty(), "a beginning is not the whole: {none:?}");
    }

    #[test]
    fn empty_arguments_are_kept_and_kernel_threads_have_none() {
        assert_eq!(split_cmdline(b"a\0\0b\0"), ["a", "", "b"]);
        assert_eq!(split_cmdline(b"overwritten title"), ["overwritten title"]);
        assert_eq!(split_cmdline(b""), Vec::<OsString>::new());
    }
}
