//! A guest that is frozen before it has an identity: it parks, and becomes an instance each time it is
//! thawed.
//!
//! Until the host sends an identity, only process 1 is alive, and there is no key, no name and no user. It
//! must never continue with the random numbers, the clock or the identity that other clones share: a failure
//! is reported to the host and ends the machine, before an SSH server runs.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_guest_protocol::identity::{
    BECOME, END, FILE, HELLO, HOLD, IDENTITY, LINE_LIMIT, PARK, PARKED, REFUSED, VERSION,
};
use crabbox_guest_protocol::report::READY;
use crabbox_guest_protocol::{IDENTITY_PORT, image, seed as names};

use crate::clock;
use crate::console::Console;
use crate::failure::Failure;
use crate::handover;
use crate::identity;
use crate::power;
use crate::seed::{self, Seed};
use crate::sshd;
use crate::sys;

/// The directory of the new identity's files until they are read; in memory.
const FILES: &str = "/run/crabbox/seed";

/// The largest of them in bytes, the limit of [`Seed::read`].
const FILE_LIMIT: usize = 64 * 1024;

/// The maximum number of them. The seed has a dozen.
const MOST_FILES: usize = 32;

/// How long the host may take for each message, and to become reachable.
const HOST_LIMIT: Duration = Duration::from_mins(1);

/// The minimum of random bytes in a new identity: the kernel's pool holds 256 bits.
pub(crate) const LEAST_ENTROPY: usize = 32;

/// Programs that every command in a lease starts, read once so that they are in every clone's memory.
const FIRST_READ: [&str; 3] = ["/bin/bash", "/bin/sh", "/usr/lib/openssh/sshd-session"];

/// The host, which waits to hear that this instance is ready.
pub(crate) struct Woken {
    host: UnixStream,
    nonce: String,
    /// A draw from the generator directly after the reseed.
    drawn: String,
}

impl Woken {
    /// Tells the host that the instance is ready, and the values by which it differs from other clones.
    pub(crate) fn ready(&mut self, console: &Console) -> Result<(), Failure> {
        let line = |path: &str| {
            let text = std::fs::read_to_string(path);
            text.map(|text| text.trim().to_owned())
                .map_err(Failure::path("read", Path::new(path)))
        };
        let (boot, machine) = (line("/proc/sys/kernel/random/boot_id")?, line("/etc/machine-id")?);
        let words = format!(
            "{}{IDENTITY} {boot} {machine} {} {}\n{READY} {} {}\n",
            console.stages(),
            self.drawn,
            clock::unix_nanoseconds(),
            self.nonce,
            console.since_start(),
        );
        say(&mut self.host, &words)
    }

    /// Tells the host why this instance failed.
    pub(crate) fn refuse(&mut self, failure: &Failure) {
        refuse(&mut self.host, failure);
    }
}

/// Does what is common to all leases, waits to be frozen and thawed, and returns the identity it then gets.
pub(crate) fn until_woken(console: &mut Console, mut template: Seed) -> Result<(Seed, Woken), Failure> {
    if handover::wanted()?.is_some() {
        return Err(Failure::Content {
            path: image::INIT.into(),
            why: "an image with its own init cannot become a template",
        });
    }
    console.begin("warm-up");
    warm_up(&template)?;
    template.forget_secrets();
    // Anything left behind by the server would be alive in every clone, before it has its own random numbers.
    power::end_all()?;
    power::must_be_alone()?;
    console.begin("park");
    console.end();
    rustix::fs::sync();
    // Output still in the serial port at the freeze would never be sent.
    console.drain();
    let token = park(UnixStream::from(connect()?))?;
    console.restart();
    console.begin("wake");
    let mut host = clock::poll_until(HOST_LIMIT, Duration::from_millis(5), || connect().ok())
        .map(UnixStream::from)
        .ok_or_else(|| Failure::Missing {
            what: place(),
            seconds: HOST_LIMIT.as_secs(),
        })?;
    match become_one(&mut host, &token, console) {
        Ok(Identity { seed, nonce, drawn }) => Ok((seed, Woken { host, nonce, drawn })),
        Err(failure) => {
            refuse(&mut host, &failure);
            Err(failure)
        }
    }
}

/// Runs the SSH server once so that it is in memory, under a throw-away key, and removes its traces.
fn warm_up(template: &Seed) -> Result<(), Failure> {
    // Drop the page cache of the boot, which a lease does not need. Optional.
    std::fs::write("/proc/sys/vm/drop_caches", "3").ok();
    identity::write_host_key(template)?;
    sshd::rehearse()?;
    identity::remove(Path::new(image::HOST_KEY))?;
    for program in FIRST_READ {
        std::fs::read(program).ok();
    }
    Ok(())
}

fn connect() -> Result<std::os::fd::OwnedFd, Failure> {
    sys::connect_host(IDENTITY_PORT).map_err(Failure::path("reach the host at", &place()))
}

/// The host's address, for messages.
fn place() -> PathBuf {
    PathBuf::from(format!("vsock port {IDENTITY_PORT}"))
}

fn nonsense(why: &'static str) -> Failure {
    Failure::Content { path: place(), why }
}

/// Waits on `host` until the connection ends, which freezing and thawing this machine causes; returns the
/// template's token.
fn park(mut host: UnixStream) -> Result<String, Failure> {
    limited(&host)?;
    say(&mut host, &format!("{PARK} {VERSION}\n"))?;
    let token = {
        let mut reader = BufReader::new(&host);
        let line = line(&mut reader)?;
        if !reader.buffer().is_empty() {
            return Err(nonsense("the host said more than `hold`"));
        }
        let token = line.strip_prefix(HOLD).and_then(|rest| rest.strip_prefix(' '));
        token
            .filter(|token| is_word(token))
            .ok_or(nonsense("the host did not say `hold`"))?
            .to_owned()
    };
    say(&mut host, &format!("{PARKED}\n"))?;
    host.set_read_timeout(None)
        .map_err(Failure::path("set the time limit of", &place()))?;
    loop {
        match host.read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) | Ok(0) => return Ok(token),
            Ok(_) => return Err(nonsense("the host spoke to a parked guest")),
        }
    }
}

/// What makes this guest differ from others of its template.
struct Identity {
    seed: Seed,
    nonce: String,
    /// A draw from the generator directly after the reseed.
    drawn: String,
}

/// Asks the host for an identity; applies its random numbers and its time before anything else.
fn become_one(host: &mut UnixStream, token: &str, console: &mut Console) -> Result<Identity, Failure> {
    limited(host)?;
    say(host, &format!("{HELLO} {VERSION} {token}\n"))?;
    let files = Path::new(FILES);
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(files)
        .map_err(Failure::path("create", files))?;
    let (nonce, time) = receive(&mut BufReader::new(&mut *host), files)?;
    let seed = Seed::read(files)?;
    seed::wipe(files)?;
    console.begin("random");
    reseed(seed.entropy.as_deref().unwrap_or_default())?;
    // Drawn immediately: if the reseed had been skipped, nothing else would have made these bytes differ yet,
    // so the host notices.
    let drawn = draw()?;
    clock::set_nanoseconds(time).map_err(Failure::path("set", Path::new("the clock")))?;
    Ok(Identity { seed, nonce, drawn })
}

/// 16 random bytes as every program gets them, in hexadecimal.
pub(crate) fn draw() -> Result<String, Failure> {
    let mut drawn = [0; 16];
    rustix::rand::getrandom(&mut drawn, rustix::rand::GetRandomFlags::empty())
        .map_err(Failure::path("draw random bytes for", Path::new(IDENTITY)))?;
    Ok(format!("{:032x}", u128::from_be_bytes(drawn)))
}

/// Credits random bytes from the host and makes the kernel draw a new key from them at once.
pub(crate) fn reseed(entropy: &[u8]) -> Result<(), Failure> {
    if entropy.len() < LEAST_ENTROPY {
        return Err(nonsense("the host sent too few random bytes"));
    }
    let path = Path::new("/dev/random");
    let random = File::options()
        .write(true)
        .open(path)
        .map_err(Failure::path("open", path))?;
    sys::credit_entropy(&random, entropy).map_err(Failure::path("credit entropy to", path))?;
    sys::reseed(&random).map_err(Failure::path("reseed", path))
}

/// Receives the new identity into the directory `files`; returns its nonce and the host's clock in
/// nanoseconds since 1970.
fn receive(host: &mut impl BufRead, files: &Path) -> Result<(String, i128), Failure> {
    let first = line(host)?;
    let words: Vec<&str> = first.split(' ').collect();
    let (nonce, time) = match words.as_slice() {
        [BECOME, nonce, time] if is_word(nonce) => (*nonce, time.parse().ok()),
        _ => return Err(nonsense("the host did not say `become`")),
    };
    let time = time.ok_or(nonsense("the host's clock is not a number"))?;
    for count in 0..=MOST_FILES {
        let text = line(host)?;
        let words: Vec<&str> = text.split(' ').collect();
        match words.as_slice() {
            [END, files] if files.parse() == Ok(count) => return Ok((nonce.to_owned(), time)),
            [FILE, name, length] if names::FILES.contains(name) => {
                let length = length.parse().ok().filter(|length| *length <= FILE_LIMIT);
                let length = length.ok_or(nonsense("a file of the host is longer than 64 KiB"))?;
                let mut bytes = vec![0; length];
                host.read_exact(&mut bytes)
                    .map_err(Failure::path("read", &place()))?;
                let path = files.join(name);
                File::options()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&path)
                    .and_then(|mut file| file.write_all(&bytes))
                    .map_err(Failure::path("write", &path))?;
                bytes.fill(0);
                std::hint::black_box(&bytes);
            }
            _ => return Err(nonsense("the host named no file, and no end of them")),
        }
    }
    Err(nonsense("the host has too many files"))
}

/// Reads one line from the host, without its end.
fn line(host: &mut impl BufRead) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    host.take(LINE_LIMIT as u64)
        .read_until(b'\n', &mut bytes)
        .map_err(Failure::path("read", &place()))?;
    let text = bytes
        .strip_suffix(b"\n")
        .and_then(|line| std::str::from_utf8(line).ok());
    text.map(str::to_owned)
        .ok_or(nonsense("the host said no whole line"))
}

/// Whether a token or nonce is valid: letters and digits.
fn is_word(text: &str) -> bool {
    (16..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn limited(host: &UnixStream) -> Result<(), Failure> {
    host.set_read_timeout(Some(HOST_LIMIT))
        .and_then(|()| host.set_write_timeout(Some(HOST_LIMIT)))
        .map_err(Failure::path("set the time limit of", &place()))
}

fn say(host: &mut UnixStream, words: &str) -> Result<(), Failure> {
    host.write_all(words.as_bytes())
        .map_err(Failure::path("write to", &place()))
}

fn refuse(host: &mut UnixStream, failure: &Failure) {
    let why: String = failure.to_string().chars().take(LINE_LIMIT / 4).collect();
    // Ignored: the machine ends anyway.
    say(host, &format!("{REFUSED} {}\n", why.replace('\n', " "))).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn a_guest_parks_until_its_connection_is_reset_and_keeps_the_token() {
        let (guest, mut host) = UnixStream::pair().unwrap();
        let parked = std::thread::spawn(move || park(guest));
        let mut reader = BufReader::new(host.try_clone().unwrap());
        assert_eq!(line(&mut reader).unwrap(), "park 1");
        say(&mut host, &format!("hold {TOKEN}\n")).unwrap();
        assert_eq!(line(&mut reader).unwrap(), "parked");
        assert!(!parked.is_finished());
        host.shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(parked.join().unwrap().unwrap(), TOKEN);
    }

    #[test]
    fn a_host_that_says_something_else_ends_the_machine() {
        for words in [
            "",
            "hold\n",
            "hold x\n",
            "held 0123456789abcdef\n",
            "hold 0123456789abcdef",
        ] {
            let (guest, mut host) = UnixStream::pair().unwrap();
            say(&mut host, words).unwrap();
            host.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(park(guest).is_err(), "{words:?}");
        }
        let (guest, mut host) = UnixStream::pair().unwrap();
        say(&mut host, &format!("hold {TOKEN}\nbecome\n")).unwrap();
        host.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(
            park(guest).is_err(),
            "nobody becomes anybody before it was frozen"
        );
    }

    fn received(words: &[u8]) -> (tempfile::TempDir, Result<(String, i128), Failure>) {
        let dir = tempfile::tempdir().unwrap();
        let outcome = receive(&mut BufReader::new(words), dir.path());
        (dir, outcome)
    }

    #[test]
    fn the_files_of_an_identity_arrive_whole() {
        let first = format!("become {TOKEN} 1754000000123456789\nfile user 8\ncrabbox\nfile entropy 3\n");
        let bytes = [first.as_bytes(), &[0, b'\n', 0xff], b"end 2\n"].concat();
        let (dir, outcome) = received(&bytes);
        assert_eq!(outcome.unwrap(), (TOKEN.to_owned(), 1_754_000_000_123_456_789));
        assert_eq!(std::fs::read(dir.path().join("user")).unwrap(), b"crabbox\n");
        assert_eq!(
            std::fs::read(dir.path().join("entropy")).unwrap(),
            [0, b'\n', 0xff]
        );
    }

    #[test]
    fn a_broken_identity_is_none() {
        let first = format!("become {TOKEN} 1\n");
        for rest in [
            "",
            "end 1\n",
            "end 0",
            "file user 9\ncrabbox\n",
            "file ../user 1\nx",
            "file network-of-mine 1\nx",
            "file user -1\n",
            "file user 65537\n",
            "file user 1\nxfile user 1\nyend 2\n",
            "hello\n",
        ] {
            let (_dir, outcome) = received(format!("{first}{rest}").as_bytes());
            assert!(outcome.is_err(), "{rest:?}");
        }
        for first in ["become\n", "become x 1\n", "become 0123456789abcdef soon\n"] {
            assert!(
                received(format!("{first}end 0\n").as_bytes()).1.is_err(),
                "{first:?}"
            );
        }
        let many = "file user 0\n".repeat(MOST_FILES + 2);
        assert!(received(format!("{first}{many}").as_bytes()).1.is_err());
    }

    proptest::proptest! {
        #[test]
        fn whatever_a_host_says_never_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            drop(received(&bytes));
        }
    }
}
