//! Paths inside an image that its builder, its first process and the host agree on.

/// The SSH server that the first process starts.
pub const SSHD: &str = "/usr/sbin/sshd";
/// The settings of an SSH server in a lease, in the form of `sshd_config(5)`: the way in, no negotiation that
/// a lease does not need, and no lookups. Without PAM a login is some 16 ms shorter here. Of the settings
/// that may be given several times, these are added to an image's own; of all others the first one counts.
pub const SSHD_SETTINGS: [(&str, &str); 20] = [
    ("Port", "22"),
    ("ListenAddress", "0.0.0.0"),
    ("ListenAddress", "::"),
    ("HostKey", HOST_KEY),
    ("AuthorizedKeysFile", ".ssh/authorized_keys"),
    ("AllowUsers", "*"),
    ("AllowGroups", "*"),
    ("PubkeyAuthentication", "yes"),
    ("AuthenticationMethods", "publickey"),
    ("PasswordAuthentication", "no"),
    ("KbdInteractiveAuthentication", "no"),
    ("PermitRootLogin", "no"),
    ("UsePAM", "no"),
    ("UseDNS", "no"),
    ("PrintMotd", "no"),
    ("PrintLastLog", "no"),
    ("AcceptEnv", "LANG LC_*"),
    ("ClientAliveInterval", "0"),
    ("MaxSessions", "100"),
    ("MaxStartups", "100"),
];
/// Names the init that the image wants to run above the layers: the path of a program, one line.
pub const INIT: &str = "/usr/lib/crabbox/init";
/// The private host key of a lease; an image must not bring one.
pub const HOST_KEY: &str = "/etc/ssh/ssh_host_ed25519_key";
/// The public half of [`HOST_KEY`].
pub const HOST_KEY_PUBLIC: &str = "/etc/ssh/ssh_host_ed25519_key.pub";
/// The program that exits with 0 when the guest is ready for work. The Go program calls it, too.
pub const READY: &str = "/usr/local/bin/crabbox-ready";
/// The mark that a guest leaves once it was set up.
pub const BOOTSTRAPPED: &str = "/var/lib/crabbox/bootstrapped";

/// The directory in which an image has the agents that clients start, by digest; only root may change them.
pub const AGENTS: &str = "/usr/lib/crabbox/agents";
