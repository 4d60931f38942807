//! A remote program that speaks its own protocol over its standard streams.
//!
//! It is one session of the shared connection; the protocol and checking the replies are up to the caller. A
//! wait must never outlast the caller's deadline, and our own standard streams are never handed to the
//! master.

use std::io::{self, PipeReader, PipeWriter, Read, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::exec::ExecError;
use crate::mux::{Session, SessionEvent};
use crate::shared::Shared;
use crate::target::Target;
use crabbox_host::wait::{Ready, wait};

/// How much of its standard error is kept, in bytes.
const WORDS: u64 = 16 * 1024;

/// How long to wait for the end of a session after its output has ended.
const END_LIMIT: Duration = Duration::from_secs(5);

/// A running remote program. Dropping it closes its input, which tells it that the client has gone.
#[derive(Debug)]
pub struct Peer {
    session: Session,
    _shared: Shared,
    input: Option<PipeWriter>,
    output: PipeReader,
    errors: Option<JoinHandle<Vec<u8>>>,
}

impl Peer {
    /// Makes the login shell of `target` run `command`, which must mean the same in every shell. Opens the
    /// connection if it is not open, which ends when `cancel` becomes readable.
    pub fn start(target: &Target, command: &str, cancel: Option<BorrowedFd<'_>>) -> Result<Self, ExecError> {
        let local = |source| ExecError::Local { source };
        let mut shared = Shared::open(target, None, cancel)?;
        let (remote_in, input) = io::pipe().map_err(local)?;
        let (output, remote_out) = io::pipe().map_err(local)?;
        let (our_err, remote_err) = io::pipe().map_err(local)?;
        let fds = [remote_in.as_fd(), remote_out.as_fd(), remote_err.as_fd()];
        let session = shared.session(target, command, fds, None, cancel)?;
        // Non-blocking, so that a write to a full pipe can be given up.
        rustix::io::ioctl_fionbio(&input, true).map_err(|errno| local(errno.into()))?;
        Ok(Self {
            session,
            _shared: shared,
            input: Some(input),
            output,
            errors: Some(std::thread::spawn(move || hear(our_err))),
        })
    }

    /// Writes all of `bytes` by `until`. It is no error if the program does not read any more: its output
    /// says why.
    pub fn write(
        &mut self,
        mut bytes: &[u8],
        cancel: Option<BorrowedFd<'_>>,
        until: Instant,
    ) -> io::Result<()> {
        let Some(input) = &mut self.input else {
            return Ok(());
        };
        while !bytes.is_empty() {
            match input.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match wait(input.as_fd(), PollFlags::OUT, cancel, Some(until))? {
                        Ready::First => {}
                        Ready::Second => return Err(io::ErrorKind::Interrupted.into()),
                        Ready::Neither => return Err(io::ErrorKind::TimedOut.into()),
                    }
                }
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Closes its input.
    pub fn hang_up(&mut self) {
        self.input = None;
    }

    /// Both streams for a caller who copies them itself.
    pub fn streams(&mut self) -> io::Result<(PipeWriter, PipeReader)> {
        let input = self.input.take().ok_or(io::ErrorKind::BrokenPipe)?;
        rustix::io::ioctl_fionbio(&input, false)?;
        Ok((input, self.output.try_clone()?))
    }

    /// Its exit code, if one arrives, and what it wrote to standard error. To be called when its output has
    /// ended.
    pub fn end(&mut self) -> (Option<u8>, String) {
        self.hang_up();
        let until = Some(Instant::now() + END_LIMIT);
        let (mut code, mut is_closed) = (None, false);
        while let Ok(Ready::First) = wait(self.session.as_fd(), PollFlags::IN, None, until) {
            match self.session.next_event() {
                SessionEvent::Exited(arrived) => code = Some(arrived),
                SessionEvent::Other => {}
                SessionEvent::Closed => {
                    is_closed = true;
                    break;
                }
            }
        }
        // Standard error ends with the session; do not wait for it if the session stays open.
        let said = self
            .errors
            .take_if(|_| is_closed)
            .and_then(|thread| thread.join().ok());
        let said = String::from_utf8_lossy(&said.unwrap_or_default())
            .trim()
            .to_owned();
        (code, said)
    }
}

impl Read for Peer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.output.read(buffer)
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }
}

/// Reads standard error to its end, and keeps the beginning.
fn hear(stream: PipeReader) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut stream = stream.take(WORDS);
    // A read error just ends the text.
    stream.read_to_end(&mut kept).ok();
    io::copy(&mut stream.into_inner(), &mut io::sink()).ok();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crabbox_testkit::sshd::Sshd;

    fn target(sshd: &Sshd) -> Target {
        let mut target = Target::new(sshd.user(), "127.0.0.1", sshd.port(), &sshd.known_hosts()).unwrap();
        target.key = Some(sshd.client_key());
        target.host_key_pinned = true;
        target
    }

    #[test]
    fn what_is_written_arrives_and_the_end_has_a_code_and_words() {
        let sshd = Sshd::start();
        let script = "sh -c 'read a; echo got $a; echo why >&2; exit 3'";
        let mut peer = Peer::start(&target(&sshd), script, None).unwrap();
        let until = Instant::now() + Duration::from_secs(30);
        peer.write(b"hello\n", None, until).unwrap();
        let mut text = String::new();
        peer.read_to_string(&mut text).unwrap();
        assert_eq!(text, "got hello\n");
        assert_eq!(peer.end(), (Some(3), "why".to_owned()));
    }

    #[test]
    fn one_that_does_not_read_is_given_up_at_the_deadline() {
        let sshd = Sshd::start();
        let mut peer = Peer::start(&target(&sshd), "sleep 60", None).unwrap();
        let until = Instant::now() + Duration::from_millis(300);
        // More than the pipe, the channel window and sshd hold together.
        let error = peer.write(&vec![0; 16 << 20], None, until).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
