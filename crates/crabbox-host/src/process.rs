//! Processes that outlive the command that started them: their identity, liveness and termination.
//!
//! A pid alone never identifies a process here: a [`ProcessId`] is the pid, the time the process started and
//! the boot in which it started, and a signal is sent only through a pidfd whose identity was checked after
//! it was opened. Nothing in this module may signal by pid, or treat "unknown" as "dead".

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use rustix::thread::CapabilitySet;

mod scan;
mod whereabouts;
mod writer;

pub use crabbox_core::process::ProcessId;
pub use rustix::process::Signal;
pub use scan::{ProcessInfo, children, list, look, note_inherited, with_environment};
pub use whereabouts::{Whereabouts, whereabouts, whereabouts_for};
pub use writer::writer_of;

/// The kernel's random id of each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How long a process may take to disappear after SIGKILL before it is reported as stuck, usually in the
/// kernel.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// The effective uid of this process, which the kernel uses for file permissions.
pub fn euid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whether this process is root's by its effective uid.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether this process may make, list and remove links and packet filters (`CAP_NET_ADMIN`, effective). If
/// this is unknown, the result is `true`: the attempt then reports the reason.
pub fn may_change_networks() -> bool {
    rustix::thread::capabilities(None).map_or(true, |sets| sets.effective.contains(CapabilitySet::NET_ADMIN))
}

/// Why a process could not be inspected or ended.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A file, of `/proc` mostly, could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// `/proc/<pid>/stat` was read but does not have the format described in proc(5).
    #[error("cannot parse {}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// No pidfd could be opened for an existing process.
    #[error("cannot open a handle on process {pid}")]
    Open {
        /// The process.
        pid: u32,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The process exists but could not be signalled.
    #[error("cannot send signal {signal} to process {pid}")]
    Signal {
        /// The process.
        pid: u32,
        /// The number of the signal.
        signal: i32,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// Waiting for the process failed.
    #[error("cannot wait for process {pid}")]
    Wait {
        /// The process.
        pid: u32,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The process is still there after SIGKILL.
    #[error("process {pid} did not end within {limit:?} of SIGKILL")]
    Stuck {
        /// The process.
        pid: u32,
        /// How long was waited.
        limit: Duration,
    },
}

/// Kills this process like `kill -9`: no destructor or handler runs. For crash tests.
pub fn kill_self() {
    // The signal is delivered before the call returns, so there is nothing to handle.
    rustix::process::kill_process(rustix::process::getpid(), Signal::KILL).ok();
}

/// Stops this process until it gets SIGCONT. For crash tests.
pub fn stop_self() {
    // As above.
    rustix::process::kill_process(rustix::process::getpid(), Signal::STOP).ok();
}

/// The needed fields of `/proc/<pid>/stat`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stat {
    state: char,
    started: String,
}

/// Parses the fields of `/proc/<pid>/stat`. The command name is in parentheses and may itself contain spaces,
/// parentheses and newlines, so fields are counted from the last closing parenthesis.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, after) = text.rsplit_once(')')?;
    let mut fields = after.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // Field 3 was the state; 22 is the nineteenth after it.
    let started = fields.nth(18)?;
    started.bytes().all(|byte| byte.is_ascii_digit()).then(|| Stat {
        state,
        started: started.to_owned(),
    })
}

fn proc_path(pid: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// Whether an error from `/proc/<pid>/…` means that the process does not exist (any more).
fn is_gone(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

fn stat(pid: u32) -> Result<Option<Stat>, ProcessError> {
    let path = proc_path(pid, "stat");
    match std::fs::read(&path) {
        // The name may contain any bytes; everything after it is ASCII.
        Ok(bytes) => match parse_stat(&String::from_utf8_lossy(&bytes)) {
            Some(stat) => Ok(Some(stat)),
            None => Err(ProcessError::Malformed { path }),
        },
        Err(error) if is_gone(&error) => Ok(None),
        Err(source) => Err(ProcessError::Read { path, source }),
    }
}

/// The random id of the current boot.
pub fn boot_id() -> Result<String, ProcessError> {
    match std::fs::read_to_string(BOOT_ID) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(source) => Err(ProcessError::Read {
            path: BOOT_ID.into(),
            source,
        }),
    }
}

/// The identity of the process that has `pid` now, or `None`. A zombie still has its identity.
pub fn identify(pid: u32) -> Result<Option<ProcessId>, ProcessError> {
    let Some(stat) = stat(pid)? else { return Ok(None) };
    Ok(Some(ProcessId {
        pid,
        started: stat.started,
        boot_id: boot_id()?,
    }))
}

/// Whether exactly this process is still running. A zombie is not. If this is unknown, the result is `true`:
/// the caller goes on to [`open`], which returns the reason.
pub fn is_alive(id: &ProcessId) -> bool {
    if id.raw().is_none() {
        return false;
    }
    match (boot_id(), stat(id.pid)) {
        (Ok(boot), _) if boot != id.boot_id => false,
        (_, Ok(None)) => false,
        (_, Ok(Some(stat))) => stat.started == id.started && !matches!(stat.state, 'Z' | 'X' | 'x'),
        (_, Err(_)) => true,
    }
}

/// A handle on exactly this process, or `None` if it is gone. The identity is read after the pidfd was
/// opened, so that a process that has got the pid meanwhile is not affected.
pub fn open(id: &ProcessId) -> Result<Option<ProcessHandle>, ProcessError> {
    let Some(pid) = id.raw().and_then(Pid::from_raw) else {
        return Ok(None);
    };
    let fd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => fd,
        // Also if it has just been reaped while its pid is still referenced, or if the pid is now a thread's
        // id (EINVAL, and ENOENT in newer kernels: `pidfd_prepare` in kernel/fork.c).
        Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => return Ok(None),
        Err(errno) => {
            return Err(ProcessError::Open {
                pid: id.pid,
                source: errno.into(),
            });
        }
    };
    let same = identify(id.pid)?.is_some_and(|now| now == *id);
    Ok(same.then(|| ProcessHandle { fd, id: id.clone() }))
}

/// The status with which a child of ours ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code.
    Exited(i32),
    /// This signal killed it.
    Signaled(i32),
}

/// How the process ended, which stays to be reaped; `None` if it still runs or is not (or no longer) our
/// child.
pub fn exit_status(id: &ProcessId) -> Option<ExitStatus> {
    let pid = id.raw().and_then(Pid::from_raw)?;
    if identify(id.pid).ok()?.as_ref() != Some(id) {
        return None;
    }
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let status = waitid(WaitId::Pid(pid), ended).ok()??;
    let code = status.exit_status().map(ExitStatus::Exited);
    code.or_else(|| status.terminating_signal().map(ExitStatus::Signaled))
}

/// How a process was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It had ended before the first signal.
    AlreadyGone,
    /// It ended after SIGTERM, within the grace period.
    Terminated,
    /// It had to be killed with SIGKILL.
    Killed,
}

/// An open pidfd on a process whose identity was checked. Usable in poll: it becomes readable when the
/// process ends.
#[derive(Debug)]
pub struct ProcessHandle {
    fd: OwnedFd,
    id: ProcessId,
}

impl AsFd for ProcessHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl ProcessHandle {
    /// The identity of the process.
    pub fn id(&self) -> &ProcessId {
        &self.id
    }

    /// Sends `signal`; `false` if the process has ended.
    pub fn signal(&self, signal: Signal) -> Result<bool, ProcessError> {
        match pidfd_send_signal(&self.fd, signal) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(errno) => {
                let signal = signal.as_raw();
                Err(ProcessError::Signal {
                    pid: self.id.pid,
                    signal,
                    source: errno.into(),
                })
            }
        }
    }

    /// Waits until the process has ended (reaped or not), at most `limit`. `false` if it still runs then.
    pub fn wait_exit(&self, limit: Duration) -> Result<bool, ProcessError> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap_or(Timespec {
                tv_sec: i64::MAX,
                tv_nsec: 0,
            });
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(count) => return Ok(count > 0),
                Err(Errno::INTR) => {}
                Err(errno) => {
                    return Err(ProcessError::Wait {
                        pid: self.id.pid,
                        source: errno.into(),
                    });
                }
            }
        }
    }

    /// Ends the process: SIGTERM, a grace period of `grace`, then SIGKILL. Returns only when it has ended, or
    /// with [`ProcessError::Stuck`].
    pub fn terminate(&self, grace: Duration) -> Result<Ending, ProcessError> {
        if self.wait_exit(Duration::ZERO)? || !self.signal(Signal::TERM)? {
            return Ok(Ending::AlreadyGone);
        }
        if self.wait_exit(grace)? {
            return Ok(Ending::Terminated);
        }
        self.signal(Signal::KILL)?;
        if self.wait_exit(KILL_LIMIT)? {
            return Ok(Ending::Killed);
        }
        Err(ProcessError::Stuck {
            pid: self.id.pid,
            limit: KILL_LIMIT,
        })
    }
}

/// Makes the child of `command` the leader of its own session and process group, without a controlling
/// terminal: a Ctrl-C or a hang-up of our terminal does not reach it. Descriptors are not inherited because
/// the standard library opens them close-on-exec; the caller chooses the three standard streams.
pub fn new_session(command: &mut std::process::Command) -> &mut std::process::Command {
    let enter = || rustix::process::setsid().map(drop).map_err(std::io::Error::from);
    #[expect(
        unsafe_code,
        reason = "code between fork and exec can only be given through pre_exec"
    )]
    // SAFETY: `enter` makes one system call, which is async-signal-safe; it neither allocates nor takes a
    // lock, and turning an errno into an `io::Error` stores a number.
    unsafe {
        command.pre_exec(enter)
    }
}

/// Makes the kernel kill the child of `command` when the thread that starts it ends, for whatever reason: for
/// a child that must not outlive even a `kill -9` of this process. The starting thread must be the one that
/// waits for it.
pub fn die_with_us(command: &mut std::process::Command) -> &mut std::process::Command {
    let ask =
        || rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(std::io::Error::from);
    #[expect(
        unsafe_code,
        reason = "code between fork and exec can only be given through pre_exec"
    )]
    // SAFETY: `ask` makes one system call, which is async-signal-safe; it neither allocates nor takes a lock,
    // and turning an errno into an `io::Error` stores a number.
    unsafe {
        command.pre_exec(ask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::command::Cmd;
    use std::process::{Child, Stdio};

    fn start(cmd: &Cmd) -> Child {
        let mut command = cmd.to_std();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        cmd.spawn(new_session(&mut command)).unwrap()
    }

    fn sleeper() -> Child {
        start(&Cmd::new("sleep").arg("600"))
    }

    fn id_of(child: &Child) -> ProcessId {
        identify(child.id()).unwrap().unwrap()
    }

    #[test]
    fn the_number_of_a_thread_is_no_process_to_open() {
        // The id of a thread other than the main thread; the test runner always has one.
        let thread = std::thread::spawn(|| {
            let number = rustix::thread::gettid().as_raw_nonzero().get();
            let id = ProcessId {
                pid: number.unsigned_abs(),
                started: "0".into(),
                boot_id: boot_id().unwrap(),
            };
            open(&id).unwrap().is_none()
        });
        assert!(thread.join().unwrap());
    }

    #[test]
    fn a_command_name_may_hold_parentheses_and_spaces() {
        let line = "7 (a) R 1 (b)) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 2 3\n";
        assert_eq!(
            parse_stat(line),
            Some(Stat {
                state: 'S',
                started: "987654".into()
            })
        );
        assert_eq!(parse_stat("7 (a) S 1 7"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn the_start_time_is_field_22_of_a_real_process_with_a_strange_name() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("x ) R 1 2");
        std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
        let mut child = start(&Cmd::new(&program).arg("600"));
        let id = id_of(&child);
        let other = sleeper();
        // Both started within this test: their start times lie less than 100 s (10 000 ticks of 10 ms) apart.
        let (mine, theirs): (u64, u64) = (
            id.started.parse().unwrap(),
            id_of(&other).started.parse().unwrap(),
        );
        assert!(mine.abs_diff(theirs) < 10_000, "{mine} {theirs}");
        for child in [&mut child, &mut { other }] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn an_identity_lives_as_long_as_its_process() {
        let mut child = sleeper();
        let id = id_of(&child);
        assert!(is_alive(&id));
        let handle = open(&id).unwrap().unwrap();
        assert!(!handle.wait_exit(Duration::from_millis(5)).unwrap());
        assert_eq!(
            handle.terminate(Duration::from_secs(5)).unwrap(),
            Ending::Terminated
        );
        assert!(identify(id.pid).unwrap().is_some(), "not reaped yet");
        assert!(!is_alive(&id), "a zombie is not alive");
        child.wait().unwrap();
        assert!(!is_alive(&id));
        assert!(open(&id).unwrap().is_none());
        assert!(identify(id.pid).unwrap().is_none());
        assert_eq!(handle.terminate(Duration::ZERO).unwrap(), Ending::AlreadyGone);
    }

    #[test]
    fn another_process_with_the_same_pid_is_never_opened() {
        let mut child = sleeper();
        let real = id_of(&child);
        let earlier = ProcessId {
            started: "1".into(),
            ..real.clone()
        };
        let before_reboot = ProcessId {
            boot_id: "00000000-0000-0000-0000-000000000000".into(),
            ..real.clone()
        };
        for stale in [earlier, before_reboot] {
            assert!(!is_alive(&stale));
            assert!(open(&stale).unwrap().is_none());
        }
        assert!(is_alive(&real));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_process_that_ignores_sigterm_is_killed() {
        let mut child = start(&Cmd::new("sh").args(["-c", "trap '' TERM; while :; do sleep 0.05; done"]));
        let id = id_of(&child);
        let ignores_term = || {
            let status = std::fs::read_to_string(proc_path(id.pid, "status")).ok()?;
            let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
            (u64::from_str_radix(mask.trim(), 16).ok()? & (1 << 14) != 0).then_some(())
        };
        clock::poll_until(Duration::from_secs(5), ignores_term).expect("the shell sets its trap");
        let handle = open(&id).unwrap().unwrap();
        assert_eq!(
            handle.terminate(Duration::from_millis(100)).unwrap(),
            Ending::Killed
        );
        child.wait().unwrap();
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "what is asked for leads its own session, here"
    )]
    fn a_new_session_has_its_own_session_and_group() {
        let mut child = sleeper();
        let id = id_of(&child);
        let pid = Pid::from_raw(id.raw().unwrap()).unwrap();
        assert_eq!(rustix::process::getsid(Some(pid)).unwrap(), pid);
        assert_eq!(rustix::process::getpgid(Some(pid)).unwrap(), pid);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_number_that_names_no_process_is_dead_and_cannot_be_opened() {
        for pid in [0, i32::MAX.unsigned_abs() + 1, u32::MAX] {
            let id = ProcessId {
                pid,
                started: "1".into(),
                boot_id: boot_id().unwrap(),
            };
            assert!(!is_alive(&id) && open(&id).unwrap().is_none(), "{pid}");
            assert!(identify(pid).unwrap().is_none(), "{pid}");
        }
    }

    #[test]
    fn a_child_that_is_to_die_with_us_dies_with_the_thread_that_started_it() {
        use std::os::unix::process::ExitStatusExt as _;
        let start = || {
            let cmd = crate::command::Cmd::new("sleep").arg("1000");
            let mut command = cmd.to_std();
            cmd.spawn(die_with_us(&mut command)).unwrap()
        };
        let mut child = std::thread::spawn(start).join().unwrap();
        let ended = clock::poll_until(Duration::from_secs(20), || child.try_wait().unwrap());
        child.kill().ok();
        assert_eq!(ended.and_then(|status| status.signal()), Some(9));
    }
}
