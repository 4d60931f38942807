//! The shared connection: opened once, used by every command and by rsync, ended with the lease.
//!
//! The master is an `ssh` process of its own, outside our process group, so that it outlives one call of the program.
//! After [`exit`] there must never be one left, whatever state it was in.

use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_host::clock::is_readable;
use crabbox_host::command::{Cmd, CommandError};
use crabbox_host::lock::{FileLock, LockError};
use crabbox_host::process::{self, ProcessError, ProcessInfo};

use crate::key_trouble::KeyTrouble;
use crate::mux::{Client, MuxError};
use crate::target::{ArgvOptions, CONTROL_PERSIST, Target, config_path};

/// How long a master that was told to end may take before it is killed.
const EXIT_GRACE: Duration = Duration::from_millis(500);

/// Time between two looks at a lock that somebody else holds.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Why no connection came to be.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing listens on the port, or there is no route to it.
    #[error("cannot reach {destination} port {port} by SSH: {said}")]
    Unreachable {
        /// `user@host`.
        destination: String,
        /// The port.
        port: u16,
        /// What ssh said.
        said: String,
    },
    /// The other side did not answer in time.
    #[error("{destination} port {port} did not answer by SSH in time: {said}")]
    TimedOut {
        /// `user@host`.
        destination: String,
        /// The port.
        port: u16,
        /// What ssh said.
        said: String,
    },
    /// The server does not accept our key.
    #[error("{destination} refused the key of this lease: {said}")]
    AuthDenied {
        /// `user@host`.
        destination: String,
        /// What ssh said.
        said: String,
    },
    /// The key never reached the server, or was of no use: there is something wrong with its file here.
    #[error("cannot log in to {destination}: {trouble}")]
    KeyUnusable {
        /// `user@host`.
        destination: String,
        /// What is wrong with it.
        trouble: KeyTrouble,
    },
    /// The server has not the key that this lease was given: it is another machine, or somebody is in between.
    #[error(
        "the host key of {destination} is not the one pinned in {}: this is another machine or somebody is in \
         between; stop this lease and take a new one", known_hosts.display()
    )]
    HostKeyMismatch {
        /// `user@host`.
        destination: String,
        /// The file with the expected key.
        known_hosts: PathBuf,
    },
    /// The connection failed in a way that ssh describes in its own words.
    #[error("cannot open an SSH connection to {destination}: {said}")]
    Failed {
        /// `user@host`.
        destination: String,
        /// What ssh said.
        said: String,
    },
    /// Nobody wants it any more.
    #[error("interrupted while connecting to {destination}")]
    Cancelled {
        /// `user@host`.
        destination: String,
    },
    /// `ssh` itself could not be run.
    #[error("cannot run the ssh client of OpenSSH")]
    Client {
        /// What went wrong.
        #[source]
        source: CommandError,
    },
    /// The lock that keeps two masters apart could not be taken.
    #[error("cannot lock the shared SSH connection")]
    Lock {
        /// What went wrong.
        #[source]
        source: LockError,
    },
    /// A file for its messages could not be made.
    #[error("cannot make a file for the messages of ssh")]
    Messages {
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl ConnectError {
    /// Whether the same attempt may succeed a moment later: true while a machine boots, false for a wrong host key or
    /// a missing client. A refused key counts as passing, because a guest may answer before its keys are in place.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::AuthDenied { .. } | Self::Failed { .. }
        )
    }
}

/// Why a shared connection may still be there.
#[derive(Debug, thiserror::Error)]
pub enum ExitError {
    /// The lock that keeps two masters apart could not be taken or removed.
    #[error("cannot lock the shared SSH connection")]
    Lock {
        /// What went wrong.
        #[source]
        source: LockError,
    },
    /// Something listens on the socket and does not talk as a master does.
    #[error("cannot ask the shared SSH connection to end")]
    Ask {
        /// What went wrong.
        #[source]
        source: MuxError,
    },
    /// The master would not end.
    #[error("cannot end the ssh process {pid} of the shared connection")]
    Process {
        /// Its pid.
        pid: u32,
        /// What went wrong.
        #[source]
        source: ProcessError,
    },
    /// The socket is still there.
    #[error("cannot remove the control socket {}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// Opens the shared connection of `target` at `control` unless it is open already: one handshake, at most `limit` long.
///
/// Callers at the same time are fine: one of them makes the connection, the others wait for it.
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
    /// How long it stays when nothing runs over it, as `ControlPersist` has it.
    pub(crate) persist: &'a str,
    /// Whether its messages are kept as long as it is there: what it says later is in [`words`].
    pub(crate) is_heard: bool,
    /// How long it may take.
    pub(crate) limit: Duration,
    /// Readable when nobody wants it any more.
    pub(crate) cancel: Option<BorrowedFd<'a>>,
}

/// The same as [`open`], in any manner.
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
    // Without the lock two masters could start; the one that finds the socket taken would stay, unused and unseen.
    let _lock = lock(target, control, cancel)?;
    if Client::connect(control).is_ok() {
        return Ok(());
    }
    // A socket left behind by a master that was killed would make ssh go on without sharing.
    std::fs::remove_file(control).ok();
    // Beside the socket, so that `exit` finds it even when we die now.
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
    // The kill of one that is waited for reaches its proxy as well. Without anybody to cancel it, a terminal's interrupt ends it.
    let command = if cancel.is_some() {
        command.own_group()
    } else {
        command
    };
    let started = command.run_until(cancel);
    let text = std::fs::read(&messages).unwrap_or_default();
    if !is_heard || started.is_err() {
        // One that stays is removed by `exit`.
        std::fs::remove_file(&messages).ok();
    }
    match started {
        Ok(_) => Ok(()),
        Err(CommandError::Failed { stderr, .. }) => {
            let text = String::from_utf8_lossy(&text);
            let said = if text.trim().is_empty() {
                &stderr
            } else {
                text.trim()
            };
            let is_proxied = target.user_config && said.contains(PROXIED);
            let behind_proxy = if !is_proxied {
                None
            } else if said.contains("timed out") {
                // Another attempt would wait as long.
                Some(format!(
                    "the ProxyCommand or ProxyJump of the SSH configuration gave no answer in {} s, and timed out",
                    target.connect_timeout.as_secs()
                ))
            } else {
                words_of_proxy(target, limit, cancel)
            };
            Err(classify(target, behind_proxy.as_deref().unwrap_or(said)))
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

fn cancelled(target: &Target) -> ConnectError {
    ConnectError::Cancelled {
        destination: target.destination(),
    }
}

/// The lock that keeps two masters apart. Somebody who opens the connection holds it for as long as the other side takes.
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

/// What the connection at `control`, opened to be heard, has said since the last time that somebody asked.
pub(crate) fn words(control: &Path) -> String {
    let path = messages_path(control);
    let text = std::fs::read(&path).unwrap_or_default();
    // It appends, so that nothing of it is lost but what comes in between.
    if let Ok(file) = std::fs::File::options().write(true).open(&path) {
        file.set_len(0).ok();
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The pid of the master at `control`, or `None` when there is none that answers.
pub fn check(control: &Path) -> Option<i32> {
    Client::connect(control).ok()?.alive().ok()
}

/// Ends the master at `control`, with everything that runs over it, and removes its socket. `false` if there was none.
pub fn exit(control: &Path) -> Result<bool, ExitError> {
    let lock = FileLock::acquire(&lock_path(control)).map_err(|source| ExitError::Lock { source })?;
    let ended = match Client::connect(control) {
        Ok(mut client) => {
            let pid = client.alive().map_err(|source| ExitError::Ask { source })?;
            // A negative one is nobody's, as 0 is.
            let pid = u32::try_from(pid).unwrap_or(0);
            let failed = |source| ExitError::Process { pid, source };
            // Who listens says which process it is; that process is believed only when it looks like our master.
            let handle = match process::look(pid).map_err(failed)? {
                Some(found) if is_master(&found, control) => process::open(&found.id).map_err(failed)?,
                _ => None,
            };
            // Whether it obeys is seen by its end, not by its answer.
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
    // A master whose maker died in the middle of the handshake has no socket yet, and would wait for its machine.
    end_unheard(control)?;
    for path in [control.to_owned(), messages_path(control)] {
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(ExitError::Socket { path, source });
            }
            _ => {}
        }
    }
    lock.remove_while_held()
        .map_err(|source| ExitError::Lock { source })?;
    Ok(ended)
}

/// The control sockets of the masters that this program opened with `key`. The Go program's have `%C` in their names. Only processes of
/// this user count: what another one has among its arguments must not choose what is ended and removed here.
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
    // One that goes into the background is two processes for a moment.
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Ends every ssh that was told to be the master at `control`.
fn end_unheard(control: &Path) -> Result<(), ExitError> {
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

/// Whether a process is an ssh of this user that was started as the master at `control`. Arguments alone prove nothing: any
/// user's process has those it likes.
fn is_master(found: &ProcessInfo, control: &Path) -> bool {
    let ours = found.uid == rustix::process::geteuid().as_raw();
    let is_ssh = found
        .exe
        .as_deref()
        .and_then(Path::file_name)
        // The kernel appends the second word when the program was replaced by a newer one.
        .is_some_and(|name| name == "ssh" || name == "ssh (deleted)");
    let told = OsString::from(format!("ControlPath={}", config_path(control)));
    ours && is_ssh
        && found.cmdline.contains(&told)
        && found.cmdline.iter().any(|word| word == "ControlMaster=yes")
}

/// The first value of an option counts, so what makes a master comes before the words of the target.
fn master_argv(target: &Target, control: &Path, persist: &str, messages: &Path) -> Vec<OsString> {
    let mut argv: Vec<OsString> = vec!["ssh".into(), "-N".into(), "-f".into(), "-T".into()];
    argv.extend(["-E".into(), messages.into()]);
    for option in [
        // Some of the reasons why ssh gives up are no errors to it: no common algorithm, a connection that was closed.
        "LogLevel=INFO",
        "ControlMaster=yes",
        &format!("ControlPersist={persist}"),
        &format!("ControlPath={}", config_path(control)),
        // Whatever the user's configuration wants for sessions of their own.
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

/// What ssh calls the other side when a proxy of the user's configuration leads there.
const PROXIED: &str = "UNKNOWN port 65535";

/// What is said when a proxy fails. A master with `ControlPersist` takes the proxy's standard error away, so a session without one
/// asks again.
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
    let said = asked.stderr_text();
    (!asked.status.success() && !said.trim().is_empty()).then_some(said)
}

/// Where a master says why it cannot connect; each has its own, whatever its socket ends with.
fn messages_path(control: &Path) -> PathBuf {
    match control.extension() {
        None => control.with_extension("log"),
        Some(kind) => control.with_extension(format!("{}-log", kind.display())),
    }
}

fn lock_path(control: &Path) -> PathBuf {
    control.with_extension("lock")
}

/// Reads what ssh said. The phrases are those of OpenSSH 8.4 to 10, which has kept them for decades; one that is not
/// known is passed on as it is.
pub(crate) fn classify(target: &Target, text: &str) -> ConnectError {
    let destination = target.destination();
    let port = target.port;
    let said = text.lines().last().unwrap_or("it gave no reason").to_owned();
    let holds = |phrases: &[&str]| phrases.iter().any(|phrase| text.contains(phrase));
    if holds(&["Host key verification failed", "HOST IDENTIFICATION HAS CHANGED"]) {
        let known_hosts = target.known_hosts.clone();
        return ConnectError::HostKeyMismatch {
            destination,
            known_hosts,
        };
    }
    if holds(&["Permission denied", "Too many authentication failures"]) {
        return match target.key.as_deref().and_then(KeyTrouble::of) {
            Some(trouble) => ConnectError::KeyUnusable { destination, trouble },
            None => ConnectError::AuthDenied { destination, said },
        };
    }
    if holds(&["timed out", "Timeout"]) {
        return ConnectError::TimedOut {
            destination,
            port,
            said,
        };
    }
    if holds(&[
        "Connection refused",
        "No route to host",
        "unreachable",
        "Could not resolve hostname",
    ]) {
        return ConnectError::Unreachable {
            destination,
            port,
            said,
        };
    }
    // Not known here, so the user is told all of it; the last line alone often only says that ssh stops.
    let said = if text.trim().is_empty() {
        said
    } else {
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with("Warning: Permanently added"));
        lines.take(WHOLE_LINES).collect::<Vec<_>>().join("; ")
    };
    ConnectError::Failed { destination, said }
}

/// Lines of ssh that a message repeats.
const WHOLE_LINES: usize = 8;

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

    /// Listens at `control` as a master does, and says that it is the process `pid`, which it is not.
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
