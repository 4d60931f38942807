//! How an agent is started: over SSH, or by a shell of this machine that takes the very same line.
//!
//! It must never take the end of the connection for that of the agent.

use std::io::{self, Read};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::process::Child;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crabbox_host::clock::poll_until;
use crabbox_host::command::Cmd;
use rustix::event::PollFlags;

use super::FarError;
use super::stream::{Input, Output};
use crate::beginning::{Beginning, Instead, NotBegun, RESCUE_AFTER, await_mark};
use crate::capture;
use crate::exec::{ExecError, RemoteStatus, Stdin};
use crate::master;
use crate::mux::{Session, SessionEvent};
use crate::remote_line::{RemoteLine, Start};
use crate::shared::Shared;
use crate::target::Target;
use crabbox_host::wait::{Ready, wait};

/// How much of standard error is kept, in bytes.
const WORDS: usize = 16 * 1024;

/// How long the end of a session may take whose output has ended.
const END_LIMIT: Duration = Duration::from_secs(5);

/// A conversation that has begun.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) way: Way,
    pub(super) input: Input,
    pub(super) output: Output,
    pub(super) is_noisy: bool,
}

/// What is known of an agent's process.
#[derive(Debug)]
pub(super) struct Way {
    process: Process,
    errors: Option<JoinHandle<(Start, Vec<u8>)>>,
    code: Option<u8>,
    is_left: bool,
}

#[derive(Debug)]
enum Process {
    Remote { session: Session, shared: Shared },
    Here(Child),
}

fn local(source: io::Error) -> FarError {
    ExecError::Local { source }.into()
}

impl Way {
    /// Has the login shell of `target` become what `script` says.
    pub(super) fn ssh(
        target: &Target,
        script: &str,
        cancel: Option<BorrowedFd<'_>>,
    ) -> Result<Opened, FarError> {
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
            (our_in, our_out, our_err),
            cancel,
            &target.destination(),
        )
    }

    /// Has a shell of this machine become it, with this home directory instead of ours.
    pub(super) fn local(script: &str, home: Option<&Path>) -> Result<Opened, FarError> {
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
        // It holds the child's ends of the pipes.
        drop(command);
        begin(
            Process::Here(child),
            &line,
            script,
            (our_in, our_out, our_err),
            None,
            "this machine",
        )
    }

    /// The exit code, where one came.
    pub(super) fn code(&self) -> Option<u8> {
        self.code
    }

    /// How it ended, and what it said.
    pub(super) fn verdict(&mut self) -> (RemoteStatus, String) {
        let (status, is_over) = match &mut self.process {
            Process::Remote { session, shared } => ended(session, shared, Instant::now() + END_LIMIT),
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
        // Its standard error ends with the session, not with the process: one that stays open is not waited for.
        let heard = self
            .errors
            .take_if(|_| is_over)
            .and_then(|thread| thread.join().ok());
        let said = heard.map_or_else(String::new, |(start, kept)| {
            // What ssh itself says of a connection that failed comes where the mark would have been.
            if kept.is_empty() && !start.has_begun() {
                start.printed()
            } else {
                String::from_utf8_lossy(&kept).into_owned()
            }
        });
        (status, said)
    }

    /// Its end is nobody's concern any more.
    pub(super) fn leave(&mut self) {
        self.is_left = true;
    }

    /// Whether it is over, soon. One of this machine that is not is ended.
    pub(super) fn is_over(&mut self, limit: Duration) -> bool {
        match &mut self.process {
            Process::Remote { .. } if self.is_left => true,
            Process::Remote { session, shared } => {
                self.code.is_some()
                    || matches!(
                        ended(session, shared, Instant::now() + limit),
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

/// Waits for the mark and sends the script.
fn begin(
    process: Process,
    line: &RemoteLine,
    script: &str,
    (mut input, mut output, errors): (io::PipeWriter, io::PipeReader, io::PipeReader),
    cancel: Option<BorrowedFd<'_>>,
    destination: &str,
) -> Result<Opened, FarError> {
    let start = line.start_of_errors();
    let mut way = Way {
        process,
        errors: Some(std::thread::spawn(move || hear(errors, start))),
        code: None,
        is_left: false,
    };
    let opened = Instant::now();
    let begun = await_mark(line, &mut input, &mut output, RESCUE_AFTER, cancel, None).map_err(local)?;
    let (instead, start) = match begun {
        Beginning::Begun { behind, noisy } => {
            use std::io::Write as _;
            // If it breaks, the missing answer tells.
            input.write_all(&line.preamble(script)).ok();
            return Ok(Opened {
                way,
                input: Input::new(input).map_err(local)?,
                output: Output::new(behind, output, cancel).map_err(local)?,
                is_noisy: noisy,
            });
        }
        Beginning::Cancelled => return Err(FarError::Cancelled),
        Beginning::Late(start) => (Instead::Waited(opened.elapsed()), start),
        Beginning::Ended(start) if start.is_flooded() => (Instead::Flooded, start),
        Beginning::Ended(start) => {
            drop((input, output));
            match way.verdict() {
                (RemoteStatus::Exited(code), said) => {
                    return Err(not_begun(
                        destination,
                        Instead::Exited(code.into()),
                        &start,
                        &said,
                    ));
                }
                (_, said) => return Err(FarError::Connection { said }),
            }
        }
    };
    Err(not_begun(destination, instead, &start, ""))
}

fn not_begun(destination: &str, instead: Instead, start: &Start, said: &str) -> FarError {
    let printed = [said.trim(), &start.printed()];
    let printed: Vec<&str> = printed.into_iter().filter(|text| !text.is_empty()).collect();
    FarError::Exec(ExecError::NotBegun {
        destination: destination.to_owned(),
        source: NotBegun {
            instead,
            printed: printed.join("; "),
        },
    })
}

/// How a session ends until then, and whether it is closed.
fn ended(session: &mut Session, shared: &Shared, until: Instant) -> (RemoteStatus, bool) {
    let mut code = None;
    while let Ok(Ready::First) = wait(session.as_fd(), PollFlags::IN, None, Some(until)) {
        match (session.next_event(), code) {
            (SessionEvent::Exited(arrived), _) => code = Some(arrived),
            (SessionEvent::Other, _) => {}
            (SessionEvent::Closed, Some(code)) => return (RemoteStatus::Exited(code), true),
            // A master that has lost its connection removes its socket before it closes anything else.
            (SessionEvent::Closed, None) if master::check(shared.control()).is_some() => {
                return (RemoteStatus::Killed, true);
            }
            (SessionEvent::Closed, None) => return (RemoteStatus::ConnectionLost, true),
        }
    }
    let status = code.map_or(RemoteStatus::TimedOut { stopped: false }, RemoteStatus::Exited);
    (status, false)
}

/// Reads standard error to its end, and keeps the end of what comes behind the mark.
fn hear(mut stream: impl Read, mut start: Start) -> (Start, Vec<u8>) {
    let (mut kept, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut chunk) {
            Ok(count @ 1..) => {
                kept.extend_from_slice(start.take(&chunk[..count]));
                let surplus = kept.len().saturating_sub(WORDS);
                kept.drain(..surplus);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A stream that cannot be read has nothing to say; the exit code still counts.
            Ok(_) | Err(_) => return (start, kept),
        }
    }
}

/// Runs the script that puts the agent in its place on `target`.
pub(super) fn place(
    target: &Target,
    script: &str,
    program: &[u8],
    limit: Duration,
    cancel: Option<BorrowedFd<'_>>,
) -> Result<(RemoteStatus, String), FarError> {
    let placed = capture::capture_until(target, script, Stdin::Bytes(program), Some(limit), cancel)?;
    Ok((placed.status, placed.stderr_text()))
}

/// The same on this machine.
pub(super) fn place_here(
    script: &str,
    program: &[u8],
    home: Option<&Path>,
) -> Result<(RemoteStatus, String), FarError> {
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
