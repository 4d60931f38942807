//! Waits for a guest: our image reports `ready` over vsock, any other image is ready when its sshd sends its
//! banner.
//!
//! The wait ends within 100 ms of the guest being ready, of its VMM's death, of a cancellation or of the
//! deadline. It must never trust what a guest sends beyond a few bounded lines.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use crabbox_guest_protocol::report::{READY, STAGE};
use crabbox_host::clock;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::resource::vmm::Running;

/// How long a guest may take to send its report once it has connected.
const SPEAK_LIMIT: Duration = Duration::from_secs(5);
/// The maximum size of a report, in bytes.
const SPEAK_BYTES: usize = 16 * 1024;
/// The maximum number of simultaneous connections; our guest opens one.
const MOST_REPORTS: usize = 8;
/// How long an sshd may take for the first four bytes of its banner.
const BANNER_LIMIT: Duration = Duration::from_secs(3);
/// Length of one poll, after which cancellation and the VMM's end are checked.
pub(super) const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};
/// Timeout of one connection attempt to the guest's port: short, because a lost SYN is only resent after a
/// second.
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
        /// The length of the wait.
        waited: Duration,
        /// What was still missing.
        missing: &'static str,
    },
    /// The command that asked for the lease is gone or was interrupted.
    #[error("the command that requested it gave up")]
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
                "the guest's console above shows how far it got; a slow host needs a larger firecracker.launchTimeout"
                    .to_owned(),
            ],
            Self::Cancelled | Self::Listen(_) => Vec::new(),
        }
    }
}

/// The conditions of the wait.
pub struct Wait<'a> {
    /// The socket that Firecracker connects to when the guest connects to the host.
    pub listener: &'a UnixListener,
    /// The VMM, whose death ends the wait.
    pub vmm: &'a Running,
    /// The guest's sshd as the host reaches it.
    pub address: SocketAddr,
    /// Whether the guest reports `ready` itself.
    pub says_ready: bool,
    /// The deadline.
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

/// Waits until the guest is ready; returns the stages that it reported, each with its uptime in milliseconds
/// at their end.
pub fn wait(wait: &Wait<'_>) -> Result<Vec<(String, u64)>, ReadyError> {
    let started = Instant::now();
    let stop = || {
        if wait.vmm.has_ended() {
            return Some(ReadyError::Ended);
        }
        if (wait.cancelled)() {
            return Some(ReadyError::Cancelled);
        }
        let missing = if wait.says_ready {
            "no word from the guest"
        } else {
            "no SSH banner on its port"
        };
        (Instant::now() >= wait.deadline).then(|| ReadyError::TimedOut {
            waited: started.elapsed(),
            missing,
        })
    };
    if wait.says_ready {
        return hear(wait.listener, &stop);
    }
    loop {
        if let Some(error) = stop() {
            return Err(error);
        }
        if shows_banner(wait.address, &stop) {
            return Ok(Vec::new());
        }
    }
}

/// Listens until one connection has sent a complete report, or `stop` returns a reason to give up.
fn hear(
    listener: &UnixListener,
    stop: &dyn Fn() -> Option<ReadyError>,
) -> Result<Vec<(String, u64)>, ReadyError> {
    listener.set_nonblocking(true).map_err(ReadyError::Listen)?;
    let mut reports: Vec<Report> = Vec::new();
    loop {
        if let Some(error) = stop() {
            return Err(error);
        }
        let mut sources = vec![PollFd::new(listener, PollFlags::IN)];
        sources.extend(
            reports
                .iter()
                .map(|report| PollFd::new(&report.stream, PollFlags::IN)),
        );
        poll(&mut sources, Some(&PAUSE)).ok();
        if let Ok((stream, _)) = listener.accept() {
            // Any program in the guest may connect: drop the oldest silent connection, or it would keep the
            // real report out.
            if reports.len() == MOST_REPORTS {
                reports.remove(0);
            }
            reports.extend(Report::of(stream));
        }
        for mut report in std::mem::take(&mut reports) {
            match report.read() {
                Progress::Whole(stages) => return Ok(stages),
                Progress::Open => reports.push(report),
                Progress::Broken => {}
            }
        }
    }
}

/// The data received on a connection so far. Reads never block, so that no guest delays the loop that notices
/// its VMM's end.
struct Report {
    stream: UnixStream,
    text: Vec<u8>,
    until: Instant,
}

/// The state of a report.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Open,
    Whole(Vec<(String, u64)>),
    Broken,
}

impl Report {
    fn of(stream: UnixStream) -> Option<Self> {
        stream.set_nonblocking(true).ok()?;
        Some(Self {
            stream,
            text: Vec::new(),
            until: Instant::now() + SPEAK_LIMIT,
        })
    }

    /// Reads what has arrived, but only a few chunks, so that other connections get their turn.
    fn read(&mut self) -> Progress {
        let mut chunk = [0; 1024];
        for _ in 0..4 {
            match self.stream.read(&mut chunk) {
                Ok(0) => return self.judge(),
                Ok(count) => self.text.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Progress::Broken,
            }
            let is_ready = |word: &[u8]| word.strip_prefix(READY.as_bytes()) == Some(b" ");
            if self.text.windows(READY.len() + 1).any(is_ready) && self.text.ends_with(b"\n") {
                return self.judge();
            }
            if self.text.len() > SPEAK_BYTES {
                return Progress::Broken;
            }
        }
        // One deadline for the whole report: a byte now and then does not extend it.
        if Instant::now() >= self.until {
            return Progress::Broken;
        }
        Progress::Open
    }

    fn judge(&self) -> Progress {
        let stages = parse_report(&String::from_utf8_lossy(&self.text));
        stages.map_or(Progress::Broken, Progress::Whole)
    }
}

/// Parses `bytes` as a guest's report; only for fuzzing.
#[cfg(feature = "fuzzing")]
pub fn read_report(bytes: &[u8]) {
    if let Some(stages) = parse_report(&String::from_utf8_lossy(bytes)) {
        assert!(stages.last().is_some_and(|(name, _)| name == "ready"));
    }
}

/// The stages of a report that ends in `ready <uptime>`.
fn parse_report(text: &str) -> Option<Vec<(String, u64)>> {
    let mut stages = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (word, rest): (_, Vec<&str>) = (words.next()?, words.collect());
        match (word, rest.as_slice()) {
            (STAGE, [name, uptime]) => stages.push(((*name).to_owned(), milliseconds(uptime)?)),
            (READY, [uptime]) => {
                stages.push((READY.to_owned(), milliseconds(uptime)?));
                return Some(stages);
            }
            _ => return None,
        }
    }
    None
}

/// Parses decimal seconds into milliseconds.
pub(super) fn milliseconds(seconds: &str) -> Option<u64> {
    let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
    let digits: String = fraction.chars().chain("000".chars()).take(3).collect();
    let milliseconds = whole.parse::<u64>().ok()?.checked_mul(1000)?;
    milliseconds.checked_add(digits.parse().ok()?)
}

/// Whether an sshd answers at `address` right now; gives up when `stop` says so, or after [`BANNER_LIMIT`] in
/// total.
fn shows_banner(address: SocketAddr, stop: &dyn Fn() -> Option<ReadyError>) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, LOOK) else {
        clock::nap(Duration::from_millis(10));
        return false;
    };
    let until = Instant::now() + BANNER_LIMIT;
    let (mut word, mut filled) = ([0; 4], 0);
    if stream.set_nonblocking(true).is_err() {
        return false;
    }
    while filled < word.len() && Instant::now() < until && stop().is_none() {
        poll(&mut [PollFd::new(&stream, PollFlags::IN)], Some(&PAUSE)).ok();
        match stream.read(&mut word[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => break,
        }
    }
    // Send our version line, so that sshd does not log an incomplete handshake.
    stream.write_all(b"SSH-2.0-crabbox\r\n").ok();
    &word == b"SSH-"
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

    /// A listener in a directory of its own, and its path.
    fn listener() -> (tempfile::TempDir, UnixListener) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("ready")).unwrap();
        (dir, listener)
    }

    /// Runs [`hear`] while `guest` has the path of its socket; gives up at the `looks`th call of `stop`.
    fn heard(
        looks: usize,
        guest: impl FnOnce(std::path::PathBuf) + Send,
    ) -> Result<Vec<(String, u64)>, ReadyError> {
        let (dir, listener) = listener();
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let stop = || {
            let asked = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            (asked >= looks).then_some(ReadyError::Cancelled)
        };
        std::thread::scope(|threads| {
            threads.spawn(|| guest(dir.path().join("ready")));
            hear(&listener, &stop)
        })
    }

    #[test]
    fn a_guest_that_never_ends_its_line_is_cut_off() {
        let result = heard(usize::MAX, |path| {
            let mut flood = UnixStream::connect(&path).unwrap();
            while flood.write_all(&[b'x'; 4096]).is_ok() {}
            // The real report comes only after the flooding connection was closed.
            let mut report = UnixStream::connect(&path).unwrap();
            report.write_all(b"ready 1.3\n").unwrap();
        });
        assert_eq!(result.unwrap(), [("ready".to_owned(), 1300)]);
    }

    #[test]
    fn a_guest_that_drips_holds_nobody() {
        let result = heard(20, |path| {
            let mut drip = UnixStream::connect(path).unwrap();
            drip.write_all(b"x").unwrap();
            // Stay silent until the other side closes; a reader that blocked on the next byte would never
            // return.
            drip.read_to_end(&mut Vec::new()).ok();
        });
        assert!(matches!(result, Err(ReadyError::Cancelled)), "{result:?}");
    }

    #[test]
    fn silent_connections_do_not_keep_the_real_report_out() {
        let result = heard(usize::MAX, |path| {
            let silent: Vec<UnixStream> = (0..3 * MOST_REPORTS)
                .map(|_| UnixStream::connect(&path).unwrap())
                .collect();
            let mut report = UnixStream::connect(&path).unwrap();
            report.write_all(b"stage sshd 0.5\n").unwrap();
            report.write_all(b"ready 1.3\n").unwrap();
            drop(silent);
        });
        assert_eq!(result.unwrap().len(), 2);
    }

    #[test]
    fn an_sshd_that_drips_its_banner_holds_nobody() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let stopped = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                let (mut stream, _) = server.accept().unwrap();
                stream.write_all(b"S").unwrap();
                stopped.store(true, std::sync::atomic::Ordering::Relaxed);
                // Held open until the other side gives up.
                stream.read_to_end(&mut Vec::new()).ok();
            });
            let stop = || {
                let stopped = stopped.load(std::sync::atomic::Ordering::Relaxed);
                stopped.then_some(ReadyError::Cancelled)
            };
            assert!(!shows_banner(address, &stop));
        });
    }
}
