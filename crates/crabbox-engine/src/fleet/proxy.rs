//! The way of an SSH client to a guest on a KVM host: our standard streams become those of the guest's SSH server.
//!
//! It runs below the `ssh` of one lease's connection. While that connection has users it refreshes the lease, because only this side knows
//! whether a silent command runs over it; an idle one refreshes nothing.

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
use super::client::{ANSWER_LIMIT, FleetError, Talk};
use super::wire::{Ask, Reply};

/// How often a connection that is in use refreshes its lease, at most.
const REFRESH: Duration = Duration::from_mins(1);

/// Why the guest is not reached.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// Its host did not lead there.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// There is no place for sockets.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Our own streams cannot be used.
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
            _ => Vec::new(),
        }
    }
}

/// Where one leads.
#[derive(Debug)]
pub struct Proxy {
    /// The KVM host.
    pub host: KvmHost,
    /// What opens it.
    pub access: Access,
    /// The lease there.
    pub lease: String,
}

/// Copies both ways until either side has ended. `control` tells the socket of the lease's own shared connection.
pub fn run(
    engine: &Engine,
    proxy: &Proxy,
    control: &dyn Fn(&super::wire::FarLease) -> Option<PathBuf>,
) -> Result<(), ProxyError> {
    let dir = engine.control_dir()?;
    let ask = Ask::Connect {
        lease: proxy.lease.clone(),
    };
    let mut talk = Talk::open(&proxy.host, &proxy.access, &dir, ask.heed())?;
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
        // Dropped at its end, which tells the guest.
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
                        // What does not arrive now may at the next look; the lease only seems older than it is.
                        refresh(engine, proxy).ok();
                    }
                }
            });
        }
        // Whichever way it ends: who is on our other side sees the end, and says what it means.
        io::copy(&mut from_guest, &mut output).ok();
        drop(over);
    });
    Ok(())
}

fn refresh(engine: &Engine, proxy: &Proxy) -> Result<(), ProxyError> {
    let ask = Ask::Touch {
        lease: proxy.lease.clone(),
        state: None,
        idle_seconds: None,
    };
    let dir = engine.control_dir()?;
    let mut talk = Talk::open(&proxy.host, &proxy.access, &dir, ask.heed())?;
    talk.ask(&ask, |reply| matches!(reply, Reply::Labels { .. }).then_some(()))?;
    Ok(())
}
