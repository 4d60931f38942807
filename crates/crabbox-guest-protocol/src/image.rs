//! Paths inside an image that its builder, its first process and the host agree on.

/// The SSH server that the first process starts.
pub const SSHD: &str = "/usr/sbin/sshd";
/// Where an image says which init it wants above the layers: the path of a program, one line.
pub const INIT: &str = "/usr/lib/crabbox/init";
/// The private host key of a lease; an image must not bring one.
pub const HOST_KEY: &str = "/etc/ssh/ssh_host_ed25519_key";
/// The public half of [`HOST_KEY`].
pub const HOST_KEY_PUBLIC: &str = "/etc/ssh/ssh_host_ed25519_key.pub";
/// The program that says whether a guest can take work: it exits with 0 then. The Go program calls it, too.
pub const READY: &str = "/usr/local/bin/crabbox-ready";
/// Where a guest notes that it was set up once.
pub const BOOTSTRAPPED: &str = "/var/lib/crabbox/bootstrapped";

/// Where an image has the agents that clients start in it, by their digests: programs that only root may change.
pub const AGENTS: &str = "/usr/lib/crabbox/agents";
