//! Starts an agent: over SSH, or with a shell of this machine that gets the very same line.
//!
//! It must never take the end of the connection for the end of the agent.

use std::io::{self, Read};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crabbox_host::clock::poll_until;
use crabbox_host::command::Cmd;
use rustix::event::PollFlags;

use super::AgentError;
use super::stream::{Input, Output};
use crate::beginning::{NotStarted, QUIET, RESCUE_AFTER, ShellFailure, StartOutcome, WaitLimits, await_mark};
use crate::capture;
use crate::doubt::await_mark_in_doubt;
use crate::exec::{ExecError, RemoteStatus, Stdin};
use crate::master;
use crate::mux::{Session, SessionEvent};
use crate::remote_line::{RemoteLine, Start};
use crate::shared::Shared;
use crate::target::Target;
use crabbox_host::wait::{Ready, wait};

/// How much of standard error is kept, in bytes.
const WORDS: usize = 16 * 1024;

/// How long to wait for the end of a session after its output has ended.
const END_LIMIT: Duration = Duration::from_secs(5);

/// A started conversation.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) way: AgentProcess,
    pub(super) input: Input,
    pub(super) output: Output,
    pub(super) is_noisy: bool,
}

/// Standard error, which a thread reads to its end.
#[derive(Debug)]
struct Words {
    /// The search for the mark, and the end of the output after it.
    heard: Arc<Mutex<(Start, Vec<u8>)>>,
    thread: JoinHandle<()>,
}

/// The process of an agent.
#[derive(Debug)]
pub(super) struct AgentProcess {
    process: Process,
    words: Words,
    code: Option<u8>,
    is_left: bool,
}

#[derive(Debug)]
enum Process {
    Remote { session: Session, shared: Shared },
    Here(Child),
}

fn local(source: io::Error) -> AgentError {
    ExecError::Local { source }.into()
}

impl AgentProcess {
    /// Makes the login shell of `target` run `script`.
    pub(super) fn ssh(
        target: &Target,
        script: &str,
        cancel: Option<BorrowedFd<'_>>,
    ) -> Result<Opened, AgentError> {
        let mut shared = Shared::open(target, None, cancel)?;
        let line = RemoteLine::new().map_err(local)?;
        let (remote_in, our_in) = io::pipe().map_err(local)?;
        let (our_out, remote_out) = io::pipe().map_err(local)?;
        let (our_err, remote_err) = io::pipe().map_err(local)?;
        let fds = [remote_in.as_fd(), remote_out.as_fd(), remote_err.as_fd()];
        let session = shared.session(target, &line.text(), fds, None, cancel)?;
        drop((remote_in, remote_out, remote_err));
        let process = Process::Remote { session, shared };
        begin(
            process,
            &line,
            script,
            Pipes {
                input: our_in,
                output: our_out,
                errors: our_err,
            },
            cancel,
            &target.destination(),
        )
    }

    /// Makes a shell of this machine run it, with this home directory instead of ours.
    pub(super) fn local(script: &str, home: Option<&Path>) -> Result<Opened, AgentError> {
        let line = RemoteLine::new().map_err(local)?;
        let mut cmd = Cmd::new("sh").args(["-c", &line.text()]);
        if let Some(home) = home {
            cmd = cmd.env("HOME", home);
        }
        let (child_in, our_in) = io::pipe().map_err(local)?;
        let (our_out, child_out) = io::pipe().map_err(local)?;
        let (our_err, child_err) = io::pipe().map_err(local)?;
        let mut command = cmd.to_std();
        command.stdin(child_in).stdout(child_out).stderr(child_err);
        let child = cmd
            .spawn(&mut command)
            .map_err(|error| local(io::Error::other(error)))?;
        // This closes our copies of the child's ends of the pipes.
        drop(command);
        begin(
            Process::Here(child),
            &line,
            script,
            Pipes {
                input: our_in,
                output: our_out,
                errors: our_err,
            },
            None,
            "this machine",
        )
    }

    /// The exit code, if one has arrived.
    pub(super) fn code(&self) -> Option<u8> {
        self.code
    }

    /// The rest of a line of standard error with this beginning, if one arrives soon.
    pub(super) fn line(&self, beginning: &str) -> Option<String> {
        let found = || {
            // In this order: once the thread has finished, the text is complete.
            let is_over = self.words.thread.is_finished();
            let stderr = self.words.of_the_end(false);
            let line = stderr.lines().find_map(|line| line.strip_prefix(beginning));
            line.map(|rest| Some(rest.to_owned())).or(is_over.then_some(None))
        };
        poll_until(QUIET, found).flatten()
    }

    /// How it ended, and its standard error.
    pub(super) fn verdict(&mut self) -> (RemoteStatus, String) {
        let (status, is_over) = match &mut self.process {
            Process::Remote { session, shared } => ended(session, shared, END_LIMIT, QUIET),
            Process::Here(child) => match poll_until(END_LIMIT, || child.try_wait().ok().flatten()) {
                None => (RemoteStatus::TimedOut { stopped: false }, false),
                Some(status) => {
                    let code = status.code().and_then(|code| u8::try_from(code).ok());
                    (code.map_or(RemoteStatus::Killed, RemoteStatus::Exited), true)
                }
            },
        };
        if let RemoteStatus::Exited(code) = status {
            self.code = Some(code);
        }
        (status, self.words.of_the_end(is_over))
    }

    /// Do not wait for its end any more.
    pub(super) fn leave(&mut self) {
        self.is_left = true;
    }

    /// Whether it ends within `limit`. A process of this machine that does not is killed.
    pub(super) fn is_over(&mut self, limit: Duration) -> bool {
        match &mut self.process {
            Process::Remote { .. } if self.is_left => true,
            Process::Remote { session, shared } => {
                self.code.is_some()
                    || matches!(
                        ended(session, shared, limit, Duration::ZERO),
                        (RemoteStatus::Exited(_), _)
                    )
            }
            Process::Here(child) => {
                let is_over = poll_until(limit, || child.try_wait().ok().flatten()).is_some();
                if !is_over {
                    child.kill().ok();
                    child.wait().ok();
                }
                is_over
            }
        }
    }
}

impl Words {
    /// `mark` gets one byte when the mark of `start` comes.
    fn of(errors: io::PipeReader, start: Start, mark: io::PipeWriter) -> Self {
        let heard = Arc::new(Mutex::new((start, Vec::new())));
        let hearing = Arc::clone(&heard);
        let thread = std::thread::spawn(move || hear(errors, &hearing, mark));
        Self { heard, thread }
    }

    /// All of standard error so far. It ends with the session, not with the process, so if the session stays
    /// open, it is not waited for.
    fn of_the_end(&self, is_over: bool) -> String {
        if is_over {
            // Even then, a process left running by a start-up file may hold it open.
            poll_until(QUIET, || self.thread.is_finished().then_some(()));
        }
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, kept) = &*heard;
        // If the connection failed, ssh's own message comes instead of the mark.
        if kept.is_empty() && !start.has_begun() {
            start.printed()
        } else {
            String::from_utf8_lossy(kept).into_owned()
        }
    }
}

/// Our ends of a shell's standard streams.
struct Pipes {
    input: io::PipeWriter,
    output: io::PipeReader,
    errors: io::PipeReader,
}

/// Waits for the mark and sends the script.
fn begin(
    process: Process,
    line: &RemoteLine,
    script: &str,
    pipes: Pipes,
    cancel: Option<BorrowedFd<'_>>,
    destination: &str,
) -> Result<Opened, AgentError> {
    let Pipes {
        mut input,
        mut output,
        errors,
    } = pipes;
    let start = line.start_of_errors();
    let (marked, mark) = io::pipe().map_err(local)?;
    let mut way = AgentProcess {
        process,
        words: Words::of(errors, start, mark),
        code: None,
        is_left: false,
    };
    let over = || match &way.process {
        Process::Remote { session, .. } => Some(session.as_fd()),
        // A local shell reads no start-up file.
        Process::Here(_) => None,
    };
    let ends = WaitLimits {
        over: over(),
        cancel,
        deadline: None,
        marked: Some(&marked),
    };
    let begun = match &way.process {
        Process::Remote { shared, .. } => {
            await_mark_in_doubt(shared.control(), line, (&mut input, &mut output), ends)
        }
        Process::Here(_) => await_mark(line, &mut input, &mut output, RESCUE_AFTER, ends),
    };
    let begun = begun.map_err(local)?;
    let (instead, start) = match begun {
        StartOutcome::Begun { behind, noisy } => {
            use std::io::Write as _;
            // If this fails, the missing reply shows it.
            input.write_all(&line.preamble(script)).ok();
            let output = Output::new(behind, output, over(), cancel).map_err(local)?;
            return Ok(Opened {
                way,
                input: Input::new(input).map_err(local)?,
                output,
                is_noisy: noisy,
            });
        }
        StartOutcome::Cancelled => return Err(AgentError::Cancelled),
        StartOutcome::Instead(failure, start) => (failure, start),
        StartOutcome::Ended(start) if start.is_flooded() => (ShellFailure::Flooded, start),
        StartOutcome::Ended(start) => {
            drop((input, output));
            match way.verdict() {
                (RemoteStatus::Exited(code), said) => {
                    return Err(not_begun(
                        destination,
                        ShellFailure::Exited(code.into()),
                        &start,
                        &said,
                    ));
                }
                (RemoteStatus::Killed, said) => {
                    return Err(not_begun(destination, ShellFailure::Killed, &start, &said));
                }
                (_, said) => return Err(AgentError::Connection { said }),
            }
        }
    };
    Err(not_begun(destination, instead, &start, ""))
}

fn not_begun(destination: &str, instead: ShellFailure, start: &Start, said: &str) -> AgentError {
    let printed = [said.trim(), &start.printed()];
    let printed: Vec<&str> = printed.into_iter().filter(|text| !text.is_empty()).collect();
    AgentError::Exec(ExecError::NotStarted {
        destination: destination.to_owned(),
        source: NotStarted {
            instead,
            printed: printed.join("; "),
        },
    })
}

/// How a session ends within `limit`, and whether it is complete. Once the exit code is there, the session
/// may take `grace` longer to close: a process left running by a start-up file can hold its streams open
/// forever.
fn ended(session: &mut Session, shared: &Shared, limit: Duration, grace: Duration) -> (RemoteStatus, bool) {
    let (mut code, mut until) = (None, Instant::now() + limit);
    while let Ok(Ready::First) = wait(session.as_fd(), PollFlags::IN, None, Some(until)) {
        match (session.next_event(), code) {
            (SessionEvent::Exited(arrived), _) => {
                code = Some(arrived);
                until = until.min(Instant::now() + grace);
            }
            (SessionEvent::Other, _) => {}
            (SessionEvent::Closed, Some(code)) => return (RemoteStatus::Exited(code), true),
            // A master that loses its connection removes its socket before it closes anything else, so here
            // the connection is intact.
            (SessionEvent::Closed, None) if master::check(shared.control()).is_some() => {
                return (RemoteStatus::Killed, true);
            }
            (SessionEvent::Closed, None) => return (RemoteStatus::ConnectionLost, true),
        }
    }
    let status = code.map_or(RemoteStatus::TimedOut { stopped: false }, RemoteStatus::Exited);
    (status, code.is_some())
}

/// Reads standard error to its end, and keeps the last part of the output after the mark.
fn hear(mut stream: impl Read, heard: &Mutex<(Start, Vec<u8>)>, mark: io::PipeWriter) {
    use std::io::Write as _;
    let mut mark = Some(mark);
    let mut chunk = [0; 4096];
    loop {
        match stream.read(&mut chunk) {
            Ok(count @ 1..) => {
                let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                let (start, kept) = &mut *heard;
                kept.extend_from_slice(start.take(&chunk[..count]));
                if start.has_begun()
                    && let Some(mut mark) = mark.take()
                {
                    // Nobody may want to know any more.
                    mark.write_all(&[0]).ok();
                }
                let surplus = kept.len().saturating_sub(WORDS);
                kept.drain(..surplus);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A read error just ends the text; the exit code still counts.
            Ok(_) | Err(_) => return,
        }
    }
}

/// Runs the script that uploads the agent to `target`.
pub(super) fn place(
    target: &Target,
    script: &str,
    program: &[u8],
    limit: Duration,
    cancel: Option<BorrowedFd<'_>>,
) -> Result<(RemoteStatus, String), AgentError> {
    let placed = capture::capture_until(target, script, Stdin::Bytes(program), Some(limit), cancel)?;
    Ok((placed.status, placed.stderr_text()))
}

/// The same on this machine.
pub(super) fn place_here(
    script: &str,
    program: &[u8],
    home: Option<&Path>,
) -> Result<(RemoteStatus, String), AgentError> {
    let mut cmd = Cmd::new("sh").args(["-c", script]).stdin(program.to_vec());
    if let Some(home) = home {
        cmd = cmd.env("HOME", home);
    }
    let placed = cmd.capture().map_err(|error| local(io::Error::other(error)))?;
    let code = placed.status.code().and_then(|code| u8::try_from(code).ok());
    Ok((
        code.map_or(RemoteStatus::Killed, RemoteStatus::Exited),
        placed.stderr_text(),
    ))
}
