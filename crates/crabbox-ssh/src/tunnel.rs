//! A port of the lease on a port of this machine, loopback at both ends: `crabbox tunnel`.
//!
//! The tunnel has a connection of its own and a remote `cat` that holds it: when this process ends, however it ends, its
//! pipe closes and so does the tunnel. It must never listen on anything but 127.0.0.1.

use std::io::{self, PipeReader, Read};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crabbox_host::command::{Cmd, CommandError};
use rustix::event::PollFlags;

use crate::master::{self, ConnectError};
use crate::streams::{self, Ready};
use crate::target::{ArgvOptions, Target};

/// How long a tunnel may take until it accepts connections, as the Go program has it.
pub const OPEN_LIMIT: Duration = Duration::from_secs(15);

/// How much of what `ssh` says is kept, in bytes.
const WORDS_LIMIT: usize = 4000;

/// How often a free port is looked for when somebody else takes it in between.
const PORT_ATTEMPTS: usize = 5;

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The local port is in use.
    #[error("cannot listen on 127.0.0.1:{port}: it is in use; choose another one with --local-port")]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// There is no connection.
    #[error("cannot open a tunnel to port {remote_port}")]
    Connect {
        /// The port on the other side.
        remote_port: u16,
        /// Why not.
        #[source]
        source: ConnectError,
    },
    /// The caller does not want it any more.
    #[error("opening a tunnel to port {remote_port} was cancelled")]
    Cancelled {
        /// The port on the other side.
        remote_port: u16,
    },
    /// `ssh` could not be run.
    #[error("cannot run ssh for a tunnel")]
    Client {
        /// What went wrong.
        #[source]
        source: CommandError,
    },
    /// Pipes or ports could not be had from this machine.
    #[error("cannot prepare a tunnel")]
    Local {
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// An open tunnel; dropping it closes it.
#[derive(Debug)]
pub struct Tunnel {
    child: Child,
    local_port: u16,
    /// Readable when the connection has ended.
    held: PipeReader,
    words: Arc<Mutex<Vec<u8>>>,
}

/// How an open tunnel came to its end.
#[derive(Debug, PartialEq, Eq)]
pub enum TunnelEnd {
    /// We were asked to close it.
    Cancelled,
    /// The connection ended by itself.
    Ended {
        /// What ssh said last.
        said: String,
    },
}

/// Opens a tunnel from `local_port` (a free one when `None`) to `remote_port` of the loopback interface of `target`, and
/// waits until it accepts connections, at most [`OPEN_LIMIT`] or until `cancel` is readable.
pub fn open(
    target: &Target,
    local_port: Option<u16>,
    remote_port: u16,
    cancel: Option<BorrowedFd<'_>>,
) -> Result<Tunnel, TunnelError> {
    let deadline = Instant::now() + OPEN_LIMIT;
    let mut attempt = 1;
    loop {
        let port = match local_port {
            Some(port) => port,
            None => free_port().map_err(|source| TunnelError::Local { source })?,
        };
        match open_at(target, port, remote_port, cancel, deadline) {
            Err(TunnelError::PortTaken { .. }) if local_port.is_none() && attempt < PORT_ATTEMPTS => {
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}

fn open_at(
    target: &Target,
    local_port: u16,
    remote_port: u16,
    cancel: Option<BorrowedFd<'_>>,
    deadline: Instant,
) -> Result<Tunnel, TunnelError> {
    let local = |source| TunnelError::Local { source };
    let cmd = tunnel_cmd(target, local_port, remote_port);
    let mut command = cmd.to_std();
    let (held, word) = io::pipe().map_err(local)?;
    command.stdin(Stdio::piped()).stdout(word).stderr(Stdio::piped());
    let mut child = cmd
        .spawn(&mut command)
        .map_err(|source| TunnelError::Client { source })?;
    drop(command);
    let words = Arc::new(Mutex::new(Vec::new()));
    let listener = child.stderr.take().map(|stderr| {
        let words = Arc::clone(&words);
        std::thread::spawn(move || keep_last(stderr, &words))
    });
    let mut tunnel = Tunnel {
        child,
        local_port,
        held,
        words,
    };
    // ssh listens before it starts the remote command, so the command's word says that the port accepts connections.
    match streams::wait(tunnel.held.as_fd(), PollFlags::IN, cancel, Some(deadline)).map_err(local)? {
        Ready::Second => return Err(TunnelError::Cancelled { remote_port }),
        Ready::First if tunnel.held.read(&mut [0; 1]).map_err(local)? == 1 => return Ok(tunnel),
        Ready::First => {}
        Ready::Neither => {
            let source = ConnectError::TimedOut {
                destination: target.destination(),
                port: target.port,
                said: format!("no tunnel within {OPEN_LIMIT:?}"),
            };
            return Err(TunnelError::Connect { remote_port, source });
        }
    }
    tunnel.close();
    if let Some(listener) = listener {
        // It has ended with ssh; what it heard is complete after this.
        listener.join().ok();
    }
    let said = tunnel.said();
    if said.contains("Address already in use") || said.contains("cannot listen to port") {
        return Err(TunnelError::PortTaken { port: local_port });
    }
    let source = master::classify(target, &said);
    Err(TunnelError::Connect { remote_port, source })
}

/// The first value of an option counts, so what makes a tunnel comes before the words of the target.
fn tunnel_cmd(target: &Target, local_port: u16, remote_port: u16) -> Cmd {
    let forward = format!("127.0.0.1:{local_port}:127.0.0.1:{remote_port}");
    let own = ArgvOptions {
        own_connection: true,
        ..ArgvOptions::default()
    };
    let mut cmd = Cmd::new("ssh").args(["-T", "-L", &forward]);
    for option in [
        "LogLevel=ERROR",
        "ExitOnForwardFailure=yes",
        "GatewayPorts=no",
        "PermitLocalCommand=no",
    ] {
        cmd = cmd.args(["-o", option]);
    }
    cmd.args(target.ssh_argv(own).into_iter().skip(1))
        .arg("echo; exec cat >/dev/null")
}

impl Tunnel {
    /// The port on 127.0.0.1.
    pub fn local_port(&self) -> u16 {
        self.local_port
    }

    /// Waits until the connection ends or `cancel` becomes readable, and closes the tunnel.
    pub fn wait(mut self, cancel: Option<BorrowedFd<'_>>) -> io::Result<TunnelEnd> {
        loop {
            match streams::wait(self.held.as_fd(), PollFlags::IN, cancel, None)? {
                Ready::First if self.held.read(&mut [0; 64])? > 0 => {}
                Ready::First | Ready::Neither => break,
                Ready::Second => return Ok(TunnelEnd::Cancelled),
            }
        }
        self.close();
        Ok(TunnelEnd::Ended { said: self.said() })
    }

    fn said(&self) -> String {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&words).trim().to_owned()
    }

    fn close(&mut self) -> Option<ExitStatus> {
        // It may have ended by itself; either way it is reaped here.
        self.child.kill().ok();
        self.child.wait().ok()
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.close();
    }
}

/// Reads `stream` to its end and keeps the last of it in `words`.
fn keep_last(mut stream: impl Read, words: &Mutex<Vec<u8>>) {
    let mut chunk = [0; 1024];
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
        words.extend_from_slice(&chunk[..count]);
        let surplus = words.len().saturating_sub(WORDS_LIMIT);
        words.drain(..surplus);
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
