//! Finds out why a session does not begin: whether its login shell is slow, or does something else for ever.
//!
//! A second session, whose input has ended, tells the two apart: it is as slow as the first one, but what reads
//! the input of the first one comes to an end in it. It must never cost a session that would have begun.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::beginning::{RESCUE_AFTER, ShellFailure, StartOutcome, WaitLimits, await_mark, resume};
use crate::mux::{Client, SessionEvent};
use crate::remote_line::{RemoteLine, UNREAD};
use crabbox_host::wait::{Ready, wait};

/// How long a session may take before another one is asked; most start-up files take less.
const DOUBT_AFTER: Duration = Duration::from_secs(10);

/// How long the other one may take. A session that is slow by itself takes as long as the first one has taken
/// already, and then it has told nothing.
const ASK_LIMIT: Duration = Duration::from_secs(4);

/// How long the first one may still take after the other has begun: what held both up may just be over.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// Like [`await_mark`] for a session over the connection at `control`, but gives up as soon as it is certain
/// that the mark will not come.
pub(crate) fn await_mark_in_doubt(
    control: &Path,
    line: &RemoteLine,
    (input, output): (&mut io::PipeWriter, &mut io::PipeReader),
    ends: WaitLimits<'_>,
) -> io::Result<StartOutcome> {
    let began = Instant::now();
    let until = |at: Instant| WaitLimits {
        deadline: Some(ends.deadline.map_or(at, |deadline| deadline.min(at))),
        ..ends
    };
    let first = until(began + RESCUE_AFTER + DOUBT_AFTER);
    let start = match await_mark(line, input, output, RESCUE_AFTER, first)? {
        StartOutcome::Instead(ShellFailure::Waited(_), start) if first.deadline != ends.deadline => start,
        outcome => return Ok(outcome),
    };
    let Some(failure) = ask(control, ends.cancel, until(Instant::now() + ASK_LIMIT).deadline)? else {
        return resume((start, began), line, (input, output), None, ends);
    };
    let last = until(Instant::now() + LAST_WAIT);
    Ok(match resume((start, began), line, (input, output), None, last)? {
        StartOutcome::Instead(ShellFailure::Waited(_), start) => StartOutcome::Instead(failure, start),
        outcome => outcome,
    })
}

/// What a session whose input has ended does; `None` if it does not do anything before `deadline` either, or
/// there is no session for it.
fn ask(
    control: &Path,
    cancel: Option<BorrowedFd<'_>>,
    deadline: Option<Instant>,
) -> io::Result<Option<ShellFailure>> {
    let line = RemoteLine::new()?;
    let (remote_in, our_in) = io::pipe()?;
    let (mut our_out, remote_out) = io::pipe()?;
    let (_our_err, remote_err) = io::pipe()?;
    let fds = [remote_in.as_fd(), remote_out.as_fd(), remote_err.as_fd()];
    drop(our_in);
    let opened =
        Client::connect(control).and_then(|client| client.session(&line.text(), fds, ASK_LIMIT, cancel));
    let Ok(mut session) = opened else {
        return Ok(None);
    };
    drop((remote_in, remote_out, remote_err));
    let ends = WaitLimits {
        // Its end is looked for below.
        over: Some(session.as_fd()),
        cancel,
        deadline,
        marked: None,
    };
    match await_mark(&line, &mut io::sink(), &mut our_out, RESCUE_AFTER, ends)? {
        StartOutcome::Begun { .. } => return Ok(Some(ShellFailure::Reading)),
        StartOutcome::Ended(_) => {}
        StartOutcome::Instead(..) | StartOutcome::Cancelled => return Ok(None),
    }
    while wait(session.as_fd(), PollFlags::IN, cancel, deadline)? == Ready::First {
        match session.next_event() {
            // It ran our line, whose mark went elsewhere.
            SessionEvent::Exited(UNREAD) => return Ok(Some(ShellFailure::NoOutput)),
            SessionEvent::Exited(code) => return Ok(Some(ShellFailure::Exited(code.into()))),
            SessionEvent::Other => {}
            SessionEvent::Closed => break,
        }
    }
    Ok(None)
}
