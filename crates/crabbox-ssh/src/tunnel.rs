//! Forwards a port of this machine to a port of the lease, loopback at both ends: `crabbox tunnel`.
//!
//! The tunnel has a connection of its own and a remote `cat` that keeps it open: when this process ends,
//! however it ends, its pipe closes and so does the tunnel. Its ssh is a master, because only over the socket of
//! one can a forward be made without those of the user's `ssh_config`. It must never listen on anything but
//! 127.0.0.1.

use std::io::{self, BufRead as _, BufReader, PipeReader, PipeWriter, Read, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crabbox_host::command::{Cmd, CommandError};
use rustix::event::PollFlags;

use crate::beginning::{RESCUE_AFTER, StartOutcome, WaitLimits, await_mark};
use crate::forward;
use crate::loopback::Loopback;
use crate::master::{self, ConnectError};
use crate::mux::{Client, MuxError};
use crate::remote_line::RemoteLine;
use crate::shared::private_dir;
use crate::target::{ArgvOptions, Target, config_path};
use crabbox_host::wait::{Ready, wait};

/// How long a tunnel may take until it accepts connections, as in the Go program.
pub(crate) const OPEN_LIMIT: Duration = Duration::from_secs(15);

/// How much of the output of `ssh` is kept, in bytes.
const WORDS_LIMIT: usize = 4000;

/// The remote command that keeps the tunnel open.
const HOLD: &str = "exec cat >/dev/null";

/// The longest line that is examined, in bytes.
const LINE_LIMIT: u64 = 4096;

/// How often refused connections are reported.
const LISTEN_EVERY: Duration = Duration::from_millis(500);

/// How often to look for a service that refuses connections on the other loopback address.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long after the end of ssh a cancellation still counts as its cause.
const CANCEL_GRACE: Duration = Duration::from_millis(500);

/// How often to retry when another process takes the free port before ssh does.
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
    /// The caller cancelled it.
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
    /// This machine could not provide pipes or ports.
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
    /// Where it leads.
    to: (Loopback, u16),
    /// Readable when the connection has ended.
    held: PipeReader,
    /// The input of the remote command; the tunnel closes with it.
    holds: PipeWriter,
    words: Arc<Mutex<Vec<u8>>>,
    /// Reasons for connections that the remote side refused to make.
    refusals: Receiver<String>,
}

/// How an open tunnel ended.
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

/// Opens a tunnel from `local_port` (a free one when `None`) to `remote_port` of the loopback interface of
/// `target`, and waits until it accepts connections, at most [`OPEN_LIMIT`] or until `cancel` is readable.
pub fn open(
    target: &Target,
    local_port: Option<u16>,
    remote_port: u16,
    cancel: Option<BorrowedFd<'_>>,
) -> Result<Tunnel, TunnelError> {
    let deadline = Instant::now() + OPEN_LIMIT;
    let loopback = Loopback::of(target, remote_port);
    let mut attempt = 1;
    loop {
        let port = match local_port {
            Some(port) => port,
            None => free_port().map_err(|source| TunnelError::Local { source })?,
        };
        match open_at(target, port, (loopback, remote_port), cancel, deadline) {
            Err(TunnelError::PortTaken { .. }) if local_port.is_none() && attempt < PORT_ATTEMPTS => {
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}

/// Starts ssh with its socket at `control`, and the thread that reads its messages.
fn start(
    target: &Target,
    control: &Path,
    local_port: u16,
    to: (Loopback, u16),
    line: &RemoteLine,
) -> Result<(Tunnel, Option<JoinHandle<()>>), TunnelError> {
    let local = |source| TunnelError::Local { source };
    let cmd = tunnel_cmd(target, control, line);
    let mut command = cmd.to_std();
    let (held, word) = io::pipe().map_err(local)?;
    let (input, holds) = io::pipe().map_err(local)?;
    command.stdin(input).stdout(word).stderr(Stdio::piped());
    let mut child = cmd
        .spawn(&mut command)
        .map_err(|source| TunnelError::Client { source })?;
    drop(command);
    let words = Arc::new(Mutex::new(Vec::new()));
    let (refused, refusals) = mpsc::channel();
    let listener = child.stderr.take().map(|stderr| {
        let words = Arc::clone(&words);
        let mark = line.mark_of_errors();
        std::thread::spawn(move || hear(stderr, &mark, &words, &refused))
    });
    let tunnel = Tunnel {
        child,
        local_port,
        to,
        held,
        holds,
        words,
        refusals,
    };
    Ok((tunnel, listener))
}

fn open_at(
    target: &Target,
    local_port: u16,
    to: (Loopback, u16),
    cancel: Option<BorrowedFd<'_>>,
    deadline: Instant,
) -> Result<Tunnel, TunnelError> {
    let local = |source| TunnelError::Local { source };
    let line = RemoteLine::new().map_err(local)?;
    let (_, remote_port) = to;
    // Removed with its socket once ssh listens: it is of no use then, and a process that is killed leaves
    // nothing.
    let dir = private_dir().map_err(local)?;
    let control = dir.path().join("s");
    let (mut tunnel, listener) = start(target, &control, local_port, to, &line)?;
    // ssh has its socket before it starts the remote command, whose mark says that the login is done.
    let ends = WaitLimits {
        cancel,
        deadline: Some(deadline),
        ..WaitLimits::default()
    };
    let begun = await_mark(&line, &mut tunnel.holds, &mut tunnel.held, RESCUE_AFTER, ends);
    let printed = match begun.map_err(local)? {
        StartOutcome::Cancelled => return Err(TunnelError::Cancelled { remote_port }),
        StartOutcome::Begun { .. } => match tunnel.listen(&control) {
            Ok(()) => {
                // A failure is noticed because the tunnel ends.
                tunnel.holds.write_all(&line.preamble(HOLD)).ok();
                return Ok(tunnel);
            }
            Err(MuxError::Refused { .. }) => return Err(TunnelError::PortTaken { port: local_port }),
            Err(error) => error.to_string(),
        },
        StartOutcome::Ended(start) => start.printed(),
        StartOutcome::Instead(_, start) => {
            let source = ConnectError::TimedOut {
                destination: target.destination(),
                port: target.port,
                said: format!("no tunnel within {OPEN_LIMIT:?}; {}", start.printed())
                    .trim_end_matches([';', ' '])
                    .to_owned(),
            };
            return Err(TunnelError::Connect { remote_port, source });
        }
    };
    tunnel.close();
    if let Some(listener) = listener {
        // The thread ends with ssh; after this its output is complete.
        listener.join().ok();
    }
    let said = match tunnel.said() {
        said if said.is_empty() => printed,
        said => said,
    };
    let source = master::classify_proxied(target, &said);
    Err(TunnelError::Connect { remote_port, source })
}

/// ssh uses the first value of an option, so the options of the tunnel come before those of the target.
fn tunnel_cmd(target: &Target, control: &Path, line: &RemoteLine) -> Cmd {
    let own = ArgvOptions {
        own_connection: true,
        ..ArgvOptions::default()
    };
    let mut cmd = Cmd::new("ssh").environment(target.environment()).arg("-T");
    for option in [
        // ssh reports refused channels at this level.
        "LogLevel=INFO",
        "ControlMaster=yes",
        // It must not go into the background.
        "ControlPersist=no",
        &format!("ControlPath={}", config_path(control)),
        "ClearAllForwardings=yes",
        "PermitLocalCommand=no",
    ] {
        cmd = cmd.args(["-o", option]);
    }
    cmd.args(target.ssh_argv(own).into_iter().skip(1))
        .arg(line.text())
}

impl Tunnel {
    /// The port on 127.0.0.1.
    pub fn local_port(&self) -> u16 {
        self.local_port
    }

    /// Waits until the connection ends or `cancel` becomes readable, and closes the tunnel. `on_refusal` is
    /// called with the reason for each connection that the remote side refused. If the service of `target` has
    /// moved to its other loopback address, the tunnel follows.
    pub fn wait(
        mut self,
        target: &Target,
        cancel: Option<BorrowedFd<'_>>,
        on_refusal: &mut dyn FnMut(&str),
    ) -> io::Result<TunnelEnd> {
        let mut look = Instant::now();
        loop {
            let next = Instant::now() + LISTEN_EVERY;
            let ready = wait(self.held.as_fd(), PollFlags::IN, cancel, Some(next))?;
            let mut is_refused = false;
            for reason in self.refusals.try_iter() {
                is_refused |= reason.contains("refused");
                on_refusal(&reason);
            }
            if is_refused && Instant::now() >= look {
                look = Instant::now() + LOOK_EVERY;
                let (loopback, remote_port) = (Loopback::of(target, self.to.1), self.to.1);
                if loopback != self.to.0 && loopback != Loopback::Name {
                    self.close();
                    let deadline = Instant::now() + OPEN_LIMIT;
                    let to = (loopback, remote_port);
                    self = match open_at(target, self.local_port, to, cancel, deadline) {
                        Ok(moved) => moved,
                        Err(TunnelError::Cancelled { .. }) => return Ok(TunnelEnd::Cancelled),
                        Err(error) => {
                            return Ok(TunnelEnd::Ended {
                                said: fault_text(&error),
                            });
                        }
                    };
                    on_refusal(&format!(
                        "the service listens on {} now, and the tunnel leads there: connect again",
                        loopback.host()
                    ));
                }
                continue;
            }
            match ready {
                Ready::First if self.held.read(&mut [0; 64])? > 0 => {}
                Ready::Neither => {}
                Ready::First => break,
                Ready::Second => return Ok(TunnelEnd::Cancelled),
            }
        }
        self.close();
        // Ctrl-C at a terminal reaches ssh, too, and its end may be noticed before our own signal.
        let soon = Some(Instant::now() + CANCEL_GRACE);
        if let Some(cancel) = cancel
            && wait(cancel, PollFlags::IN, None, soon)? == Ready::First
        {
            return Ok(TunnelEnd::Cancelled);
        }
        Ok(TunnelEnd::Ended { said: self.said() })
    }

    /// Makes ssh, whose socket is `control`, listen on the local port.
    fn listen(&self, control: &Path) -> Result<(), MuxError> {
        let (loopback, remote_port) = self.to;
        Client::connect(control)?.forward(self.local_port, loopback.host(), remote_port)
    }

    fn said(&self) -> String {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&words).trim().to_owned()
    }

    fn close(&mut self) -> Option<ExitStatus> {
        // It may have ended already; either way it is reaped here.
        self.child.kill().ok();
        self.child.wait().ok()
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.close();
    }
}

/// Reads `stream` to its end, keeps the last of it in `words`, without the line `mark`, and sends why a channel
/// was refused to `refused`.
fn hear(stream: impl Read, mark: &str, words: &Mutex<Vec<u8>>, refused: &Sender<String>) {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    while matches!(
        (&mut stream).take(LINE_LIMIT).read_until(b'\n', &mut line),
        Ok(1..)
    ) {
        if line.trim_ascii() == mark.as_bytes() {
            line.clear();
            continue;
        }
        if let Some(reason) = forward::reason(&String::from_utf8_lossy(&line)) {
            // If the receiver is gone, the reason is still in `words`.
            refused.send(reason.to_owned()).ok();
        }
        let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
        words.append(&mut line);
        let surplus = words.len().saturating_sub(WORDS_LIMIT);
        words.drain(..surplus);
    }
}

fn fault_text(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
