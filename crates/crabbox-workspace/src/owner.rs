//! Allows one client at a time in a lease's tree: the agent there holds the lock for exactly as long as it
//! runs.
//!
//! Everything in the tree is done over the conversation with that agent. The kernel releases the lock when
//! the agent ends, however it ends, so nothing has to expire or be renewed. If a client ends abruptly, its
//! command is ended too; the next client must never start while that command still runs.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crabbox_agent_protocol::{Reply, Request};
use crabbox_core::fault::{Connectivity, Fault, Kind, causes};
use crabbox_ssh::agent_client::{AgentClient, AgentError};
use crabbox_ssh::exec::ExecError;
use crabbox_ssh::master::ConnectError;
use crabbox_ssh::target::Target;

/// How long to wait for another client, as in the Go program.
pub(crate) const WAIT_LIMIT: Duration = Duration::from_mins(2);
/// How often a wait is reported.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How long releasing the tree may take.
const RELEASE_LIMIT: Duration = Duration::from_secs(10);

/// Why the tree could not be owned.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// Another client owns it.
    #[error("timed out after 2m0s waiting for reusable workspace owner")]
    Timeout,
    /// The lock was refused.
    #[error("cannot lock the workspace in the lease: {said}")]
    Refused {
        /// What the lease said.
        said: String,
    },
    /// Talking to the lease failed.
    #[error("cannot lock the workspace in the lease")]
    Agent(#[source] AgentError),
    /// The connection could not be opened.
    #[error("cannot lock the workspace in the lease")]
    Exec(#[from] ExecError),
    /// This machine could not provide random numbers.
    #[error("cannot create a workspace lock token")]
    Local(#[from] io::Error),
    /// The user interrupted.
    #[error("interrupted while waiting for reusable workspace owner")]
    Interrupted,
}

impl From<AgentError> for OwnerError {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::Cancelled => Self::Interrupted,
            AgentError::Failed { why } => Self::Refused { said: why },
            AgentError::Connection { said } => Self::Refused {
                said: format!("the connection was lost during the wait: {said}"),
            },
            error => Self::Agent(error),
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

    fn connectivity(&self) -> Option<Connectivity> {
        connectivity(self)
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Refused { .. } => vec![
                "the lock of a workspace is in ~/.crabbox/workspace-owners there: the user of the lease needs a home directory with \
                 free space, and must own the files in that directory"
                    .to_owned(),
            ],
            _ => far_hints(self),
        }
    }
}

/// Hints for errors of the agent.
pub(crate) fn far_hints(error: &(dyn std::error::Error + 'static)) -> Vec<String> {
    let mut far = causes(error).filter_map(|cause| cause.downcast_ref::<AgentError>());
    far.find_map(AgentError::hint)
        .map(str::to_owned)
        .into_iter()
        .collect()
}

/// What an error says about the connection, if it is that there is none.
pub(crate) fn connectivity(error: &(dyn std::error::Error + 'static)) -> Option<Connectivity> {
    let mut connect = causes(error).filter_map(|cause| cause.downcast_ref::<ConnectError>());
    connect.find_map(ConnectError::connectivity)
}

/// Ownership of a lease's tree, until released or abandoned.
#[derive(Debug)]
pub struct Owner {
    far: AgentClient,
    /// The directory requested together with the lock, until its reply was read.
    making: Option<String>,
    /// Whether the release was requested.
    is_letting_go: bool,
    /// How long the wait was.
    pub wait: Duration,
    /// Whether the last owner ended without releasing the tree.
    pub recovered: bool,
}

/// Waits for the tree of lease `id`. `waiting` is called every ten seconds with the time so far and the
/// reason: `busy` is another client, `child` a command whose client has gone. `make` is a directory to create
/// for a command, in the same round trip as the lock. `cancel` ends this wait and all later work in the tree
/// when it becomes readable.
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
    let mut far = AgentClient::open_asking(target, &[first], Some(cancel))?;
    let (mut tell, mut state) = (started + TELL_EVERY, None);
    let recovered = loop {
        let now = Instant::now();
        if now >= started + WAIT_LIMIT {
            return Err(OwnerError::Timeout);
        }
        if now >= tell {
            tell += TELL_EVERY;
            // Before the first reply, we wait for the connection.
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
    pub(crate) fn far(&mut self) -> &mut AgentClient {
        &mut self.far
    }

    /// Whether the conversation has broken off, so that nothing more can be asked.
    pub fn is_broken(&self) -> bool {
        self.far.is_broken()
    }

    /// Whether this directory was requested together with the lock, so that its reply comes next.
    pub(crate) fn is_making(&mut self, dir: &str) -> bool {
        self.making.take_if(|making| making == dir).is_some()
    }

    /// Requests the release, so that the reply for [`Self::release`] arrives while other work is done here.
    pub fn let_go(&mut self) {
        if self.is_letting_go || self.far.is_broken() {
            return;
        }
        self.is_letting_go = true;
        self.far.limit(Some(RELEASE_LIMIT));
        // An error shows up in the reply.
        self.far
            .ask(&Request::Release {})
            .and_then(|()| self.far.flush())
            .ok();
    }

    /// Releases the tree; true if the agent has confirmed it.
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

    /// Closes the conversation like a killed client: the agent first stops a command that still runs. True if
    /// the agent has ended.
    pub fn abandon(self) -> bool {
        self.far.close()
    }
}

/// The name of the lock, as in the Go program.
fn key(id: &str) -> String {
    crabbox_host::digest::sha256(format!("crabbox-workspace-owner-v1\0{id}").as_bytes())
}
