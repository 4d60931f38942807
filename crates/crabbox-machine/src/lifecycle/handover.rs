//! The handover of a lease to its command line: the journal entries before it, and the state after the claim.
//!
//! The command line makes the connection and the claim; the supervisor writes the journal. Nothing here may
//! tell the command line that it owns the lease before the journal says so.

use std::fs::File;
use std::io::BufReader;
use std::os::fd::AsFd;
use std::path::PathBuf;

use crabbox_core::journal::Step;
use crabbox_core::labels;
use crabbox_core::record::LeaseRecord;
use crabbox_core::state::LeaseState;
use crabbox_core::timestamp;
use crabbox_host::clock;
use crabbox_host::signals::Interrupts;
use crabbox_store::journal::{JournalFile, Pending};
use crabbox_store::leases::StoredLease;
use crabbox_store::places::Places;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::control::server::Control;
use crate::failpoint::{self, Phase, Who};
use crate::lifecycle::acquire::error::AcquireError;
use crate::protocol::{self, Message};
use crate::request::AcquireRequest;
use crate::resource::connection;

/// The effects that the command line is going to make, as journaled.
#[derive(Debug)]
pub(crate) struct Promised {
    steps: Vec<Pending>,
    /// Path of the shared connection's socket.
    pub(crate) control: PathBuf,
}

impl Promised {
    /// Writes the intents: for the shared connection if `request` wants one, and for the claim.
    pub(crate) fn make(
        journal: &mut JournalFile,
        record: &LeaseRecord,
        places: &Places,
        request: &AcquireRequest,
    ) -> Result<Self, AcquireError> {
        let target = connection::target(record, places)?;
        // Check the directory again: the request came from another process, some time ago.
        let dir = connection::control_dir(&request.control_dir)?;
        let control = connection::control(&dir, &target)?;
        let connection = Step::Connection {
            control: control.to_string_lossy().into_owned(),
        };
        let steps = vec![journal.begin(connection)?, journal.begin(Step::Claim {})?];
        failpoint::hit(&request.failpoint, Who::Supervisor, "claim", Phase::Begun);
        Ok(Self { steps, control })
    }

    /// Writes the marks of all effects: the lease is claimed and ready.
    pub(crate) fn keep(
        self,
        journal: &mut JournalFile,
        stored: &mut StoredLease,
        request: &AcquireRequest,
    ) -> Result<(), AcquireError> {
        let armed = request.failpoint.as_str();
        failpoint::hit(armed, Who::Supervisor, "claim", Phase::Made);
        for pending in self.steps {
            journal.done(pending, None)?;
        }
        // Without these marks, a cleanup after a power cut would treat the lease as never claimed.
        journal.sync()?;
        failpoint::hit(armed, Who::Supervisor, "claim", Phase::Done);
        let (seconds, nanoseconds) = clock::unix_now();
        labels::touch(&mut stored.record.labels, Some(&LeaseState::Ready), None, seconds);
        stored.record.updated_at = timestamp::rfc3339_nano(seconds, nanoseconds);
        Ok(stored.save()?)
    }
}

/// Waits for the command line's message. End of input without one means that the command line died or gave
/// up; a request to end the lease, a signal to end and the machine's own end are heard meanwhile.
pub(super) fn says_claimed(
    input: &mut BufReader<File>,
    control: &Control,
    interrupts: &Interrupts,
    vmm: &impl AsFd,
) -> bool {
    let waiting = input.buffer().is_empty();
    while waiting && !is_readable(input.get_ref()) {
        let mut fds = [
            PollFd::new(input.get_ref(), PollFlags::IN),
            PollFd::new(control, PollFlags::IN),
            PollFd::new(interrupts, PollFlags::IN),
            PollFd::new(vmm, PollFlags::IN),
        ];
        // Ignore an interrupted poll: the checks below decide.
        poll(&mut fds, None).ok();
        if control.is_asked() || interrupts.caught().is_some() || is_readable(vmm) {
            return false;
        }
    }
    protocol::read_message(input) == Some(Message::Claimed)
}

/// Whether `read` would return at once; end of file counts.
pub(super) fn is_readable(input: &impl AsFd) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(input, PollFlags::IN)], Some(&now)).is_ok_and(|count| count > 0)
}
