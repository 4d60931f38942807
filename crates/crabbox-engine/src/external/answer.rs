//! The answer of the external protocol, version 1.
//!
//! The answer is the only thing written to standard output, and contains only what the other program needs to enter a lease. The
//! lease's names in it are always that program's own: by our names it would find another lease, or none.

use crabbox_core::external::External;
use crabbox_core::labels::Labels;
use crabbox_core::state::LeaseState;
use schemars::JsonSchema;
use serde::Serialize;

use crate::external::request::VERSION;
use crate::provider::lease::{Lease, Target};

/// Labels of ours that the other program adopts where it has none of its own.
const LIFECYCLE: [&str; 7] = [
    "created_at",
    "expires_at",
    "idle_timeout",
    "idle_timeout_secs",
    "keep",
    "last_touched_at",
    "ttl_secs",
];

/// What a machine needs for the other program's sync and commands. That program's own check also demands Python, which not every
/// image has.
const READY_CHECK: &str = "command -v bash >/dev/null && command -v git >/dev/null && command -v rsync >/dev/null && command -v tar >/dev/null";

/// An answer.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The version of the protocol: 1.
    protocol_version: u64,
    /// The lease of `acquire` and `resolve`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "LeaseAnswer")]
    lease: Option<LeaseAnswer>,
    /// The leases of `list`.
    #[serde(skip_serializing_if = "Option::is_none")]
    leases: Option<Vec<LeaseAnswer>>,
    /// What was done or found, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// Why it was not done. The exit code says what kind of failure it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// A lease, in the words of the program that had it made.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct LeaseAnswer {
    /// Its id there.
    lease_id: String,
    /// Its slug there.
    slug: String,
    /// Its machine's name there.
    name: String,
    /// Its id here, by which this program's own commands take it; empty of one that is gone.
    #[serde(skip_serializing_if = "String::is_empty")]
    cloud_id: String,
    /// Its state now.
    status: String,
    /// What kind of machine it is.
    #[serde(skip_serializing_if = "String::is_empty")]
    server_type: String,
    /// When it was made and used, and how long it lives; times are unix seconds, durations are seconds, as texts.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    labels: Labels,
    /// How it is entered.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SshAnswer")]
    ssh: Option<SshAnswer>,
}

/// How a lease is entered.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct SshAnswer {
    /// Who logs in.
    user: String,
    /// The address.
    host: String,
    /// The private key's path. Beside it lies the `known_hosts` with the lease's host key.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// The port, as a text.
    port: String,
    /// A shell command that succeeds once the machine can be used.
    ready_check: &'static str,
    /// A command whose standard streams are the connection, where there is no route.
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy_command: Option<String>,
}

/// How much an answer says about a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// How to enter it, without labels: the other program has just chosen the limits itself, and our labels would override them.
    New,
    /// Everything.
    Full,
    /// Only its identity.
    Identity,
}

impl Answer {
    fn plain() -> Self {
        Self {
            protocol_version: VERSION,
            lease: None,
            leases: None,
            message: None,
            error: None,
        }
    }

    /// The operation succeeded.
    pub(super) fn done(message: Option<String>) -> Self {
        Self {
            message,
            ..Self::plain()
        }
    }

    /// An answer with one lease.
    pub(super) fn lease(lease: LeaseAnswer) -> Self {
        Self {
            lease: Some(lease),
            ..Self::plain()
        }
    }

    /// An answer with a list of leases.
    pub(super) fn leases(leases: Vec<LeaseAnswer>) -> Self {
        Self {
            leases: Some(leases),
            ..Self::plain()
        }
    }

    /// The operation failed.
    pub fn error(why: String) -> Self {
        Self {
            error: Some(why),
            ..Self::plain()
        }
    }
}

impl LeaseAnswer {
    /// Describes `lease`, which the other program knows as `external`.
    pub(super) fn new(external: &External, lease: &Lease, extent: Extent) -> Self {
        let mut labels = Labels::new();
        if extent == Extent::Full {
            for name in LIFECYCLE {
                if let Some(value) = lease.labels.get(name) {
                    labels.insert(name.to_owned(), value.clone());
                }
            }
        }
        let ssh = lease.target.as_ref().filter(|_| extent != Extent::Identity);
        Self {
            server_type: lease.server_type.clone(),
            labels,
            ssh: ssh.map(SshAnswer::new),
            ..Self::named(external, &lease.id, &lease.state)
        }
    }

    /// Describes a lease of which only the names are known.
    pub(super) fn named(external: &External, here: &str, state: &LeaseState) -> Self {
        Self {
            lease_id: external.lease().to_string(),
            slug: external.slug().to_owned(),
            name: external.name().to_owned(),
            cloud_id: here.to_owned(),
            status: state.to_string(),
            server_type: String::new(),
            labels: Labels::new(),
            ssh: None,
        }
    }
}

impl SshAnswer {
    fn new(target: &Target) -> Self {
        let key = target.key.as_ref();
        Self {
            user: target.user.clone(),
            host: target.host.clone(),
            key: key.map(|key| key.to_string_lossy().into_owned()),
            port: target.port.to_string(),
            ready_check: READY_CHECK,
            proxy_command: target.proxy_command.clone(),
        }
    }
}
