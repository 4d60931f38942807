//! The end of a command on the other side, with everything that it started in its process group.
//!
//! It asks over a session of its own, and must never take longer than it was given.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Instant;

use rustix::event::PollFlags;

use crate::beginning::{Beginning, RESCUE_AFTER, await_mark};
use crate::mux::Session;
use crate::remote_line::RemoteLine;
use crabbox_host::wait::{Ready, wait};

/// Ends the process group that runs `line`; whether it is known to be gone until then. `open` gives the session.
pub(crate) fn stop(
    line: &RemoteLine,
    until: Instant,
    open: impl FnOnce(&RemoteLine, [BorrowedFd<'_>; 3]) -> Option<Session>,
) -> io::Result<bool> {
    let answer = ask(&line.stop_script(), until, open)?;
    Ok(matches!(answer.as_str(), "gone" | "none"))
}

/// What a short script prints; empty when no answer comes until then.
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
    let begun = await_mark(&line, &mut our_in, &mut our_out, RESCUE_AFTER, None, Some(until))?;
    let Beginning::Begun {
        behind: mut answer, ..
    } = begun
    else {
        return Ok(String::new());
    };
    our_in.write_all(&line.preamble(script)).ok();
    drop(our_in);
    let mut chunk = [0; 64];
    while wait(our_out.as_fd(), PollFlags::IN, None, Some(until))? == Ready::First {
        match our_out.read(&mut chunk)? {
            0 => break,
            count => answer.extend(&chunk[..count]),
        }
    }
    drop(session);
    Ok(String::from_utf8_lossy(&answer).trim().to_owned())
}
