//! Waiting for a guest: our image says `ready` over vsock, any other one is ready when its sshd shows its banner.
//!
//! The wait ends within 100 ms of the guest being ready, of its VMM's death, of a cancellation or of the deadline. It must
//! never trust what a guest sends beyond a few bounded lines.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use crabbox_host::clock;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::vmm::Running;

/// The vsock port on which our guests say that they are ready (port of the host, CID 2).
pub const READY_PORT: u32 = 1024;
/// How long a guest may take to send its few lines once it has connected.
const SPEAK_LIMIT: Duration = Duration::from_secs(5);
/// The most that a guest may send.
const SPEAK_BYTES: u64 = 16 * 1024;
/// One look at the guest's port: short, because a lost SYN is only sent again after a second.
const LOOK: Duration = Duration::from_millis(60);

/// Why the wait ended without a ready guest.
#[derive(Debug, thiserror::Error)]
pub enum ReadyError {
    /// Firecracker ended: the guest powered off, rebooted or panicked.
    #[error("the machine ended while it booted")]
    Ended,
    /// The deadline passed.
    #[error("it was not ready after {waited:?} ({missing})")]
    TimedOut {
        /// How long was waited.
        waited: Duration,
        /// What was still missing.
        missing: &'static str,
    },
    /// The command that asked for the lease is gone or was interrupted.
    #[error("the command that asked for it gave up")]
    Cancelled,
    /// The listener failed.
    #[error("cannot listen for the guest")]
    Listen(#[source] std::io::Error),
}

impl ReadyError {
    /// What the user can do.
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Ended => vec!["the guest's console above says why; `crabbox doctor` checks kernel and image".to_owned()],
            Self::TimedOut { .. } => vec![
                "the guest's console above shows how far it came; a slow host needs a larger firecracker.launchTimeout"
                    .to_owned(),
            ],
            Self::Cancelled | Self::Listen(_) => Vec::new(),
        }
    }
}

/// What to wait for.
pub struct Wait<'a> {
    /// The socket that Firecracker connects to when the guest speaks.
    pub listener: &'a UnixListener,
    /// The VMM, whose death ends the wait.
    pub vmm: &'a Running,
    /// The guest's sshd as the host reaches it.
    pub address: SocketAddr,
    /// Whether the guest says `ready` by itself.
    pub says_ready: bool,
    /// When to give up.
    pub deadline: Instant,
    /// Whether to give up now.
    pub cancelled: &'a dyn Fn() -> bool,
}

impl std::fmt::Debug for Wait<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wait")
            .field("address", &self.address)
            .field("says_ready", &self.says_ready)
            .finish()
    }
}

/// Waits until the guest is ready; answers the stages that it reported, with its uptime in milliseconds at their end.
pub fn wait(wait: &Wait<'_>) -> Result<Vec<(String, u64)>, ReadyError> {
    let started = Instant::now();
    wait.listener.set_nonblocking(true).map_err(ReadyError::Listen)?;
    loop {
        if wait.vmm.has_ended() {
            return Err(ReadyError::Ended);
        }
        if (wait.cancelled)() {
            return Err(ReadyError::Cancelled);
        }
        if Instant::now() >= wait.deadline {
            let missing = if wait.says_ready {
                "no word from the guest"
            } else {
                "no SSH banner on its port"
            };
            return Err(ReadyError::TimedOut {
                waited: started.elapsed(),
                missing,
            });
        }
        if wait.says_ready {
            let pause = Timespec {
                tv_sec: 0,
                tv_nsec: 50_000_000,
            };
            poll(&mut [PollFd::new(wait.listener, PollFlags::IN)], Some(&pause)).ok();
            if let Ok((stream, _)) = wait.listener.accept()
                && let Some(stages) = listen(&stream)
            {
                return Ok(stages);
            }
        } else if shows_banner(wait.address) {
            return Ok(Vec::new());
        }
    }
}

/// Reads a guest's report; `None` if it breaks off before `ready`.
fn listen(stream: &UnixStream) -> Option<Vec<(String, u64)>> {
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(SPEAK_LIMIT)).ok()?;
    let mut text = Vec::new();
    let mut limited = stream.take(SPEAK_BYTES);
    let mut chunk = [0; 1024];
    while !text.windows(6).any(|word| word == b"ready ") || !text.ends_with(b"\n") {
        match limited.read(&mut chunk) {
            Ok(0) | Err(_) => break,
            Ok(count) => text.extend_from_slice(&chunk[..count]),
        }
    }
    parse_report(&String::from_utf8_lossy(&text))
}

/// The stages of a report that ends in `ready <uptime>`.
fn parse_report(text: &str) -> Option<Vec<(String, u64)>> {
    let mut stages = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (word, rest): (_, Vec<&str>) = (words.next()?, words.collect());
        match (word, rest.as_slice()) {
            ("stage", [name, uptime]) => stages.push(((*name).to_owned(), milliseconds(uptime)?)),
            ("ready", [uptime]) => {
                stages.push(("ready".to_owned(), milliseconds(uptime)?));
                return Some(stages);
            }
            _ => return None,
        }
    }
    None
}

/// Decimal seconds in milliseconds.
fn milliseconds(seconds: &str) -> Option<u64> {
    let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
    let digits: String = fraction.chars().chain("000".chars()).take(3).collect();
    let milliseconds = whole.parse::<u64>().ok()?.checked_mul(1000)?;
    milliseconds.checked_add(digits.parse().ok()?)
}

/// Whether an sshd answers at `address` right now.
fn shows_banner(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, LOOK) else {
        clock::nap(Duration::from_millis(10));
        return false;
    };
    let mut word = [0; 4];
    let greeted =
        stream.set_read_timeout(Some(Duration::from_secs(3))).is_ok() && stream.read_exact(&mut word).is_ok();
    // A polite goodbye keeps the guest's log clean; sshd waits for a version line.
    stream.write_all(b"SSH-2.0-crabbox\r\n").ok();
    greeted && &word == b"SSH-"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_to_its_ready_line() {
        let stages = parse_report("stage modules 0.31\nstage sshd 1.250\nready 1.3\n").unwrap();
        let expect: Vec<(String, u64)> = [("modules", 310), ("sshd", 1250), ("ready", 1300)]
            .map(|(name, ms)| (name.to_owned(), ms))
            .into();
        assert_eq!(stages, expect);
    }

    #[test]
    fn garbage_and_broken_reports_are_not_ready() {
        for bad in [
            "",
            "stage x 1\n",
            "ready\n",
            "ready soon\n",
            "GET / HTTP/1.1\n",
            "stage a b c d\nready 1\n",
        ] {
            assert_eq!(parse_report(bad), None, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_a_guest_says_is_a_report_or_none(bytes in crabbox_testkit::mutate::damaged(vec![
            b"stage modules 0.31\nstage sshd 1.250\nready 1.3\n".to_vec(),
            b"stage root 18446744073709551.9\nready 18446744073709551.615\n".to_vec(),
        ])) {
            let text = String::from_utf8_lossy(&bytes);
            if let Some(stages) = parse_report(&text) {
                proptest::prop_assert_eq!(stages.last().map(|(name, _)| name.as_str()), Some("ready"));
                proptest::prop_assert!(stages.len() <= text.lines().count());
            }
        }
    }

    #[test]
    fn a_guest_that_never_ends_its_line_is_cut_off() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let talker = std::thread::spawn(move || while theirs.write_all(&[b'x'; 4096]).is_ok() {});
        assert_eq!(listen(&ours), None);
        drop(ours);
        talker.join().unwrap();
    }
}
