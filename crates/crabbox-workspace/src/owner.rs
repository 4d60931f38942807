//! One client at a time in a lease's tree: a lock in the guest that lives exactly as long as a session of its holder.
//!
//! A session takes the lock, says so, and waits for the end of its input. The kernel gives the lock back when the session
//! ends, however it ends, so that nothing has to expire or be renewed. A client that goes without a word takes its command
//! with it; the next client must never start while that command still runs.

use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crabbox_core::fault::{Fault, Kind};
use crabbox_ssh::exec::{self, Exec, ExecError, RemoteStatus, Sink, Stdin};
use crabbox_ssh::target::Target;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::stream::Words;

mod script;

use script::NO_TOOL;

/// How long to wait for another client, as the Go program has it.
pub(crate) const WAIT_LIMIT: Duration = Duration::from_mins(2);
/// How often waiting is told.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How long after a command was sent it is named for the Go program: by then it may be worth three programs over there. A login that
/// takes longer leaves nothing to be named at first.
const NAME_AFTER: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(10),
];
/// How much of what the session says is kept, in bytes.
const WORDS_LIMIT: u64 = 4000;

/// Why the tree is not ours.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// Somebody else is in it.
    #[error("timed out after 2m0s waiting for reusable workspace owner")]
    Timeout,
    /// The guest has nothing to make a lock with.
    #[error("the lease has neither flock nor mv -T, which keep two runs out of one tree")]
    NoTool,
    /// The lock was not given.
    #[error("cannot own the workspace in the lease: {said}")]
    Refused {
        /// What the lease said.
        said: String,
    },
    /// The lease could not be spoken to.
    #[error("cannot own the workspace in the lease")]
    Exec(#[from] ExecError),
    /// Pipes could not be had from this machine.
    #[error("cannot prepare the session that owns the workspace")]
    Local(#[from] io::Error),
    /// The user interrupted.
    #[error("interrupted while waiting for reusable workspace owner")]
    Interrupted,
}

/// The thread that holds the session: how it ended, and the end of its standard error.
type Session = JoinHandle<(Result<RemoteStatus, ExecError>, Words)>;

impl Fault for OwnerError {
    fn kind(&self) -> Kind {
        match self {
            Self::Interrupted => Kind::Passthrough(130),
            _ => Kind::Remote,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Refused { .. } => vec![
                "the lock of a workspace is in ~/.crabbox/workspace-owners there: the user of the lease needs a home directory with \
                 room, and must own what is in that one"
                    .to_owned(),
            ],
            _ => Vec::new(),
        }
    }
}

/// The way to the session's standard input. Its end is what tells the session that we have gone.
#[derive(Debug, Clone)]
struct Input(Arc<Mutex<Option<PipeWriter>>>);

impl Input {
    /// Whether the word was written.
    fn say(&self, word: &[u8]) -> bool {
        let mut pipe = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pipe.as_mut().is_some_and(|pipe| pipe.write_all(word).is_ok())
    }

    fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// The tree of a lease, ours until this is released or abandoned.
#[derive(Debug)]
pub struct Owner {
    input: Input,
    /// Told when a command begins; its end is that of whoever waits to name the command.
    commands: Sender<()>,
    /// Kept open: its end would stop the session.
    stopping: PipeWriter,
    session: Session,
    key: String,
    /// How long the wait was.
    pub wait: Duration,
    /// Whether the last owner went without a word.
    pub recovered: bool,
}

/// Waits for the tree of lease `id`. `held` is called once, as soon as it is known that somebody else has it; `waiting` is told every
/// ten seconds how long it has been and for what: `busy` is another client, `child` a command whose client has gone.
pub fn own(
    target: &Target,
    id: &str,
    cancel: BorrowedFd<'_>,
    held: &mut dyn FnMut(),
    waiting: &dyn Fn(Duration, &str),
) -> Result<Owner, OwnerError> {
    let key = key(id);
    let (input, words) = io::pipe()?;
    let (mut said, mut output) = io::pipe()?;
    let (stop, mut stopping) = io::pipe()?;
    let token = crabbox_host::digest::hex(&crabbox_host::random::bytes::<32>()?);
    let (target, script) = (target.clone(), script::session(&key, &token));
    let started = Instant::now();
    let session = std::thread::spawn(move || {
        let mut errors = Words::default();
        let exec = Exec {
            script,
            // Nothing is written before the lock is ours: a session that ends earlier must be noticed all the same.
            stdin: Stdin::Pipe(input),
            stdout: Sink::Writer(&mut output),
            stderr: Sink::Writer(&mut errors),
            cancel: Some(stop.as_fd()),
            limit: None,
        };
        let ended = exec::run(&target, exec);
        (ended, errors)
    });
    match wait(&mut said, cancel, started, held, waiting) {
        Ok(recovered) => {
            let input = Input(Arc::new(Mutex::new(Some(words))));
            Ok(Owner {
                commands: namer(input.clone()),
                input,
                stopping,
                session,
                key,
                wait: started.elapsed(),
                recovered,
            })
        }
        Err(error) => {
            // One that still waits over there would get the lock some day.
            stopping.write_all(b"s").ok();
            drop((words, said));
            match (join(session), error) {
                ((Err(cause), _), OwnerError::Refused { .. }) => Err(cause.into()),
                ((Ok(RemoteStatus::Exited(NO_TOOL)), _), OwnerError::Refused { .. }) => {
                    Err(OwnerError::NoTool)
                }
                ((Ok(status), errors), OwnerError::Refused { .. }) => Err(OwnerError::Refused {
                    said: why_ended(status, errors.text()),
                }),
                (_, error) => Err(error),
            }
        }
    }
}

/// Why a session gave no lock. What it said while it waited is no reason, only the last that it had to say.
fn why_ended(status: RemoteStatus, said: String) -> String {
    if !said.is_empty() {
        return said;
    }
    match status {
        RemoteStatus::ConnectionLost => "the connection was lost during the wait".to_owned(),
        RemoteStatus::Killed => "the session that waited was killed there".to_owned(),
        RemoteStatus::Exited(code) => format!("the session that waited ended with exit code {code}"),
        RemoteStatus::Cancelled { .. } | RemoteStatus::TimedOut { .. } => "the session ended".to_owned(),
    }
}

impl Owner {
    /// Shell lines for the front of the script of a command that is about to begin: they note which process it is, for whoever comes next.
    pub fn mark(&self) -> String {
        // Without anybody to hear it, a Go program would keep out of the tree for longer than it has to.
        self.commands.send(()).ok();
        script::mark(&self.key)
    }

    /// The file that [`Self::mark`] writes when the command starts, as a word for a remote shell.
    pub fn marker(&self) -> String {
        format!("\"$HOME/.crabbox/workspace-owners/{}.child\"", self.key)
    }

    /// Gives the tree back; true if the other side has confirmed it.
    pub fn release(self) -> bool {
        self.input.say(b"release\n") && self.end()
    }

    /// Leaves the tree without a word, as a client does that is killed: a command that still runs there is stopped first.
    /// True if the other side has confirmed it.
    pub fn abandon(self) -> bool {
        self.end()
    }

    fn end(self) -> bool {
        self.input.close();
        let ended = join(self.session)
            .0
            .is_ok_and(|status| status == RemoteStatus::Exited(0));
        drop(self.stopping);
        ended
    }
}

/// Has each command named that still runs when the time for it has come. Ends with the sender.
fn namer(input: Input) -> Sender<()> {
    let (commands, begun) = mpsc::channel();
    std::thread::spawn(move || {
        while begun.recv().is_ok() {
            let mut rest = NAME_AFTER.into_iter();
            while let Some(pause) = rest.next() {
                match begun.recv_timeout(pause) {
                    // The next one.
                    Ok(()) => rest = NAME_AFTER.into_iter(),
                    Err(RecvTimeoutError::Timeout) => {
                        input.say(b"name\n");
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        }
    });
    commands
}

fn join(session: Session) -> (Result<RemoteStatus, ExecError>, Words) {
    session
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The name of the lock, as in the Go program.
fn key(id: &str) -> String {
    crabbox_host::digest::sha256(format!("crabbox-workspace-owner-v1\0{id}").as_bytes())
}

/// Reads until the lock is ours; whether it was found lying about.
fn wait(
    said: &mut PipeReader,
    cancel: BorrowedFd<'_>,
    started: Instant,
    held: &mut dyn FnMut(),
    waiting: &dyn Fn(Duration, &str),
) -> Result<bool, OwnerError> {
    let mut text = String::new();
    let mut known = false;
    let mut tell = started + TELL_EVERY;
    loop {
        for line in text.lines() {
            if let Some(recovered) = line.strip_prefix("acquired ") {
                return Ok(recovered == "true");
            }
        }
        let now = Instant::now();
        if now >= started + WAIT_LIMIT {
            return Err(OwnerError::Timeout);
        }
        // Before the first word it is the connection that we wait for.
        if !known && !text.is_empty() {
            known = true;
            held();
        }
        if now >= tell {
            tell += TELL_EVERY;
            if let Some(state) = text.lines().last() {
                waiting(started.elapsed(), state);
            }
        }
        let until = tell.min(started + WAIT_LIMIT).saturating_duration_since(now);
        let limit = Timespec::try_from(until).ok();
        let mut fds = [
            PollFd::new(&*said, PollFlags::IN),
            PollFd::from_borrowed_fd(cancel, PollFlags::IN),
        ];
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(OwnerError::Local(error.into())),
        }
        let [words, cancelled] = fds.map(|fd| !fd.revents().is_empty());
        if cancelled {
            return Err(OwnerError::Interrupted);
        }
        if words {
            let mut chunk = [0; 256];
            let count = said.read(&mut chunk)?;
            if count == 0 || text.len() as u64 > WORDS_LIMIT {
                let said = text.trim().to_owned();
                let said = if said.is_empty() {
                    "the session ended".to_owned()
                } else {
                    said
                };
                return Err(OwnerError::Refused { said });
            }
            text.push_str(&String::from_utf8_lossy(&chunk[..count]));
        }
    }
}
