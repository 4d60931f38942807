//! Gives a restored machine its identity: the host's side of the handshake of
//! [`crabbox_guest_protocol::identity`].
//!
//! A guest is accepted only with the token of its template, and is ready only with the nonce of this
//! handshake. It must never wait longer than the lease's deadline, and never continue with a guest that sends
//! anything unexpected.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use crabbox_core::fault::{Fault, Kind};
use crabbox_guest_protocol::identity::{
    BECOME, END, FILE, HELLO, HOLD, IDENTITY, LINE_LIMIT, PARK, PARKED, REFUSED, VERSION,
};
use crabbox_guest_protocol::report::{READY, STAGE};
use crabbox_host::digest::hex;
use crabbox_host::{clock, random};
use crabbox_image::seed::SeedFile;
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};

use crate::resource::ready::{self, PAUSE};
use crate::resource::vmm::{Patience, Running};

/// The version of the handshake, which is part of a template's key.
pub const HANDSHAKE: &str = VERSION;
/// The maximum number of lines in a guest's report.
const MOST_LINES: usize = 64;
/// Maximum difference between the guest's clock and ours when it is ready. An emulated guest sometimes reads
/// its own clock a second late.
const CLOCK_LIMIT: Duration = Duration::from_secs(5);

/// The properties by which an instance differs from all others of its template, as reported by the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `/proc/sys/kernel/random/boot_id`, generated when it is first read.
    pub boot_id: String,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// 16 bytes of `getrandom`, hexadecimal.
    pub random: String,
    /// Guest clock minus host clock when the report arrived, in milliseconds; it includes the transit time of
    /// the report.
    pub clock_ms: i64,
}

/// An instance that is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Woken {
    /// The stages that it reported, each with the milliseconds since the restore at its end.
    pub stages: Vec<(String, u64)>,
    /// Its identity.
    pub identity: Identity,
}

/// Why a guest did not get this lease's identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Firecracker ended.
    #[error("the machine ended before it was ready")]
    Ended,
    /// The deadline passed.
    #[error("it did not send {missing:?} in time")]
    TimedOut {
        /// The word that was expected.
        missing: &'static str,
    },
    /// The command that asked for the lease is gone or was interrupted.
    #[error("the command that requested it gave up")]
    Cancelled,
    /// It sent something else.
    #[error("it sent {said:?}, expected {wanted:?}")]
    Unexpected {
        /// The line that it sent.
        said: String,
        /// The expected line.
        wanted: &'static str,
    },
    /// It reported why it cannot continue.
    #[error("it refused to continue: {why}")]
    Refused {
        /// Its message.
        why: String,
    },
    /// The connection failed.
    #[error("cannot communicate with the guest")]
    Speak(#[source] std::io::Error),
    /// The kernel returned no random bytes.
    #[error("cannot generate random bytes for the guest")]
    Random(#[source] std::io::Error),
}

impl Fault for IdentityError {
    fn kind(&self) -> Kind {
        Kind::Unavailable
    }
}

/// A token or nonce: random, unguessable, different for every machine.
pub(crate) fn draw() -> Result<String, IdentityError> {
    random::bytes::<16>()
        .map(|bytes| hex(&bytes))
        .map_err(IdentityError::Random)
}

/// A parked guest that can be snapshotted. The end of this connection wakes the guest, so it must stay open
/// until the machine has ended.
#[derive(Debug)]
pub(crate) struct Parked {
    _connection: UnixStream,
}

/// Waits until the guest of a template has done all work that is common to its leases and has parked; it
/// keeps `token`.
pub(crate) fn park(
    listener: &UnixListener,
    token: &str,
    vmm: &Running,
    patience: Patience<'_>,
) -> Result<Parked, IdentityError> {
    park_with(listener, token, &|| given_up(vmm, patience))
}

fn park_with(
    listener: &UnixListener,
    token: &str,
    stop: &dyn Fn() -> Option<IdentityError>,
) -> Result<Parked, IdentityError> {
    let mut guest = Guest::accept(listener, PARK, stop)?;
    guest.expect(PARK, &[VERSION])?;
    guest.say(format!("{HOLD} {token}\n").as_bytes(), PARKED)?;
    guest.expect(PARKED, &[])?;
    Ok(Parked {
        _connection: guest.stream,
    })
}

/// Sends the files of its lease to the restored guest with `token`, and waits until it is ready.
pub(crate) fn assign(
    listener: &UnixListener,
    token: &str,
    files: &[SeedFile],
    vmm: &Running,
    patience: Patience<'_>,
) -> Result<Woken, IdentityError> {
    assign_with(listener, token, &draw()?, files, &|| given_up(vmm, patience))
}

fn assign_with(
    listener: &UnixListener,
    token: &str,
    nonce: &str,
    files: &[SeedFile],
    stop: &dyn Fn() -> Option<IdentityError>,
) -> Result<Woken, IdentityError> {
    let mut guest = Guest::accept(listener, HELLO, stop)?;
    guest.expect(HELLO, &[VERSION, token])?;
    let mut words = format!("{BECOME} {nonce} {}\n", now()).into_bytes();
    for file in files {
        words.extend(format!("{FILE} {} {}\n", file.name, file.content.len()).into_bytes());
        words.extend(&file.content);
    }
    words.extend(format!("{END} {}\n", files.len()).into_bytes());
    let sent = guest.say(&words, READY);
    // Erase the message: it contains the guest's private host key.
    words.fill(0);
    std::hint::black_box(&words);
    sent?;
    guest.report(nonce)
}

fn given_up(vmm: &Running, patience: Patience<'_>) -> Option<IdentityError> {
    if vmm.has_ended() {
        return Some(IdentityError::Ended);
    }
    if (patience.cancelled)() {
        return Some(IdentityError::Cancelled);
    }
    (Instant::now() >= patience.deadline).then_some(IdentityError::TimedOut { missing: "" })
}

/// A connection of the guest; no read or write waits longer than `stop` allows.
struct Guest<'a> {
    stream: UnixStream,
    heard: Vec<u8>,
    stop: &'a dyn Fn() -> Option<IdentityError>,
}

impl<'a> Guest<'a> {
    /// Waits for the guest's connection; `missing` is the word that it should send first.
    fn accept(
        listener: &UnixListener,
        missing: &'static str,
        stop: &'a dyn Fn() -> Option<IdentityError>,
    ) -> Result<Self, IdentityError> {
        listener.set_nonblocking(true).map_err(IdentityError::Speak)?;
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(true).map_err(IdentityError::Speak)?;
                    return Ok(Self {
                        stream,
                        heard: Vec::new(),
                        stop,
                    });
                }
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(IdentityError::Speak(error)),
            }
            wait(&PollFd::new(listener, PollFlags::IN), missing, stop)?;
        }
    }

    /// The next line, without its newline.
    fn line(&mut self, missing: &'static str) -> Result<String, IdentityError> {
        loop {
            if let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
                let rest = self.heard.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.heard, rest);
                line.pop();
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            let unexpected = |heard: &[u8]| IdentityError::Unexpected {
                said: String::from_utf8_lossy(heard).into_owned(),
                wanted: missing,
            };
            if self.heard.len() >= LINE_LIMIT {
                return Err(unexpected(&self.heard));
            }
            let mut chunk = [0; LINE_LIMIT];
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    // If the VMM has ended, that is the better error than its closed socket.
                    return Err((self.stop)().unwrap_or_else(|| unexpected(&self.heard)));
                }
                Ok(count) => self.heard.extend_from_slice(&chunk[..count]),
                Err(error) if is_passing(&error) => {
                    wait(&PollFd::new(&self.stream, PollFlags::IN), missing, self.stop)?;
                }
                Err(error) => return Err(IdentityError::Speak(error)),
            }
        }
    }

    /// Expects the line `word` followed by exactly these `words`.
    fn expect(&mut self, word: &'static str, words: &[&str]) -> Result<(), IdentityError> {
        let line = self.line(word)?;
        let mut parts = line.split(' ');
        if parts.next() == Some(word) && parts.eq(words.iter().copied()) {
            return Ok(());
        }
        Err(unexpected(line, word))
    }

    fn say(&mut self, mut words: &[u8], missing: &'static str) -> Result<(), IdentityError> {
        while !words.is_empty() {
            match self.stream.write(words) {
                Ok(count) => words = &words[count..],
                Err(error) if is_passing(&error) => {
                    wait(&PollFd::new(&self.stream, PollFlags::OUT), missing, self.stop)?;
                }
                Err(error) => return Err(IdentityError::Speak(error)),
            }
        }
        Ok(())
    }

    /// Reads the guest's report until it is ready with `nonce`.
    fn report(&mut self, nonce: &str) -> Result<Woken, IdentityError> {
        let (mut stages, mut identity) = (Vec::new(), None);
        for _ in 0..MOST_LINES {
            let line = self.line(READY)?;
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                [STAGE, name, seconds] if let Some(milliseconds) = ready::milliseconds(seconds) => {
                    stages.push(((*name).to_owned(), milliseconds));
                }
                [IDENTITY, boot_id, machine_id, random, time] => {
                    let skew = time.parse().ok().and_then(skew);
                    let clock_ms = skew.ok_or_else(|| unexpected(line.clone(), IDENTITY))?;
                    identity = Some(Identity {
                        boot_id: (*boot_id).to_owned(),
                        machine_id: (*machine_id).to_owned(),
                        random: (*random).to_owned(),
                        clock_ms,
                    });
                }
                [READY, said, seconds] if *said == nonce => {
                    let (Some(identity), Some(milliseconds)) = (identity, ready::milliseconds(seconds))
                    else {
                        return Err(unexpected(line, IDENTITY));
                    };
                    stages.push((READY.to_owned(), milliseconds));
                    return Ok(Woken { stages, identity });
                }
                [REFUSED, ..] => {
                    let why = line[REFUSED.len()..].trim().to_owned();
                    return Err(IdentityError::Refused { why });
                }
                _ => return Err(unexpected(line, READY)),
            }
        }
        Err(unexpected(format!("more than {MOST_LINES} lines"), READY))
    }
}

/// Milliseconds by which the guest's clock, `time` in nanoseconds since 1970, is ahead of ours; `None` if the
/// difference is too large.
fn skew(time: i128) -> Option<i64> {
    let milliseconds = time.checked_sub(now())? / 1_000_000;
    let most = i128::try_from(CLOCK_LIMIT.as_millis()).ok()?;
    (-most..=most)
        .contains(&milliseconds)
        .then(|| i64::try_from(milliseconds).ok())?
}

/// The host's time in nanoseconds since 1970.
fn now() -> i128 {
    let (seconds, nanoseconds) = clock::unix_now();
    i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)
}

fn unexpected(said: String, wanted: &'static str) -> IdentityError {
    IdentityError::Unexpected { said, wanted }
}

fn is_passing(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Polls `source` once, unless `stop` ends the wait; an error for the deadline names `missing`.
fn wait(
    source: &PollFd<'_>,
    missing: &'static str,
    stop: &dyn Fn() -> Option<IdentityError>,
) -> Result<(), IdentityError> {
    match stop() {
        Some(IdentityError::TimedOut { .. }) => return Err(IdentityError::TimedOut { missing }),
        Some(error) => return Err(error),
        None => {}
    }
    poll(&mut [source.clone()], Some(&PAUSE)).ok();
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};

    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn files() -> Vec<SeedFile> {
        vec![SeedFile {
            name: "user",
            mode: 0o644,
            content: b"crabbox\n".to_vec(),
        }]
    }

    /// Runs `host` while `guest` has a connection to it; gives up after a hundred polls.
    fn met<T>(
        host: impl FnOnce(&UnixListener, &dyn Fn() -> Option<IdentityError>) -> T,
        guest: impl FnOnce(BufReader<UnixStream>) + Send,
    ) -> T {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity");
        let listener = UnixListener::bind(&path).unwrap();
        let looks = std::sync::atomic::AtomicUsize::new(0);
        let stop = || {
            let count = looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            (count > 100).then_some(IdentityError::TimedOut { missing: "" })
        };
        std::thread::scope(|threads| {
            threads.spawn(|| guest(BufReader::new(UnixStream::connect(&path).unwrap())));
            host(&listener, &stop)
        })
    }

    fn line(guest: &mut BufReader<UnixStream>) -> String {
        let mut line = String::new();
        guest.read_line(&mut line).unwrap();
        line
    }

    fn say(guest: &mut BufReader<UnixStream>, words: &str) {
        guest.get_mut().write_all(words.as_bytes()).ok();
    }

    #[test]
    fn a_guest_parks_with_the_token() {
        let outcome = met(
            |listener, stop| park_with(listener, TOKEN, stop),
            |mut guest| {
                say(&mut guest, "park 1\n");
                assert_eq!(line(&mut guest), format!("hold {TOKEN}\n"));
                say(&mut guest, "parked\n");
            },
        );
        outcome.unwrap();
    }

    /// The result of a guest that sends `hello`, gets its identity, and then sends `words`, in which
    /// `{nonce}` is its nonce.
    fn assigned(hello: &str, words: &str) -> Result<Woken, IdentityError> {
        let nonce = "fedcba9876543210fedcba9876543210";
        let words = words.replace("{nonce}", nonce);
        met(
            |listener, stop| assign_with(listener, TOKEN, nonce, &files(), stop),
            |mut guest| {
                say(&mut guest, hello);
                if line(&mut guest).starts_with(&format!("become {nonce} 1")) {
                    assert_eq!(line(&mut guest), "file user 8\n");
                    assert_eq!(line(&mut guest), "crabbox\n");
                    assert_eq!(line(&mut guest), "end 1\n");
                    say(&mut guest, &words);
                }
            },
        )
    }

    fn identity_line() -> String {
        format!("identity b-1 m-1 r-1 {}\n", now() - 250_000_000)
    }

    #[test]
    fn a_guest_that_is_ready_says_who_it_is() {
        let hello = format!("hello 1 {TOKEN}\n");
        let words = format!(
            "stage wake 0.050\nstage sshd 0.700\n{}ready {{nonce}} 0.750\n",
            identity_line()
        );
        let woken = assigned(&hello, &words).unwrap();
        let stages = [("wake", 50), ("sshd", 700), ("ready", 750)];
        assert_eq!(woken.stages, stages.map(|(name, ms)| (name.to_owned(), ms)));
        assert_eq!(woken.identity.boot_id, "b-1");
        assert!((-5000..=-250).contains(&woken.identity.clock_ms), "{woken:?}");
    }

    #[test]
    fn a_guest_of_another_template_or_nonce_or_without_an_identity_is_none() {
        let hello = format!("hello 1 {TOKEN}\n");
        for (hello, words) in [
            ("hello 1 0123456789abcdef0123456789abcdee\n", String::new()),
            ("hello 2 0123456789abcdef0123456789abcdef\n", String::new()),
            ("park 1\n", String::new()),
            (&hello, format!("{}ready 0123 0.750\n", identity_line())),
            (&hello, "ready {nonce} 0.750\n".to_owned()),
            (&hello, format!("{}ready {{nonce}} soon\n", identity_line())),
            // The guest's clock is wrong by far more than the limit.
            (
                &hello,
                format!(
                    "identity b m r {}\nready {{nonce}} 0.1\n",
                    now() - 3_600_000_000_000
                ),
            ),
            (&hello, "identity b m r now\nready {nonce} 0.1\n".to_owned()),
            (&hello, "stage a b c\n".to_owned()),
            (&hello, "stage wake 0.1\n".repeat(MOST_LINES + 1)),
            (&hello, "x".repeat(4 * LINE_LIMIT)),
            (&hello, String::new()),
        ] {
            let error = assigned(hello, &words).unwrap_err();
            assert!(
                matches!(error, IdentityError::Unexpected { .. } | IdentityError::Speak(_)),
                "{hello:?} {words:?}: {error:?}"
            );
        }
        let error = assigned(&hello, "refused the clock: no\n").unwrap_err();
        assert!(
            matches!(&error, IdentityError::Refused { why } if why == "the clock: no"),
            "{error:?}"
        );
    }

    #[test]
    fn a_silent_guest_is_given_up_with_what_it_did_not_say() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("identity")).unwrap();
        let stop = || Some(IdentityError::TimedOut { missing: "" });
        let error = park_with(&listener, TOKEN, &stop).unwrap_err();
        assert_eq!(error.to_string(), "it did not send \"park\" in time");
    }
}
