//! Named forwards of a lease's ports: `crabbox ports`.
//!
//! They use an SSH connection of their own besides the shared one, which counts as use of the lease like any
//! other, and a list file beside its socket. Neither must outlive the lease: closing the shared connection
//! ends them too.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use crabbox_core::fault::{Fault, Kind};
use crabbox_host::files::{self, FileError};
use crabbox_host::lock::{FileLock, LockError};
use serde::{Deserialize, Serialize};

use crate::forward::{self, ForwardError};
use crate::loopback::Loopback;
use crate::master::{self, ExitError};
use crate::target::Target;

/// A forward as requested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// Its name, unique within the lease.
    pub name: String,
    /// The port on 127.0.0.1 here.
    pub local: u16,
    /// The port on the lease's loopback interface.
    pub remote: u16,
    /// The remote loopback address.
    loopback: Loopback,
    /// The ssh that listens, or did.
    pid: i32,
}

/// Why the forwards could not be changed or read.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    /// The lease has no shared connection.
    #[error("lease {id} has no shared SSH connection to add forwards to")]
    Private {
        /// The lease.
        id: String,
    },
    /// The name is in use.
    #[error(
        "the lease has a forward {name} already, from 127.0.0.1:{local} to port {remote}; `ports rm` it first"
    )]
    Taken {
        /// The name.
        name: String,
        /// Its local port.
        local: u16,
        /// Its remote port.
        remote: u16,
    },
    /// No forward has the name.
    #[error("the lease has no forward {name}; `ports list` shows them")]
    Unknown {
        /// The name.
        name: String,
    },
    /// The local port is unavailable.
    #[error("cannot listen on 127.0.0.1:{port}")]
    Local {
        /// The port, 0 for any.
        port: u16,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// SSH could not change the forward.
    #[error("cannot change the forward {name}")]
    Forward {
        /// Its name.
        name: String,
        /// Why not.
        #[source]
        source: ForwardError,
    },
    /// The connection would not end.
    #[error("cannot stop the forwards")]
    End(#[source] ExitError),
    /// The list cannot be locked.
    #[error("cannot lock the list of forwards")]
    Lock(#[source] LockError),
    /// The list could not be written.
    #[error("cannot store the list of forwards")]
    Write(#[source] FileError),
    /// The list exists but cannot be read.
    #[error("cannot read the list of forwards {}", path.display())]
    Read {
        /// The list.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
}

impl Fault for PortsError {
    fn kind(&self) -> Kind {
        match self {
            Self::Private { .. } | Self::Taken { .. } | Self::Local { .. } => Kind::Usage,
            Self::Unknown { .. } => Kind::NotFound,
            Self::Forward { .. } => Kind::Unavailable,
            Self::End(_) | Self::Lock(_) | Self::Write(_) | Self::Read { .. } => Kind::General,
        }
    }
}

/// The forwards of one lease.
#[derive(Debug)]
pub struct Ports<'a> {
    target: &'a Target,
    /// The socket of the shared connection.
    control: &'a Path,
}

impl<'a> Ports<'a> {
    /// The forwards of the lease `id`, which is reached through `target`.
    pub fn of(id: &str, target: &'a Target) -> Result<Self, PortsError> {
        let control = target.control.as_deref();
        let control = control.ok_or_else(|| PortsError::Private { id: id.to_owned() })?;
        Ok(Self { target, control })
    }

    /// All forwards, each with whether it is open; a forward whose connection broke is not.
    pub fn list(&self) -> Result<Vec<(Forward, bool)>, PortsError> {
        let pid = master::check(&socket(self.control));
        let forwards = read(&list(self.control))?;
        Ok(forwards
            .into_iter()
            .map(|forward| {
                let open = pid == Some(forward.pid);
                (forward, open)
            })
            .collect())
    }

    /// Reasons why the lease did not accept connections through the forwards, each with its count, since the
    /// last call.
    pub fn refusals(&self) -> Vec<(String, usize)> {
        forward::refusals(&socket(self.control))
    }

    /// Opens a forward from `local` (a free port if `None`) to `remote`. An open forward is left alone unless
    /// its service has moved to another loopback address, and a broken one is opened again.
    pub fn add(&self, name: &str, local: Option<u16>, remote: u16) -> Result<Forward, PortsError> {
        let _lock = FileLock::acquire(&lock(self.control)).map_err(PortsError::Lock)?;
        let known = self.list()?;
        let old = known.iter().find(|(forward, _)| forward.name == name);
        let loopback = Loopback::of(self.target, remote);
        if let Some((forward, open)) = old {
            if forward.remote != remote || local.is_some_and(|local| local != forward.local) {
                return Err(PortsError::Taken {
                    name: name.to_owned(),
                    local: forward.local,
                    remote: forward.remote,
                });
            }
            if *open && (loopback == Loopback::Name || loopback == forward.loopback) {
                return Ok(forward.clone());
            }
            if *open {
                self.close(forward)?;
            }
        }
        let wanted = old.map(|(forward, _)| forward.local).or(local);
        let local = free(wanted.unwrap_or(0))?;
        let to = (loopback, remote);
        let opened = forward::open(self.target, &socket(self.control), local, to);
        let (pid, loopback) = opened.map_err(|source| {
            if known.is_empty() {
                // There is no other forward, so nothing else would end this connection.
                master::exit(&socket(self.control)).ok();
            }
            PortsError::Forward {
                name: name.to_owned(),
                source,
            }
        })?;
        let forward = Forward {
            name: name.to_owned(),
            local,
            remote,
            loopback,
            pid,
        };
        let mut forwards: Vec<Forward> = known.into_iter().map(|(forward, _)| forward).collect();
        forwards.retain(|forward| forward.name != name);
        forwards.push(forward.clone());
        self.write(&forwards)?;
        Ok(forward)
    }

    /// Closes a forward; with the last one, the connection ends.
    pub fn remove(&self, name: &str) -> Result<(), PortsError> {
        let lock = FileLock::acquire(&lock(self.control)).map_err(PortsError::Lock)?;
        let mut forwards = read(&list(self.control))?;
        let at = forwards.iter().position(|forward| forward.name == name);
        let at = at.ok_or_else(|| PortsError::Unknown {
            name: name.to_owned(),
        })?;
        let forward = forwards.remove(at);
        if forwards.is_empty() {
            return end(self.control, lock).map_err(PortsError::End);
        }
        let socket = socket(self.control);
        // If the connection was reopened since, it does not listen for this forward.
        if master::check(&socket) == Some(forward.pid) {
            self.close(&forward)?;
        }
        self.write(&forwards)
    }

    fn close(&self, forward: &Forward) -> Result<(), PortsError> {
        let to = (forward.loopback, forward.remote);
        forward::close(&socket(self.control), forward.local, to).map_err(|source| PortsError::Forward {
            name: forward.name.clone(),
            source,
        })
    }

    fn write(&self, forwards: &[Forward]) -> Result<(), PortsError> {
        let path = list(self.control);
        let text = serde_json::to_vec(forwards).map_err(|source| PortsError::Read {
            path: path.clone(),
            source: source.into(),
        })?;
        files::write_atomic(&path, &text, 0o600).map_err(PortsError::Write)
    }
}

/// Ends every forward of the lease whose shared connection is at `control`; it is fine if there is none.
pub fn forget(control: &Path) -> Result<(), ExitError> {
    let lock = FileLock::acquire(&lock(control)).map_err(|source| ExitError::Lock { source })?;
    end(control, lock)
}

/// Ends the ssh that holds the forwards of the connection at `control`, whose sockets may be gone.
pub fn end_unheard(control: &Path) -> Result<(), ExitError> {
    master::end_unheard(&socket(control))
}

fn end(control: &Path, lock: FileLock) -> Result<(), ExitError> {
    master::exit(&socket(control))?;
    let path = list(control);
    files::remove_if_there(&path).map_err(|source| ExitError::Socket { path, source })?;
    lock.remove_while_held()
        .map_err(|source| ExitError::Lock { source })
}

fn read(path: &Path) -> Result<Vec<Forward>, PortsError> {
    let fail = |source| PortsError::Read {
        path: path.to_owned(),
        source,
    };
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|source| fail(source.into())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(fail(error)),
    }
}

/// The port itself if nothing listens on it; any free port for 0.
fn free(port: u16) -> Result<u16, PortsError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let address = listener.and_then(|listener| listener.local_addr());
    let address = address.map_err(|source| PortsError::Local { port, source })?;
    Ok(address.port())
}

/// Only two characters longer than the shared connection's path, because a socket's path must be short.
fn socket(control: &Path) -> PathBuf {
    control.with_extension("p")
}

fn list(control: &Path) -> PathBuf {
    control.with_extension("ports")
}

fn lock(control: &Path) -> PathBuf {
    control.with_extension("ports-lock")
}
