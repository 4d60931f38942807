//! Runs a command in the lease: its streams, its exit, and the end of everything in its process group.
//!
//! The command has its own process group, which is ended when the client asks for it or has gone. Values of
//! variables must never appear in an argument vector, and a command must never start before the next client
//! that wants the tree can see it.

use std::io::{PipeReader, Read, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, ChildStderr, ChildStdout, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crabbox_agent_protocol::{Command, PIECE, Reply, Request, Stream};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::failure::{At as _, Failure, said};
use crate::owner::Owner;
use crate::process::{Ending, end_group};
use crate::talk::{ClientMessage, Conversation};

/// After this time, a running command is worth an extra `ps` process, whose output identifies it for the Go
/// program beyond doubt.
const NAME_AFTER: Duration = Duration::from_secs(1);
/// How often to check whether a process group has ended.
const LOOK: Duration = Duration::from_millis(20);
/// How long to wait for the last output of a stopped command.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Whether the command has signalled (SIGUSR1) that its shell start-up files were read.
#[derive(Debug)]
pub(crate) struct ProfileSignal(Arc<AtomicBool>);

impl ProfileSignal {
    /// Installs the signal handler.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let past = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::clone(&past))
            .trying("listen to signals")?;
        Ok(Self(past))
    }
}

/// Runs a command until it ends.
pub(crate) fn run(
    talk: &mut Conversation,
    command: &Command,
    owner: Option<&mut Owner>,
    past: &ProfileSignal,
) -> Result<(), Failure> {
    let mut owner = owner.filter(|_| command.noted);
    // Write the note with our own pid first: a command that cannot be noted must not start.
    if let Some(owner) = &mut owner
        && let Err(failure) = owner.note(std::process::id())
    {
        return talk.say(&Reply::Unstarted {
            why: failure.why(),
            absent: false,
        });
    }
    let input = if command.input { Some(talk.list()?) } else { None };
    past.0.store(false, Ordering::SeqCst);
    let running = match Running::start(command, input) {
        Ok(running) => running,
        Err(unstarted) => {
            if let Some(owner) = owner {
                owner.forget();
            }
            return talk.say(&unstarted);
        }
    };
    if let Some(owner) = &mut owner
        && let Err(failure) = owner.note(running.group)
    {
        // A command that has already ended is no longer in `/proc` and needs no note, so only a disk error
        // counts.
        if failure.is_of_the_disk() {
            end_group(running.group);
            owner.forget();
            return talk.say(&Reply::Unstarted {
                why: failure.why(),
                absent: false,
            });
        }
    }
    let group = running.group;
    let ended = running.follow(talk, owner.as_deref());
    if ended.is_err() {
        end_group(group);
    }
    match ended? {
        Ended::Exited(status) => {
            let code = status
                .code()
                .or_else(|| status.signal().map(|signal| 128 + signal));
            talk.say(&Reply::Exited {
                code: code.and_then(|code| u32::try_from(code).ok()).unwrap_or(255),
                told: past.0.load(Ordering::SeqCst),
            })
        }
        Ended::Stopped { gone } => talk.say(&Reply::Stopped { gone }),
    }
}

/// How a command ended.
enum Ended {
    Exited(ExitStatus),
    /// The client stopped it; `gone` says whether its group is known to have ended.
    Stopped {
        gone: bool,
    },
}

/// A running command.
struct Running {
    group: u32,
    out: Option<ChildStdout>,
    err: Option<ChildStderr>,
    end: End,
    began: Instant,
}

impl Running {
    fn start(command: &Command, input: Option<Vec<u8>>) -> Result<Self, Reply> {
        let unstarted = |error: &std::io::Error, what: &str| Reply::Unstarted {
            why: format!("{what}{}", said(error)),
            absent: false,
        };
        let dir = std::path::Path::new(&command.workdir);
        let in_dir = format!("{}: ", dir.display());
        // Checked first, because spawn reports a missing program and a missing directory alike.
        std::fs::read_dir(dir).map_err(|error| unstarted(&error, &in_dir))?;
        let Some((program, args)) = command.words.split_first() else {
            return Err(Reply::Unstarted {
                why: "there is no command to run".to_owned(),
                absent: false,
            });
        };
        // The command's own `PATH` may be that of another machine, which has its shell elsewhere.
        let place = crate::place_of(program);
        let mut child = std::process::Command::new(place.as_deref().unwrap_or(program.as_ref()));
        child
            .arg0(program)
            .args(args)
            .current_dir(dir)
            .envs(command.env.iter().map(|(name, value)| (name, value)));
        if !command.tells.is_empty() {
            child.env(&command.tells, std::process::id().to_string());
        }
        let stdin = if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        };
        child
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let began = Instant::now();
        let mut child = child.spawn().map_err(|error| Reply::Unstarted {
            why: format!("{program}: {}", said(&error)),
            absent: error.kind() == std::io::ErrorKind::NotFound,
        })?;
        if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
            // The command need not read all of its input.
            std::thread::spawn(move || pipe.write_all(&input).ok());
        }
        let (group, out, err) = (child.id(), child.stdout.take(), child.stderr.take());
        let end = End::of(child).map_err(|error| {
            end_group(group);
            unstarted(&error, "")
        })?;
        Ok(Self {
            group,
            out,
            err,
            end,
            began,
        })
    }

    /// Forwards the command's output until it has ended and no process has its streams open any more, or
    /// until the client stops it.
    fn follow(mut self, talk: &mut Conversation, mut owner: Option<&Owner>) -> Result<Ended, Failure> {
        let (mut is_over, mut chunk) = (false, vec![0; PIECE]);
        loop {
            if is_over && self.out.is_none() && self.err.is_none() && !talk.is_waiting() {
                return Ok(Ended::Exited(self.end.status()?));
            }
            let left = owner.map(|_| NAME_AFTER.saturating_sub(self.began.elapsed()));
            let ready = self.wait(talk, is_over, left)?;
            if ready.client {
                match talk.hear_any()? {
                    ClientMessage::Request(Request::Stop {}) => return self.stop(talk, &mut chunk),
                    // Ignore anything else: `Stop` is the only request for a running command.
                    ClientMessage::Request(_) | ClientMessage::Piece => {}
                }
            }
            self.hand_on(talk, &ready, &mut chunk)?;
            if ready.over {
                is_over = true;
            }
            if owner.is_some() && self.began.elapsed() >= NAME_AFTER {
                owner.take().into_iter().for_each(Owner::name);
            }
        }
    }

    fn hand_on(&mut self, talk: &mut Conversation, ready: &Ready, chunk: &mut [u8]) -> Result<(), Failure> {
        if ready.listener {
            talk.push()?;
        }
        if ready.out && !pass(talk, Stream::Out, self.out.as_mut(), chunk)? {
            self.out = None;
        }
        if ready.err && !pass(talk, Stream::Err, self.err.as_mut(), chunk)? {
            self.err = None;
        }
        Ok(())
    }

    /// Ends the command while still forwarding its output, since it may be unable to end while its pipes are
    /// full.
    fn stop(mut self, talk: &mut Conversation, chunk: &mut [u8]) -> Result<Ended, Failure> {
        let mut ending = Ending::begin(self.group);
        let gone = loop {
            if let Some(gone) = ending.gone() {
                break gone;
            }
            let ready = self.wait(talk, true, Some(LOOK))?;
            if ready.client {
                // Read only to notice that the client has gone.
                talk.hear_any()?;
            }
            self.hand_on(talk, &ready, chunk)?;
        };
        let until = Instant::now() + LAST_WORDS;
        while self.out.is_some() || self.err.is_some() || talk.is_waiting() {
            let left = until.saturating_duration_since(Instant::now());
            let ready = self.wait(talk, true, Some(left))?;
            let has_spoken =
                ready.client && !matches!(talk.hear_any()?, ClientMessage::Request(Request::Ping {}));
            if left.is_zero() || has_spoken {
                break;
            }
            self.hand_on(talk, &ready, chunk)?;
        }
        Ok(Ended::Stopped { gone })
    }

    /// Waits for an event, for at most `limit`. While output for the client is pending, no more of the
    /// command's output is read.
    fn wait(
        &self,
        talk: &mut Conversation,
        is_over: bool,
        limit: Option<Duration>,
    ) -> Result<Ready, Failure> {
        if talk.has_ahead() {
            return Ok(Ready {
                client: true,
                ..Ready::default()
            });
        }
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let is_waiting = talk.is_waiting();
        let (out, err) = if is_waiting {
            (None, None)
        } else {
            (self.out.as_ref(), self.err.as_ref())
        };
        let mut fds = vec![PollFd::from_borrowed_fd(talk.input(), PollFlags::IN)];
        if !is_over {
            fds.push(PollFd::from_borrowed_fd(self.end.as_fd(), PollFlags::IN));
        }
        if is_waiting {
            fds.push(PollFd::from_borrowed_fd(talk.output(), PollFlags::OUT));
        }
        fds.extend(out.map(|out| PollFd::from_borrowed_fd(out.as_fd(), PollFlags::IN)));
        fds.extend(err.map(|err| PollFd::from_borrowed_fd(err.as_fd(), PollFlags::IN)));
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(errno) => return Err(errno).trying("wait for the command"),
        }
        let mut happened = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = |asked: bool| asked && happened.next().unwrap_or(false);
        Ok(Ready {
            client: next(true),
            over: next(!is_over),
            listener: next(is_waiting),
            out: next(out.is_some()),
            err: next(err.is_some()),
        })
    }
}

/// The events that a wait returned.
#[derive(Debug, Default)]
struct Ready {
    client: bool,
    over: bool,
    listener: bool,
    out: bool,
    err: bool,
}

/// A descriptor that becomes readable when the child ends, and its exit status.
enum End {
    /// A pidfd (Linux 5.3 and newer, pidfd_open(2)), which saves a thread per command.
    Process(OwnedFd, Child),
    /// A thread that waits for the child and then closes the pipe.
    Thread(PipeReader, Receiver<ExitStatus>),
}

impl End {
    fn of(mut child: Child) -> std::io::Result<Self> {
        if let Ok(fd) = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            return Ok(Self::Process(fd, child));
        }
        let (over, end) = std::io::pipe()?;
        let (tell, status) = channel();
        std::thread::Builder::new().spawn(move || {
            if let Ok(status) = child.wait() {
                // The receiver is dropped when the client has gone.
                tell.send(status).ok();
            }
            drop(end);
        })?;
        Ok(Self::Thread(over, status))
    }

    fn status(&mut self) -> Result<ExitStatus, Failure> {
        match self {
            Self::Process(_, child) => child.wait().trying("wait for the command"),
            // The thread sends the status before it closes the pipe.
            Self::Thread(_, status) => status
                .recv()
                .map_err(|_| Failure::Refused("the command cannot be waited for".to_owned())),
        }
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Process(fd, _) => fd.as_fd(),
            Self::Thread(over, _) => over.as_fd(),
        }
    }
}

/// Forwards what can be read now; false at the end of the stream.
fn pass(
    talk: &mut Conversation,
    stream: Stream,
    from: Option<&mut impl Read>,
    chunk: &mut [u8],
) -> Result<bool, Failure> {
    let Some(from) = from else {
        return Ok(false);
    };
    match from.read(chunk) {
        Ok(0) => Ok(false),
        Ok(count) => {
            talk.queue(stream, &chunk[..count]);
            Ok(true)
        }
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(true),
        Err(error) => Err(error).trying("read what the command prints"),
    }
}
