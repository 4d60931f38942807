//! Stops a remote command with everything in its process group.
//!
//! It uses a session of its own, and must never take longer than it was given.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Instant;

use rustix::event::PollFlags;

use crate::beginning::{RESCUE_AFTER, StartOutcome, WaitLimits, await_mark};
use crate::mux::Session;
use crate::remote_line::RemoteLine;
use crabbox_host::wait::{Ready, wait};

/// Ends the process group that runs `line`; returns whether it is known to be gone before `until`. `open`
/// opens the session.
pub(crate) fn stop(
    line: &RemoteLine,
    until: Instant,
    open: impl FnOnce(&RemoteLine, [BorrowedFd<'_>; 3]) -> Option<Session>,
) -> io::Result<bool> {
    let answer = ask(&line.stop_script(), until, open)?;
    Ok(answer.lines().any(|line| matches!(line, "gone" | "none")))
}

/// Runs a short script and returns the lines that have arrived when the first one is whole; empty if none
/// arrives before `until`.
fn ask(
    script: &str,
    until: Instant,
    open: impl FnOnce(&RemoteLine, [BorrowedFd<'_>; 3]) -> Option<Session>,
) -> io::Result<String> {
    let line = RemoteLine::new()?;
    let (remote_in, mut our_in) = io::pipe()?;
    let (mut our_out, remote_out) = io::pipe()?;
    let (_, remote_err) = io::pipe()?;
    let fds = [remote_in.as_fd(), remote_out.as_fd(), remote_err.as_fd()];
    let Some(session) = open(&line, fds) else {
        return Ok(String::new());
    };
    drop((remote_in, remote_out, remote_err));
    let ends = WaitLimits {
        over: Some(session.as_fd()),
        cancel: None,
        deadline: Some(until),
        marked: None,
    };
    let begun = await_mark(&line, &mut our_in, &mut our_out, RESCUE_AFTER, ends)?;
    let StartOutcome::Begun {
        behind: mut answer, ..
    } = begun
    else {
        return Ok(String::new());
    };
    our_in.write_all(&line.preamble(script)).ok();
    drop(our_in);
    let mut chunk = [0; 64];
    // Do not wait for the end of the stream: other processes may hold it open.
    while !answer.ends_with(b"\n") && wait(our_out.as_fd(), PollFlags::IN, None, Some(until))? == Ready::First
    {
        match our_out.read(&mut chunk)? {
            0 => break,
            count => answer.extend(&chunk[..count]),
        }
    }
    drop(session);
    Ok(String::from_utf8_lossy(&answer).trim().to_owned())
}
