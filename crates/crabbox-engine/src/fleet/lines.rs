//! Lines between two ends that do not trust each other: bounded in length and in time, one at a time.
//!
//! A line that is too long, cut off or late has its own error, and nothing of it is used.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use crabbox_host::wait::{Ready, wait};
use rustix::event::PollFlags;
use rustix::io::Errno;

/// The maximum length of a line in bytes, including its end. A lease with all labels takes some KiB, a
/// console's last lines somewhat more.
pub const LIMIT: usize = 256 * 1024;

/// How much is read or written at a time, in bytes: what a ready pipe accepts without blocking (`PIPE_BUF`).
const CHUNK: usize = 4096;

/// Why no line could be read.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// It is too long.
    #[error("a line of more than {LIMIT} bytes")]
    Long,
    /// The stream ended in the middle of a line.
    #[error("a line that broke off after {bytes} bytes")]
    Cut {
        /// How much of it arrived.
        bytes: usize,
    },
    /// It did not come in time.
    #[error("no line in time")]
    Late,
    /// The caller cancelled the wait.
    #[error("interrupted")]
    Cancelled,
    /// The stream failed.
    #[error("the connection failed")]
    Io(#[source] io::Error),
}

/// Reads lines.
#[derive(Debug)]
pub struct Lines<R> {
    from: R,
    /// Bytes read, but not yet returned.
    ahead: Vec<u8>,
}

impl<R: Read + AsFd> Lines<R> {
    /// The lines of `from`.
    pub fn new(from: R) -> Self {
        Self {
            from,
            ahead: Vec::new(),
        }
    }

    /// The next line without its end; `None` at the end of the stream. The wait is cancelled when `cancel`
    /// becomes readable.
    pub fn next(
        &mut self,
        cancel: Option<BorrowedFd<'_>>,
        until: Option<Instant>,
    ) -> Result<Option<Vec<u8>>, LineError> {
        let mut looked = 0;
        loop {
            // Check here as well: a sender that never stops always has data ready, so the wait below would
            // never time out.
            if until.is_some_and(|until| Instant::now() >= until) {
                return Err(LineError::Late);
            }
            if let Some(at) = self.ahead[looked..].iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.ahead.drain(..=looked + at).collect();
                line.pop();
                return Ok(Some(line));
            }
            looked = self.ahead.len();
            if looked >= LIMIT {
                return Err(LineError::Long);
            }
            let ready = wait(self.from.as_fd(), PollFlags::IN, cancel, until).map_err(LineError::Io)?;
            match ready {
                Ready::First => {}
                // Read what has already arrived first: it may be an answer that cannot be asked for again.
                Ready::Second if self.has_come() => {}
                Ready::Second => return Err(LineError::Cancelled),
                Ready::Neither => return Err(LineError::Late),
            }
            let mut chunk = [0; CHUNK];
            match self.from.read(&mut chunk) {
                // The same signal may have ended our whole process group, so this is a cancellation and not
                // an end of the stream.
                Ok(0) if ready == Ready::Second => return Err(LineError::Cancelled),
                Ok(0) if looked == 0 => return Ok(None),
                Ok(0) => return Err(LineError::Cut { bytes: looked }),
                Ok(count) => self.ahead.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(LineError::Io(error)),
            }
        }
    }

    /// Whether data or the end of the stream can be read at once.
    pub fn is_ready(&self) -> bool {
        !self.ahead.is_empty() || self.has_come()
    }

    fn has_come(&self) -> bool {
        let ready = wait(self.from.as_fd(), PollFlags::IN, None, Some(Instant::now()));
        matches!(ready, Ok(Ready::First))
    }

    /// The bytes behind the last line, for a stream that switches to another protocol there.
    pub fn behind(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.ahead)
    }

    /// The stream.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.from
    }
}

impl<R: AsFd> AsFd for Lines<R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.from.as_fd()
    }
}

/// Writes all of `bytes` to `to`, which need not be non-blocking, until `until`. A reader that does not read
/// is not waited for.
pub fn put(to: BorrowedFd<'_>, mut bytes: &[u8], until: Instant) -> Result<(), LineError> {
    while !bytes.is_empty() {
        match wait(to, PollFlags::OUT, None, Some(until)).map_err(LineError::Io)? {
            Ready::First => {}
            Ready::Second | Ready::Neither => return Err(LineError::Late),
        }
        match rustix::io::write(to, &bytes[..bytes.len().min(CHUNK)]) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(LineError::Io(errno.into())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// The lines read while `parts` are written one at a time, and the error that ended the reading; `ends`
    /// closes the stream behind them.
    fn read(parts: &[&[u8]], ends: bool) -> (Vec<Vec<u8>>, Option<LineError>) {
        let (from, mut to) = io::pipe().unwrap();
        let whole = parts.concat();
        let writer = std::thread::spawn(move || {
            // The reader may stop before the end.
            to.write_all(&whole).ok();
            if ends { None } else { Some(to) }
        });
        let mut lines = Lines::new(from);
        let mut all = Vec::new();
        let until = Instant::now() + Duration::from_millis(if ends { 20_000 } else { 200 });
        let error = loop {
            match lines.next(None, Some(until)) {
                Ok(Some(line)) => all.push(line),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        drop(lines);
        drop(writer.join());
        (all, error)
    }

    #[test]
    fn a_line_that_is_too_long_cut_or_late_is_told_apart_and_none_of_it_is_given_out() {
        let long = vec![b'x'; LIMIT + CHUNK];
        assert!(matches!(read(&[b"a\n", &long], true), (all, Some(LineError::Long)) if all == [b"a"]));
        assert!(matches!(read(&[b"a\nbc"], true), (all, Some(LineError::Cut { bytes: 2 })) if all == [b"a"]));
        assert!(matches!(read(&[b"a\nbc"], false), (all, Some(LineError::Late)) if all == [b"a"]));
        assert!(matches!(read(&[b""], true), (all, None) if all.is_empty()));
    }

    #[test]
    fn who_never_stops_speaking_is_late_all_the_same() {
        for said in [&b"a\n"[..], &[b'x'; CHUNK]] {
            let (from, mut to) = io::pipe().unwrap();
            let writer = std::thread::spawn(move || while to.write_all(said).is_ok() {});
            let mut lines = Lines::new(from);
            let began = Instant::now();
            let until = began + Duration::from_millis(100);
            let error = loop {
                match lines.next(None, Some(until)) {
                    Ok(Some(_)) => assert!(began.elapsed() < Duration::from_secs(10), "never late"),
                    other => break other,
                }
            };
            // A line without an end is reported as too long, not as late, if it is both.
            assert!(
                matches!(error, Err(LineError::Late | LineError::Long)),
                "{error:?}"
            );
            drop(lines);
            writer.join().unwrap();
        }
    }

    #[test]
    fn who_cancels_is_heard_at_once_and_who_does_not_read_is_not_waited_for() {
        let (from, _to) = io::pipe().unwrap();
        let (cancel, ended) = io::pipe().unwrap();
        drop(ended);
        let heard = Lines::new(from).next(Some(cancel.as_fd()), None);
        assert!(matches!(heard, Err(LineError::Cancelled)), "{heard:?}");
        // A complete reply that has already arrived is still returned; half a line, or an ended stream, is
        // not.
        let (from, mut to) = io::pipe().unwrap();
        to.write_all(b"said\nhal").unwrap();
        let mut lines = Lines::new(from);
        let mut next = || lines.next(Some(cancel.as_fd()), None);
        assert!(matches!(next(), Ok(Some(line)) if line == b"said"));
        assert!(matches!(next(), Err(LineError::Cancelled)));
        drop(to);
        assert!(matches!(next(), Err(LineError::Cancelled)));
        let (_reader, writer) = io::pipe().unwrap();
        let until = Instant::now() + Duration::from_millis(50);
        let put = put(writer.as_fd(), &vec![0; 1 << 20], until);
        assert!(matches!(put, Err(LineError::Late)), "{put:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn lines_come_out_as_they_were_said_and_what_is_behind_them_is_kept(
            said in prop::collection::vec(prop::collection::vec(1..=255_u8, 0..5000), 0..6),
            raw in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let said: Vec<Vec<u8>> = said.into_iter().map(|mut line| { line.retain(|byte| *byte != b'\n'); line }).collect();
            let mut whole: Vec<u8> = said.iter().flat_map(|line| [line.as_slice(), b"\n"].concat()).collect();
            whole.extend(&raw);
            let (from, mut to) = io::pipe().unwrap();
            let writer = std::thread::spawn(move || { to.write_all(&whole).unwrap(); });
            let mut lines = Lines::new(from);
            for line in &said {
                let heard = lines.next(None, None).unwrap();
                prop_assert_eq!(heard.as_ref(), Some(line));
            }
            writer.join().unwrap();
            let mut behind = lines.behind();
            lines.get_mut().read_to_end(&mut behind).unwrap();
            prop_assert_eq!(behind, raw);
        }
    }
}
