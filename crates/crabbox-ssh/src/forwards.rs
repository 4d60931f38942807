//! Named forwards of a lease's ports: `crabbox ports`.
//!
//! They have an SSH connection of their own beside the shared one, which counts as use of the lease like any other, and a
//! list beside its socket. Both must never outlive the lease: what closes the shared connection ends them too.

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

/// A forward as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// Its name, one of a kind in its lease.
    pub name: String,
    /// The port on 127.0.0.1 here.
    pub local: u16,
    /// The port on the loopback interface there.
    pub remote: u16,
    /// Where there; lists of earlier versions have none.
    #[serde(default)]
    loopback: Loopback,
    /// The ssh that listens, or did.
    pid: i32,
}

/// Why the forwards could not be changed or read.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    /// The lease has no place for connections.
    #[error("lease {id} has no shared SSH connection beside which forwards could be")]
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
        /// Its port there.
        remote: u16,
    },
    /// No forward has the name.
    #[error("the lease has no forward {name}; `ports list` shows them")]
    Unknown {
        /// The name.
        name: String,
    },
    /// The local port cannot be had.
    #[error("cannot listen on 127.0.0.1:{port}")]
    Local {
        /// The port, 0 for any.
        port: u16,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// SSH did not do it.
    #[error("cannot change the forward {name}")]
    Forward {
        /// Its name.
        name: String,
        /// Why not.
        #[source]
        source: ForwardError,
    },
    /// The connection would not end.
    #[error("cannot end the forwards")]
    End(#[source] ExitError),
    /// Somebody else holds the list, or it cannot be locked.
    #[error("cannot lock the list of forwards")]
    Lock(#[source] LockError),
    /// The list could not be written.
    #[error("cannot keep the list of forwards")]
    Write(#[source] FileError),
    /// The list is there and cannot be read.
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
    /// Those of the lease `id`, which is entered through `target`.
    pub fn of(id: &str, target: &'a Target) -> Result<Self, PortsError> {
        let control = target.control.as_deref();
        let control = control.ok_or_else(|| PortsError::Private { id: id.to_owned() })?;
        Ok(Self { target, control })
    }

    /// All, each with whether it is open; one whose connection broke is not.
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

    /// Why connections through the forwards were not made in the lease, each reason with how often, since the last look.
    pub fn refusals(&self) -> Vec<(String, usize)> {
        forward::refusals(&socket(self.control))
    }

    /// Opens a forward from `local`, a free port for `None`, to `remote`. One that is open already is left as it is unless its service
    /// has moved to another address, and one that broke is opened again.
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
                // Nobody is left to end a connection that nothing stands for.
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

    /// Closes one; with the last one the connection ends.
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
        // A new connection listens for nobody who was added before it.
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

/// Ends every forward of the lease whose shared connection is at `control`; none is fine.
pub fn forget(control: &Path) -> Result<(), ExitError> {
    let lock = FileLock::acquire(&lock(control)).map_err(|source| ExitError::Lock { source })?;
    end(control, lock)
}

fn end(control: &Path, lock: FileLock) -> Result<(), ExitError> {
    master::exit(&socket(control))?;
    let path = list(control);
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            return Err(ExitError::Socket { path, source });
        }
        _ => {}
    }
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

/// The port itself if nobody listens on it; any free one for 0.
fn free(port: u16) -> Result<u16, PortsError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let address = listener.and_then(|listener| listener.local_addr());
    let address = address.map_err(|source| PortsError::Local { port, source })?;
    Ok(address.port())
}

/// Two characters more than the shared connection's: a socket's path must be short.
fn socket(control: &Path) -> PathBuf {
    control.with_extension("p")
}

fn list(control: &Path) -> PathBuf {
    control.with_extension("ports")
}

fn lock(control: &Path) -> PathBuf {
    control.with_extension("ports-lock")
}
