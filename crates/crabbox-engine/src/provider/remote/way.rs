//! How to enter a lease on another machine: through our own proxy, with the keys kept here.
//!
//! It must never accept a guest's host key other than the one that was pinned when the lease was made.

use std::path::{Path, PathBuf};

use crabbox_core::claim::Claim;
use crabbox_machine::context::Engine;
use crabbox_machine::resource::connection::ConnectionError;
use crabbox_ssh::control as sockets;
use crabbox_ssh::quote;
use crabbox_ssh::target::Target;

use super::error::RemoteError;
use crate::fleet::address::{Access, KvmHost};
use crate::fleet::wire::{FarLease, PROXY};

/// The lease as its claim describes it.
pub(super) fn told_by(claim: &Claim) -> Option<FarLease> {
    let label = |name: &str| claim.labels.get(name).cloned().unwrap_or_default();
    let value = serde_json::json!({
        "id": claim.lease_id, "slug": claim.slug, "name": claim.cloud_id, "server_type": label("server_type"),
        "state": label("state"), "labels": claim.labels, "user": label("ssh_user"), "port": claim.ssh_port,
        "work_root": label("work_root"), "has_address": true,
    });
    serde_json::from_value(value).ok()
}

/// How to enter a lease on `host`: through our own proxy, with the key and the pinned host key kept here. Its
/// address has no meaning on this machine, so its id takes the address's place.
pub(super) fn target(
    engine: &Engine,
    host: &KvmHost,
    access: &Access,
    lease: &FarLease,
) -> Result<Target, RemoteError> {
    let id = lease.id.as_str();
    let dir = engine.places.keys(id);
    let failed = |error| RemoteError::Connection(ConnectionError::Target(error));
    let mut target = Target::new(&lease.user, id, lease.port, &dir.join("known_hosts")).map_err(failed)?;
    target.key = Some(dir.join("id_ed25519"));
    target.host_key_pinned = true;
    target.capacity = lease.capacity;
    target.proxy_command = Some(proxy_command(engine, host, access, id));
    let control_dir = engine.control_dir().map_err(ConnectionError::from)?;
    target.control = Some(sockets::path(&control_dir, &target).map_err(ConnectionError::from)?);
    Ok(target)
}

/// The socket of the shared connection of a lease on `host`; `None` if there is no place for one.
pub fn control(engine: &Engine, host: &KvmHost, access: &Access, lease: &FarLease) -> Option<PathBuf> {
    target(engine, host, access, lease).ok()?.control
}

/// The command line of our proxy. OpenSSH passes it to a shell, after expanding `%`.
fn proxy_command(engine: &Engine, host: &KvmHost, access: &Access, id: &str) -> String {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut words = vec![
        text(&engine.exe),
        PROXY.to_owned(),
        "--host".to_owned(),
        host.to_string(),
        "--known-hosts".to_owned(),
        text(&access.known_hosts),
    ];
    if let Some(key) = &access.key {
        words.extend(["--key".to_owned(), text(key)]);
    }
    words.push(id.to_owned());
    quote::join(words).replace('%', "%%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxy_is_one_word_after_the_other_for_any_shell_and_for_openssh() {
        let root = tempfile::tempdir().unwrap();
        let engine = Engine {
            exe: "/opt/100% sure/crab'box".into(),
            ..crate::fixture::engine(root.path())
        };
        let access = Access {
            key: Some("/h/my key".into()),
            known_hosts: "/h/known_hosts".into(),
            pinned: false,
        };
        let host = KvmHost::parse("crabbox@kvm1:2222").unwrap();
        let line = proxy_command(&engine, &host, &access, "cbx_0123456789ab").replace("%%", "%");
        let said = crabbox_host::command::Cmd::new("sh")
            .args(["-c", &format!("printf '%s\\n' {line}")])
            .run()
            .unwrap();
        let words: Vec<_> = said.stdout_text().lines().map(str::to_owned).collect();
        assert_eq!(
            words,
            [
                "/opt/100% sure/crab'box",
                "__proxy",
                "--host",
                "crabbox@kvm1:2222",
                "--known-hosts",
                "/h/known_hosts",
                "--key",
                "/h/my key",
                "cbx_0123456789ab"
            ]
        );
    }
}
