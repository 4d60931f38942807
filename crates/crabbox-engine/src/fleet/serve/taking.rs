//! Hands a ready machine over to a client on another machine: tells the client, and waits until it has
//! claimed the machine.
//!
//! A client that disconnects before that has given up the lease. This is noticed at once, however long the
//! machine takes.

use std::fs::File;
use std::io::{self, PipeWriter};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crabbox_host::signals::Interrupts;
use rustix::event::{PollFd, PollFlags, poll};

use super::super::lines::Lines;
use super::super::wire::{FleetRequest, Reply};
use super::{Out, far};
use crate::provider::Notice;
use crate::provider::firecracker::entering::{Made, Taker};
use crate::provider::firecracker::error::AcquireLeaseError;
use crate::provider::lease::Lease;

/// How much longer than the deadline for entering the lease the client's answer may take: the time through
/// the network.
pub(super) const GRACE: Duration = Duration::from_secs(10);

/// Notices a client that disconnects while we expect nothing from it.
#[derive(Debug)]
pub(super) struct Gone {
    stop: Option<PipeWriter>,
    watch: Option<JoinHandle<()>>,
}

impl Gone {
    /// Watches `input` until this is dropped. End of input, or an unexpected message, requests an end through
    /// `interrupts`.
    pub(super) fn watch(input: BorrowedFd<'_>, interrupts: &Interrupts) -> io::Result<Self> {
        let input = input.try_clone_to_owned()?;
        let (stopped, stop) = io::pipe()?;
        let asks = interrupts.asker()?;
        let watch = std::thread::spawn(move || {
            loop {
                let mut fds = [
                    PollFd::new(&stopped, PollFlags::IN),
                    PollFd::new(&input, PollFlags::IN),
                ];
                match poll(&mut fds, None) {
                    Ok(_) if !fds[0].revents().is_empty() => return,
                    Ok(_) if !fds[1].revents().is_empty() => {
                        asks.ask();
                        return;
                    }
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(_) => return,
                }
            }
        });
        Ok(Self {
            stop: Some(stop),
            watch: Some(watch),
        })
    }
}

impl Drop for Gone {
    fn drop(&mut self) {
        self.stop = None;
        self.watch.take().and_then(|watch| watch.join().ok());
    }
}

/// A client that is about to take over a lease.
#[derive(Debug)]
pub(super) struct Taking<'a> {
    lines: &'a mut Lines<File>,
    out: &'a Out<'a>,
    gone: Option<Gone>,
}

impl<'a> Taking<'a> {
    pub(super) fn new(lines: &'a mut Lines<File>, out: &'a Out<'a>, gone: Gone) -> Self {
        Self {
            lines,
            out,
            gone: Some(gone),
        }
    }
}

impl Taker for Taking<'_> {
    fn take(
        &mut self,
        made: &Made<'_>,
        interrupts: &Interrupts,
        _: &mut dyn FnMut(&Notice<'_>),
    ) -> Result<(), AcquireLeaseError> {
        self.gone = None;
        let given_up = || AcquireLeaseError::GivenUp {
            id: made.lease.id.clone(),
        };
        let left = made.deadline.saturating_duration_since(Instant::now());
        // The file has one line: a name, followed by the pinned key.
        let pinned = std::fs::read_to_string(&made.ready.known_hosts).unwrap_or_default();
        let host_key = pinned.trim().split_once(' ').map(|(_, key)| key.to_owned());
        let ready = Reply::Ready {
            lease: far(made.lease).map_err(|_| given_up())?,
            host_key: host_key.ok_or_else(given_up)?,
            says_ready: made.says_ready,
            seconds: left.as_secs().max(1),
            guest_stages: made.ready.guest_stages.clone(),
        };
        self.out.put(&ready).map_err(|_| given_up())?;
        let until = made.deadline.max(Instant::now()) + GRACE;
        match self.lines.next(Some(interrupts.as_fd()), Some(until)) {
            Ok(Some(line)) if matches!(FleetRequest::read(&line), Ok(FleetRequest::Claimed)) => Ok(()),
            _ => Err(given_up()),
        }
    }

    fn taken(&mut self, _: &Lease) -> Result<(), AcquireLeaseError> {
        // The claim is kept on the client's machine.
        Ok(())
    }
}
