//! The end of a machine with volumes: asks its guest to write them out and stop changing them.
//!
//! The guest is untrusted, and so is its VMM, which may replace its socket by anything. At most they cost us
//! [`LIMIT`]: whatever the guest replies, the machine ends, and what was not written out is left to the journal of
//! the volume's file system.

use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crabbox_guest_protocol::SETTLE_PORT;
use crabbox_guest_protocol::settle::{LINE_LIMIT, SETTLE, SETTLED};
use crabbox_host::unix::{self, DeadlineStream};
use rustix::fs::{FileType, Mode, OFlags};

use crate::resource::disk::VSOCK;

/// Time limit for the guest: whatever it has not written out by then is lost.
const LIMIT: Duration = Duration::from_secs(10);

/// Keeps the guest's writes to its volumes frozen as long as this lives.
#[derive(Debug)]
pub(crate) struct Settled {
    _stream: DeadlineStream<'static>,
}

/// Asks the guest of the VMM in `home` to write out its volumes; `None` if it does not confirm that it has.
pub(crate) fn settle(home: &Path) -> Option<Settled> {
    let outcome = ask(home, LIMIT);
    match &outcome {
        Ok(_) => tracing::info!("the guest has written out its volumes"),
        Err(error) => tracing::warn!("the guest did not write out its volumes: {error}"),
    }
    outcome.ok().map(|stream| Settled { _stream: stream })
}

fn ask(home: &Path, limit: Duration) -> std::io::Result<DeadlineStream<'static>> {
    // Open the file itself and not a link's target: a compromised VMM could make us connect to a socket of
    // the host.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let socket = rustix::fs::open(home.join(VSOCK), flags, Mode::empty())?;
    if !FileType::from_raw_mode(rustix::fs::fstat(&socket)?.st_mode).is_socket() {
        return Err(std::io::Error::other("its socket is none"));
    }
    let path = PathBuf::from(format!("/proc/self/fd/{}", socket.as_raw_fd()));
    // A VMM that does not accept must not block us either; the conversation gets what is left of the time.
    let began = Instant::now();
    let stream = unix::connect_within(&path, limit).map_err(std::io::Error::other)?;
    let mut stream = DeadlineStream::new(stream);
    stream.set_limit(limit.saturating_sub(began.elapsed()));
    // Firecracker's own protocol: this connects us to a port of the guest.
    stream.write_all(format!("CONNECT {SETTLE_PORT}\n").as_bytes())?;
    expect(&mut stream, "OK")?;
    stream.write_all(format!("{SETTLE}\n").as_bytes())?;
    expect(&mut stream, SETTLED)?;
    Ok(stream)
}

/// Reads a line that begins with `word`.
fn expect(stream: &mut DeadlineStream<'_>, word: &str) -> std::io::Result<()> {
    let mut text = Vec::new();
    while text.last() != Some(&b'\n') {
        let mut byte = [0];
        if text.len() >= LINE_LIMIT || stream.read(&mut byte)? == 0 {
            return Err(std::io::Error::other("it hung up, or said too much"));
        }
        text.extend(byte);
    }
    if text
        .strip_prefix(word.as_bytes())
        .is_some_and(|rest| matches!(rest.first(), Some(b' ' | b'\n')))
    {
        return Ok(());
    }
    // The reply goes into a log that people read, so it is escaped.
    let reply: String = String::from_utf8_lossy(&text).escape_debug().take(120).collect();
    Err(std::io::Error::other(format!("it said {reply}")))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    /// Asks a VMM that gives these replies, one per line; returns whether it settled, and what it received.
    fn asked(replies: &'static [&'static str]) -> (bool, Vec<String>) {
        let home = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(home.path().join(VSOCK)).unwrap();
        std::thread::scope(|threads| {
            let vmm = threads.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                // The timeout ends the test if the client sends nothing.
                stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let mut heard = Vec::new();
                for reply in replies {
                    heard.extend(lines.next().and_then(Result::ok));
                    stream.write_all(reply.as_bytes()).ok();
                }
                heard
            });
            let settled = settle(home.path()).is_some();
            // If `settle` never connected, this connection keeps the listener from waiting forever.
            drop(UnixStream::connect(home.path().join(VSOCK)));
            (settled, vmm.join().unwrap())
        })
    }

    #[test]
    fn only_a_guest_that_says_so_has_settled() {
        assert_eq!(
            asked(&["OK 1073741824\n", "settled 1\n"]),
            (true, vec!["CONNECT 1027".to_owned(), "settle".to_owned()])
        );
        for replies in [
            &[] as &'static [&str],
            &["OK 1\n", "no Read-only file system\n"],
            &["OK 1\n", "settledish\n"],
            &["OK 1\n"],
            &["NO\n"],
            &["O"],
        ] {
            assert!(!asked(replies).0, "{replies:?}");
        }
    }

    #[test]
    fn a_vmm_that_accepts_nobody_is_not_waited_for() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(VSOCK);
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let limit = Duration::from_millis(50);
        let mut others = Vec::new();
        while let Ok(other) = unix::connect_within(&path, limit) {
            others.push(other);
            assert!(others.len() < 10, "its queue is never full");
        }
        assert!(ask(home.path(), limit).is_err());
        drop(others);
    }

    #[test]
    fn a_link_in_the_place_of_the_socket_is_not_followed() {
        let home = tempfile::tempdir().unwrap();
        let elsewhere = home.path().join("host.sock");
        let listener = UnixListener::bind(&elsewhere).unwrap();
        listener.set_nonblocking(true).unwrap();
        std::os::unix::fs::symlink(&elsewhere, home.path().join(VSOCK)).unwrap();
        assert!(settle(home.path()).is_none());
        assert!(listener.accept().is_err(), "nobody came there");
        std::fs::remove_file(home.path().join(VSOCK)).unwrap();
        assert!(settle(home.path()).is_none());
        std::fs::write(home.path().join(VSOCK), "").unwrap();
        assert!(settle(home.path()).is_none());
    }
}
