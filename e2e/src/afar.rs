//! Leases on another machine's KVM: a pretended host with a real sshd on its loopback, and clients on the same loopback who are users without
//! any right there.
//!
//! Each client has a home, a key and a repository of their own, and knows nothing of the host but its address.

use crate::{Done, Host};

/// Where the sshd of the KVM host listens, and whom it lets in.
pub const KVM: &str = "root@127.0.0.1:2222";

/// A KVM host for alice and bob, each with a key, a home and a repository of their own, and nothing on the host but `crabbox __serve`.
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
    let quoted = script.replace('\'', r"'\''");
    host.sh(&format!(
        "cd /tmp/{who}/repo && exec setpriv --reuid {user} --regid $(id -g {user}) --clear-groups env -i HOME=/tmp/{who} \
         PATH=/tmp/bin:/usr/bin:/bin LC_ALL=C CRABBOX_PROVIDER=firecracker CRABBOX_SSH_KEY=/tmp/{who}/key \
         CRABBOX_FIRECRACKER_HOST={at} sh -c '{quoted}'"
    ))
}

/// The same with the KVM host of [`host`].
#[track_caller]
pub fn with(host: &Host, who: &str, script: &str) -> Done {
    with_host(host, who, KVM, script)
}

/// Both have asked once, so that their connections to the host are there.
#[track_caller]
pub fn settled(host: &Host) -> Vec<String> {
    for who in ["alice", "bob"] {
        assert_eq!(with(host, who, "crabbox list").exits(0).stdout, "");
    }
    host.residue()
}

/// Shell: the host has no lease any more.
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
