//! A conversation with `crabbox __serve` on a KVM host, over one session of the connection to it.
//!
//! Replies are bounded in size and in time, and stripped of terminal control sequences. A conversation that
//! broke off must never be resumed.

use std::io::{PipeReader, PipeWriter};
use std::time::{Duration, Instant};

use crabbox_core::fault::{Connectivity, Fault, Kind};
use crabbox_host::console::harmless;
use crabbox_host::private_dir::PrivateDir;
use crabbox_host::signals::Cancellation;
use crabbox_machine::lifecycle::client::Cause;
use crabbox_machine::protocol::Failure;
use crabbox_ssh::control::{self, ControlError};
use crabbox_ssh::exec::ExecError;
use crabbox_ssh::master::ConnectError;
use crabbox_ssh::peer::Peer;

use super::address::{Access, HostError, KvmHost};
use super::lines::{LineError, Lines};
use super::wire::{
    FarLease, FleetRequest, GREETING, Greeting, InvalidValue, LEASES, Reply, SERVE, SPOKEN, crossing,
};

/// How long a host may take to send its greeting: a login and the start of a program.
const GREETING_LIMIT: Duration = Duration::from_mins(1);

/// The maximum number of lines that a login shell's start-up files may print before the greeting.
const NOISE: usize = 200;

/// How long sending a request may take.
const ASK_LIMIT: Duration = Duration::from_secs(30);

/// How long a host may work on a request: releasing a lease can wait up to two minutes for other work on it.
pub const ANSWER_LIMIT: Duration = Duration::from_mins(5);

/// The maximum size of a list, in bytes. A lease takes one or two KiB.
const LISTED: usize = 16 * 1024 * 1024;

/// How much of one text of a failure is shown, in characters.
const TEXT: usize = 4000;

/// Why a KVM host did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The settings do not name a valid host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The socket of the shared connection has no place.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The host cannot be reached or does not let us in.
    #[error("cannot reach the KVM host {host}")]
    UnreachableHost {
        /// The host.
        host: KvmHost,
        /// Why.
        #[source]
        source: ExecError,
    },
    /// The login works, but something other than our program answers.
    #[error("cannot start `crabbox __serve` on {host}{}: {}", with_code(*.code), or_nothing(.said))]
    NoServe {
        /// The host.
        host: KvmHost,
        /// The exit code of what ran there.
        code: Option<u8>,
        /// What it printed.
        said: String,
    },
    /// Its program is too old or too new for ours.
    #[error(
        "protocol mismatch: crabbox {program} on {host} supports versions {} to {}, this crabbox {} supports {} to {}",
        theirs.0, theirs.1, env!("CARGO_PKG_VERSION"), SPOKEN.least, SPOKEN.most
    )]
    Version {
        /// The host.
        host: KvmHost,
        /// The version of its program.
        program: String,
        /// The oldest and newest protocol version that it speaks.
        theirs: (u32, u32),
    },
    /// The conversation broke off.
    #[error("lost the connection to {host}{}", because(.said))]
    Broken {
        /// The host.
        host: KvmHost,
        /// The standard error output.
        said: String,
        /// The cause; `None` if the stream just ended.
        #[source]
        source: Option<LineError>,
    },
    /// The reply is malformed, or does not fit the question.
    #[error("unexpected reply from {host}")]
    Nonsense {
        /// The host.
        host: KvmHost,
        /// Why.
        #[source]
        source: Option<serde_json::Error>,
    },
    /// The reply describes something that no lease can have.
    #[error("{host} sent an invalid value")]
    InvalidValue {
        /// The host.
        host: KvmHost,
        /// What.
        #[source]
        source: InvalidValue,
    },
    /// It refused.
    #[error("{}", .0.message)]
    Refused(Failure, #[source] Option<Cause>),
    /// The user interrupted.
    #[error("interrupted while waiting for {host}")]
    Interrupted {
        /// The host.
        host: KvmHost,
    },
}

fn with_code(code: Option<u8>) -> String {
    code.map_or_else(String::new, |code| format!(" (exit code {code})"))
}

fn or_nothing(said: &str) -> &str {
    if said.is_empty() { "it said nothing" } else { said }
}

fn because(said: &str) -> String {
    if said.is_empty() {
        String::new()
    } else {
        format!(": {said}")
    }
}

impl Fault for FleetError {
    fn kind(&self) -> Kind {
        match self {
            Self::Refused(failure, _) => failure.kind,
            Self::Host(error) => error.kind(),
            Self::Control(error) => error.kind(),
            Self::Version { .. } => Kind::Usage,
            Self::UnreachableHost { .. }
            | Self::NoServe { .. }
            | Self::Broken { .. }
            | Self::Nonsense { .. }
            | Self::InvalidValue { .. } => Kind::Unavailable,
            Self::Interrupted { .. } => Kind::Passthrough(130),
        }
    }

    fn connectivity(&self) -> Option<Connectivity> {
        match self {
            Self::UnreachableHost { source, .. } => source.connectivity(),
            Self::Broken { .. } => Some(Connectivity::Lost),
            _ => None,
        }
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Host(error) => return error.hints(),
            Self::Control(error) => return error.hints(),
            Self::Refused(failure, _) => return failure.hints.clone(),
            Self::UnreachableHost {
                source:
                    ExecError::Connect {
                        source: ConnectError::HostKeyMismatch { known_hosts, .. },
                    },
                ..
            } => format!(
                "if the host was reinstalled, remove its old key from {}; otherwise this may be a man-in-the-middle attack",
                known_hosts.display()
            ),
            Self::UnreachableHost { host, .. } => {
                format!(
                    "run `{}` by hand to see why; leases on that host are not affected",
                    host.by_hand()
                )
            }
            Self::NoServe { code: Some(127), .. } => "install crabbox on that host".to_owned(),
            // Exit code 2 is our program over there, reporting an error in its own configuration.
            Self::NoServe { code: Some(2), .. } => {
                "ask the administrator of that host about its message".to_owned()
            }
            Self::NoServe { .. } => format!(
                "its authorized_keys must let this key run {SERVE} of crabbox there; docs/remote.md says how"
            ),
            Self::Version { .. } => {
                "update the older one; each version supports itself and the previous one".to_owned()
            }
            _ => return Vec::new(),
        };
        vec![hint]
    }
}

/// A conversation.
#[derive(Debug)]
pub struct Conversation {
    host: KvmHost,
    lines: Lines<Peer>,
    version: u32,
    heard: usize,
    /// How every wait of this conversation can be cancelled.
    heed: Cancellation,
    /// What the host said about itself.
    pub greeting: Greeting,
}

impl Conversation {
    /// Opens a conversation with `host`, through its gateway if it has one. `heed` can cancel every wait,
    /// including this one.
    pub fn open(
        host: &KvmHost,
        access: &Access,
        control_dir: &PrivateDir,
        heed: Cancellation,
    ) -> Result<Self, FleetError> {
        let peer = start(host, access, control_dir, heed)?;
        let mut talk = Self::of(host, peer, heed)?;
        if let Some(node) = host.node() {
            let node = node.to_owned();
            talk.ask(&FleetRequest::Enter { node }, |reply| {
                matches!(reply, Reply::Done).then_some(())
            })?;
            // From here on the host behind the gateway answers, so read its greeting.
            let greeting = greeted(host, &mut talk.lines, heed)?;
            talk.version = common(host, &greeting)?;
            talk.greeting = greeting;
        }
        Ok(talk)
    }

    /// Opens a conversation with a host of a fleet, as its gateway and on behalf of `owner`.
    pub(super) fn open_for(
        owner: &str,
        host: &KvmHost,
        access: &Access,
        control_dir: &PrivateDir,
        heed: Cancellation,
    ) -> Result<Self, FleetError> {
        let peer = start_for(owner, host, access, control_dir, heed)?;
        Self::of(host, peer, heed)
    }

    fn of(host: &KvmHost, peer: Peer, heed: Cancellation) -> Result<Self, FleetError> {
        let mut lines = Lines::new(peer);
        let greeting = greeted(host, &mut lines, heed)?;
        Ok(Self {
            host: host.clone(),
            lines,
            version: common(host, &greeting)?,
            heard: 0,
            heed,
            greeting,
        })
    }

    /// The same conversation for another question, whose waits are cancelled by `heed`.
    #[must_use]
    pub fn heeding(self, heed: Cancellation) -> Self {
        Self { heed, ..self }
    }

    /// Ignores interrupts from here on and hears the conversation to its end.
    pub fn heed_no_more(&mut self) {
        self.heed = Cancellation::never();
    }

    /// Sends a message.
    pub fn say(&mut self, ask: &FleetRequest) -> Result<(), FleetError> {
        let line = ask.line(self.version).map_err(|source| FleetError::Nonsense {
            host: self.host.clone(),
            source: Some(source),
        })?;
        let until = Instant::now() + ASK_LIMIT;
        let said = self.lines.get_mut().write(&line, self.heed.fd(), until);
        said.map_err(|error| match error.kind() {
            std::io::ErrorKind::Interrupted => self.interrupted(),
            _ => self.broken(Some(LineError::Io(error))),
        })
    }

    /// Reads the next reply. A refusal is an error.
    pub fn hear(&mut self, until: Instant) -> Result<Reply, FleetError> {
        let line = match self.lines.next(self.heed.fd(), Some(until)) {
            Ok(Some(line)) => line,
            Ok(None) => return Err(self.broken(None)),
            Err(LineError::Cancelled) => return Err(self.interrupted()),
            Err(error) => return Err(self.broken(Some(error))),
        };
        self.heard += line.len();
        match serde_json::from_slice::<Reply>(&line) {
            Ok(Reply::Failed(failure)) => {
                let failure = made_harmless(failure);
                let cause = Cause::chain(&failure.causes);
                Err(FleetError::Refused(failure, cause))
            }
            Ok(reply) => reply.judged().map_err(|source| FleetError::InvalidValue {
                host: self.host.clone(),
                source,
            }),
            Err(source) => Err(FleetError::Nonsense {
                host: self.host.clone(),
                source: Some(source),
            }),
        }
    }

    /// Asks, and hears the one reply. An error if `take` finds in it something else than was asked for.
    pub fn ask<T>(
        &mut self,
        ask: &FleetRequest,
        take: impl FnOnce(Reply) -> Option<T>,
    ) -> Result<T, FleetError> {
        self.say(ask)?;
        let until = Instant::now() + ANSWER_LIMIT;
        let reply = self.hear(until)?;
        take(reply).ok_or_else(|| self.nonsense())
    }

    /// Lists all leases there that belong to the owner.
    pub fn list(&mut self) -> Result<Vec<FarLease>, FleetError> {
        self.say(&FleetRequest::List)?;
        let until = Instant::now() + ANSWER_LIMIT;
        let mut leases = Vec::new();
        loop {
            match self.hear(until)? {
                Reply::Lease(told) if leases.len() < LEASES && self.heard <= LISTED => {
                    leases.push(told);
                }
                Reply::Done => return Ok(leases),
                _ => return Err(self.nonsense()),
            }
        }
    }

    /// Closes our side and waits until the host has finished, which rolls back whatever was not claimed.
    pub fn give_up(mut self, limit: Duration) {
        self.lines.get_mut().hang_up();
        let until = Some(Instant::now() + limit);
        while let Ok(Some(_)) = self.lines.next(None, until) {}
    }

    /// The raw streams, for when another protocol takes over, with the bytes already read from them.
    pub fn into_streams(&mut self) -> Result<(Vec<u8>, PipeWriter, PipeReader), FleetError> {
        let behind = self.lines.behind();
        let streams = self.lines.get_mut().streams();
        let (input, output) = streams.map_err(|error| self.broken(Some(LineError::Io(error))))?;
        Ok((behind, input, output))
    }

    /// The error for a reply that makes no sense here.
    pub fn nonsense(&self) -> FleetError {
        FleetError::Nonsense {
            host: self.host.clone(),
            source: None,
        }
    }

    fn interrupted(&self) -> FleetError {
        FleetError::Interrupted {
            host: self.host.clone(),
        }
    }

    fn broken(&mut self, source: Option<LineError>) -> FleetError {
        let (_, said) = match source {
            // The process may still be running, so do not wait for its end.
            Some(_) => (None, String::new()),
            None => self.lines.get_mut().end(),
        };
        FleetError::Broken {
            host: self.host.clone(),
            said: shown(&said),
            source,
        }
    }
}

/// The newest protocol version that both sides speak.
fn common(host: &KvmHost, greeting: &Greeting) -> Result<u32, FleetError> {
    let theirs = greeting.protocol;
    SPOKEN.common(theirs).ok_or_else(|| FleetError::Version {
        host: host.clone(),
        program: shown(&greeting.program),
        theirs: (theirs.least, theirs.most),
    })
}

/// Starts our program on `host`, or on its gateway.
fn start(
    host: &KvmHost,
    access: &Access,
    control_dir: &PrivateDir,
    heed: Cancellation,
) -> Result<Peer, FleetError> {
    let mut target = host.target(access)?;
    target.control = Some(control::path(control_dir, &target)?);
    Peer::start(&target, &format!("crabbox {SERVE}"), heed.fd()).map_err(|source| match source {
        ExecError::Connect {
            source: ConnectError::Cancelled { .. },
        } => FleetError::Interrupted { host: host.clone() },
        source => FleetError::UnreachableHost {
            host: host.clone(),
            source,
        },
    })
}

/// The same on a host of a fleet, which is told on whose behalf it serves.
pub(super) fn start_for(
    owner: &str,
    host: &KvmHost,
    access: &Access,
    control_dir: &PrivateDir,
    heed: Cancellation,
) -> Result<Peer, FleetError> {
    let mut peer = start(host, access, control_dir, heed)?;
    let owner = owner.to_owned();
    let line = FleetRequest::SpeakFor { owner }.line(SPOKEN.least);
    let line = line.map_err(|source| FleetError::Nonsense {
        host: host.clone(),
        source: Some(source),
    })?;
    peer.write(&line, heed.fd(), Instant::now() + ASK_LIMIT)
        .map_err(|error| FleetError::Broken {
            host: host.clone(),
            said: String::new(),
            source: Some(LineError::Io(error)),
        })?;
    Ok(peer)
}

/// Waits for the greeting, ignoring what a login shell prints before it.
fn greeted(host: &KvmHost, lines: &mut Lines<Peer>, heed: Cancellation) -> Result<Greeting, FleetError> {
    let until = Instant::now() + GREETING_LIMIT;
    let mut printed = String::new();
    for _ in 0..NOISE {
        match lines.next(heed.fd(), Some(until)) {
            Ok(Some(line)) if line.starts_with(GREETING) => {
                return serde_json::from_slice(&line).map_err(|source| FleetError::Nonsense {
                    host: host.clone(),
                    source: Some(source),
                });
            }
            Ok(Some(line)) => printed = String::from_utf8_lossy(&line).into_owned(),
            Ok(None) | Err(LineError::Cut { .. }) => break,
            Err(LineError::Cancelled) => return Err(FleetError::Interrupted { host: host.clone() }),
            Err(source) => {
                return Err(FleetError::Broken {
                    host: host.clone(),
                    said: shown(&printed),
                    source: Some(source),
                });
            }
        }
    }
    let (code, said) = lines.get_mut().end();
    Err(FleetError::NoServe {
        host: host.clone(),
        code,
        said: shown(if said.is_empty() { &printed } else { &said }),
    })
}

/// A text from the other side, made safe to display: one line, bounded.
fn shown(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| harmless(line.trim())).collect();
    lines.join("; ").chars().take(TEXT).collect()
}

fn made_harmless(failure: Failure) -> Failure {
    let all = |texts: Vec<String>| texts.iter().take(100).map(|text| shown(text)).collect();
    Failure {
        kind: crossing(failure.kind),
        message: shown(&failure.message),
        causes: all(failure.causes),
        hints: all(failure.hints),
        console: all(failure.console),
        leftovers: all(failure.leftovers),
        ..failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_a_host_is_never_a_success() {
        for code in [0, 9] {
            let line = format!(
                r#"{{"kind":{{"passthrough":{code}}},"message":"m","causes":[],"hints":[],"console":[],"leftovers":[]}}"#
            );
            let failure: Failure = serde_json::from_str(&line).unwrap();
            let refused = FleetError::Refused(made_harmless(failure), None);
            assert_eq!(refused.kind(), Kind::Unavailable);
        }
    }

    #[test]
    fn a_host_that_is_away_is_tried_by_hand_with_its_port() {
        let hint = |host: &str| {
            let host = KvmHost::parse(host).unwrap();
            let source = ExecError::Local {
                source: std::io::ErrorKind::Other.into(),
            };
            FleetError::UnreachableHost { host, source }.hints().remove(0)
        };
        assert!(hint("root@h").contains("`ssh root@h`"));
        assert!(hint("root@h:2222").contains("`ssh -p 2222 root@h`"));
        assert!(hint("root@[::1]:2222").contains("`ssh -p 2222 root@::1`"));
    }
}
