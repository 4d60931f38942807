//! Carries bytes between a client and a guest's SSH server, and derives from them whether the lease is in
//! use.
//!
//! A remote connection stays open as long as the user's computer is on, so an open connection does not count
//! as use. Only traffic beyond the keepalives of an idle connection does. The connection must never outlive
//! the lease.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crabbox_core::labels;
use crabbox_core::state::LeaseState;
use crabbox_host::clock;
use crabbox_host::wait::{Ready, wait};
use crabbox_machine::lease::activity;
use crabbox_store::leases;
use crabbox_store::places::{LeaseDir, Places};
use rustix::event::PollFlags;

use super::ServeError;
use crate::fleet::lines::Lines;
use crate::provider::lease::Lease;

/// How long the guest's SSH server may take to accept.
const ACCEPT_LIMIT: Duration = Duration::from_secs(10);

/// How long the guest's side may take to end after its client has ended.
const LINGER: Duration = Duration::from_secs(10);

/// The maximum interval of the checks that the lease still exists and is in use; it is a quarter of the idle
/// limit if that is shorter.
const LOOK: Duration = Duration::from_mins(1);

/// How many bytes an idle connection may move per minute, in both directions together. OpenSSH sends a
/// keepalive every 15 s; request and reply take 100 bytes, and either side may send them.
const ALIVE: u64 = 1024;

/// The size of the copy buffer, in bytes.
const CHUNK: usize = 128 * 1024;

/// Connects to the SSH server of the guest of `lease`.
pub(super) fn connect(lease: &Lease) -> Result<TcpStream, ServeError> {
    let failed = |source| ServeError::Connect {
        id: lease.id.clone(),
        source,
    };
    let port = lease.target.as_ref().map_or(22, |target| target.port);
    let address = lease
        .address
        .parse()
        .map_err(|_| failed(io::ErrorKind::AddrNotAvailable.into()))?;
    let guest = TcpStream::connect_timeout(&SocketAddr::new(address, port), ACCEPT_LIMIT).map_err(failed)?;
    guest.set_nodelay(true).map_err(failed)?;
    Ok(guest)
}

/// Copies in both directions until either side ends, the lease ends, or `interrupts` asks for an end. The
/// copying threads are not joined: either may be blocked on a peer that does not read, and both end with this
/// process.
pub(super) fn carry(
    places: &Places,
    (id, idle): (&str, Duration),
    guest: TcpStream,
    (lines, output): (&mut Lines<File>, &File),
    interrupts: BorrowedFd<'_>,
) -> Result<(), ServeError> {
    let guest = Arc::new(guest);
    let moved = Arc::new(AtomicU64::new(0));
    let input = lines.get_mut().try_clone().map_err(ServeError::Streams)?;
    let mut output = output.try_clone().map_err(ServeError::Streams)?;
    // Bytes that arrived behind the request go first. The thread writes them, because a guest that does not
    // read would block us here.
    let mut input = io::Cursor::new(lines.behind()).chain(input);
    let (up, counted) = (Arc::clone(&guest), Arc::clone(&moved));
    std::thread::spawn(move || {
        copy(&mut input, &mut &*up, &counted);
        up.shutdown(Shutdown::Write).ok();
        clock::nap(LINGER);
        up.shutdown(Shutdown::Both).ok();
    });
    let (down, counted) = (Arc::clone(&guest), Arc::clone(&moved));
    let (ended, end) = io::pipe().map_err(ServeError::Streams)?;
    std::thread::spawn(move || {
        copy(&mut &*down, &mut output, &counted);
        drop(end);
    });
    let dir = LeaseDir::at(places.leases().join(id));
    let pause = LOOK.min((idle / 4).max(Duration::from_secs(1)));
    let mut seen = (Instant::now(), 0);
    loop {
        let looks = Some(Instant::now() + pause);
        match wait(ended.as_fd(), PollFlags::IN, Some(interrupts), looks).map_err(ServeError::Streams)? {
            Ready::Neither if is_there(&dir) => {}
            // Also ends when the lease is gone: a killed machine does not close its connections.
            _ => return Ok(()),
        }
        let (now, total) = (Instant::now(), moved.load(Ordering::Relaxed));
        if is_use(total - seen.1, now - seen.0) {
            activity::renew(places, &dir, id);
        }
        seen = (now, total);
    }
}

/// Whether the lease in `dir` has not been released. An unreadable record counts as not released.
fn is_there(dir: &LeaseDir) -> bool {
    dir.path().exists()
        && !leases::read(dir).is_ok_and(|stored| labels::state(&stored.record.labels) == LeaseState::Released)
}

/// Whether `bytes` in `time` exceed the keepalives of an idle connection.
fn is_use(bytes: u64, time: Duration) -> bool {
    let minutes = u64::try_from(time.as_millis())
        .unwrap_or(u64::MAX)
        .div_ceil(60_000);
    // Count at least a full minute, because within a short time the keepalives of both sides may coincide.
    bytes > ALIVE.saturating_mul(minutes.max(1))
}

/// Copies and counts until an end of the stream or an error; for a connection both mean the same.
fn copy(from: &mut impl Read, to: &mut impl Write, moved: &AtomicU64) {
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return,
            Ok(count) => {
                if to.write_all(&chunk[..count]).is_err() {
                    return;
                }
                moved.fetch_add(count as u64, Ordering::Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::PipeWriter;
    use std::net::TcpListener;
    use std::os::fd::OwnedFd;
    use std::path::Path;

    use super::*;

    /// Carries a connection of an existing lease whose guest sends endlessly to a client that reads nothing;
    /// `while_there` has to make it end.
    fn unheard(while_there: impl FnOnce(&Path, PipeWriter) -> Option<PipeWriter>) {
        let root = tempfile::tempdir().unwrap();
        let places = Places::below(root.path());
        let dir = places.leases().join("cbx_0123456789ab");
        std::fs::create_dir_all(&dir).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let guest = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut speaker, _) = listener.accept().unwrap();
        std::thread::spawn(move || while speaker.write_all(&[b'x'; 4096]).is_ok() {});
        let (silent, _client) = io::pipe().unwrap();
        let (_unread, full) = io::pipe().unwrap();
        let (interrupts, asker) = io::pipe().unwrap();
        let mut lines = Lines::new(File::from(OwnedFd::from(silent)));
        let output = File::from(OwnedFd::from(full));
        let carried = std::thread::spawn(move || {
            let lease = ("cbx_0123456789ab", Duration::from_secs(4));
            carry(&places, lease, guest, (&mut lines, &output), interrupts.as_fd())
        });
        let _asker = while_there(&dir, asker);
        let ended = clock::poll_until(Duration::from_secs(30), || carried.is_finished().then_some(()));
        assert!(ended.is_some(), "it goes on");
        carried.join().unwrap().unwrap();
    }

    #[test]
    fn a_connection_whose_client_does_not_listen_ends_with_its_lease_and_when_it_is_asked_to() {
        unheard(|_, asker| {
            drop(asker);
            None
        });
        unheard(|dir, asker| {
            std::fs::remove_dir(dir).unwrap();
            // Keep the writer, so that no interrupt is seen.
            Some(asker)
        });
    }

    #[test]
    fn what_shows_that_a_connection_is_alive_is_no_use_and_a_few_key_strokes_are() {
        let minute = Duration::from_mins(1);
        // Four keepalives and their replies in each direction.
        assert!(!is_use(8 * 100, minute));
        assert!(!is_use(10 * 8 * 100, 10 * minute));
        assert!(!is_use(0, minute));
        // A keystroke and its echo take about 100 bytes.
        assert!(is_use(12 * 100, minute));
        assert!(is_use(5000, Duration::from_secs(1)));
    }
}
