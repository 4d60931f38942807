//! The command line's side of an acquisition: starts the supervisor, or takes a pool member from its
//! supervisor, follows the events, and claims the lease or gives it up.
//!
//! Dropping an unclaimed [`Acquisition`] closes the supervisor's input, and the supervisor then rolls back.
//! If the supervisor itself dies, this side must do the rollback.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::id::LeaseId;
use crabbox_host::clock;
use crabbox_host::command::{Cmd, CommandError};
use crabbox_host::environment::Environment;
use crabbox_host::lock::LockError;
use crabbox_host::process;
use crabbox_host::signals::Interrupts;
use crabbox_store::places::LeaseDir;
use crabbox_store::{journal, locks};
use rustix::event::{PollFd, PollFlags, poll};

use crate::context::Engine;
use crate::control::client::{self, ReplyError};
use crate::failpoint::Who;
use crate::lease::ownership::{OwnedLease, OwnershipError};
use crate::lifecycle::hold::{self, JobCredentials};
use crate::lifecycle::teardown::{self, Actor, Extent};
use crate::protocol::{self, Event, Failure, Message, Ready, SUPERVISE};
use crate::request::AcquireRequest;

/// How long to wait for a rollback.
const ROLLBACK_LIMIT: Duration = Duration::from_mins(1);

/// How long a killed supervisor may take to disappear after its connections have closed.
const DYING_LIMIT: Duration = Duration::from_secs(2);

/// Why a lease could not be acquired, as seen by the command line.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The supervisor could not be started.
    #[error("cannot start the lease's supervisor")]
    Start(#[source] CommandError),
    /// Communication with the supervisor failed.
    #[error("cannot communicate with the lease's supervisor")]
    Speak(#[source] std::io::Error),
    /// The supervisor of a pool member refused to give it away.
    #[error("cannot take lease {id} from its pool")]
    Taken {
        /// The lease.
        id: String,
        /// Why.
        #[source]
        source: ReplyError,
    },
    /// The supervisor of a pool member closed the connection but keeps running.
    #[error("the supervisor of lease {id} closed the connection and keeps the lease")]
    Kept {
        /// The lease.
        id: String,
    },
    /// No job waits for this request.
    #[error("job {job} does not accept a lease request")]
    Job {
        /// The job.
        job: u32,
        /// Why.
        #[source]
        source: ReplyError,
    },
    /// The lease was not made.
    #[error("{}", .0.message)]
    Failed(Failure, #[source] Option<Cause>),
    /// The supervisor died; its effects were rolled back.
    #[error("the supervisor of lease {id} died while it made the lease{}", left_over(.leftovers))]
    Died {
        /// The lease.
        id: String,
        /// What could not be removed.
        leftovers: Vec<String>,
    },
    /// The lease's lock cannot be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The lease directory is not ours.
    #[error(transparent)]
    Ownership(#[from] OwnershipError),
    /// The user interrupted.
    #[error("interrupted while lease {id} was being made; it was removed")]
    Interrupted {
        /// The lease.
        id: String,
    },
}

/// A cause that was sent over the pipe as text.
#[derive(Debug)]
pub struct Cause {
    message: String,
    source: Option<Box<Cause>>,
}

impl Cause {
    /// The first of `causes`, outermost first, with the others as its sources.
    pub fn chain(causes: &[String]) -> Option<Self> {
        let (first, rest) = causes.split_first()?;
        Some(Self {
            message: first.clone(),
            source: Self::chain(rest).map(Box::new),
        })
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|cause| cause as _)
    }
}

fn left_over(leftovers: &[String]) -> String {
    if leftovers.is_empty() {
        String::new()
    } else {
        format!("; left over: {}", leftovers.join("; "))
    }
}

impl Fault for ClientError {
    fn kind(&self) -> Kind {
        match self {
            Self::Failed(failure, _) => failure.kind,
            Self::Died { .. }
            | Self::Interrupted { .. }
            | Self::Speak(_)
            | Self::Taken { .. }
            | Self::Job { .. }
            | Self::Kept { .. } => Kind::Unavailable,
            Self::Start(_) | Self::Lock(_) | Self::Ownership(_) => Kind::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Failed(failure, _) => {
                let mut hints = failure.hints.clone();
                if !failure.leftovers.is_empty() {
                    hints.push(format!(
                        "some of it was not removed ({}); `crabbox cleanup --provider firecracker` tries again",
                        failure.leftovers.join("; ")
                    ));
                }
                hints
            }
            Self::Died { leftovers, .. } if !leftovers.is_empty() => {
                vec!["`crabbox cleanup --provider firecracker` tries again".to_owned()]
            }
            _ => Vec::new(),
        }
    }
}

/// A lease being made by a supervisor.
#[derive(Debug)]
pub struct Acquisition<'e> {
    engine: &'e Engine,
    id: LeaseId,
    /// The supervisor, if it is our child process.
    child: Option<Child>,
    input: Option<File>,
    output: BufReader<File>,
}

impl<'e> Acquisition<'e> {
    /// The acquisition of `request` over `stream`, whose supervisor is not our child process.
    fn asked_for(
        engine: &'e Engine,
        id: LeaseId,
        stream: UnixStream,
        request: &AcquireRequest,
    ) -> Result<Self, ClientError> {
        let output = stream.try_clone().map_err(ClientError::Speak)?;
        let mut input = File::from(OwnedFd::from(stream));
        let line = protocol::opening(request).map_err(|error| ClientError::Speak(error.into()))?;
        input.write_all(&line).map_err(ClientError::Speak)?;
        Ok(Self {
            engine,
            id,
            child: None,
            input: Some(input),
            output: BufReader::new(File::from(OwnedFd::from(output))),
        })
    }
}

/// Takes the member of the pool of `request` under its id. Its machine stays as it was made; everything else
/// is set as in `request`.
pub fn take<'e>(
    engine: &'e Engine,
    request: &AcquireRequest,
    pool: &str,
) -> Result<Acquisition<'e>, ClientError> {
    let id = parse(&request.lease_id)?;
    let dir = LeaseDir::at(engine.places.lease(&id));
    let stream = client::claim(&dir, pool).map_err(|source| ClientError::Taken {
        id: id.to_string(),
        source,
    })?;
    tracing::debug!(lease = %id, "taken from its pool");
    Acquisition::asked_for(engine, id, stream, request)
}

fn parse(id: &str) -> Result<LeaseId, ClientError> {
    LeaseId::parse(id)
        .map_err(|error| ClientError::Speak(std::io::Error::new(std::io::ErrorKind::InvalidInput, error)))
}

/// Asks the process of a scheduler's job to make the lease of `request` and become its supervisor. Waits for
/// that process until `until`.
pub fn knock<'e>(
    engine: &'e Engine,
    request: &AcquireRequest,
    credentials: &JobCredentials,
    until: Instant,
    interrupts: &Interrupts,
) -> Result<Acquisition<'e>, ClientError> {
    let id = parse(&request.lease_id)?;
    let stream = hold::knock(&engine.places, credentials, until, interrupts).map_err(|source| {
        match (&source, interrupts.caught()) {
            (ReplyError::NoJob(_), Some(_)) => ClientError::Interrupted { id: id.to_string() },
            _ => ClientError::Job {
                job: credentials.job,
                source,
            },
        }
    })?;
    tracing::debug!(lease = %id, job = credentials.job, "the job makes the lease");
    Acquisition::asked_for(engine, id, stream, request)
}

/// Whether the supervisor of the lease in `dir` is alive and not about to disappear: a dying process closes
/// its sockets first.
fn lives_on(dir: &LeaseDir) -> bool {
    let Ok(Some(journal)) = journal::read(&dir.journal()) else {
        return false;
    };
    let supervisor = journal.process("supervisor");
    supervisor.is_some_and(|supervisor| {
        clock::poll_until(DYING_LIMIT, || (!process::is_alive(supervisor)).then_some(())).is_none()
    })
}

/// Starts the supervisor with its request.
pub fn start<'e>(engine: &'e Engine, request: &AcquireRequest) -> Result<Acquisition<'e>, ClientError> {
    let id = parse(&request.lease_id)?;
    let cmd = Cmd::new(&engine.exe)
        .arg(SUPERVISE)
        .environment(Environment::Own)
        .cwd("/");
    let mut command = cmd.to_std();
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = cmd
        .spawn(process::new_session(&mut command))
        .map_err(ClientError::Start)?;
    tracing::debug!(lease = %id, pid = child.id(), "a supervisor makes the lease");
    let (mut input, output) = match (child.stdin.take(), child.stdout.take()) {
        (Some(input), Some(output)) => (
            File::from(OwnedFd::from(input)),
            BufReader::new(File::from(OwnedFd::from(output))),
        ),
        _ => return Err(ClientError::Speak(std::io::ErrorKind::BrokenPipe.into())),
    };
    let line = protocol::opening(request).map_err(|error| ClientError::Speak(error.into()))?;
    input.write_all(&line).map_err(ClientError::Speak)?;
    Ok(Acquisition {
        engine,
        id,
        child: Some(child),
        input: Some(input),
        output,
    })
}

impl Acquisition<'_> {
    /// Follows the events until the guest is ready. An interrupt gives the lease up and waits for its
    /// rollback.
    pub fn wait_ready(
        &mut self,
        interrupts: Option<&Interrupts>,
        on_event: &mut dyn FnMut(&Event),
    ) -> Result<Ready, ClientError> {
        loop {
            match self.next(interrupts)? {
                Some(Event::Ready(ready)) => return Ok(ready),
                Some(Event::Failed(failure)) => {
                    self.finish();
                    let cause = Cause::chain(&failure.causes);
                    return Err(ClientError::Failed(failure, cause));
                }
                Some(event) => {
                    if let Event::Stage(stage) = &event {
                        tracing::debug!(name = stage.name, micros = stage.micros, whose = ?stage.whose, "stage");
                    }
                    on_event(&event);
                }
                None => return Err(self.take_back()),
            }
        }
    }

    /// Follows the events until the template's parts exist and its machine has been torn down; returns what
    /// could not be removed.
    pub fn wait_frozen(
        mut self,
        interrupts: &Interrupts,
        on_event: &mut dyn FnMut(&Event),
    ) -> Result<Vec<String>, ClientError> {
        loop {
            match self.next(Some(interrupts))? {
                Some(Event::Frozen { leftovers }) => {
                    self.finish();
                    return Ok(leftovers);
                }
                Some(Event::Failed(failure)) => {
                    self.finish();
                    let cause = Cause::chain(&failure.causes);
                    return Err(ClientError::Failed(failure, cause));
                }
                Some(event) => on_event(&event),
                None => return Err(self.take_back()),
            }
        }
    }

    /// Follows the events until the lease is in its pool.
    pub fn wait_pooled(
        mut self,
        interrupts: &Interrupts,
        on_event: &mut dyn FnMut(&Event),
    ) -> Result<(), ClientError> {
        loop {
            match self.next(Some(interrupts))? {
                Some(Event::Pooled) => return Ok(()),
                Some(Event::Failed(failure)) => {
                    self.finish();
                    let cause = Cause::chain(&failure.causes);
                    return Err(ClientError::Failed(failure, cause));
                }
                Some(event) => on_event(&event),
                None => return Err(self.take_back()),
            }
        }
    }

    /// Tells the supervisor that the lease has been entered and claimed, and waits until it watches the
    /// lease.
    pub fn claim(mut self) -> Result<(), ClientError> {
        if let Some(input) = &mut self.input {
            let line = protocol::line(&Message::Claimed).map_err(|error| ClientError::Speak(error.into()))?;
            input.write_all(&line).map_err(ClientError::Speak)?;
        }
        loop {
            match self.next(None)? {
                Some(Event::Watching) => return Ok(()),
                Some(Event::Failed(failure)) => {
                    let cause = Cause::chain(&failure.causes);
                    return Err(ClientError::Failed(failure, cause));
                }
                Some(_) => {}
                None => return Err(self.take_back()),
            }
        }
    }

    /// Gives the lease up and waits for the rollback; returns the supervisor's last event.
    pub fn abandon(mut self) -> Option<Failure> {
        self.hang_up();
        let mut last = None;
        while let Ok(Some(event)) = self.next(None) {
            if let Event::Failed(failure) = event {
                last = Some(failure);
            }
        }
        self.finish();
        last
    }

    /// The next event; `None` when the supervisor has ended.
    fn next(&mut self, interrupts: Option<&Interrupts>) -> Result<Option<Event>, ClientError> {
        if let Some(interrupts) = interrupts
            && self.output.buffer().is_empty()
        {
            let mut fds = [
                PollFd::new(self.output.get_ref(), PollFlags::IN),
                PollFd::new(interrupts, PollFlags::IN),
            ];
            // Ignore an interrupted poll: the flag below decides.
            poll(&mut fds, None).ok();
            if interrupts.caught().is_some() {
                return Err(self.interrupted());
            }
        }
        let mut line = String::new();
        if self.output.read_line(&mut line).map_err(ClientError::Speak)? == 0 {
            return Ok(None);
        }
        serde_json::from_str(&line)
            .map(Some)
            .map_err(|error| ClientError::Speak(error.into()))
    }

    fn interrupted(&mut self) -> ClientError {
        self.hang_up();
        while let Ok(Some(_)) = self.next(None) {}
        self.finish();
        ClientError::Interrupted {
            id: self.id.to_string(),
        }
    }

    /// Does the work of a supervisor that died.
    fn take_back(&mut self) -> ClientError {
        tracing::warn!(lease = %self.id, "the supervisor died; removing what it made");
        if let Some(child) = &mut self.child {
            child.kill().ok();
        }
        self.finish();
        let places = &self.engine.places;
        let died = |leftovers| ClientError::Died {
            id: self.id.to_string(),
            leftovers,
        };
        let guard = match locks::lease(places, self.id.as_str(), ROLLBACK_LIMIT) {
            Ok(guard) => guard,
            Err(error) => return error.into(),
        };
        match OwnedLease::prove(places, &self.id, guard) {
            // If the lease came from a pool or a job, its supervisor is not our child, and why it closed the
            // connection is unknown. While it lives, leave the lease to it.
            Ok(lease) if self.child.is_none() && lives_on(lease.dir()) => {
                lease.release();
                ClientError::Kept {
                    id: self.id.to_string(),
                }
            }
            Ok(lease) => {
                let actor = Actor {
                    who: Who::Cli,
                    failpoint: &self.engine.failpoint,
                };
                died(teardown::teardown(places, lease, Extent::Everything, actor).leftovers())
            }
            Err(error) => error.into(),
        }
    }

    /// Reaps the supervisor if it ends now; it may also continue without us.
    fn finish(&mut self) {
        self.hang_up();
        if let Some(child) = &mut self.child {
            clock::poll_until(ROLLBACK_LIMIT, || child.try_wait().ok().flatten());
        }
    }

    /// Closes the supervisor's input; its output can still be read.
    fn hang_up(&mut self) {
        if let Some(input) = self.input.take()
            && self.child.is_none()
        {
            // Closing a pipe signals its end to the reader; a socket must be shut down, because our reading
            // half stays open.
            rustix::net::shutdown(&input, rustix::net::Shutdown::Write).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use crabbox_core::journal::{Entry, Step, VERSION};
    use crabbox_core::process::ProcessId;
    use crabbox_host::{files, unix};
    use crabbox_store::journal::JournalFile;
    use crabbox_store::places::Places;

    use super::*;

    /// Writes the journal of a lease whose supervisor is this process.
    fn write_journal(dir: &LeaseDir, id: &LeaseId, supervisor: ProcessId) {
        files::create_private_dir(dir.path()).unwrap();
        let open = Entry::Open {
            version: VERSION,
            lease: id.to_string(),
            at: 1,
            uid: None,
            subnet: None,
            memory_mib: None,
        };
        let mut journal = JournalFile::create(&dir.journal(), &open).unwrap();
        let pending = journal.begin(Step::Supervisor {}).unwrap();
        journal.done(pending, Some(supervisor)).unwrap();
    }

    #[test]
    fn a_taken_lease_that_falls_silent_is_taken_back_only_if_its_supervisor_is_dead() {
        let own = process::identify(std::process::id()).unwrap().unwrap();
        let dead = ProcessId {
            boot_id: "another boot".to_owned(),
            ..own.clone()
        };
        for (supervisor, lives) in [(own, true), (dead, false)] {
            let home = tempfile::tempdir().unwrap();
            let places = Places::below(home.path());
            let request = crate::protocol::tests::request();
            let id = LeaseId::parse(&request.lease_id).unwrap();
            let dir = LeaseDir::at(places.lease(&id));
            write_journal(&dir, &id, supervisor);
            let listener = unix::bind(&dir.supervisor_socket()).unwrap();
            let silent = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut heard = BufReader::new(stream.try_clone().unwrap());
                heard.read_line(&mut String::new()).unwrap();
                stream
                    .write_all(b"{\"version\":1,\"reply\":\"yours\"}\n")
                    .unwrap();
                // Read the whole request before hanging up.
                heard.read_line(&mut String::new()).unwrap();
            });
            let engine = Engine {
                places,
                exe: "/bin/false".into(),
                path: std::ffi::OsString::new(),
                runtime: None,
                failpoint: String::new(),
            };
            let mut taken = take(&engine, &request, "pool").unwrap();
            silent.join().unwrap();
            let error = taken.wait_ready(None, &mut |_| ()).unwrap_err();
            assert_eq!(matches!(error, ClientError::Kept { .. }), lives, "{error:?}");
            assert_eq!(dir.path().exists(), lives);
        }
    }
}
