//! The bytes between a client and a guest's SSH server, and what they say of the lease's use.
//!
//! A connection from afar stays open for as long as somebody's laptop is on, so it is not use by itself: moved bytes are, beyond what an
//! idle connection says to show that it is alive. It must never outlive the lease.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crabbox_host::clock;
use crabbox_machine::context::Engine;
use crabbox_machine::lease::activity;
use crabbox_store::places::LeaseDir;

use super::ServeError;
use crate::fleet::lines::Lines;
use crate::provider::lease::Lease;

/// How long the guest's SSH server may take to accept.
const ACCEPT_LIMIT: Duration = Duration::from_secs(10);

/// How long it may take to end once its client has.
const LINGER: Duration = Duration::from_secs(10);

/// How often it is looked whether the lease is in use, and still there; a quarter of a short idle limit.
const LOOK: Duration = Duration::from_mins(1);

/// What an idle connection may say in a minute, both ways together, in bytes. OpenSSH asks every 15 s whether the other side is alive, and
/// question and answer have 100 bytes; either side may ask.
const ALIVE: u64 = 1024;

/// How many bytes are copied at a time.
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

/// Copies both ways until either side has ended, or the lease has.
pub(super) fn carry(
    engine: &Engine,
    lease: &Lease,
    guest: TcpStream,
    lines: &mut Lines<File>,
    output: &File,
) -> Result<(), ServeError> {
    let guest = Arc::new(guest);
    let moved = Arc::new(AtomicU64::new(0));
    let mut input = lines.get_mut().try_clone().map_err(ServeError::Streams)?;
    let behind = lines.behind();
    (&*guest).write_all(&behind).ok();
    let (up, counted) = (Arc::clone(&guest), Arc::clone(&moved));
    // Not waited for: it may be blocked on a client that says nothing, and ends with this process.
    std::thread::spawn(move || {
        copy(&mut input, &mut &*up, &counted);
        up.shutdown(Shutdown::Write).ok();
        clock::nap(LINGER);
        up.shutdown(Shutdown::Both).ok();
    });
    let dir = LeaseDir::at(engine.places.leases().join(&lease.id));
    let idle = u64::try_from(lease.idle_seconds()).unwrap_or(0);
    let pause = LOOK.min(Duration::from_secs((idle / 4).max(1)));
    let (over, ended) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let (guest, moved, dir) = (&guest, &moved, &dir);
        scope.spawn(move || {
            let mut seen = (Instant::now(), 0);
            while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                if !dir.path().exists() {
                    // A machine that was killed says no farewell.
                    guest.shutdown(Shutdown::Both).ok();
                    return;
                }
                let (now, all) = (Instant::now(), moved.load(Ordering::Relaxed));
                if is_use(all - seen.1, now - seen.0) {
                    activity::renew(&engine.places, dir, &lease.id);
                }
                seen = (now, all);
            }
        });
        copy(&mut &**guest, &mut &*output, moved);
        drop(over);
    });
    Ok(())
}

/// Whether `bytes` in `time` are more than an idle connection says.
fn is_use(bytes: u64, time: Duration) -> bool {
    let minutes = u64::try_from(time.as_millis())
        .unwrap_or(u64::MAX)
        .div_ceil(60_000);
    // Within a short time two questions and their answers may come together.
    bytes > ALIVE.saturating_mul(minutes.max(1))
}

/// Copies until an end or an error, which are one to a connection, and counts.
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
    use super::*;

    #[test]
    fn what_shows_that_a_connection_is_alive_is_no_use_and_a_few_key_strokes_are() {
        let minute = Duration::from_mins(1);
        // Four questions and answers each way.
        assert!(!is_use(8 * 100, minute));
        assert!(!is_use(10 * 8 * 100, 10 * minute));
        assert!(!is_use(0, minute));
        // A key stroke and its echo have some 100 bytes.
        assert!(is_use(12 * 100, minute));
        assert!(is_use(5000, Duration::from_secs(1)));
    }
}
