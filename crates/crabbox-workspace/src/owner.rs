//! One client at a time in a lease's tree: the agent there holds the lock for exactly as long as it runs.
//!
//! Whatever is done in the tree goes over the conversation with that agent. The kernel gives the lock back when it ends, however it ends, so that
//! nothing has to expire or be renewed. A client that goes without a word takes its command with it; the next client must never start while that
//! command still runs.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crabbox_agent_protocol::{Reply, Request};
use crabbox_core::fault::{Fault, Kind, causes};
use crabbox_ssh::exec::ExecError;
use crabbox_ssh::far::{Far, FarError};
use crabbox_ssh::target::Target;

/// How long to wait for another client, as the Go program has it.
pub(crate) const WAIT_LIMIT: Duration = Duration::from_mins(2);
/// How often waiting is told.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How long giving the tree back may take.
const RELEASE_LIMIT: Duration = Duration::from_secs(10);

/// Why the tree is not ours.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// Somebody else is in it.
    #[error("timed out after 2m0s waiting for reusable workspace owner")]
    Timeout,
    /// The lock was not given.
    #[error("cannot own the workspace in the lease: {said}")]
    Refused {
        /// What the lease said.
        said: String,
    },
    /// The lease could not be spoken to.
    #[error("cannot own the workspace in the lease")]
    Far(#[source] FarError),
    /// The connection could not be opened.
    #[error("cannot own the workspace in the lease")]
    Exec(#[from] ExecError),
    /// Random numbers could not be had from this machine.
    #[error("cannot name the owner of a workspace")]
    Local(#[from] io::Error),
    /// The user interrupted.
    #[error("interrupted while waiting for reusable workspace owner")]
    Interrupted,
}

impl From<FarError> for OwnerError {
    fn from(error: FarError) -> Self {
        match error {
            FarError::Cancelled => Self::Interrupted,
            FarError::Failed { why } => Self::Refused { said: why },
            FarError::Connection { said } => Self::Refused {
                said: format!("the connection was lost during the wait: {said}"),
            },
            error => Self::Far(error),
        }
    }
}

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
            _ => far_hints(self),
        }
    }
}

/// What can be done about the agent's part in an error.
pub(crate) fn far_hints(error: &(dyn std::error::Error + 'static)) -> Vec<String> {
    let mut far = causes(error).filter_map(|cause| cause.downcast_ref::<FarError>());
    far.find_map(FarError::hint)
        .map(str::to_owned)
        .into_iter()
        .collect()
}

/// The tree of a lease, ours until this is released or abandoned.
#[derive(Debug)]
pub struct Owner {
    far: Far,
    /// The directory that is made there behind the lock, until it is said what became of it.
    making: Option<String>,
    /// Whether the tree is being given back.
    is_letting_go: bool,
    /// How long the wait was.
    pub wait: Duration,
    /// Whether the last owner went without a word.
    pub recovered: bool,
}

/// Waits for the tree of lease `id`. `waiting` is told every ten seconds how long it has been and for what: `busy` is another client, `child` a
/// command whose client has gone. `make` is a directory that is to be there for a command: made behind the lock, it costs no way of its own.
/// `cancel` ends this wait and all that is done in the tree when it becomes readable.
pub fn own(
    target: &Target,
    id: &str,
    make: Option<&str>,
    cancel: BorrowedFd<'_>,
    waiting: &dyn Fn(Duration, &str),
) -> Result<Owner, OwnerError> {
    let started = Instant::now();
    let token = crabbox_host::digest::hex(&crabbox_host::random::bytes::<32>()?);
    let making = make.map(str::to_owned);
    let first = Request::Own {
        key: key(id),
        token,
        make: making.clone(),
    };
    let mut far = Far::open_asking(target, &[first], Some(cancel))?;
    let (mut tell, mut state) = (started + TELL_EVERY, None);
    let recovered = loop {
        let now = Instant::now();
        if now >= started + WAIT_LIMIT {
            return Err(OwnerError::Timeout);
        }
        if now >= tell {
            tell += TELL_EVERY;
            // Before the first word it is the connection that we wait for.
            if let Some(state) = state {
                waiting(started.elapsed(), state);
            }
        }
        if !far.answers_within(tell.min(started + WAIT_LIMIT).saturating_duration_since(now))? {
            continue;
        }
        match far.reply()? {
            Reply::Busy {} => state = Some("busy"),
            Reply::Child {} => state = Some("child"),
            Reply::Owned { recovered } => break recovered,
            other => return Err(far.out_of_order(&other).into()),
        }
    };
    Ok(Owner {
        far,
        making,
        is_letting_go: false,
        wait: started.elapsed(),
        recovered,
    })
}

impl Owner {
    /// The conversation with the lease.
    pub(crate) fn far(&mut self) -> &mut Far {
        &mut self.far
    }

    /// Whether this directory was asked for with the lock, whose answer is the next one.
    pub(crate) fn is_making(&mut self, dir: &str) -> bool {
        self.making.take_if(|making| making == dir).is_some()
    }

    /// Begins to give the tree back, so that the answer of [`Self::release`] is on its way while other things are done here.
    pub fn let_go(&mut self) {
        if self.is_letting_go || self.far.is_broken() {
            return;
        }
        self.is_letting_go = true;
        self.far.limit(Some(RELEASE_LIMIT));
        // What is wrong with it the answer says.
        self.far
            .ask(&Request::Release {})
            .and_then(|()| self.far.flush())
            .ok();
    }

    /// Gives the tree back; true if the other side has confirmed it.
    pub fn release(mut self) -> bool {
        self.let_go();
        if self.far.is_broken() {
            return self.abandon();
        }
        match self.far.reply() {
            Ok(Reply::Released {}) => {
                self.far.leave();
                true
            }
            _ => self.abandon(),
        }
    }

    /// Leaves the tree without a word, as a client does that is killed: a command that still runs there is stopped first.
    /// True if the other side has confirmed it.
    pub fn abandon(self) -> bool {
        self.far.close()
    }
}

/// The name of the lock, as in the Go program.
fn key(id: &str) -> String {
    crabbox_host::digest::sha256(format!("crabbox-workspace-owner-v1\0{id}").as_bytes())
}
