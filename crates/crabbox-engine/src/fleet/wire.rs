//! What a KVM host and its clients say to each other: one JSON document a line, versioned, and judged here before anybody uses it.
//!
//! ```text
//!  host    {"crabbox-serve":"0.1.0","protocol":{"least":1,"most":1},"role":"host","owner":"alice"}
//!  client  {"protocol":1,"verb":"acquire","key":"ssh-ed25519 ..","settings":{"firecracker.cpus":"2"}}
//!  host    {"reply":"stage",..} ..  {"reply":"ready","lease":{..},"host_key":"ssh-ed25519 .."}
//!  client  {"protocol":1,"verb":"claimed"}
//!  host    {"reply":"lease",..}  {"reply":"done"}            or at any time {"reply":"failed",..}, which ends that request
//! ```
//! A gateway says `"role":"gateway"`, and to `acquire` first `{"reply":"queued",..}` as often as it likes: the lease is made on a host of
//! its fleet, which its label `node` names. After `enter` and its `done` the streams are that host's, which greets again. A host of a
//! fleet hears from its gateway first for whom it speaks (`speak_for`), before it greets.
//!
//! A client that goes away before `claimed` has given the lease up. After `connect` and its `done` the streams are the guest's SSH
//! server. The highest version that both know is spoken; fields that a reader does not know are passed over, verbs are refused by name.
//! A failure crosses as text with its kind. Nothing here may be believed that the other side could not honestly say.

use std::collections::BTreeMap;

use crabbox_core::external::External;
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::id::LeaseId;
use crabbox_core::labels::{self, Labels};
use crabbox_host::signals::Heed;
use crabbox_machine::lifecycle::hold::LONGEST_WAIT;
use crabbox_machine::protocol::{Failure, Stage};
use serde::{Deserialize, Serialize};

/// The versions that this program speaks: its own and the one before it, of which there is none yet.
pub const SPOKEN: Span = Span { least: 1, most: 1 };

/// How the first line of a host begins. What comes before it is a login shell's.
pub const GREETING: &[u8] = br#"{"crabbox-serve":"#;

/// The hidden command of the other end.
pub const SERVE: &str = "__serve";

/// The hidden command that leads an SSH client to a guest there.
pub const PROXY: &str = "__proxy";

/// The role of what makes leases itself.
pub const HOST: &str = "host";

/// The role of what has leases made on the hosts of a fleet.
pub const GATEWAY: &str = "gateway";

/// The longest text of a lease that is shown, in bytes.
const TEXT: usize = 256;

/// The most labels that a lease has.
const LABELS: usize = 128;

/// The most stages that the making of one lease has, and as many again of its guest's boot.
pub(crate) const STAGES: usize = 200;

/// The longest form of a host key, in bytes: an RSA key of 16384 bits has 2.8 KiB.
const HOST_KEY: usize = 4096;

/// The most leases that one list has.
pub const LEASES: usize = 10_000;

/// How much of a log crosses, in bytes: a control character takes six in JSON, and all of it is one line.
pub const LOG: usize = 32 * 1024;

/// The longest path, in bytes (`PATH_MAX` of Linux).
const PATH: usize = 4096;

/// Keys of the configuration that a client may say for its lease: what it is like, never what runs on the host.
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

/// Versions, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The oldest.
    pub least: u32,
    /// The newest.
    pub most: u32,
}

impl Span {
    /// The newest version in both.
    pub fn common(self, other: Self) -> Option<u32> {
        let newest = self.most.min(other.most);
        (newest >= self.least.max(other.least)).then_some(newest)
    }

    fn has(self, version: u32) -> bool {
        (self.least..=self.most).contains(&version)
    }
}

/// A host's first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// The version of its program.
    #[serde(rename = "crabbox-serve")]
    pub program: String,
    /// The versions of the protocol that it speaks.
    pub protocol: Span,
    /// What it is: [`HOST`] or [`GATEWAY`].
    pub role: String,
    /// For whom it takes us.
    pub owner: String,
}

/// What a lease is named for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aim {
    /// To work in it.
    Use,
    /// To look at it, or to end it.
    Look,
}

/// Which log of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogSource {
    /// The guest's console.
    Console,
    /// What the VMM wrote.
    Vmm,
    /// What the supervisor did.
    Supervisor,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Ask {
    /// A new lease.
    Acquire {
        /// The public key that opens it.
        key: String,
        /// What it is to be like, by keys of [`SAYABLE`]; the rest is as the host has it.
        #[serde(default)]
        settings: BTreeMap<String, String>,
        /// The slug that the user wants.
        #[serde(default)]
        slug: Option<String>,
        /// Whether the user asked to keep it.
        #[serde(default)]
        keep: bool,
        /// What another program calls it, which is judged as it is read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        external: Option<External>,
        /// Whether the client understands a queue, and a lease on another host than the one that it speaks to.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        queue: bool,
        /// The job that the lease is for: a gateway's to say, and nobody else's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job: Option<Bound>,
    },
    /// The new lease has been entered and claimed.
    Claimed,
    /// One lease.
    Resolve {
        /// Its id, slug or name.
        lease: String,
        /// What for.
        aim: Aim,
    },
    /// The owner's leases.
    List,
    /// A lease is in use.
    Touch {
        /// Its id.
        lease: String,
        /// Its state from now on.
        #[serde(default)]
        state: Option<String>,
        /// Its idle limit from now on, in seconds.
        #[serde(default)]
        idle_seconds: Option<u64>,
    },
    /// A lease is given back.
    Release {
        /// Its id, slug or name.
        lease: String,
        /// Whether its directory goes although it was made to stay.
        #[serde(default)]
        discard: bool,
    },
    /// The end of a log.
    Logs {
        /// The lease's id.
        lease: String,
        /// Which log.
        source: LogSource,
    },
    /// From the reply on the streams are those of the guest's SSH server.
    Connect {
        /// The lease's id.
        lease: String,
    },
    /// From the reply on the streams are those of a host behind this gateway.
    Enter {
        /// The scheduler's name of the host.
        node: String,
    },
    /// What has become of a lease whose host does not answer.
    Fate {
        /// Its id.
        lease: LeaseId,
        /// Its job.
        job: u32,
    },
    /// For whom a gateway speaks from here on.
    SpeakFor {
        /// The owner.
        owner: String,
    },
}

/// What binds a request to a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// The number of the job.
    pub id: u32,
    /// The lease that it was submitted for.
    pub lease: LeaseId,
    /// The scheduler's name of the host on which it runs.
    pub node: String,
    /// What was drawn at its submission.
    pub nonce: String,
    /// How long its process waits for the request, in seconds.
    #[serde(default = "longest_wait")]
    pub seconds: u64,
}

fn longest_wait() -> u64 {
    LONGEST_WAIT.as_secs()
}

/// The verbs of [`Ask`].
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
    ask: &'a Ask,
}

/// What of a client's line is read before anything else in it means something.
#[derive(Debug, Deserialize)]
struct Head {
    protocol: Option<u32>,
    verb: Option<String>,
}

/// A lease as it crosses.
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
    /// How many bytes all of its disks and memory hold, where that is known.
    pub capacity: Option<u64>,
}

/// The same before it was looked at.
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

/// What no lease can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a lease whose {field} is {found:?}")]
pub struct Odd {
    field: &'static str,
    found: String,
}

/// Printable, without anything that a terminal or a configuration would read as more than text.
fn is_plain(text: &str, most: usize) -> bool {
    text.len() <= most && !text.chars().any(char::is_control)
}

impl TryFrom<Unjudged> for FarLease {
    type Error = Odd;

    fn try_from(told: Unjudged) -> Result<Self, Odd> {
        let odd = |field, found: &str| Odd {
            field,
            found: found.chars().take(TEXT).collect(),
        };
        let id = LeaseId::parse(&told.id).map_err(|_| odd("id", &told.id))?;
        let is_word = |text: &str| {
            text.len() <= TEXT
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        for (field, text) in [
            ("slug", &told.slug),
            ("name", &told.name),
            ("type", &told.server_type),
            ("state", &told.state),
            ("user", &told.user),
        ] {
            if !is_word(text) {
                return Err(odd(field, text));
            }
        }
        if told.user.is_empty() || told.user.starts_with('-') {
            return Err(odd("user", &told.user));
        }
        if told.port == 0 {
            return Err(odd("port", "0"));
        }
        let root = &told.work_root;
        if !root.starts_with('/') || !is_plain(root, PATH) || root.split('/').any(|part| part == "..") {
            return Err(odd("work root", root));
        }
        if told.labels.len() > LABELS {
            return Err(odd("number of labels", &told.labels.len().to_string()));
        }
        for (name, value) in &told.labels {
            if !is_plain(name, TEXT) || !is_plain(value, PATH) {
                return Err(odd("label", name));
            }
        }
        Ok(Self {
            id,
            slug: told.slug,
            name: told.name,
            server_type: told.server_type,
            state: told.state,
            labels: told.labels,
            user: told.user,
            port: told.port,
            work_root: told.work_root,
            has_address: told.has_address,
            unjailed: told.unjailed,
            capacity: told.capacity,
        })
    }
}

/// The kind of a failure that comes from a host, or goes to a client. Only a command has an exit code to hand through, and none runs at the
/// other end of this conversation: who says so could have whatever failed end with 0.
pub(crate) fn crossing(kind: Kind) -> Kind {
    match kind {
        Kind::Passthrough(_) => Kind::Unavailable,
        kind => kind,
    }
}

/// What a host replies.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// A part of the way to a machine is done.
    Stage(Stage),
    /// A template was to be used, and the machine boots all the same.
    Cold {
        /// Why.
        why: String,
    },
    /// The lease waits for a host.
    Queued {
        /// Its place, and for what.
        text: String,
    },
    /// What has become of a job, in the scheduler's word; `None` where it does not know it any more.
    Fate {
        /// As `RUNNING` or `NODE_FAIL`.
        how: Option<String>,
    },
    /// The guest is ready, and waits to be entered and claimed.
    Ready {
        /// The lease.
        lease: FarLease,
        /// The guest's own host key, in OpenSSH's form.
        host_key: String,
        /// Whether it says itself when all is in its place.
        says_ready: bool,
        /// How much longer it may take to be entered, in seconds.
        seconds: u64,
        /// What it said of its boot: stages with its uptime in milliseconds.
        guest_stages: Vec<(String, u64)>,
    },
    /// One lease.
    Lease(FarLease),
    /// A lease's labels as they are now.
    Labels {
        /// The labels.
        labels: Labels,
    },
    /// A lease was given back.
    Released {
        /// Its id.
        id: String,
        /// Its machine's name.
        name: String,
        /// The directory on the host that stays with its disk.
        kept: Option<String>,
    },
    /// The end of a log. What is not UTF-8 in it is U+FFFD.
    Log {
        /// Its last bytes, [`LOG`] at most.
        text: String,
    },
    /// All is said.
    Done,
    /// It did not work.
    Failed(Failure),
}

impl Reply {
    /// The same, when an honest host could have said it: what is kept or shown of a reply has its bounds.
    pub(crate) fn judged(self) -> Result<Self, Odd> {
        let odd = |field, found: &str| Odd {
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

/// Why what a client said is not served.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It is not JSON, or lacks something.
    #[error("the request is malformed")]
    Malformed(#[source] serde_json::Error),
    /// It is of a version that this program does not speak.
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
    /// A verb of a later version.
    #[error("this host's crabbox {} does not know {verb:?}", env!("CARGO_PKG_VERSION"))]
    Unknown {
        /// The verb.
        verb: String,
    },
}

impl Fault for AskError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Version { .. } | Self::Unknown { .. } => {
                vec![
                    "update crabbox on the host: it serves clients of its own version and the one before"
                        .to_owned(),
                ]
            }
            Self::Malformed(_) | Self::Headless => Vec::new(),
        }
    }
}

impl Ask {
    /// What the waits of this question end by. What begins somebody's work is not begun after an interruption; what follows one, as a lease
    /// that is given back, is asked all the same.
    pub(crate) fn heed(&self) -> Heed {
        if self.begins_work() {
            Heed::ever()
        } else {
            Heed::from_now_on()
        }
    }

    fn begins_work(&self) -> bool {
        match self {
            Self::Acquire { .. } | Self::Connect { .. } | Self::Enter { .. } => true,
            Self::Resolve { aim, .. } => *aim == Aim::Use,
            Self::Touch { state, .. } => state.as_deref() == Some("running"),
            Self::Claimed
            | Self::List
            | Self::Release { .. }
            | Self::Logs { .. }
            | Self::Fate { .. }
            | Self::SpeakFor { .. } => false,
        }
    }

    /// Reads a client's line.
    pub fn read(line: &[u8]) -> Result<Self, AskError> {
        // Version and verb first: what else stands in a line of others is not ours to judge.
        let head: Head = serde_json::from_slice(line).map_err(AskError::Malformed)?;
        let (Some(found), Some(verb)) = (head.protocol, head.verb) else {
            return Err(AskError::Headless);
        };
        if !SPOKEN.has(found) {
            return Err(AskError::Version { found });
        }
        if !VERBS.contains(&verb.as_str()) {
            let verb = verb.chars().take(TEXT).collect();
            return Err(AskError::Unknown { verb });
        }
        serde_json::from_slice(line).map_err(AskError::Malformed)
    }

    /// Its line in `version`, the end included.
    pub fn line(&self, version: u32) -> Result<Vec<u8>, serde_json::Error> {
        crabbox_machine::protocol::line(&Line {
            protocol: version,
            ask: self,
        })
    }
}

/// Whether labels that came over the wire are some that a lease can have.
pub(crate) fn judged(found: Labels) -> Result<Labels, Odd> {
    let odd = found.len() > LABELS
        || found
            .iter()
            .any(|(name, value)| !is_plain(name, TEXT) || !is_plain(value, PATH));
    if odd {
        return Err(Odd {
            field: "labels",
            found: labels::state(&found).to_string().chars().take(TEXT).collect(),
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
