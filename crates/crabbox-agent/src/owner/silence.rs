//! A client that says nothing any more, while somebody else wants its tree.
//!
//! A network that goes without a word leaves a session open for hours. A client that is there says so every
//! ten seconds, whatever it does. One that does not may have been stopped for a while, or its machine sleeps:
//! it must never lose its command but to somebody who waits.

use std::io::Write as _;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::Files;
use crate::bytes::discard;
use crate::failure::{At as _, Failure};
use crate::talk::{self, Arrivals};

/// How long a client may be silent, as long as a lock of the Go program lasts.
const LIMIT: Duration = Duration::from_secs(45);
/// How often is looked.
const LOOK: Duration = Duration::from_secs(5);
/// How much nobody has read while it is us who do not read: more than the signs of life of hours, in bytes.
const UNREAD: u64 = 32 * 1024;
/// How much later than this a look is one by somebody who did not run meanwhile: a machine that was paused
/// hears nothing, and its clock goes on.
const PAUSED: Duration = LOOK.saturating_mul(4);
/// Our exit code then: the client's exit code is made of more than this.
const GIVEN_UP: i32 = 75;
/// What the thread needs for its stack, in bytes.
const STACK: usize = 256 * 1024;

/// Ends the agent in that case, until this is dropped. Whatever else the agent does, also where it waits for
/// a client to read.
#[derive(Debug)]
pub(super) struct Silence {
    _stop: Sender<()>,
}

impl Silence {
    pub(super) fn watch(arrivals: Arrivals, files: Files) -> Result<Self, Failure> {
        let client = Client::heard_at(Instant::now(), LIMIT);
        Self::watch_every(LOOK, client, arrivals, files, go)
    }

    fn watch_every(
        look: Duration,
        mut client: Client,
        arrivals: Arrivals,
        files: Files,
        go: impl FnOnce(&Files) + Send + 'static,
    ) -> Result<Self, Failure> {
        let (stop, stopped) = channel();
        let watching = move || {
            while stopped.recv_timeout(look) == Err(RecvTimeoutError::Timeout) {
                let wanted = files.wanted();
                match client.look(Instant::now(), arrivals.count(), wanted.exists()) {
                    Next::Wait => {}
                    // One who still waits writes it again.
                    Next::Ask => drop(discard(&wanted)),
                    Next::Go => return go(&files),
                }
            }
        };
        let thread = std::thread::Builder::new().stack_size(STACK).spawn(watching);
        thread.trying("watch for a client that has fallen silent")?;
        Ok(Self { _stop: stop })
    }
}

#[expect(
    clippy::disallowed_methods,
    clippy::exit,
    reason = "main may wait for the client without an end; the kernel gives the lock back"
)]
fn go(files: &Files) {
    // How its command ends now is not how it would have ended.
    talk::fall_silent();
    let words = "another client has taken the tree, because nothing was heard of this one for 45 s\n";
    std::io::stderr().write_all(words.as_bytes()).ok();
    files.abandon();
    std::process::exit(GIVEN_UP);
}

/// What is known of the client.
#[derive(Debug)]
struct Client {
    limit: Duration,
    arrived: u64,
    heard: Instant,
    looked: Instant,
    /// Whether the tree was wanted at the last look.
    has_asked: bool,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Wait,
    /// Look whether somebody waits now: what says so may be of somebody who has gone since.
    Ask,
    Go,
}

impl Client {
    fn heard_at(now: Instant, limit: Duration) -> Self {
        Self {
            limit,
            arrived: 0,
            heard: now,
            looked: now,
            has_asked: false,
        }
    }

    /// Given how much has arrived in all, how much of it is unread, and whether the tree is wanted.
    fn look(&mut self, now: Instant, (arrived, unread): (u64, u64), is_wanted: bool) -> Next {
        let is_late = now.duration_since(std::mem::replace(&mut self.looked, now)) > PAUSED;
        if arrived != self.arrived || unread >= UNREAD || is_late {
            (self.arrived, self.heard, self.has_asked) = (arrived, now, false);
            return Next::Wait;
        }
        if now.duration_since(self.heard) < self.limit {
            return Next::Wait;
        }
        let has_asked = std::mem::replace(&mut self.has_asked, is_wanted);
        match (is_wanted, has_asked) {
            (false, _) => Next::Wait,
            // Twice in a row: one who still waits has written it again since.
            (true, true) => Next::Go,
            (true, false) => Next::Ask,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn only_one_who_waits_ends_a_client_that_is_silent() {
        let start = Instant::now();
        let mut client = Client::heard_at(start, LIMIT);
        let mut look = |second: u64, arrived: (u64, u64), is_wanted: bool| {
            client.look(start + Duration::from_secs(second), arrived, is_wanted)
        };
        // Heard a moment ago.
        for second in (5..50).step_by(5) {
            assert_eq!(look(second, (100, 0), true), Next::Wait);
        }
        // What says that somebody waits may be old.
        assert_eq!(look(50, (100, 0), true), Next::Ask);
        assert_eq!(look(55, (100, 0), false), Next::Wait);
        // One who came and went.
        assert_eq!(look(60, (100, 0), true), Next::Ask);
        assert_eq!(look(65, (100, 0), false), Next::Wait);
        assert_eq!(look(70, (100, 0), true), Next::Ask);
        assert_eq!(look(72, (100, 0), false), Next::Wait);
        // It was only asleep: all begins anew.
        assert_eq!(look(75, (117, 17), true), Next::Wait);
        assert_eq!(look(80, (117, 17), true), Next::Wait);
        // It is we who did not run, and that says nothing of the client.
        assert_eq!(look(600, (117, 17), true), Next::Wait);
        for second in (605..645).step_by(5) {
            assert_eq!(look(second, (117, 17), true), Next::Wait);
        }
        assert_eq!(look(645, (117, 17), true), Next::Ask);
        // We do not read what it says.
        for second in (650..=900).step_by(5) {
            assert_eq!(look(second, (117 + UNREAD, UNREAD), true), Next::Wait);
        }
        for second in (905..945).step_by(5) {
            assert_eq!(look(second, (117 + UNREAD, 0), true), Next::Wait);
        }
        assert_eq!(look(945, (117 + UNREAD, 0), true), Next::Ask);
        assert_eq!(look(950, (117 + UNREAD, 0), true), Next::Go);
    }

    #[test]
    fn a_client_that_is_heard_keeps_its_tree_and_one_that_is_not_goes_when_somebody_waits() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files(dir.path().join("k"));
        let wanted = files.wanted();
        let (input, mut says) = std::io::pipe().unwrap();
        let arrivals = Arrivals::of(
            std::fs::File::from(std::os::fd::OwnedFd::from(input)),
            Arc::default(),
        );
        let look = Duration::from_millis(10);
        let client = Client::heard_at(Instant::now(), look * 20);
        let (gone, goes) = channel();
        let silence = Silence::watch_every(look, client, arrivals, files, move |_| gone.send(()).unwrap());
        let _silence = silence.unwrap();
        for _ in 0..50 {
            says.write_all(b".").unwrap();
            std::fs::write(&wanted, "").unwrap();
            assert_eq!(
                goes.recv_timeout(look),
                Err(RecvTimeoutError::Timeout),
                "it was heard"
            );
        }
        // Silent, and nobody waits any more.
        let quiet = goes.recv_timeout(look * 60);
        assert_eq!(quiet, Err(RecvTimeoutError::Timeout), "nobody waits");
        assert!(!wanted.exists());
        let begun = Instant::now();
        let mut went = false;
        while !went && begun.elapsed() < Duration::from_secs(20) {
            std::fs::write(&wanted, "").unwrap();
            went = goes.recv_timeout(look).is_ok();
        }
        assert!(went, "somebody waits");
    }
}
