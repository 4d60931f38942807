//! The shared connection: opened once, used by every command and by rsync, closed with the lease.
//!
//! The master is a separate `ssh` process outside our process group, so that it outlives one call of the
//! program. After [`exit`] no master may be left, whatever state it was in.

mod error;

pub(crate) use error::classify_proxied;
pub use error::{ConnectError, ExitError};
use error::{classify, is_only_of_the_end};

use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_host::clock::is_readable;
use crabbox_host::command::{Cmd, CommandError};
use crabbox_host::files::remove_if_there;
use crabbox_host::lock::FileLock;
use crabbox_host::process::{self, ProcessInfo};

use crate::mux::{Client, MuxError};
use crate::target::{ArgvOptions, CONTROL_PERSIST, Target, config_path};

/// How long a master may take to end before it is killed.
const EXIT_GRACE: Duration = Duration::from_millis(500);

/// Time between two attempts to take a lock that another process holds.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Opens the shared connection of `target` at `control` unless it is open already: one handshake, at most
/// `limit` long.
///
/// Concurrent callers are fine: one of them opens the connection, the others wait for it.
pub fn open(
    target: &Target,
    control: &Path,
    limit: Duration,
    cancel: Option<BorrowedFd<'_>>,
) -> Result<(), ConnectError> {
    let opening = Opening {
        persist: CONTROL_PERSIST,
        is_heard: false,
        limit,
        cancel,
    };
    open_as(target, control, &opening)
}

/// How a connection is opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opening<'a> {
    /// How long it stays open when idle, as in `ControlPersist`.
    pub(crate) persist: &'a str,
    /// Whether the file of its messages is kept while it is open; later messages are then returned by
    /// [`words`].
    pub(crate) is_heard: bool,
    /// How long it may take.
    pub(crate) limit: Duration,
    /// Becomes readable when the attempt is cancelled.
    pub(crate) cancel: Option<BorrowedFd<'a>>,
}

/// Like [`open`], with these parameters.
pub(crate) fn open_as(target: &Target, control: &Path, opening: &Opening<'_>) -> Result<(), ConnectError> {
    let Opening {
        persist,
        is_heard,
        limit,
        cancel,
    } = *opening;
    if Client::connect(control).is_ok() {
        return Ok(());
    }
    // Without the lock two masters could start, and the one that finds the socket taken would stay around
    // unused.
    let _lock = lock(target, control, cancel)?;
    if Client::connect(control).is_ok() {
        return Ok(());
    }
    // With the socket of a killed master in place, ssh would go on without sharing.
    std::fs::remove_file(control).ok();
    // Beside the socket, so that `exit` finds it even if we are killed now.
    let messages = messages_path(control);
    std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&messages)
        .map_err(|source| ConnectError::Messages { source })?;
    let argv = master_argv(target, control, persist, &messages);
    let command = Cmd::new(&argv[0])
        .args(&argv[1..])
        .environment(target.environment())
        .limit(limit);
    // In its own process group, so that killing it on cancellation includes its proxy. Without `cancel` it
    // stays in ours, where Ctrl-C ends it.
    let command = if cancel.is_some() {
        command.own_group()
    } else {
        command
    };
    let started = command.run_until(cancel);
    let text = std::fs::read(&messages).unwrap_or_default();
    if !is_heard || started.is_err() {
        // If this fails, `exit` removes the file.
        std::fs::remove_file(&messages).ok();
    }
    match started {
        Ok(_) => Ok(()),
        Err(CommandError::Failed { stderr, .. }) => {
            let text = String::from_utf8_lossy(&text);
            let reason = if text.trim().is_empty() {
                &stderr
            } else {
                text.trim()
            };
            Err(refusal(target, reason, limit, cancel))
        }
        Err(CommandError::Cancelled { .. }) => Err(cancelled(target)),
        Err(CommandError::TimedOut { .. }) => Err(ConnectError::TimedOut {
            destination: target.destination(),
            port: target.port,
            said: format!("no connection within {limit:?}"),
        }),
        Err(source) => Err(ConnectError::Client { source }),
    }
}

/// The error for a master that failed with `reason`. Behind a proxy that is only the name of the proxy's end,
/// so the proxy is asked.
fn refusal(target: &Target, reason: &str, limit: Duration, cancel: Option<BorrowedFd<'_>>) -> ConnectError {
    if !target.user_config || !is_only_of_the_end(reason) {
        return classify(target, reason);
    }
    if reason.contains("timed out") {
        // Asking again would wait as long.
        let reason = format!(
            "the ProxyCommand or ProxyJump of the SSH configuration gave no answer in {} s, and timed out",
            target.connect_timeout.as_secs()
        );
        return classify(target, &reason);
    }
    match words_of_proxy(target, limit, cancel) {
        Some(words) => classify_proxied(target, &words),
        None => classify(target, reason),
    }
}

fn cancelled(target: &Target) -> ConnectError {
    ConnectError::Cancelled {
        destination: target.destination(),
    }
}

/// The lock that keeps two masters apart. It is held while a connection is opened, for as long as the remote
/// side takes.
fn lock(target: &Target, control: &Path, cancel: Option<BorrowedFd<'_>>) -> Result<FileLock, ConnectError> {
    let path = lock_path(control);
    let failed = |source| ConnectError::Lock { source };
    let Some(cancel) = cancel else {
        return FileLock::acquire(&path).map_err(failed);
    };
    loop {
        if let Some(lock) = FileLock::try_acquire(&path).map_err(failed)? {
            return Ok(lock);
        }
        if is_readable(cancel, LOCK_PAUSE) {
            return Err(cancelled(target));
        }
    }
}

/// The messages of the connection at `control` since the last call; it must have been opened with `is_heard`.
pub(crate) fn words(control: &Path) -> String {
    let path = messages_path(control);
    let text = std::fs::read(&path).unwrap_or_default();
    // ssh appends to the file, so only messages between the read and the truncation are lost.
    if let Ok(file) = std::fs::File::options().write(true).open(&path) {
        file.set_len(0).ok();
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The pid of the master at `control`, or `None` when there is none that answers.
pub fn check(control: &Path) -> Option<i32> {
    Client::connect(control).ok()?.alive().ok()
}

/// Ends the master at `control`, with everything that runs over it, and removes its socket. `false` if there
/// was none.
pub fn exit(control: &Path) -> Result<bool, ExitError> {
    let lock = FileLock::acquire(&lock_path(control)).map_err(|source| ExitError::Lock { source })?;
    let ended = match Client::connect(control) {
        Ok(mut client) => {
            let pid = client.alive().map_err(|source| ExitError::Ask { source })?;
            // A negative pid is as invalid as 0.
            let pid = u32::try_from(pid).unwrap_or(0);
            let failed = |source| ExitError::Process { pid, source };
            // The listener reports its pid, which is only believed if the process looks like our master.
            let handle = match process::look(pid).map_err(failed)? {
                Some(found) if is_master(&found, control) => process::open(&found.id).map_err(failed)?,
                _ => None,
            };
            // Ignore the answer; whether the process ends is checked below.
            client.terminate().ok();
            if let Some(handle) = handle
                && !handle.wait_exit(EXIT_GRACE).map_err(failed)?
            {
                handle.terminate(EXIT_GRACE).map_err(failed)?;
            }
            true
        }
        Err(MuxError::Absent) => false,
        Err(source) => return Err(ExitError::Ask { source }),
    };
    // A master whose parent died during the handshake has no socket yet, and would go on waiting for the
    // remote side.
    end_unheard(control)?;
    match control.symlink_metadata() {
        // To connect to any other file fails as it does to a socket that nobody listens on.
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ExitError::Socket {
                path: control.to_owned(),
                source: std::io::Error::other("it is not a socket"),
            });
        }
        _ => {}
    }
    for path in [control.to_owned(), messages_path(control)] {
        remove_if_there(&path).map_err(|source| ExitError::Socket { path, source })?;
    }
    lock.remove_while_held()
        .map_err(|source| ExitError::Lock { source })?;
    Ok(ended)
}

/// The control sockets of the masters that this program opened with `key`. (Masters of the Go program have
/// `%C` in their names.) Only processes of this user count, because another user's arguments must not choose
/// what is ended and removed here.
pub fn of_key(key: &Path) -> Result<Vec<PathBuf>, ExitError> {
    let failed = |source| ExitError::Process { pid: 0, source };
    let mut found = Vec::new();
    let user = rustix::process::geteuid().as_raw();
    let processes = process::list().map_err(failed)?;
    for process in processes.into_iter().filter(|process| process.uid == user) {
        let words = &process.cmdline;
        let with_key = words
            .windows(2)
            .any(|pair| pair[0] == "-i" && pair[1] == key.as_os_str());
        let control = words
            .iter()
            .find_map(|word| word.to_str()?.strip_prefix("ControlPath="));
        if with_key && let Some(control) = control.filter(|path| !path.contains(['%', '"'])) {
            found.push(PathBuf::from(control));
        }
    }
    // An ssh that is going into the background is two processes for a moment.
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Ends every ssh that was started as the master at `control`, whose socket may be gone.
pub fn end_unheard(control: &Path) -> Result<(), ExitError> {
    let failed = |pid| move |source| ExitError::Process { pid, source };
    for found in process::list().map_err(failed(0))? {
        if is_master(&found, control)
            && let Some(handle) = process::open(&found.id).map_err(failed(found.id.pid))?
        {
            handle.terminate(EXIT_GRACE).map_err(failed(found.id.pid))?;
        }
    }
    Ok(())
}

/// Whether a process is an ssh of this user that was started as the master at `control`. The arguments alone
/// prove nothing, because any user can choose those of their processes.
fn is_master(found: &ProcessInfo, control: &Path) -> bool {
    let ours = found.uid == rustix::process::geteuid().as_raw();
    let is_ssh = found
        .exe
        .as_deref()
        .and_then(Path::file_name)
        // The kernel appends the second word if the program file was replaced.
        .is_some_and(|name| name == "ssh" || name == "ssh (deleted)");
    let control_option = OsString::from(format!("ControlPath={}", config_path(control)));
    ours && is_ssh
        && found.cmdline.contains(&control_option)
        && found.cmdline.iter().any(|word| word == "ControlMaster=yes")
}

/// ssh uses the first value of an option, so the options of a master come before those of the target.
fn master_argv(target: &Target, control: &Path, persist: &str, messages: &Path) -> Vec<OsString> {
    let mut argv: Vec<OsString> = vec!["ssh".into(), "-N".into(), "-f".into(), "-T".into()];
    argv.extend(["-E".into(), messages.into()]);
    for option in [
        // ssh reports some failures below error level: no common algorithm, a closed connection.
        "LogLevel=INFO",
        "ControlMaster=yes",
        &format!("ControlPersist={persist}"),
        &format!("ControlPath={}", config_path(control)),
        // Overrides what the user's configuration sets for their own sessions.
        "ClearAllForwardings=yes",
        "PermitLocalCommand=no",
        "RemoteCommand=none",
    ] {
        argv.extend(["-o".into(), option.into()]);
    }
    let own = ArgvOptions {
        own_connection: true,
        ..ArgvOptions::default()
    };
    argv.extend(target.ssh_argv(own).into_iter().skip(1));
    argv
}

/// The messages of a failing proxy. A master with `ControlPersist` discards the proxy's standard error, so a
/// session without one tries again.
fn words_of_proxy(target: &Target, limit: Duration, cancel: Option<BorrowedFd<'_>>) -> Option<String> {
    let own = ArgvOptions {
        own_connection: true,
        no_stdin: true,
        ..ArgvOptions::default()
    };
    let argv = target.ssh_argv(own);
    let asked = Cmd::new(&argv[0])
        .args(&argv[1..])
        .arg("exit")
        .environment(target.environment())
        .limit(limit)
        .capture_until(cancel)
        .ok()?;
    let stderr = asked.stderr_text();
    (!asked.status.success() && !stderr.trim().is_empty()).then_some(stderr)
}

/// The file for a master's messages; it is different for each master, whatever extension its socket has.
fn messages_path(control: &Path) -> PathBuf {
    match control.extension() {
        None => control.with_extension("log"),
        Some(kind) => control.with_extension(format!("{}-log", kind.display())),
    }
}

fn lock_path(control: &Path) -> PathBuf {
    control.with_extension("lock")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crabbox_host::clock;
    use std::os::unix::process::CommandExt as _;

    #[test]
    fn only_this_user_s_processes_say_which_sockets_are_ours() {
        let key = Path::new("/keys/cbx_of_key_test/id_ed25519");
        let claim = |control: &str, user: Option<u32>| {
            let mut command = Cmd::new("sh")
                .args(["-c", "sleep 600; :", "ssh", "-i"])
                .arg(key)
                .arg(format!("ControlPath={control}"))
                .to_std();
            if let Some(user) = user {
                command.uid(user);
            }
            process::new_session(&mut command).spawn().unwrap()
        };
        let mut mine = claim("/run/mine", None);
        let mut theirs = claim("/etc/passwd", Some(65_534));
        let seen = |pid: u32| {
            process::list()
                .unwrap()
                .iter()
                .any(|one| one.id.pid == pid && one.cmdline.iter().any(|word| word == "-i"))
        };
        let both = clock::poll_until(Duration::from_secs(5), || {
            (seen(mine.id()) && seen(theirs.id())).then_some(())
        });
        let found = of_key(key);
        for child in [&mut mine, &mut theirs] {
            let group = rustix::process::Pid::from_child(child);
            rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
            child.wait().unwrap();
        }
        both.unwrap();
        assert_eq!(found.unwrap(), [Path::new("/run/mine")]);
    }

    /// Listens at `control` like a master, and claims to be the process `pid`.
    fn impostor(control: &Path, pid: u32) -> std::thread::JoinHandle<()> {
        use std::io::{Read as _, Write as _};
        let listener = std::os::unix::net::UnixListener::bind(control).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // Length, type and version of a greeting, then length, type, request id and pid (`PROTOCOL.mux`).
            stream.read_exact(&mut [0; 12]).unwrap();
            stream.write_all(&[0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 4]).unwrap();
            stream.read_exact(&mut [0; 12]).unwrap();
            let alive = [&[0, 0, 0, 12, 0x80, 0, 0, 5, 0, 0, 0, 0][..], &pid.to_be_bytes()].concat();
            stream.write_all(&alive).unwrap();
        })
    }

    #[test]
    fn a_process_that_a_socket_names_and_that_is_no_ssh_of_ours_is_not_ended() {
        let dir = tempfile::tempdir().unwrap();
        let control = dir.path().join("c");
        // Right user, wrong program; its arguments are those of a master.
        let bystander = Cmd::new("sh").args([
            "-c",
            "sleep 600; :",
            "ssh",
            "ControlMaster=yes",
            &format!("ControlPath={}", control.display()),
        ]);
        let mut command = bystander.to_std();
        let mut bystander = process::new_session(&mut command).spawn().unwrap();
        let pid = bystander.id();
        let started = clock::poll_until(Duration::from_secs(5), || {
            let found = process::look(pid).unwrap()?;
            (found.cmdline.len() == 6).then_some(())
        });
        let listening = impostor(&control, pid);
        let ended = exit(&control);
        listening.join().unwrap();
        let alive = bystander.try_wait().unwrap().is_none();
        let group = rustix::process::Pid::from_child(&bystander);
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).ok();
        bystander.wait().unwrap();
        started.unwrap();
        assert!(alive, "{ended:?}");
        assert!(!control.exists(), "the socket is removed all the same");
    }

    #[test]
    fn another_user_s_process_with_the_arguments_of_a_master_is_not_ours() {
        let control = Path::new("/run/crabbox/0");
        let ours = rustix::process::geteuid().as_raw();
        let found = |uid, exe: &str| ProcessInfo {
            id: process::ProcessId {
                pid: 1,
                started: "0".into(),
                boot_id: "b".into(),
            },
            uid,
            cmdline: ["ssh", "ControlMaster=yes", "ControlPath=/run/crabbox/0"]
                .map(OsString::from)
                .to_vec(),
            exe: Some(exe.into()),
            cwd: None,
            root: None,
            netns: None,
        };
        assert!(is_master(&found(ours, "/usr/bin/ssh"), control));
        assert!(is_master(&found(ours, "/usr/bin/ssh (deleted)"), control));
        assert!(!is_master(&found(ours + 1, "/usr/bin/ssh"), control));
        assert!(!is_master(&found(ours, "/tmp/sshd"), control));
        assert!(!is_master(
            &found(ours, "/usr/bin/ssh"),
            Path::new("/run/crabbox/1")
        ));
    }
}
