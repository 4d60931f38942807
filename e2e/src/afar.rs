//! Leases on another machine's KVM: a pretended host with a real sshd on its loopback, and clients on the
//! same loopback that run as users without any rights there.
//!
//! Each client has its own home, key and repository, and knows nothing of the host but its address.

use crate::{Done, Host};
use crabbox_core::shell::single_quoted;

/// The address and user of the KVM host's sshd.
pub const KVM: &str = "root@127.0.0.1:2222";

/// Sets up a KVM host for alice and bob, each with a key, a home and a repository, and with access to nothing
/// on the host but `crabbox __serve`.
const SERVE: &str = include_str!("afar.sh");

/// A pretended host that serves alice and bob.
#[track_caller]
pub fn host() -> Host {
    let host = Host::pretend();
    drop(host.sh(SERVE).exits(0));
    host
}

/// Runs a shell script as `who`, in their repository, with the KVM host `at`.
#[track_caller]
pub fn with_host(host: &Host, who: &str, at: &str, script: &str) -> Done {
    let user = if who == "alice" { "nobody" } else { "daemon" };
    let quoted = single_quoted(script);
    host.sh(&format!(
        "cd /tmp/{who}/repo && exec setpriv --reuid {user} --regid $(id -g {user}) --clear-groups env -i HOME=/tmp/{who} \
         PATH=/tmp/bin:/usr/bin:/bin LC_ALL=C CRABBOX_PROVIDER=firecracker CRABBOX_SSH_KEY=/tmp/{who}/key \
         CRABBOX_FIRECRACKER_HOST={at} sh -c {quoted}"
    ))
}

/// The same with the KVM host of [`host`].
#[track_caller]
pub fn with(host: &Host, who: &str, script: &str) -> Done {
    with_host(host, who, KVM, script)
}

/// The residue after both have connected once, so that their shared connections exist.
#[track_caller]
pub fn settled(host: &Host) -> Vec<String> {
    for who in ["alice", "bob"] {
        assert_eq!(with(host, who, "crabbox list").exits(0).stdout, "");
    }
    host.residue()
}

/// Shell: true if the host has no lease any more.
pub const NO_LEASE: &str = "! ls -d /srv/.config/crabbox/state/firecracker/leases/cbx_* >/dev/null 2>&1";

/// Waits on the host, up to 30 s, for a shell condition.
#[track_caller]
pub fn until(host: &Host, condition: &str) {
    let waited = host.sh(&format!(
        "for i in $(seq 600); do if {condition}; then exit 0; fi; sleep 0.05; done; ps ax -o pid,ppid,user,args; exit 1"
    ));
    assert_eq!(
        waited.code,
        Some(0),
        "never became true: {condition}\n{}",
        waited.stdout
    );
}
