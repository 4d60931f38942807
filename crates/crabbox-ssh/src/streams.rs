//! Copies between a session's pipes and their other ends, in threads that can be told to stop.
//!
//! Our real standard streams are never given to the master: it would switch them to non-blocking mode for everybody who
//! shares them. A copy must never outlive its command because somebody on the other side keeps a pipe open.

use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::exec::{Sink, Stdin};

const CHUNK: usize = 64 * 1024;

/// What a wait ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ready {
    /// The first descriptor.
    First,
    /// The second one.
    Second,
    /// Neither, in time.
    Neither,
}

/// Waits until `first` has one of `events` (or an error), or `second` is readable or closed, or until `deadline`.
/// When both are, the second one counts.
pub(crate) fn wait(
    first: BorrowedFd<'_>,
    events: PollFlags,
    second: Option<BorrowedFd<'_>>,
    deadline: Option<Instant>,
) -> io::Result<Ready> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = vec![PollFd::from_borrowed_fd(first, events)];
        fds.extend(second.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        match poll(&mut fds, left.as_ref()) {
            Ok(0) => return Ok(Ready::Neither),
            Ok(_) if fds.get(1).is_some_and(|fd| !fd.revents().is_empty()) => return Ok(Ready::Second),
            Ok(_) => return Ok(Ready::First),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Writes `preamble` and then all of `stdin` to `pipe`, until the end, or a reader that is gone, or `stop` being closed.
///
/// Fails only when `stdin` cannot be read. That the command ends without reading its input is its own affair.
pub(crate) fn feed(
    mut pipe: PipeWriter,
    preamble: &[u8],
    stdin: Stdin<'_>,
    stop: &PipeReader,
) -> io::Result<()> {
    if rustix::io::ioctl_fionbio(&pipe, true).is_err() || !write_whole(&mut pipe, preamble, stop) {
        return Ok(());
    }
    match stdin {
        Stdin::Null => {}
        Stdin::Bytes(bytes) => {
            write_whole(&mut pipe, bytes, stop);
        }
        Stdin::Reader(mut reader) => {
            let mut chunk = vec![0; CHUNK];
            loop {
                match reader.read(&mut chunk) {
                    Ok(0) => break,
                    Ok(count) if write_whole(&mut pipe, &chunk[..count], stop) => {}
                    Ok(_) => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(())
}

/// `false` when nobody reads any more.
fn write_whole(pipe: &mut PipeWriter, mut bytes: &[u8], stop: &PipeReader) -> bool {
    while !bytes.is_empty() {
        match pipe.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !matches!(
                    wait(pipe.as_fd(), PollFlags::OUT, Some(stop.as_fd()), None),
                    Ok(Ready::First)
                ) {
                    return false;
                }
            }
            Err(_) => return false,
        }
    }
    true
}

/// Copies `pipe` to `sink` until the end of the stream or `stop` being closed. Whoever writes into the pipe after that gets
/// a broken pipe, as it would if we were a pipe itself.
pub(crate) fn drain(mut pipe: PipeReader, sink: &mut Sink<'_>, stop: &PipeReader) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    while wait(pipe.as_fd(), PollFlags::IN, Some(stop.as_fd()), None)? == Ready::First {
        let count = match pipe.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        match sink {
            Sink::Discard => {}
            Sink::Fd(fd) => write_fd(*fd, &chunk[..count], stop)?,
            Sink::Writer(writer) => writer.write_all(&chunk[..count]).and_then(|()| writer.flush())?,
        }
    }
    Ok(())
}

/// Writes in pieces that a pipe which is ready takes at once, so that a reader who stands still cannot hold us.
fn write_fd(fd: BorrowedFd<'_>, mut bytes: &[u8], stop: &PipeReader) -> io::Result<()> {
    while !bytes.is_empty() {
        if wait(fd, PollFlags::OUT, Some(stop.as_fd()), None)? != Ready::First {
            return Ok(());
        }
        match rustix::io::write(fd, &bytes[..bytes.len().min(rustix::pipe::PIPE_BUF)]) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
