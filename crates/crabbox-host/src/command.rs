//! Child processes: the only place that starts other programs.
//!
//! A [`Cmd`] is an argument vector, never a shell string. Its error names the program, its exit status and
//! the last lines of its standard error. It must never let a child's output grow without limit in memory,
//! pass on a file descriptor or a variable of the caller that was not requested, or wait forever if a time
//! limit was given.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::confine::Confinement;
use crate::environment::Environment;
use crate::{clock, process};

/// Maximum number of bytes kept of each captured stream; a child that prints more keeps running, and its
/// status counts.
pub const CAPTURE_LIMIT: usize = 64 * 1024 * 1024;

/// Maximum number of bytes of standard error in an error message.
const STDERR_TAIL: usize = 2000;

/// A program to run, with its arguments.
#[derive(Debug, Clone)]
pub struct Cmd {
    program: OsString,
    args: Vec<OsString>,
    environment: Environment,
    env: Vec<(OsString, Option<OsString>)>,
    cwd: Option<PathBuf>,
    stdin: Option<Vec<u8>>,
    limit: Option<Duration>,
    group: bool,
    bound: bool,
    output: Option<usize>,
    confined: Option<Arc<Confinement>>,
}

/// The result of a captured child.
#[derive(Debug)]
pub struct Captured {
    /// How the child ended.
    pub status: ExitStatus,
    /// Its standard output, at most [`CAPTURE_LIMIT`] bytes.
    pub stdout: Vec<u8>,
    /// Its standard error, at most [`CAPTURE_LIMIT`] bytes.
    pub stderr: Vec<u8>,
    /// Whether it was killed because it wrote more than [`Cmd::output_limit`] permits.
    pub cut: bool,
}

impl Captured {
    /// Standard output as text, invalid UTF-8 replaced, trailing white space cut.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Standard error as text, invalid UTF-8 replaced, trailing white space cut.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }
}

/// Why a child failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The program is not installed, or not on `PATH`.
    #[error("{program}: command not found")]
    NotFound {
        /// The program.
        program: String,
    },
    /// The program exists but could not be started, or its streams failed.
    #[error("cannot run {program}")]
    Spawn {
        /// The program.
        program: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The exit status was not 0.
    #[error("{program} {}{}", describe(*.status), tail_of(.stderr))]
    Failed {
        /// The program.
        program: String,
        /// Its arguments, for a log; not shown in the message.
        args: Vec<OsString>,
        /// How it ended.
        status: ExitStatus,
        /// The end of its standard error.
        stderr: String,
    },
    /// The program exceeded its output limit and was killed.
    #[error("{program} wrote more than {limit} bytes")]
    TooMuchOutput {
        /// The program.
        program: String,
        /// The limit it broke, in bytes.
        limit: usize,
    },
    /// The caller cancelled it, and it was killed.
    #[error("{program} was cancelled")]
    Cancelled {
        /// The program.
        program: String,
    },
    /// The program was still running at its time limit and was killed.
    #[error("{program} did not end within {limit:?}{}", tail_of(.stderr))]
    TimedOut {
        /// The program.
        program: String,
        /// The limit it broke.
        limit: Duration,
        /// The end of its standard error.
        stderr: String,
    },
}

impl CommandError {
    /// The error of `inner`, for a program that only starts `inner`.
    #[must_use]
    pub fn of(mut self, inner: &str) -> Self {
        match &mut self {
            Self::Failed { program, .. }
            | Self::Cancelled { program }
            | Self::TimedOut { program, .. }
            | Self::TooMuchOutput { program, .. } => inner.clone_into(program),
            Self::NotFound { .. } | Self::Spawn { .. } => {}
        }
        self
    }
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(0), _) => "ended".to_owned(),
        (Some(code), _) => format!("failed with exit code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended strangely".to_owned(),
    }
}

fn tail_of(stderr: &str) -> String {
    if stderr.is_empty() {
        String::new()
    } else {
        format!(": {stderr}")
    }
}

/// The result of waiting for a child.
enum Ended {
    /// It ended by itself, or because it exceeded its output limit.
    Itself(ExitStatus),
    /// It was killed at its time limit.
    Late,
    /// It was killed because the caller cancelled it.
    Cancelled,
}

impl Cmd {
    /// A command for `program`, looked up on `PATH` if it has no slash. Its environment is that of
    /// [`Environment::Plain`].
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            environment: Environment::Plain,
            env: Vec::new(),
            cwd: None,
            stdin: None,
            limit: None,
            group: false,
            bound: false,
            output: None,
            confined: None,
        }
    }

    /// The same with the caller's whole environment, for developer tools and for programs that start others
    /// of the user's choice.
    pub fn inheriting(program: impl AsRef<OsStr>) -> Self {
        Self::new(program).environment(Environment::Whole)
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds several arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Passes on those variables of the caller's environment that `environment` permits.
    #[must_use]
    pub fn environment(mut self, environment: Environment) -> Self {
        self.environment = environment;
        self
    }

    /// Sets a variable of the child's environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env
            .push((name.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Removes a variable from the child's environment.
    #[must_use]
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), None));
        self
    }

    /// Runs the child in `dir`.
    #[must_use]
    pub fn cwd(mut self, dir: impl AsRef<Path>) -> Self {
        self.cwd = Some(dir.as_ref().to_owned());
        self
    }

    /// Feeds `bytes` to the child's standard input; without this it reads from `/dev/null`.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Kills the child when it still runs after `limit`.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Starts the child as the leader of its own process group, and kills the whole group at its time limit:
    /// a shell script that hangs in a child of its own would otherwise leave that child behind, with our
    /// pipes open.
    #[must_use]
    pub fn own_group(mut self) -> Self {
        self.group = true;
        self
    }

    /// Lets the kernel kill the child when the thread that runs it ends, however that happens
    /// ([`process::die_with_us`]).
    #[must_use]
    pub fn dies_with_us(mut self) -> Self {
        self.bound = true;
        self
    }

    /// Kills the child once it has written more than `bytes` to its standard output, and keeps that many:
    /// [`Captured::cut`] reports it, and for [`Self::run`] it is an error.
    #[must_use]
    pub fn output_limit(mut self, bytes: usize) -> Self {
        self.output = Some(bytes);
        self
    }

    /// Confines the child ([`Confinement`]); its environment has only the variables set here.
    #[must_use]
    pub fn confined(mut self, confinement: Arc<Confinement>) -> Self {
        self.confined = Some(confinement);
        self
    }

    /// The program and its arguments, for a log or a dry run.
    pub fn argv(&self) -> Vec<OsString> {
        std::iter::once(self.program.clone())
            .chain(self.args.iter().cloned())
            .collect()
    }

    /// The same command as a standard one, for callers that own its streams (interactive ssh, the supervisor,
    /// the VMM).
    #[expect(
        clippy::disallowed_methods,
        reason = "this module is the one place that starts processes"
    )]
    pub fn to_std(&self) -> std::process::Command {
        let mut command = std::process::Command::new(&self.program);
        command.args(&self.args);
        // Remove variables one by one instead of clearing all and restoring some: the standard library spawns
        // more slowly if `PATH` is set explicitly.
        for name in self.environment.withheld() {
            command.env_remove(name);
        }
        if let Some(confinement) = &self.confined {
            confinement.apply(&mut command);
        }
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(dir) = &self.cwd {
            command.current_dir(dir);
        }
        if self.group {
            std::os::unix::process::CommandExt::process_group(&mut command, 0);
        }
        if self.bound {
            process::die_with_us(&mut command);
        }
        command
    }

    /// Starts the child as `command` describes it, with an error that names the program.
    pub fn spawn(&self, command: &mut std::process::Command) -> Result<Child, CommandError> {
        let child = command.spawn().map_err(|source| self.spawn_error(source));
        // Never log arguments, input or environment: any of them may contain secrets of the user.
        let pid = child.as_ref().ok().map(Child::id);
        tracing::trace!(program = %self.program.display(), pid, "started");
        child
    }

    /// Runs the child, captures both streams, and fails unless it exits with 0.
    pub fn run(&self) -> Result<Captured, CommandError> {
        self.run_until(None)
    }

    /// The same, but kills the child as soon as `cancel` is readable.
    pub fn run_until(&self, cancel: Option<BorrowedFd<'_>>) -> Result<Captured, CommandError> {
        let captured = self.capture_until(cancel)?;
        if captured.cut {
            return Err(CommandError::TooMuchOutput {
                program: self.program.to_string_lossy().into_owned(),
                limit: self.output.unwrap_or_default(),
            });
        }
        if captured.status.success() {
            return Ok(captured);
        }
        Err(CommandError::Failed {
            program: self.program.to_string_lossy().into_owned(),
            args: self.args.clone(),
            status: captured.status,
            stderr: tail(&captured.stderr),
        })
    }

    /// Runs the child and captures both streams, whatever its exit code is.
    pub fn capture(&self) -> Result<Captured, CommandError> {
        self.capture_until(None)
    }

    /// The same, but kills the child as soon as `cancel` is readable.
    pub fn capture_until(&self, cancel: Option<BorrowedFd<'_>>) -> Result<Captured, CommandError> {
        match cancel {
            Some(cancel) => self.capture_while(Some(&|| clock::is_readable(cancel, Duration::ZERO))),
            None => self.capture_while(None),
        }
    }

    /// The same, but polls `cancelled` every 10 ms and kills the child, or does not even start it, once it
    /// returns true.
    pub fn capture_unless(&self, cancelled: &dyn Fn() -> bool) -> Result<Captured, CommandError> {
        self.capture_while(Some(cancelled))
    }

    fn capture_while(&self, cancelled: Option<&dyn Fn() -> bool>) -> Result<Captured, CommandError> {
        if cancelled.is_some_and(|cancelled| cancelled()) {
            return Err(CommandError::Cancelled {
                program: self.program.to_string_lossy().into_owned(),
            });
        }
        let began = Instant::now();
        let mut command = self.to_std();
        command.stdin(if self.stdin.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.spawn(&mut command)?;
        let input = child.stdin.take().zip(self.stdin.clone());
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let limit = self.limit;
        let cut = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            if let Some((mut pipe, bytes)) = input {
                // If a child ends without reading its input, its status decides, not our broken pipe.
                scope.spawn(move || pipe.write_all(&bytes).ok());
            }
            let most = self.output;
            let out = scope.spawn(move || match most {
                Some(most) => out.map(|out| head(out, most, cut)).unwrap_or_default(),
                None => out.map(drain).unwrap_or_default(),
            });
            let err = scope.spawn(move || err.map(drain).unwrap_or_default());
            let waited = self.wait(&mut child, limit, cut, cancelled);
            let (stdout, stderr) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
            let waited = waited?;
            let millis = began.elapsed().as_millis();
            match waited {
                Ended::Itself(status) => {
                    tracing::debug!(program = %self.program.display(), millis, "{}", describe(status));
                }
                Ended::Cancelled => {
                    tracing::debug!(program = %self.program.display(), millis, "was killed because it was cancelled");
                }
                Ended::Late => {
                    tracing::debug!(program = %self.program.display(), millis, "was killed at its time limit");
                }
            }
            match waited {
                Ended::Itself(status) => Ok(Captured {
                    status,
                    stdout,
                    stderr,
                    cut: cut.load(Ordering::Relaxed),
                }),
                Ended::Cancelled => Err(CommandError::Cancelled {
                    program: self.program.to_string_lossy().into_owned(),
                }),
                Ended::Late => Err(CommandError::TimedOut {
                    program: self.program.to_string_lossy().into_owned(),
                    limit: limit.unwrap_or_default(),
                    stderr: tail(&stderr),
                }),
            }
        })
    }

    fn wait(
        &self,
        child: &mut Child,
        limit: Option<Duration>,
        cut: &AtomicBool,
        cancelled: Option<&dyn Fn() -> bool>,
    ) -> Result<Ended, CommandError> {
        if limit.is_none() && self.output.is_none() && cancelled.is_none() {
            return child
                .wait()
                .map(Ended::Itself)
                .map_err(|source| self.spawn_error(source));
        }
        let started = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(status) = child.try_wait().map_err(|source| self.spawn_error(source))? {
                return Ok(Ended::Itself(status));
            }
            let late = limit.is_some_and(|limit| started.elapsed() >= limit);
            let cancelled = cancelled.is_some_and(|cancelled| cancelled());
            if late || cancelled || cut.load(Ordering::Relaxed) {
                // It may have ended meanwhile; either way it is reaped here.
                if self.group {
                    // The leader has not been reaped, so its pid still identifies this process group.
                    rustix::process::kill_process_group(Pid::from_child(child), Signal::KILL).ok();
                }
                child.kill().ok();
                let status = child.wait().map_err(|source| self.spawn_error(source))?;
                return Ok(if cancelled {
                    Ended::Cancelled
                } else if late {
                    Ended::Late
                } else {
                    Ended::Itself(status)
                });
            }
            clock::nap(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    fn spawn_error(&self, source: std::io::Error) -> CommandError {
        let program = self.program.to_string_lossy().into_owned();
        if source.kind() == std::io::ErrorKind::NotFound && self.cwd.as_ref().is_none_or(|dir| dir.exists()) {
            CommandError::NotFound { program }
        } else {
            CommandError::Spawn { program, source }
        }
    }
}

/// Reads `stream` to its end, keeping the first [`CAPTURE_LIMIT`] bytes so that the child never blocks on a
/// full pipe.
fn drain(mut stream: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    while let Ok(count) = stream.read(&mut chunk) {
        if count == 0 {
            break;
        }
        let room = CAPTURE_LIMIT.saturating_sub(kept.len());
        kept.extend_from_slice(&chunk[..count.min(room)]);
    }
    kept
}

/// The first `most` bytes of `stream`. Further bytes are not read; `cut` reports that there were some.
fn head(stream: impl Read, most: usize, cut: &AtomicBool) -> Vec<u8> {
    let mut kept = Vec::new();
    // A read error counts as the end of the stream, as in `drain`.
    stream.take(most as u64 + 1).read_to_end(&mut kept).ok();
    if kept.len() > most {
        kept.truncate(most);
        cut.store(true, Ordering::Relaxed);
    }
    kept
}

fn tail(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(&stderr[stderr.len().saturating_sub(STDERR_TAIL)..])
        .trim()
        .to_owned();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// The full path of `program` as `PATH` (given as `path`) finds it, or `None`. A name with a slash is taken
/// as it is.
pub fn find_on_path(program: &OsStr, path: &OsStr) -> Option<PathBuf> {
    let executable = |candidate: &Path| {
        candidate.is_file() && rustix::fs::access(candidate, rustix::fs::Access::EXEC_OK).is_ok()
    };
    if Path::new(program).components().count() > 1 {
        return Some(PathBuf::from(program)).filter(|path| executable(path));
    }
    std::env::split_paths(path)
        .map(|dir| dir.join(program))
        .find(|candidate| executable(candidate))
}

#[cfg(test)]
mod tests;
