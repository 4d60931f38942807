//! Copies between a session's pipes and their local ends, in threads that can be stopped.
//!
//! Our real standard streams are never given to the master: it would switch them to non-blocking mode for
//! every process that shares them. A copy must never outlive its command because a remote process keeps a
//! pipe open.

use std::io::{self, PipeReader, PipeWriter, Read, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::exec::{Sink, Stdin};
use crate::remote_line::Start;
use crabbox_host::wait::{Ready, wait};

const CHUNK: usize = 64 * 1024;

/// Stops the copying threads, and tracks their progress.
#[derive(Debug)]
pub(crate) struct Flow {
    /// Closed when nothing more is wanted.
    pub(crate) stop: PipeReader,
    /// How many chunks were read.
    read: AtomicUsize,
    /// How many of them have been written.
    handed: AtomicUsize,
}

impl Flow {
    pub(crate) fn until(stop: PipeReader) -> Self {
        Self {
            stop,
            read: AtomicUsize::new(0),
            handed: AtomicUsize::new(0),
        }
    }

    /// How many chunks were read, if all of them have been written.
    pub(crate) fn at_rest(&self) -> Option<usize> {
        let handed = self.handed.load(Ordering::SeqCst);
        (self.read.load(Ordering::SeqCst) == handed).then_some(handed)
    }
}

/// Writes `preamble` and then all of `stdin` to `pipe`, until the end, until the reader is gone, or until
/// `stop` is closed.
///
/// Fails only if `stdin` cannot be read. It is no error if the command ends without reading its input.
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
        // The writer of this pipe may not write before it learns of the command's end, so the read must not
        // block on it.
        Stdin::Pipe(mut source) => {
            while wait(source.as_fd(), PollFlags::IN, Some(stop.as_fd()), None)? == Ready::First
                && copy_chunk(&mut source, &mut pipe, stop)?
            {}
        }
    }
    Ok(())
}

/// Copies the result of one read; `false` at the end of `source`, or if `pipe` has no reader any more.
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

/// Writes all bytes; `false` if the pipe has no reader any more or `stop` is closed.
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

/// Copies `first` and then `pipe` to `sink` until the end of the stream or until `stop` is closed. A process
/// that writes to the pipe after that gets a broken pipe, as if `sink` were the pipe.
pub(crate) fn drain(pipe: PipeReader, first: &[u8], sink: &mut Sink<'_>, flow: &Flow) -> io::Result<()> {
    if !first.is_empty() {
        put(sink, first, &flow.stop)?;
    }
    copy(pipe, flow, |chunk| put(sink, chunk, &flow.stop))
}

/// The same for the output after the mark of `start`, which is returned with the end of the output before it.
/// `mark` gets one byte when it comes.
pub(crate) fn drain_behind(
    pipe: PipeReader,
    mut start: Start,
    mark: PipeWriter,
    sink: &mut Sink<'_>,
    flow: &Flow,
) -> (Start, io::Result<()>) {
    let mut mark = Some(mark);
    let copied = copy(pipe, flow, |chunk| {
        let behind = start.take(chunk);
        if start.has_begun()
            && let Some(mut mark) = mark.take()
        {
            // Nobody may want to know any more.
            mark.write_all(&[0]).ok();
        }
        if behind.is_empty() {
            return Ok(());
        }
        put(sink, behind, &flow.stop)
    });
    (start, copied)
}

fn copy(mut pipe: PipeReader, flow: &Flow, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    while wait(pipe.as_fd(), PollFlags::IN, Some(flow.stop.as_fd()), None)? == Ready::First {
        match pipe.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => {
                flow.read.fetch_add(1, Ordering::SeqCst);
                let taken = take(&chunk[..count]);
                flow.handed.fetch_add(1, Ordering::SeqCst);
                taken?;
            }
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

/// Writes in chunks of at most `PIPE_BUF` bytes, which a ready pipe takes without blocking, so that a stalled
/// reader cannot block us.
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
