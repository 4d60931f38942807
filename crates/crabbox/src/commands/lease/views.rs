//! The JSON documents about leases, one type per document; field names and order are the Go program's.

use crabbox_core::labels::{self, Labels};
use crabbox_core::state::LeaseState;
use crabbox_core::timestamp;
use crabbox_engine::provider::lease::Lease;
use schemars::JsonSchema;
use serde::Serialize;

use crate::go;

/// One element of `list --json`.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::commands) struct ListItem {
    /// What its provider calls it: the microVM's name, or the lease id of a host that exists already.
    #[serde(rename = "CloudID")]
    cloud_id: String,
    /// The provider, by its canonical name.
    #[serde(rename = "Provider")]
    provider: &'static str,
    /// The KVM host that has it, as `firecracker.host` names it; empty where that is this machine.
    #[serde(rename = "HostID")]
    host_id: String,
    /// Always 0: no provider here numbers its machines.
    id: i64,
    /// The machine's name.
    name: String,
    /// Its state now, computed and not stored: `ready`, `running`, `provisioning`, `stopped`, `released`, `failed`, `expired` and so on.
    status: String,
    /// Everything that is kept about the lease; times are unix seconds, durations are seconds, as texts.
    labels: Labels,
    /// Where it is reached.
    public_net: Net,
    /// Always empty.
    private_net: Net,
    /// What kind of machine it is.
    server_type: ServerType,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Net {
    ipv4: Ipv4,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Ipv4 {
    /// The address; empty while there is none.
    ip: String,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ServerType {
    /// `microvm`, or `ssh` for a host that exists already.
    name: String,
}

/// The labels of `lease` with its current state, as the Go program shows them. An unclaimed host is `active`, and its label shows the state that it
/// would be leased in.
fn labels(lease: &Lease) -> Labels {
    let mut labels = lease.labels.clone();
    if labels.contains_key("state") && lease.state != LeaseState::Active {
        labels::set_state(&mut labels, &lease.state);
    }
    labels
}

impl ListItem {
    /// The element for `lease`.
    pub(in crate::commands) fn new(lease: &Lease) -> Self {
        let net = |ip: &str| Net {
            ipv4: Ipv4 { ip: ip.to_owned() },
        };
        Self {
            cloud_id: lease.cloud_id.clone(),
            provider: lease.provider,
            host_id: lease
                .kvm_host
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            id: 0,
            name: lease.name.clone(),
            status: lease.state.to_string(),
            labels: labels(lease),
            public_net: net(&lease.address),
            private_net: net(""),
            server_type: ServerType {
                name: lease.server_type.clone(),
            },
        }
    }
}

/// `status --json` and `inspect --json`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct StatusView {
    /// The lease id.
    pub(in crate::commands) id: String,
    /// The lease's name for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::commands) slug: String,
    /// The provider, by its canonical name.
    pub(in crate::commands) provider: &'static str,
    /// The operating system: `linux`.
    pub(in crate::commands) target: &'static str,
    /// Its state now, computed and not stored.
    pub(in crate::commands) state: String,
    /// What its provider calls the machine.
    pub(in crate::commands) server_id: String,
    /// `microvm`, or `ssh` for a host that exists already.
    pub(in crate::commands) server_type: String,
    /// Its address; empty while there is none.
    pub(in crate::commands) host: String,
    /// How it is reached: `public`.
    pub(in crate::commands) network: &'static str,
    /// Where sshd listens; empty while there is no address.
    ssh_host: String,
    /// Who logs in.
    ssh_user: String,
    /// The port, as a text.
    ssh_port: String,
    /// Other ports that are tried if nothing answers there, as texts; absent where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::commands) ssh_fallback_ports: Vec<String>,
    /// The private key's path; empty when OpenSSH chooses.
    ssh_key: String,
    /// When it was last used, RFC 3339 in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::commands) last_touched_at: Option<String>,
    /// How long ago that is, as Go writes durations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::commands) idle_for: Option<String>,
    /// How long it may stand idle, as Go writes durations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::commands) idle_timeout: Option<String>,
    /// When it ends unless it is used before, RFC 3339 in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::commands) expires_at: Option<String>,
    /// Everything that is kept about the lease; times are unix seconds, durations are seconds, as texts.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub(in crate::commands) labels: Labels,
    /// Whether it has an address.
    pub(in crate::commands) has_host: bool,
    /// Whether it can be entered now.
    pub(in crate::commands) ready: bool,
}

impl StatusView {
    /// The view of `lease` at `now`; the caller has determined `ready`.
    pub(in crate::commands) fn new(lease: &Lease, ready: bool, now: i64) -> Self {
        let touched = labels::time(&lease.labels, "last_touched_at");
        let (user, port, key) = lease.target.as_ref().map_or_else(Default::default, |target| {
            let key = target.key.as_ref().map(|key| key.to_string_lossy().into_owned());
            (
                target.user.clone(),
                target.port.to_string(),
                key.unwrap_or_default(),
            )
        });
        Self {
            id: lease.id.clone(),
            slug: lease.slug.clone(),
            provider: lease.provider,
            target: "linux",
            state: lease.state.to_string(),
            server_id: lease.cloud_id.clone(),
            server_type: lease.server_type.clone(),
            host: lease.address.clone(),
            network: "public",
            ssh_host: lease.address.clone(),
            ssh_user: user,
            ssh_port: port,
            ssh_fallback_ports: lease.fallback_ports.iter().map(u16::to_string).collect(),
            ssh_key: key,
            last_touched_at: touched.map(timestamp::rfc3339),
            idle_for: touched.map(|at| go::seconds(now.saturating_sub(at).max(0))),
            idle_timeout: Some(go::seconds(lease.idle_seconds())),
            expires_at: lease.expires_at().map(timestamp::rfc3339),
            labels: labels(lease),
            has_host: !lease.address.is_empty(),
            ready,
        }
    }

    /// The arguments of `ssh` to enter the lease: `<key> -p <port> <user>@<host>`; `-` while it has no address.
    pub(in crate::commands) fn ssh(&self) -> String {
        if self.ssh_user.is_empty() {
            return "-".to_owned();
        }
        let Self {
            ssh_key,
            ssh_port,
            ssh_user,
            ssh_host,
            ..
        } = self;
        format!("{ssh_key} -p {ssh_port} {ssh_user}@{ssh_host}")
    }
}

/// One lease for the golden documents of all views.
#[cfg(test)]
pub(in crate::commands) fn sample() -> Lease {
    let mut target = crabbox_engine::provider::lease::Target::new(
        "crabbox",
        "192.168.127.5",
        22,
        "/k/known_hosts".as_ref(),
    )
    .unwrap();
    target.key = Some("/k/id_ed25519".into());
    let label = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    Lease {
        id: "cbx_0123456789ab".into(),
        slug: "jade-krill".into(),
        name: "crabbox-jade-krill-1a2b3c4d".into(),
        cloud_id: "crabbox-jade-krill-1a2b3c4d".into(),
        provider: "firecracker",
        server_type: "microvm".into(),
        state: crabbox_core::state::LeaseState::Ready,
        labels: [
            ("expires_at", "1754001800"),
            ("idle_timeout_secs", "1800"),
            ("keep", "true"),
            ("last_touched_at", "1754000000"),
            ("server_type", "microvm"),
            ("state", "ready"),
        ]
        .map(label)
        .into(),
        address: "192.168.127.5".into(),
        target: Some(target),
        work_root: "/work/crabbox".into(),
        kvm_host: None,
        fallback_ports: Vec::new(),
        is_claimed: true,
        unjailed: false,
    }
}
