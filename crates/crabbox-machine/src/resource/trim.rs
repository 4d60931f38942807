//! Returns freed blocks of a guest to the host: the guest names ranges over vsock, and holes are punched into
//! its disk file.
//!
//! ```text
//! host:  go <length of the disk>              once connected
//! guest: <offset> <length> ... end            parts of the disk in bytes, one a line
//! host:  done <bytes given back so far>       or `late` (ask again), or `refused <why>`
//! ```
//! The guest's messages are untrusted. They can affect only its own disk, through the one descriptor that we
//! opened. A guest can cause no more work than punching that disk once, and then has to wait. The guest
//! freezes its writes meanwhile, and thaws after half a minute: nothing may be punched later than [`BUDGET`]
//! after our last message, however long this process was stopped.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use crabbox_core::journal::Journal;
use crabbox_core::record::LeaseRecord;
use crabbox_guest_protocol::TRIM_PORT;
use crabbox_guest_protocol::trim::{BATCH, DONE, END, GO, LATE};
use crabbox_host::clock;
use crabbox_host::holes::{HoleError, Holes};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::resource::disk::{self, Home};

/// The maximum size of a batch in bytes: for each range two numbers of twenty digits, a space and a newline.
const BATCH_BYTES: usize = BATCH * 42 + END.len();
/// Time limit for a batch after our last message. A guest resumes its writes 30 s after its own last message.
const BUDGET: Duration = Duration::from_secs(5);
/// How long a guest may send nothing.
const SILENCE: Duration = Duration::from_mins(1);
/// How long a guest may take to read a reply.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// Total time for a guest that sends nothing new.
const SESSION: Duration = Duration::from_mins(10);
/// The maximum number of batches in one session beyond those that the disk needs: some are repeated because
/// they were late.
const SPARE_BATCHES: u64 = 256;
/// Minimum average part of the disk per batch, in bytes; the guest's own minimum makes it 16 MiB.
const BATCH_SHARE: u64 = 8 << 20;
/// Minimum and maximum pause of a guest between two sessions; in between, as long as the last session took.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(20));

/// A range of the disk in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    offset: u64,
    length: u64,
}

/// Why a session with a guest has ended.
#[derive(Debug)]
enum Over {
    /// It disconnected, was silent for too long, or the service ends.
    Gone,
    /// The guest is refused.
    Refused(String),
}

impl From<std::io::Error> for Over {
    fn from(_: std::io::Error) -> Self {
        Self::Gone
    }
}

impl From<HoleError> for Over {
    /// The message for the guest: the system's error, and nothing about the host's files.
    fn from(error: HoleError) -> Self {
        Self::Refused(match error {
            HoleError::Punch(source) => format!("the host cannot free a part of the disk: {source}"),
            HoleError::Outside { .. } => "that is not a part of the disk".to_owned(),
            HoleError::Unsupported => "the host's file system cannot free parts of a file".to_owned(),
            HoleError::File(_) | HoleError::NotPrivate { .. } => {
                "the host cannot examine the disk".to_owned()
            }
        })
    }
}

/// The service, which ends when this is dropped.
#[derive(Debug)]
pub struct Trims {
    stop: Option<std::io::PipeWriter>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Trims {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has ended too, which is all that we want.
            thread.join().ok();
        }
    }
}

/// Serves guests that connect to `listener`, one after the other, by punching holes into `disk`.
pub fn serve(listener: UnixListener, disk: Holes) -> std::io::Result<Trims> {
    listener.set_nonblocking(true)?;
    let (ended, stop) = std::io::pipe()?;
    let thread = std::thread::Builder::new()
        .name("trim".to_owned())
        .spawn(move || {
            while wait(listener.as_fd(), ended.as_fd(), None).is_ok() {
                let Ok((stream, _)) = listener.accept() else {
                    // The client has disconnected already, or no descriptor is free: temporary, but do not
                    // retry at once.
                    if pause(ended.as_fd(), PAUSE.0) {
                        continue;
                    }
                    return;
                };
                let begun = Instant::now();
                let mut session = Session {
                    stream,
                    ended: ended.as_fd(),
                    budget: BUDGET,
                };
                session.run(&disk);
                drop(session);
                if !pause(ended.as_fd(), begun.elapsed().clamp(PAUSE.0, PAUSE.1)) {
                    return;
                }
            }
        })?;
    Ok(Trims {
        stop: Some(stop),
        thread: Some(thread),
    })
}

/// Serves the guest of `home` if it runs our image. The lease does not depend on this service: without it, a
/// guest that asks is refused.
pub fn begin(home: &Home) -> Option<Trims> {
    if !home.says_ready {
        return None;
    }
    let disk = Holes::open(&home.join(disk::DISK), owner(home.uid)).ok()?;
    serve(home.listen(TRIM_PORT).ok()?, disk).ok()
}

/// Serves the guest of a lease whose supervisor has died.
pub fn resume(record: &LeaseRecord, journal: &Journal) -> Option<Trims> {
    if journal.note("disk") != Some(disk::SHARED_BASE) {
        return None;
    }
    let path = Path::new(&record.rootfs_path);
    let disk = Holes::open(path, owner(journal.uid)).ok()?;
    serve(disk::listen_again(path, TRIM_PORT, journal.uid).ok()?, disk).ok()
}

/// The uid that owns the disk of a VMM with this uid.
fn owner(uid: Option<u32>) -> u32 {
    uid.unwrap_or_else(|| rustix::process::geteuid().as_raw())
}

/// Waits until `fd` is readable, at most `limit`; fails when the service ends.
fn wait(fd: BorrowedFd<'_>, ended: BorrowedFd<'_>, limit: Option<Duration>) -> Result<(), Over> {
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    let mut fds = [
        PollFd::from_borrowed_fd(fd, PollFlags::IN),
        PollFd::from_borrowed_fd(ended, PollFlags::IN),
    ];
    loop {
        match poll(&mut fds, limit.as_ref()) {
            Ok(count) if count > 0 && fds[1].revents().is_empty() => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            _ => return Err(Over::Gone),
        }
    }
}

/// Sleeps; false when the service ends.
fn pause(ended: BorrowedFd<'_>, time: Duration) -> bool {
    let time = Timespec::try_from(time).ok();
    let mut fds = [PollFd::from_borrowed_fd(ended, PollFlags::IN)];
    matches!(
        poll(&mut fds, time.as_ref()),
        Ok(0) | Err(rustix::io::Errno::INTR)
    )
}

/// A session with one guest.
struct Session<'a> {
    stream: UnixStream,
    ended: BorrowedFd<'a>,
    budget: Duration,
}

impl Session<'_> {
    fn run(&mut self, disk: &Holes) {
        if let Err(Over::Refused(why)) = self.converse(disk) {
            self.say(&format!("refused {why}\n")).ok();
        }
    }

    /// Serves the guest until it disconnects.
    fn converse(&mut self, disk: &Holes) -> Result<(), Over> {
        let begun = Instant::now();
        let (mut given, mut named) = (0, 0_u64);
        let most = disk.length() / BATCH_SHARE + SPARE_BATCHES;
        let mut word = format!("{GO} {}\n", disk.length());
        for _ in 0..most {
            // Take the time before our message is sent: whatever the guest does with the message happens
            // later.
            let credit = clock::since_boot();
            self.say(&word)?;
            let Some(text) = self.hear()? else {
                return Ok(());
            };
            let parts = parse(&text, disk)
                .ok_or_else(|| Over::Refused("that is not a list of parts of the disk".to_owned()))?;
            if begun.elapsed() > SESSION {
                break;
            }
            let in_time = || clock::since_boot().saturating_sub(credit) < self.budget;
            let before = disk.allocated()?;
            let mut late = !in_time();
            for part in &parts {
                late = late || !in_time();
                if late {
                    break;
                }
                disk.punch(part.offset, part.length)?;
                named = named.saturating_add(part.length);
            }
            given += before.saturating_sub(disk.allocated()?);
            // Allow each part of the disk once, and once more because batches that were late are repeated.
            if named / 2 > disk.length() {
                break;
            }
            word = if late {
                LATE.to_owned()
            } else {
                format!("{DONE} {given}\n")
            };
        }
        Err(Over::Refused("that is more than there is to trim".to_owned()))
    }

    fn say(&mut self, line: &str) -> Result<(), Over> {
        self.stream.set_nonblocking(false)?;
        self.stream.set_write_timeout(Some(READ_LIMIT))?;
        Ok(self.stream.write_all(line.as_bytes())?)
    }

    /// The next batch as it was sent; `None` when the guest is done.
    fn hear(&mut self) -> Result<Option<Vec<u8>>, Over> {
        self.stream.set_nonblocking(true)?;
        let until = Instant::now() + SILENCE;
        let mut text = Vec::new();
        let mut chunk = [0; 4096];
        while !text.ends_with(END.as_bytes()) {
            let left = until.saturating_duration_since(Instant::now());
            wait(self.stream.as_fd(), self.ended, Some(left))?;
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(count) => text.extend_from_slice(&chunk[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => return Err(Over::Gone),
            }
            if text.len() > BATCH_BYTES {
                return Err(Over::Refused("that is too much at once".to_owned()));
            }
        }
        Ok(Some(text))
    }
}

/// Parses `bytes` as a guest's batch for `disk`; only for fuzzing.
#[cfg(feature = "fuzzing")]
pub fn read_batch(bytes: &[u8], disk: &Holes) {
    let parts = parse(&[bytes, END.as_bytes()].concat(), disk).unwrap_or_default();
    assert!(parts.len() <= BATCH);
    for part in parts.iter().chain(&parse(bytes, disk).unwrap_or_default()) {
        assert!(disk.contains(part.offset, part.length));
    }
}

/// A batch; `None` unless every line names a range of the disk.
fn parse(text: &[u8], disk: &Holes) -> Option<Vec<Part>> {
    let text = std::str::from_utf8(text.strip_suffix(END.as_bytes())?).ok()?;
    let parts = text.split_terminator('\n').map(|line| {
        let (offset, length) = line.split_once(' ')?;
        let number = |text: &str| text.parse::<u64>().ok();
        let (offset, length) = (number(offset)?, number(length)?);
        disk.contains(offset, length).then_some(Part { offset, length })
    });
    let parts: Vec<Part> = parts.collect::<Option<_>>()?;
    (text.is_empty() || text.ends_with('\n'))
        .then_some(parts)
        .filter(|parts| parts.len() <= BATCH)
}

#[cfg(test)]
mod tests;
