//! The processes that serve remote owners: the account's own, and root's that the account started through
//! sudo.
//!
//! A process is identified before it is inspected, and re-checked under that identity before it is ended. It
//! must never be a process of another namespace, where the same numbers mean something else.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_core::labels;
use crabbox_host::process::{self, ProcessError, ProcessHandle};

use super::ACCOUNT;

/// How long a process may take to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// The namespaces that must equal ours for a pid or uid to have the same meaning.
const SPACES: [&str; 2] = ["pid", "user"];

/// Ends the processes of the account, which are those with `uid` among their uids.
pub(super) fn end(proc: &Path, uid: u32) -> Result<(), ProcessError> {
    end_where(proc, &|dir| is_of(&text(dir, "status"), uid))
}

/// Ends the server processes of the owners for whom `is_gone` is true, and thereby their connections.
pub(super) fn end_servers(
    proc: &Path,
    exe: &Path,
    is_gone: &dyn Fn(&str) -> bool,
) -> Result<(), ProcessError> {
    end_where(proc, &|dir| served(dir, exe).is_some_and(|owner| is_gone(&owner)))
}

/// Whether any process of the account is left.
pub(super) fn any(proc: &Path, uid: u32) -> bool {
    pids(proc)
        .filter_map(|pid| directory(proc, pid))
        .any(|dir| is_of(&text(&dir, "status"), uid))
}

fn end_where(proc: &Path, is_it: &dyn Fn(&Path) -> bool) -> Result<(), ProcessError> {
    let handles: Vec<ProcessHandle> = pids(proc)
        .filter_map(|pid| hold(proc, pid, is_it).transpose())
        .collect::<Result<_, _>>()?;
    handles
        .iter()
        .try_for_each(|handle| handle.terminate(GRACE).map(drop))
}

/// A handle for the process with this pid, if `is_it` is true for it.
fn hold(proc: &Path, pid: u32, is_it: &dyn Fn(&Path) -> bool) -> Result<Option<ProcessHandle>, ProcessError> {
    let Some(handle) = process::identify(pid)?
        .map(|id| process::open(&id))
        .transpose()?
        .flatten()
    else {
        return Ok(None);
    };
    let is_it = directory(proc, pid).is_some_and(|dir| is_it(&dir));
    // If it has not ended yet, the pid was not reused and the inspected process was this one.
    let is_over = handle.wait_exit(Duration::ZERO)?;
    Ok((is_it && !is_over).then_some(handle))
}

fn pids(proc: &Path) -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir(proc).into_iter().flatten();
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The proc(5) directory of this pid, if the process is in our own namespaces.
fn directory(proc: &Path, pid: u32) -> Option<PathBuf> {
    let dir = proc.join(pid.to_string());
    let space = |dir: &Path, name: &str| std::fs::read_link(dir.join("ns").join(name)).ok();
    let is_ours = SPACES
        .iter()
        .all(|name| space(&dir, name).is_some_and(|there| Some(there) == space(&proc.join("self"), name)));
    is_ours.then_some(dir)
}

/// The owner whom a process serves, if sudo started it for the account with exactly the arguments of the
/// sudoers rule.
fn served(dir: &Path, exe: &Path) -> Option<String> {
    let command = text(dir, "cmdline");
    let words: Vec<&str> = command.trim_end_matches('\0').split('\0').collect();
    let &[program, "__serve", "--as", owner] = words.as_slice() else {
        return None;
    };
    // Only compare the file name: the program may have been moved since.
    let is_ours = Path::new(program).file_name() == exe.file_name() && labels::is_owner_name(owner);
    let asked = format!("SUDO_USER={ACCOUNT}");
    let is_asked_for = text(dir, "environ").split('\0').any(|pair| pair == asked);
    let is_root = is_of(&text(dir, "status"), process::euid());
    (is_ours && is_asked_for && is_root).then(|| owner.to_owned())
}

fn text(dir: &Path, name: &str) -> String {
    let bytes = std::fs::read(dir.join(name)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether this `status` file of proc(5) has `uid` among its uids. The owner of the process's directory in
/// proc(5) is not reliable if the process has changed its uids.
fn is_of(status: &str, uid: u32) -> bool {
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uids.is_some_and(|uids| uids.split_whitespace().any(|word| word.parse() == Ok(uid)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Stdio;

    use crabbox_host::command::Cmd;

    use super::*;

    const EXE: &str = "/opt/crabbox";

    /// A fake proc(5) in which our own namespaces are number 1.
    struct Proc(tempfile::TempDir);

    impl Proc {
        fn new() -> Self {
            let proc = Self(tempfile::tempdir().unwrap());
            proc.spaces("self", 1, 1);
            proc
        }

        fn spaces(&self, name: &str, pid: u32, user: u32) {
            let ns = self.0.path().join(name).join("ns");
            std::fs::create_dir_all(&ns).unwrap();
            symlink(format!("pid:[{pid}]"), ns.join("pid")).unwrap();
            symlink(format!("user:[{user}]"), ns.join("user")).unwrap();
        }

        fn add(&self, pid: u32, (pid_space, user_space): (u32, u32), uid: u32, command: &[&str], env: &str) {
            let name = pid.to_string();
            self.spaces(&name, pid_space, user_space);
            let dir = self.0.path().join(name);
            let uids = format!("Name:\tx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t998\t998\t998\t998\n");
            std::fs::write(dir.join("status"), uids).unwrap();
            std::fs::write(dir.join("cmdline"), command.join("\0") + "\0").unwrap();
            std::fs::write(dir.join("environ"), env).unwrap();
        }
    }

    #[test]
    fn a_process_is_the_account_s_by_any_of_its_uids() {
        let status = |uids: &str| format!("Name:\tsshd\nUid:\t{uids}\nGid:\t998\t998\t998\t998\n");
        assert!(is_of(&status("998\t998\t998\t998"), 998) && is_of(&status("998\t0\t0\t0"), 998));
        assert!(!is_of(&status("0\t0\t0\t0"), 998) && !is_of("", 998));
    }

    #[test]
    fn a_container_s_process_with_the_account_s_number_is_somebody_else_s() {
        for spaces in [(2, 1), (1, 2), (2, 2)] {
            let proc = Proc::new();
            proc.add(10, spaces, 998, &["sshd"], "");
            assert!(!any(proc.0.path(), 998), "{spaces:?}");
        }
        let proc = Proc::new();
        proc.add(10, (1, 1), 998, &["sshd"], "");
        assert!(any(proc.0.path(), 998) && !any(proc.0.path(), 997));
        // A process whose namespaces cannot be read may be anyone's.
        std::fs::remove_dir_all(proc.0.path().join("10/ns")).unwrap();
        assert!(!any(proc.0.path(), 998));
    }

    #[test]
    fn what_serves_an_owner_is_root_s_started_by_sudo_for_the_account_with_the_rule_s_words() {
        let us = process::euid();
        let by_sudo = format!("PATH=/bin\0SUDO_USER={ACCOUNT}\0");
        let words = ["/usr/local/bin/crabbox", "__serve", "--as", "bob"];
        let served = |spaces, uid, command: &[&str], env: &str| {
            let proc = Proc::new();
            proc.add(10, spaces, uid, command, env);
            directory(proc.0.path(), 10).and_then(|dir| super::served(&dir, Path::new(EXE)))
        };
        assert_eq!(served((1, 1), us, &words, &by_sudo).as_deref(), Some("bob"));
        // Not counted: a container's process, the account's own, one started by hand, and those with other
        // arguments.
        assert!(served((2, 1), us, &words, &by_sudo).is_none());
        assert!(served((1, 1), us.wrapping_add(1), &words, &by_sudo).is_none());
        assert!(served((1, 1), us, &words, "SUDO_USER=root\0").is_none());
        for command in [
            &["/usr/bin/sudo", "-n", "/opt/crabbox", "__serve", "--as", "bob"][..],
            &["/opt/crabbox", "__serve", "--as"],
            &["/opt/crabbox", "__serve", "--as", "bob", "more"],
            &["/opt/other", "__serve", "--as", "bob"],
            &["/opt/crabbox", "list"],
        ] {
            assert!(served((1, 1), us, command, &by_sudo).is_none(), "{command:?}");
        }
    }

    #[test]
    fn what_is_to_end_ends_and_nothing_beside_it() {
        let start = |command: &str| {
            let cmd = Cmd::new("/bin/sh").args(["-c", command]);
            let mut child = cmd.to_std();
            cmd.spawn(child.stdin(Stdio::null())).unwrap()
        };
        let (mut one, mut other) = (start("exec sleep 600"), start("exec sleep 601"));
        let id = one.id();
        let is_one = |dir: &Path| dir.ends_with(id.to_string());
        let proc = Path::new("/proc");
        assert!(hold(proc, other.id(), &is_one).unwrap().is_none());
        assert!(hold(proc, id, &is_one).unwrap().is_some());
        end_where(proc, &is_one).unwrap();
        assert!(other.try_wait().unwrap().is_none());
        // It has ended, but has not been reaped.
        assert!(hold(proc, id, &is_one).unwrap().is_none());
        one.wait().unwrap();
        assert!(hold(proc, id, &is_one).unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
