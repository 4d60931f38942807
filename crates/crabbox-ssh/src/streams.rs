//! Copies between a session's pipes and their other ends, in threads that can be told to stop.
//!
//! Our real standard streams are never given to the master: it would switch them to non-blocking mode for everybody who
//! shares them. A copy must never outlive its command because somebody on the other side keeps a pipe open.

use std::io::{self, PipeReader, PipeWriter, Read, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::exec::{Sink, Stdin};
use crate::remote_line::Start;
use crabbox_host::wait::{Ready, wait};

const CHUNK: usize = 64 * 1024;

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
        Stdin::Reader(mut reader) => while copy_chunk(&mut reader, &mut pipe, stop)? {},
        // Who holds the other end may write only when it hears of the command's end, so the read must not wait for it.
        Stdin::Pipe(mut source) => {
            while wait(source.as_fd(), PollFlags::IN, Some(stop.as_fd()), None)? == Ready::First
                && copy_chunk(&mut source, &mut pipe, stop)?
            {}
        }
    }
    Ok(())
}

/// Copies what one read gives; `false` at the end of `source`, or when nobody reads `pipe` any more.
fn copy_chunk(source: &mut impl Read, pipe: &mut PipeWriter, stop: &PipeReader) -> io::Result<bool> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match source.read(&mut chunk) {
            Ok(0) => return Ok(false),
            Ok(count) => return Ok(write_whole(pipe, &chunk[..count], stop)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
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

/// Copies `first` and then `pipe` to `sink` until the end of the stream or `stop` being closed. Whoever writes into the pipe after
/// that gets a broken pipe, as it would if we were a pipe itself.
pub(crate) fn drain(
    pipe: PipeReader,
    first: &[u8],
    sink: &mut Sink<'_>,
    stop: &PipeReader,
) -> io::Result<()> {
    if !first.is_empty() {
        put(sink, first, stop)?;
    }
    copy(pipe, stop, |chunk| put(sink, chunk, stop))
}

/// The same, for what comes behind the mark of `start`, which is given back with the end of what came before it.
pub(crate) fn drain_behind(
    pipe: PipeReader,
    mut start: Start,
    sink: &mut Sink<'_>,
    stop: &PipeReader,
) -> (Start, io::Result<()>) {
    let copied = copy(pipe, stop, |chunk| match start.take(chunk) {
        [] => Ok(()),
        behind => put(sink, behind, stop),
    });
    (start, copied)
}

fn copy(
    mut pipe: PipeReader,
    stop: &PipeReader,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    while wait(pipe.as_fd(), PollFlags::IN, Some(stop.as_fd()), None)? == Ready::First {
        match pipe.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => take(&chunk[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn put(sink: &mut Sink<'_>, bytes: &[u8], stop: &PipeReader) -> io::Result<()> {
    match sink {
        Sink::Discard => Ok(()),
        Sink::Fd(fd) => write_fd(*fd, bytes, stop),
        Sink::Writer(writer) => writer.write_all(bytes).and_then(|()| writer.flush()),
    }
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
