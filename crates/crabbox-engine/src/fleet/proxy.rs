//! An SSH client's way to a guest on a KVM host: our standard streams become those of the guest's SSH server.
//!
//! It runs below the `ssh` of one lease's connection. It refreshes the lease while that connection has users,
//! because only this side knows whether a silent command is running over it. An idle connection refreshes
//! nothing.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crabbox_core::fault::{Fault, Kind};
use crabbox_host::sockets;
use crabbox_machine::context::Engine;
use crabbox_ssh::control::ControlError;

use super::address::{Access, KvmHost};
use super::client::{ANSWER_LIMIT, Conversation, FleetError};
use super::wire::{FleetRequest, Reply};

/// The minimum interval between refreshes of a lease whose connection is in use.
const REFRESH: Duration = Duration::from_mins(1);

/// Why the guest cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The KVM host did not connect us.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// The sockets have no place.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Our own standard streams cannot be used.
    #[error("cannot use the standard streams")]
    Streams(#[source] io::Error),
}

impl Fault for ProxyError {
    fn kind(&self) -> Kind {
        match self {
            Self::Fleet(error) => error.kind(),
            Self::Control(_) | Self::Streams(_) => Kind::Unavailable,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Fleet(error) => error.hints(),
            Self::Control(error) => error.hints(),
            Self::Streams(_) => Vec::new(),
        }
    }
}

/// What a proxy leads to.
#[derive(Debug)]
pub struct Proxy {
    /// The KVM host.
    pub host: KvmHost,
    /// The key for it.
    pub access: Access,
    /// The lease there.
    pub lease: String,
}

/// Copies in both directions until either side ends. `control` returns the socket of the lease's own shared
/// connection.
pub fn run(
    engine: &Engine,
    proxy: &Proxy,
    control: &dyn Fn(&super::wire::FarLease) -> Option<PathBuf>,
) -> Result<(), ProxyError> {
    let dir = engine.control_dir()?;
    let ask = FleetRequest::Connect {
        lease: proxy.lease.clone(),
    };
    let mut talk = Conversation::open(&proxy.host, &proxy.access, &dir, ask.heed())?;
    talk.say(&ask)?;
    let until = Instant::now() + ANSWER_LIMIT;
    let Reply::Lease(lease) = talk.hear(until)? else {
        return Err(talk.nonsense().into());
    };
    let Reply::Done = talk.hear(until)? else {
        return Err(talk.nonsense().into());
    };
    let (behind, mut to_guest, mut from_guest) = talk.into_streams()?;
    let ours = |fd: io::Result<std::os::fd::OwnedFd>| fd.map(File::from).map_err(ProxyError::Streams);
    let mut input = ours(io::stdin().as_fd().try_clone_to_owned())?;
    let mut output = ours(io::stdout().as_fd().try_clone_to_owned())?;
    output.write_all(&behind).map_err(ProxyError::Streams)?;
    std::thread::spawn(move || {
        // `to_guest` is dropped at the end, which tells the guest.
        io::copy(&mut input, &mut to_guest).ok();
    });
    let idle = u64::try_from(crabbox_core::labels::idle_seconds(&lease.labels)).unwrap_or(0);
    let pause = REFRESH.min(Duration::from_secs((idle / 4).max(1)));
    let (over, ended) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        if let Some(control) = control(&lease) {
            scope.spawn(move || {
                while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                    let in_use = sockets::unix_use(&control).is_ok_and(|shared| shared.connected > 0);
                    if in_use {
                        // A failed refresh can be repeated next time; until then the lease merely looks older
                        // than it is.
                        refresh(engine, proxy).ok();
                    }
                }
            });
        }
        // Ignore how it ended: the SSH client on our other side sees the end of the stream and reports it.
        io::copy(&mut from_guest, &mut output).ok();
        drop(over);
    });
    Ok(())
}

fn refresh(engine: &Engine, proxy: &Proxy) -> Result<(), ProxyError> {
    let ask = FleetRequest::Touch {
        lease: proxy.lease.clone(),
        state: None,
        idle_seconds: None,
    };
    let dir = engine.control_dir()?;
    let mut talk = Conversation::open(&proxy.host, &proxy.access, &dir, ask.heed())?;
    talk.ask(&ask, |reply| matches!(reply, Reply::Labels { .. }).then_some(()))?;
    Ok(())
}
