//! The JSON documents about leases, one type a document; field names and order are the Go program's.

use crabbox_core::labels::{self, Labels};
use crabbox_core::timestamp;
use crabbox_engine::lease::Lease;
use serde::Serialize;

use crate::go;

/// One element of `list --json`.
#[derive(Debug, Serialize)]
pub(super) struct ListItem {
    #[serde(rename = "CloudID")]
    cloud_id: String,
    #[serde(rename = "Provider")]
    provider: &'static str,
    #[serde(rename = "HostID")]
    host_id: String,
    id: i64,
    name: String,
    status: String,
    labels: Labels,
    public_net: Net,
    private_net: Net,
    server_type: ServerType,
}

#[derive(Debug, Serialize)]
struct Net {
    ipv4: Ipv4,
}

#[derive(Debug, Serialize)]
struct Ipv4 {
    ip: String,
}

#[derive(Debug, Serialize)]
struct ServerType {
    name: String,
}

impl ListItem {
    /// The element for `lease`.
    pub(super) fn new(lease: &Lease) -> Self {
        let net = |ip: &str| Net {
            ipv4: Ipv4 { ip: ip.to_owned() },
        };
        Self {
            cloud_id: lease.cloud_id.clone(),
            provider: lease.provider,
            host_id: String::new(),
            id: 0,
            name: lease.name.clone(),
            status: lease.state.clone(),
            labels: lease.labels.clone(),
            public_net: net(&lease.address),
            private_net: net(""),
            server_type: ServerType {
                name: lease.server_type.clone(),
            },
        }
    }
}

/// `status --json` and `inspect --json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StatusView {
    pub(super) id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) slug: String,
    pub(super) provider: &'static str,
    pub(super) target: &'static str,
    pub(super) state: String,
    pub(super) server_id: String,
    pub(super) server_type: String,
    pub(super) host: String,
    pub(super) network: &'static str,
    ssh_host: String,
    ssh_user: String,
    ssh_port: String,
    ssh_key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_touched_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) idle_for: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) idle_timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expires_at: Option<String>,
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub(super) labels: Labels,
    pub(super) has_host: bool,
    pub(super) ready: bool,
}

impl StatusView {
    /// The view of `lease` at `now`; `ready` is what the caller found out.
    pub(super) fn new(lease: &Lease, ready: bool, now: i64) -> Self {
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
            state: lease.state.clone(),
            server_id: lease.cloud_id.clone(),
            server_type: lease.server_type.clone(),
            host: lease.address.clone(),
            network: "public",
            ssh_host: lease.address.clone(),
            ssh_user: user,
            ssh_port: port,
            ssh_key: key,
            last_touched_at: touched.map(timestamp::rfc3339),
            idle_for: touched.map(|at| go::seconds((now - at).max(0))),
            idle_timeout: Some(go::seconds(lease.idle_seconds())),
            expires_at: lease.expires_at().map(timestamp::rfc3339),
            labels: lease.labels.clone(),
            has_host: !lease.address.is_empty(),
            ready,
        }
    }

    /// What stands behind `ssh` to enter the lease: `<key> -p <port> <user>@<host>`; `-` while it has no address.
    pub(super) fn ssh(&self) -> String {
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

/// The lease of the behaviour reference's sample documents.
#[cfg(test)]
pub(super) fn sample() -> Lease {
    let mut target =
        crabbox_engine::lease::Target::new("crabbox", "192.168.127.5", 22, "/k/known_hosts".as_ref())
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
        state: "ready".into(),
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
    }
}
