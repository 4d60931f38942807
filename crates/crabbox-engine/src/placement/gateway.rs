//! A gateway: a host that places leases on the hosts of its fleet, as configured in a directory of its own.
//!
//! The directory `fleet` is next to the configuration file of the serving account and belongs to that account
//! alone: `gateway.json`, the private key `key` that the hosts accept, and their host keys in `known_hosts`.
//! It must never be read from anywhere else, least of all from a repository: whoever writes it decides where
//! all users' source goes.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_core::fault::{Fault, Kind};
use crabbox_host::files;
use crabbox_host::private_dir::{PrivateDir, PrivateDirError};
use crabbox_machine::lifecycle::hold::LONGEST_WAIT;
use serde::Deserialize;

use super::Placement;
use super::slurm::Slurm;
use crate::fleet::address::{Access, HostError, KvmHost, is_name};

/// The name of the directory.
const DIR: &str = "fleet";

/// The name of the file that makes a host a gateway.
const FILE: &str = "gateway.json";

/// The maximum size of that file in bytes, enough for thousands of hosts.
const LONGEST: u64 = 1024 * 1024;

/// How much of a refused name is quoted, in characters.
const NAME: usize = 64;

/// The file's content.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    /// The partition of the hosts.
    partition: String,
    /// The prefix of an owner's account in Slurm's database; only needed if Slurm has one.
    #[serde(default)]
    account_prefix: Option<String>,
    /// How long a job waits for its request, in seconds.
    #[serde(default = "longest")]
    request_seconds: u64,
    /// The hosts, by the scheduler's names, each as `user@host` or `user@host:port`.
    nodes: BTreeMap<String, String>,
}

fn longest() -> u64 {
    LONGEST_WAIT.as_secs()
}

/// Why this host cannot be the gateway that it is configured to be.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Others can change the configuration.
    #[error("cannot trust the gateway configuration of this host")]
    Dir(#[from] PrivateDirError),
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The file cannot be parsed.
    #[error("{} is not the description of a gateway", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A value in it is invalid.
    #[error("{}: {field} cannot be {found:?}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// The invalid value.
        found: String,
    },
    /// The address of a host is invalid.
    #[error("{}: nodes.{node} cannot be used", path.display())]
    Address {
        /// The file.
        path: PathBuf,
        /// The host.
        node: String,
        /// Why.
        #[source]
        source: HostError,
    },
    /// The fleet has no such host.
    #[error("this gateway has no host {name:?}")]
    NoNode {
        /// The name.
        name: String,
    },
}

impl Fault for GatewayError {
    fn kind(&self) -> Kind {
        match self {
            Self::NoNode { .. } | Self::Read { .. } => Kind::Unavailable,
            _ => Kind::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::NoNode { name } => vec![format!(
                "the administrator of the fleet adds {name} to {FILE} on the gateway, as docs/fleet.md says"
            )],
            Self::Dir(_) => vec![format!(
                "make the directory {DIR} the serving account's own, with mode 0700"
            )],
            _ => vec!["docs/fleet.md shows such a file".to_owned()],
        }
    }
}

/// A host that places leases on other hosts.
#[derive(Debug)]
pub struct Gateway {
    dir: PathBuf,
    partition: String,
    account_prefix: Option<String>,
    request_wait: Duration,
    nodes: BTreeMap<String, KvmHost>,
}

impl Gateway {
    /// The gateway configured in `config`, the configuration directory of the serving account; `None` if
    /// there is none.
    pub fn find(config: &Path) -> Result<Option<Self>, GatewayError> {
        let dir = config.join(DIR);
        let path = dir.join(FILE);
        match std::fs::symlink_metadata(&path) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            _ => {}
        }
        let dir = PrivateDir::open(&dir)?.path().to_owned();
        let text = files::read_regular(&path, LONGEST).map_err(|source| GatewayError::Read {
            path: path.clone(),
            source,
        })?;
        let written = serde_json::from_slice(&text).map_err(|source| GatewayError::Malformed {
            path: path.clone(),
            source,
        })?;
        Self::judge(dir, &path, written).map(Some)
    }

    fn judge(dir: PathBuf, path: &Path, written: Written) -> Result<Self, GatewayError> {
        let value = |field, found: &str| GatewayError::Value {
            path: path.to_owned(),
            field,
            found: found.to_owned(),
        };
        if !is_name(&written.partition) {
            return Err(value("partition", &written.partition));
        }
        if let Some(prefix) = &written.account_prefix
            && !(prefix.is_empty() || is_name(prefix))
        {
            return Err(value("account_prefix", prefix));
        }
        if !(1..=longest()).contains(&written.request_seconds) {
            return Err(value("request_seconds", &written.request_seconds.to_string()));
        }
        let mut nodes = BTreeMap::new();
        for (node, address) in written.nodes {
            if !is_name(&node) {
                return Err(value("the name of a node", &node));
            }
            let host = KvmHost::parse(&address).map_err(|source| GatewayError::Address {
                path: path.to_owned(),
                node: node.clone(),
                source,
            })?;
            if host.node().is_some() {
                return Err(value("the address of a node", &address));
            }
            nodes.insert(node, host);
        }
        Ok(Self {
            dir,
            partition: written.partition,
            account_prefix: written.account_prefix,
            request_wait: Duration::from_secs(written.request_seconds),
            nodes,
        })
    }

    /// The address of the scheduler's host `name`. Hosts that are not in the file are refused, whatever the
    /// scheduler or a client says.
    pub fn node(&self, name: &str) -> Result<&KvmHost, GatewayError> {
        self.nodes.get(name).ok_or_else(|| GatewayError::NoNode {
            name: name.chars().take(NAME).collect(),
        })
    }

    /// The partition of its hosts.
    pub fn partition(&self) -> &str {
        &self.partition
    }

    /// The scheduler's names of its hosts.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    /// How to enter its hosts: with the gateway's own key, and only hosts whose host keys it knows.
    pub fn access(&self) -> Access {
        Access {
            key: Some(self.dir.join("key")),
            known_hosts: self.dir.join("known_hosts"),
            pinned: true,
        }
    }

    /// How long a job waits for its request.
    pub fn request_wait(&self) -> Duration {
        self.request_wait
    }

    /// The scheduler.
    pub fn placement(&self) -> Box<dyn Placement> {
        Box::new(Slurm {
            partition: self.partition.clone(),
            account_prefix: self.account_prefix.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn written(root: &Path, text: &str) -> Result<Option<Gateway>, GatewayError> {
        let dir = root.join(DIR);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::write(dir.join(FILE), text).unwrap();
        Gateway::find(root)
    }

    const GOOD: &str =
        r#"{"partition": "lease", "nodes": {"h1": "root@192.0.2.1", "h2": "crabbox@192.0.2.2:2222"}}"#;

    #[test]
    fn a_host_is_a_gateway_by_its_own_file_alone() {
        let root = tempfile::tempdir().unwrap();
        assert!(Gateway::find(root.path()).unwrap().is_none());
        let gateway = written(root.path(), GOOD).unwrap().unwrap();
        assert_eq!(gateway.node("h2").unwrap().to_string(), "crabbox@192.0.2.2:2222");
        assert_eq!(gateway.request_wait(), LONGEST_WAIT);
        assert!(gateway.access().pinned);
        for stranger in ["h3", "root@192.0.2.1", "", "h1,h2"] {
            let error = gateway.node(stranger).unwrap_err();
            assert_eq!(error.kind(), Kind::Unavailable, "{stranger:?}");
        }
        // A configuration that others can change is refused, not ignored.
        std::fs::set_permissions(root.path().join(DIR), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(Gateway::find(root.path()), Err(GatewayError::Dir(_))));
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_field() {
        let root = tempfile::tempdir().unwrap();
        for (good, bad, field) in [
            (r#""lease""#, r#""--uid=0""#, "partition"),
            (
                r#""lease""#,
                r#""lease", "account_prefix": "a b""#,
                "account_prefix",
            ),
            (
                r#""lease""#,
                r#""lease", "request_seconds": 61"#,
                "request_seconds",
            ),
            (
                r#""lease""#,
                r#""lease", "request_seconds": 0"#,
                "request_seconds",
            ),
            (r#""h1""#, r#""h[1-9]""#, "node"),
            ("root@192.0.2.1", "192.0.2.1", "nodes.h1"),
            ("root@192.0.2.1", "root@192.0.2.1/h3", "node"),
            ("root@192.0.2.1", "-oProxyCommand=x@h", "nodes.h1"),
            (r#""nodes""#, r#""node""#, "not the description"),
        ] {
            let text = GOOD.replacen(good, bad, 1);
            assert_ne!(text, GOOD);
            let error = written(root.path(), &text).unwrap_err();
            assert!(error.to_string().contains(field), "{bad}: {error}");
            assert!(error.kind() == Kind::Usage && !error.hints().is_empty());
        }
    }
}
