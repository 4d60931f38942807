//! Returns freed blocks to the host over vsock, because Firecracker's block device has no discard.
//!
//! ```text
//! crabbox-trim, fstrim --/run/crabbox/trim--> process 1:  freeze, read the bitmaps, name them to the host, wait for its reply, thaw
//!    host:  go <length of the disk>              once connected
//!    guest: <offset> <length> ... end            free parts of the disk in bytes, one a line
//!    host:  done <bytes given back so far>       or `late` (ask again), or `refused <why>`
//! ```
//! A block may be named to the host only while the layer is frozen, and the layer may be thawed only after
//! the host has replied or can no longer act on what was named ([`crate::freeze`]). Neither may depend on
//! what a client does.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use crabbox_guest_protocol::TRIM_PORT;
use crabbox_guest_protocol::trim::{BATCH, DONE, END, GO};

use crate::clock;
use crate::ext4::{Extent, Group, Layout, Refusal};
use crate::failure::Failure;
use crate::freeze::{Freezer, Frozen};
use crate::root::LAYER_DEVICE;
use crate::sys;

/// The socket on which a client asks for a trim; only for root.
pub(crate) const SOCKET: &str = "/run/crabbox/trim";

/// The smallest piece to return, in bytes: smaller ones cost more than they gain.
const LEAST: u64 = 64 * 1024;

/// How long writers wait before they get a turn. It takes effect between two groups of blocks, each of which
/// is quick.
const SLICE: Duration = Duration::from_secs(1);

/// How long to wait for the host's reply.
const REPLY_LIMIT: Duration = Duration::from_secs(30);

/// How often a batch is sent to a host that replies `late`.
const TRIES: usize = 8;

/// The longest reply that is read, in bytes.
const REPLY_BYTES: usize = 256;

/// Why a trim was aborted.
#[derive(Debug)]
enum TrimError {
    /// The host cannot be reached.
    NoHost(io::Error),
    /// The connection to the host broke.
    Host(io::Error),
    /// The host refused.
    Refused(String),
    /// The host's answer is not understood.
    Nonsense(String),
    /// The file system could not be frozen.
    Freeze(io::Error),
    /// The file system cannot be read.
    Layer(Refusal),
    /// The host did not answer.
    Silent,
    /// It took too long.
    Slow,
}

impl std::fmt::Display for TrimError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoHost(error) => write!(out, "the host takes no blocks back: {error}"),
            Self::Host(error) => write!(out, "the host went away: {error}"),
            Self::Refused(why) => write!(out, "the host refuses: {why}"),
            Self::Nonsense(said) => write!(out, "the host said {said:?}"),
            Self::Freeze(error) => write!(out, "cannot hold writes to the private layer: {error}"),
            Self::Layer(refusal) => refusal.fmt(out),
            Self::Silent => write!(out, "the host does not answer; try again later"),
            Self::Slow => write!(out, "the host or the disk is too slow; try again later"),
        }
    }
}

/// The result of a trim.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Done {
    /// Bytes that the host got back.
    bytes: u64,
    /// Groups of blocks that were skipped because their metadata is inconsistent.
    skipped: u64,
}

/// The host, after its `go`.
struct Host {
    stream: UnixStream,
    /// Length of the disk in bytes, as the host knows it.
    length: u64,
}

impl Host {
    fn connect() -> Result<Self, TrimError> {
        // To the kernel all stream sockets read, write and time out alike.
        let stream = UnixStream::from(sys::connect_host(TRIM_PORT).map_err(TrimError::NoHost)?);
        Self::greet(stream)
    }

    fn greet(stream: UnixStream) -> Result<Self, TrimError> {
        stream
            .set_read_timeout(Some(REPLY_LIMIT))
            .and_then(|()| stream.set_write_timeout(Some(REPLY_LIMIT)))
            .map_err(TrimError::NoHost)?;
        let mut host = Self { stream, length: 0 };
        host.length = host.answer(GO)?.ok_or(TrimError::Slow)?;
        Ok(host)
    }

    /// Returns `parts` to the host. Returns the total bytes that the host has taken back.
    fn give(&mut self, parts: &[Extent], frozen: &Frozen<'_>) -> Result<u64, TrimError> {
        let mut text = String::new();
        for Extent { offset, length } in parts {
            // Writing to a String cannot fail.
            writeln!(text, "{offset} {length}").ok();
        }
        text += END;
        for _ in 0..TRIES {
            if !frozen.may_ask() {
                break;
            }
            self.stream.write_all(text.as_bytes()).map_err(TrimError::Host)?;
            if let Some(bytes) = self.answer(DONE)? {
                return Ok(bytes);
            }
        }
        Err(TrimError::Slow)
    }

    /// The number after `word` in the host's next line; `None` if the host is late.
    fn answer(&mut self, word: &str) -> Result<Option<u64>, TrimError> {
        let line = read_line(&mut self.stream, REPLY_BYTES).map_err(|error| match error.kind() {
            // How a socket's timeout appears.
            io::ErrorKind::WouldBlock => TrimError::Silent,
            _ => TrimError::Host(error),
        })?;
        match line.split_once(' ') {
            None if line == "late" => Ok(None),
            Some(("refused", why)) => Err(TrimError::Refused(why.to_owned())),
            Some((first, number)) if first == word => {
                number.parse().map(Some).map_err(|_| TrimError::Nonsense(line))
            }
            _ => Err(TrimError::Nonsense(line)),
        }
    }
}

/// Reads a line of at most `limit` bytes, without its end. The other side waits for a reply after each line,
/// so nothing follows it.
fn read_line(stream: &mut UnixStream, limit: usize) -> io::Result<String> {
    let mut text = Vec::new();
    while text.last() != Some(&b'\n') {
        let mut chunk = [0; 64];
        let count = stream.read(&mut chunk)?;
        text.extend_from_slice(chunk.get(..count).unwrap_or_default());
        if count == 0 || text.len() > limit {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(String::from_utf8_lossy(&text).trim_end().to_owned())
}

/// Returns everything that is free. Writers wait for about [`SLICE`], then get as much time, and so on.
fn trim(freezer: &Freezer, disk: &File, mut host: Host) -> Result<Done, TrimError> {
    let (mut done, mut group) = (Done::default(), 0);
    loop {
        let frozen = freezer.freeze().map_err(TrimError::Freeze)?;
        let more = slice(disk, &mut host, &frozen, &mut group, &mut done);
        let held = frozen.age().unwrap_or(SLICE);
        drop(frozen);
        if !more? {
            return Ok(done);
        }
        clock::poll_until(held.min(SLICE), Duration::from_millis(50), || None::<()>);
    }
}

/// Continues from `group`; returns whether there is more to do.
fn slice(
    disk: &File,
    host: &mut Host,
    frozen: &Frozen<'_>,
    group: &mut u64,
    done: &mut Done,
) -> Result<bool, TrimError> {
    let layout = Layout::read(disk).map_err(TrimError::Layer)?;
    if layout.bytes() > host.length {
        return Err(TrimError::Layer(Refusal::Format("is longer than its disk")));
    }
    let mut free = Vec::new();
    while *group < layout.groups() {
        free.clear();
        let found = layout.free(disk, *group, LEAST, &mut free);
        match found.map_err(|error| TrimError::Layer(Refusal::Read(error)))? {
            Group::Contradictory => done.skipped += 1,
            Group::Read | Group::Unused => {}
        }
        for parts in free.chunks(BATCH) {
            done.bytes = host.give(parts, frozen)?;
        }
        *group += 1;
        if frozen.age().is_none_or(|age| age >= SLICE) {
            return Ok(*group < layout.groups());
        }
    }
    Ok(false)
}

/// Serves trims of the file system that contains the directory `layer`, one at a time, for the rest of the
/// machine's life.
pub(crate) fn start(layer: OwnedFd) -> Result<(), Failure> {
    let socket = Path::new(SOCKET);
    let listener = UnixListener::bind(socket).map_err(Failure::path("make the socket", socket))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
        .map_err(Failure::path("set the mode of", socket))?;
    let thread = "start a thread for";
    let freezer = Freezer::new(layer).map_err(Failure::path(thread, socket))?;
    std::thread::Builder::new()
        .name("trim".to_owned())
        .spawn(move || serve(&listener, &freezer))
        .map(drop)
        .map_err(Failure::path(thread, socket))
}

fn serve(listener: &UnixListener, freezer: &Freezer) {
    loop {
        let Ok((mut client, _)) = listener.accept() else {
            // Out of descriptors or memory: retry later.
            clock::poll_until(Duration::from_secs(1), Duration::from_millis(50), || None::<()>);
            continue;
        };
        let outcome = File::open(LAYER_DEVICE)
            .map_err(|error| TrimError::Layer(Refusal::Read(error)))
            .and_then(|disk| trim(freezer, &disk, Host::connect()?));
        // Ignored: the client may be gone, and does not matter.
        client.write_all(answer(outcome).as_bytes()).ok();
    }
}

/// The reply to a client.
fn answer(outcome: Result<Done, TrimError>) -> String {
    match outcome {
        Ok(Done { bytes, skipped }) => format!("ok {bytes} {skipped}\n"),
        Err(error) => format!("no {error}\n"),
    }
}

/// Asks as a client: returns the bytes given back and the groups skipped, or why it failed.
pub(crate) fn ask(socket: &Path) -> io::Result<Result<(u64, u64), String>> {
    let mut stream = UnixStream::connect(socket)?;
    let line = read_line(&mut stream, 1024)?;
    let numbers = line
        .strip_prefix("ok ")
        .and_then(|rest| rest.split_once(' '))
        .and_then(|(bytes, skipped)| Some((bytes.parse().ok()?, skipped.parse().ok()?)));
    Ok(numbers.ok_or_else(|| line.strip_prefix("no ").unwrap_or(&line).to_owned()))
}

#[cfg(test)]
mod tests;
