//! The seed: what the host tells an instance about itself, as small files in a directory of the initramfs.

/// The directory, seen from the root of the initramfs.
pub const DIRECTORY: &str = "crabbox-seed";
/// All files that a seed may have, except its mark [`TEMPLATE`].
pub const FILES: [&str; 12] = [
    HOSTNAME,
    INSTANCE_ID,
    USER,
    AUTHORIZED_KEYS,
    HOST_KEY,
    HOST_KEY_PUBLIC,
    NETWORK,
    RESOLV_CONF,
    WORK_ROOT,
    TIME,
    ENTROPY,
    VOLUMES,
];
/// Marks a seed without an identity: the guest does what is common to all leases, then parks
/// ([`crate::identity`]).
pub const TEMPLATE: &str = "template";
/// The host name, one line.
pub const HOSTNAME: &str = "hostname";
/// The lease, one line.
pub const INSTANCE_ID: &str = "instance-id";
/// The user to create and to log in as, one line.
pub const USER: &str = "user";
/// The user's `authorized_keys`.
pub const AUTHORIZED_KEYS: &str = "authorized_keys";
/// The guest's private host key.
pub const HOST_KEY: &str = "ssh_host_ed25519_key";
/// The guest's public host key.
pub const HOST_KEY_PUBLIC: &str = "ssh_host_ed25519_key.pub";
/// Address, gateway and MAC address of its interface, as `key=value` lines.
pub const NETWORK: &str = "network";
/// Its `resolv.conf`.
pub const RESOLV_CONF: &str = "resolv.conf";
/// The directory under which trees are synced, one line.
pub const WORK_ROOT: &str = "work_root";
/// The host's clock, in seconds since 1970, one line.
pub const TIME: &str = "time";
/// Random bytes for the guest's generator.
pub const ENTROPY: &str = "entropy";
/// Drives that outlive their leases, one `<device> <mount point>` per line, mounted before the SSH server
/// answers. A guest that supports them reports the stage [`VOLUMES`], and a stage [`NOT_MOUNTED`] for each
/// that it could not mount; an older guest ignores the file.
pub const VOLUMES: &str = "volumes";
/// The stage name of a volume that is not mounted, before its line number in [`VOLUMES`], counted from 0.
pub const NOT_MOUNTED: &str = "no-volume-";
