//! The protocol between a KVM host and its clients: one JSON document per line, versioned, and validated here
//! before use.
//!
//! ```text
//!  host    {"crabbox-serve":"0.1.0","protocol":{"least":1,"most":1},"role":"host","owner":"alice"}
//!  client  {"protocol":1,"verb":"acquire","key":"ssh-ed25519 ..","settings":{"firecracker.cpus":"2"}}
//!  host    {"reply":"stage",..} ..  {"reply":"ready","lease":{..},"host_key":"ssh-ed25519 .."}
//!  client  {"protocol":1,"verb":"claimed"}
//!  host    {"reply":"lease",..}  {"reply":"done"}            or at any time {"reply":"failed",..}, which ends that request
//! ```
//! A gateway announces `"role":"gateway"`, and may answer `acquire` with any number of
//! `{"reply":"queued",..}` first: the lease is made on a host of its fleet, which the label `node` names.
//! After the `done` of `enter` the streams are that host's, which sends its own greeting. On a host of a
//! fleet, the gateway first says on whose behalf it speaks (`speak_for`), before the host greets.
//!
//! A client that disconnects before `claimed` has given up the lease. After the `done` of `connect` the
//! streams are those of the guest's SSH server. Both sides use the newest version that they share. Unknown
//! fields are ignored; unknown verbs are refused by name. A failure crosses as text with its kind. Whatever
//! the other side could not honestly say must be rejected here.

use std::collections::BTreeMap;

use crabbox_core::external::External;
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::id::LeaseId;
use crabbox_core::labels::{self, Labels};
use crabbox_host::signals::Cancellation;
use crabbox_machine::lifecycle::hold::LONGEST_WAIT;
use crabbox_machine::protocol::{Failure, Stage};
use serde::{Deserialize, Serialize};

/// The protocol versions that this program speaks: its own and the previous one, which does not exist yet.
pub const SPOKEN: Span = Span { least: 1, most: 1 };

/// The beginning of a host's first line. Anything before it was printed by a login shell.
pub const GREETING: &[u8] = br#"{"crabbox-serve":"#;

/// The hidden command that runs at the other end.
pub const SERVE: &str = "__serve";

/// The hidden command that connects an SSH client to a guest on the host.
pub const PROXY: &str = "__proxy";

/// The role of a host that makes leases itself.
pub const HOST: &str = "host";

/// The role of a gateway, which has leases made on the hosts of its fleet.
pub const GATEWAY: &str = "gateway";

/// The longest short text of a lease, in bytes.
const TEXT: usize = 256;

/// The maximum number of labels of a lease.
const LABELS: usize = 128;

/// The maximum number of stages of making a lease, and again of its guest's boot.
pub(crate) const STAGES: usize = 200;

/// The maximum length of a host key, in bytes: an RSA key of 16384 bits takes 2.8 KiB.
const HOST_KEY: usize = 4096;

/// The maximum number of leases in a list.
pub const LEASES: usize = 10_000;

/// How many bytes of a log are sent. All of it is one line, and a control character takes six bytes in JSON.
pub const LOG: usize = 32 * 1024;

/// The longest path, in bytes (`PATH_MAX` of Linux).
const PATH: usize = 4096;

/// Configuration keys that a client may set for its lease: they shape the lease, but never what runs on the
/// host.
pub const SAYABLE: [&str; 9] = [
    "firecracker.cpus",
    "firecracker.memoryMiB",
    "firecracker.diskMiB",
    "firecracker.user",
    "firecracker.workRoot",
    "firecracker.launchTimeout",
    "ttl",
    "idleTimeout",
    "profile",
];

/// A range of versions, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The oldest.
    pub least: u32,
    /// The newest.
    pub most: u32,
}

impl Span {
    /// The newest version in both ranges.
    pub fn common(self, other: Self) -> Option<u32> {
        let newest = self.most.min(other.most);
        (newest >= self.least.max(other.least)).then_some(newest)
    }

    fn has(self, version: u32) -> bool {
        (self.least..=self.most).contains(&version)
    }
}

/// The first line of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// The version of its program.
    #[serde(rename = "crabbox-serve")]
    pub program: String,
    /// The versions of the protocol that it speaks.
    pub protocol: Span,
    /// The role: [`HOST`] or [`GATEWAY`].
    pub role: String,
    /// The owner that it takes us for.
    pub owner: String,
}

/// The purpose of resolving a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResolvePurpose {
    /// To work in it.
    Use,
    /// To look at it, or to end it.
    Look,
}

/// Which log of a lease to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogSource {
    /// The guest's console.
    Console,
    /// The VMM's output.
    Vmm,
    /// The supervisor's log.
    Supervisor,
}

/// A client's request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum FleetRequest {
    /// Make a new lease.
    Acquire {
        /// The public key for entering it.
        key: String,
        /// Its settings, by keys of [`SAYABLE`]; the host's own settings apply to the rest.
        #[serde(default)]
        settings: BTreeMap<String, String>,
        /// The requested slug.
        #[serde(default)]
        slug: Option<String>,
        /// Whether the user asked to keep it.
        #[serde(default)]
        keep: bool,
        /// Another program's names for it, which are validated when parsed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        external: Option<External>,
        /// Whether the client supports a queue, and a lease on a host other than the one that it talks to.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        queue: bool,
        /// The job that the lease is for. Only a gateway may set it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job: Option<Bound>,
    },
    /// The new lease has been entered and claimed.
    Claimed,
    /// Describe one lease.
    Resolve {
        /// Its id, slug or name.
        lease: String,
        /// The purpose.
        aim: ResolvePurpose,
    },
    /// List the owner's leases.
    List,
    /// Report that a lease is in use.
    Touch {
        /// Its id.
        lease: String,
        /// Its new state.
        #[serde(default)]
        state: Option<String>,
        /// Its new idle limit, in seconds.
        #[serde(default)]
        idle_seconds: Option<u64>,
    },
    /// Release a lease.
    Release {
        /// Its id, slug or name.
        lease: String,
        /// Whether to delete even a directory that was to be kept.
        #[serde(default)]
        discard: bool,
    },
    /// Send the end of a log.
    Logs {
        /// The lease's id.
        lease: String,
        /// Which log.
        source: LogSource,
    },
    /// Connect to the guest: after the reply the streams are those of its SSH server.
    Connect {
        /// The lease's id.
        lease: String,
    },
    /// Connect to a host behind this gateway: after the reply the streams are that host's.
    Enter {
        /// The scheduler's name of the host.
        node: String,
    },
    /// Ask what became of a lease whose host does not answer.
    Fate {
        /// Its id.
        lease: LeaseId,
        /// Its job.
        job: u32,
    },
    /// Says on whose behalf a gateway speaks from here on.
    SpeakFor {
        /// The owner.
        owner: String,
    },
}

/// Binds a request to a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// The number of the job.
    pub id: u32,
    /// The lease that the job was submitted for.
    pub lease: LeaseId,
    /// The scheduler's name of the host that it runs on.
    pub node: String,
    /// The nonce drawn at its submission.
    pub nonce: String,
    /// How long the job's process waits for the request, in seconds.
    #[serde(default = "longest_wait")]
    pub seconds: u64,
}

fn longest_wait() -> u64 {
    LONGEST_WAIT.as_secs()
}

/// The verbs of [`FleetRequest`].
const VERBS: [&str; 11] = [
    "acquire",
    "claimed",
    "resolve",
    "list",
    "touch",
    "release",
    "logs",
    "connect",
    "enter",
    "fate",
    "speak_for",
];

/// One line of a client.
#[derive(Debug, Serialize)]
struct Line<'a> {
    protocol: u32,
    #[serde(flatten)]
    ask: &'a FleetRequest,
}

/// The part of a client's line that is read first, because the rest depends on it.
#[derive(Debug, Deserialize)]
struct Head {
    protocol: Option<u32>,
    verb: Option<String>,
}

/// A lease as sent over the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unjudged")]
pub struct FarLease {
    /// Its id.
    pub id: LeaseId,
    /// Its slug.
    pub slug: String,
    /// Its machine's name.
    pub name: String,
    /// Its kind of machine.
    pub server_type: String,
    /// Its state.
    pub state: String,
    /// Its labels.
    pub labels: Labels,
    /// User to log in as.
    pub user: String,
    /// Port of its SSH server.
    pub port: u16,
    /// Directory under which trees are synced.
    pub work_root: String,
    /// Whether its machine has an address.
    pub has_address: bool,
    /// Whether its VMM runs as root, without a jail.
    pub unjailed: bool,
    /// The total capacity of its disks and memory in bytes, if known.
    pub capacity: Option<u64>,
}

/// The same before validation.
#[derive(Debug, Deserialize)]
struct Unjudged {
    id: String,
    slug: String,
    name: String,
    server_type: String,
    state: String,
    labels: Labels,
    user: String,
    port: u16,
    work_root: String,
    has_address: bool,
    #[serde(default)]
    unjailed: bool,
    #[serde(default)]
    capacity: Option<u64>,
}

/// A value that no lease can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {field} of a lease: {found:?}")]
pub struct InvalidValue {
    field: &'static str,
    found: String,
}

/// Whether a text is short enough and free of control characters, which a terminal or a configuration file
/// would interpret.
fn is_plain(text: &str, most: usize) -> bool {
    text.len() <= most && !text.chars().any(char::is_control)
}

impl TryFrom<Unjudged> for FarLease {
    type Error = InvalidValue;

    fn try_from(lease: Unjudged) -> Result<Self, InvalidValue> {
        let odd = |field, found: &str| InvalidValue {
            field,
            found: found.chars().take(TEXT).collect(),
        };
        let id = LeaseId::parse(&lease.id).map_err(|_| odd("id", &lease.id))?;
        let is_word = |text: &str| {
            text.len() <= TEXT
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        for (field, text) in [
            ("slug", &lease.slug),
            ("name", &lease.name),
            ("type", &lease.server_type),
            ("state", &lease.state),
            ("user", &lease.user),
        ] {
            if !is_word(text) {
                return Err(odd(field, text));
            }
        }
        if lease.user.is_empty() || lease.user.starts_with('-') {
            return Err(odd("user", &lease.user));
        }
        if lease.port == 0 {
            return Err(odd("port", "0"));
        }
        let root = &lease.work_root;
        if !root.starts_with('/') || !is_plain(root, PATH) || root.split('/').any(|part| part == "..") {
            return Err(odd("work root", root));
        }
        if lease.labels.len() > LABELS {
            return Err(odd("number of labels", &lease.labels.len().to_string()));
        }
        for (name, value) in &lease.labels {
            if !is_plain(name, TEXT) || !is_plain(value, PATH) {
                return Err(odd("label", name));
            }
        }
        Ok(Self {
            id,
            slug: lease.slug,
            name: lease.name,
            server_type: lease.server_type,
            state: lease.state,
            labels: lease.labels,
            user: lease.user,
            port: lease.port,
            work_root: lease.work_root,
            has_address: lease.has_address,
            unjailed: lease.unjailed,
            capacity: lease.capacity,
        })
    }
}

/// The kind of a failure that crosses the wire. `Passthrough` is not let through: no command with an exit
/// code runs at the other end, and a peer could make any failure exit with 0 by it.
pub(crate) fn crossing(kind: Kind) -> Kind {
    match kind {
        Kind::Passthrough(_) => Kind::Unavailable,
        kind => kind,
    }
}

/// A host's reply.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// One step of making the lease is done.
    Stage(Stage),
    /// A template should have been used, but the machine boots cold instead.
    Cold {
        /// Why.
        why: String,
    },
    /// The lease waits for a host.
    Queued {
        /// Its position, and what it waits for.
        text: String,
    },
    /// What became of a job, in the scheduler's word; `None` if the scheduler no longer knows it.
    Fate {
        /// For example `RUNNING` or `NODE_FAIL`.
        how: Option<String>,
    },
    /// The guest is ready to be entered and claimed.
    Ready {
        /// The lease.
        lease: FarLease,
        /// The guest's host key, in OpenSSH's format.
        host_key: String,
        /// Whether the guest reports by itself when everything is in place.
        says_ready: bool,
        /// How much time is left to enter it, in seconds.
        seconds: u64,
        /// The guest's report of its boot: stages with its uptime in milliseconds.
        guest_stages: Vec<(String, u64)>,
    },
    /// A description of one lease.
    Lease(FarLease),
    /// The current labels of a lease.
    Labels {
        /// The labels.
        labels: Labels,
    },
    /// A lease was released.
    Released {
        /// Its id.
        id: String,
        /// Its machine's name.
        name: String,
        /// The directory that stays on the host with its disk.
        kept: Option<String>,
    },
    /// The end of a log, with invalid UTF-8 replaced by U+FFFD.
    Log {
        /// Its last bytes, at most [`LOG`] of them.
        text: String,
    },
    /// The request is complete.
    Done,
    /// The request failed.
    Failed(Failure),
}

impl Reply {
    /// Returns the reply if it could be honest: everything that is kept or displayed has its bounds.
    pub(crate) fn judged(self) -> Result<Self, InvalidValue> {
        let odd = |field, found: &str| InvalidValue {
            field,
            found: found.chars().take(TEXT).collect(),
        };
        match &self {
            Self::Stage(stage) if !is_plain(&stage.name, TEXT) => Err(odd("stage", &stage.name)),
            Self::Cold { why } if why.len() > PATH => Err(odd("cold start", why)),
            Self::Queued { text } if text.len() > PATH => Err(odd("queue", text)),
            Self::Fate { how: Some(how) } if !is_plain(how, TEXT) => Err(odd("fate", how)),
            Self::Ready { host_key, .. } if !is_plain(host_key, HOST_KEY) => Err(odd("host key", host_key)),
            Self::Ready { guest_stages, .. } if guest_stages.len() > STAGES => {
                Err(odd("number of stages", &guest_stages.len().to_string()))
            }
            Self::Ready { guest_stages, .. } => {
                match guest_stages.iter().find(|(name, _)| !is_plain(name, TEXT)) {
                    Some((name, _)) => Err(odd("stage", name)),
                    None => Ok(self),
                }
            }
            _ => Ok(self),
        }
    }
}

/// Why a request is not served.
#[derive(Debug, thiserror::Error)]
pub enum FleetRequestError {
    /// It is not JSON, or lacks a field.
    #[error("the request is malformed")]
    Malformed(#[source] serde_json::Error),
    /// This program does not speak its version.
    #[error(
        "the request is of protocol version {found}, and crabbox {} speaks {} to {}", env!("CARGO_PKG_VERSION"), SPOKEN.least, SPOKEN.most
    )]
    Version {
        /// The version.
        found: u32,
    },
    /// It names no version or no verb.
    #[error("the request names no protocol version or no verb")]
    Headless,
    /// The verb is unknown.
    #[error("this host's crabbox {} does not know {verb:?}", env!("CARGO_PKG_VERSION"))]
    Unknown {
        /// The verb.
        verb: String,
    },
}

impl Fault for FleetRequestError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Version { .. } | Self::Unknown { .. } => {
                vec![
                    "update crabbox on the host: it supports clients of its own version and the previous one"
                        .to_owned(),
                ]
            }
            Self::Malformed(_) | Self::Headless => Vec::new(),
        }
    }
}

impl FleetRequest {
    /// How waits for this request are cancelled. A request that begins work is not made after an
    /// interruption. One that follows an interruption, such as a release, is made anyway.
    pub(crate) fn heed(&self) -> Cancellation {
        if self.begins_work() {
            Cancellation::ever()
        } else {
            Cancellation::from_now_on()
        }
    }

    fn begins_work(&self) -> bool {
        match self {
            Self::Acquire { .. } | Self::Connect { .. } | Self::Enter { .. } => true,
            Self::Resolve { aim, .. } => *aim == ResolvePurpose::Use,
            Self::Touch { state, .. } => state.as_deref() == Some("running"),
            Self::Claimed
            | Self::List
            | Self::Release { .. }
            | Self::Logs { .. }
            | Self::Fate { .. }
            | Self::SpeakFor { .. } => false,
        }
    }

    /// Parses a client's line.
    pub fn read(line: &[u8]) -> Result<Self, FleetRequestError> {
        // Read version and verb first: if either is not ours, we cannot interpret the rest.
        let head: Head = serde_json::from_slice(line).map_err(FleetRequestError::Malformed)?;
        let (Some(found), Some(verb)) = (head.protocol, head.verb) else {
            return Err(FleetRequestError::Headless);
        };
        if !SPOKEN.has(found) {
            return Err(FleetRequestError::Version { found });
        }
        if !VERBS.contains(&verb.as_str()) {
            let verb = verb.chars().take(TEXT).collect();
            return Err(FleetRequestError::Unknown { verb });
        }
        serde_json::from_slice(line).map_err(FleetRequestError::Malformed)
    }

    /// The request as a line in `version`, line end included.
    pub fn line(&self, version: u32) -> Result<Vec<u8>, serde_json::Error> {
        crabbox_machine::protocol::line(&Line {
            protocol: version,
            ask: self,
        })
    }
}

/// Validates labels that came over the wire.
pub(crate) fn judged(found: Labels) -> Result<Labels, InvalidValue> {
    let odd = found.len() > LABELS
        || found
            .iter()
            .any(|(name, value)| !is_plain(name, TEXT) || !is_plain(value, PATH));
    if odd {
        return Err(InvalidValue {
            field: "labels",
            found: labels::state(&found).to_string().chars().take(TEXT).collect(),
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
