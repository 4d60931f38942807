//! The recipe of a lab. Everything that affects the bytes of its images is listed here and goes into one
//! digest, so that an image is never used for a recipe it was not built from; nothing here touches the disk.

use crabbox_core::id::hex;
use sha2::{Digest as _, Sha256};

/// To be incremented when the build process changes without a change in the other inputs.
const VERSION: u32 = 1;

/// The Debian release of the lab.
pub(super) const SUITE: &str = "bookworm";

/// The Debian package whose dependency is the current kernel for clouds; it has `kvm-amd` and little else.
pub(super) const KERNEL_META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Size of the root disk in bytes; sparse, with room for several leases.
pub(super) const DISK_BYTES: u64 = 8 << 30;

/// Packages of this machine for building and running a lab, one per line; `cargo xtask` also reads them
/// before it is compiled.
pub(super) const TOOLS: &str = include_str!("packages/lab.list");

/// The packages that a host needs to make leases and to check for leftovers.
pub(super) const HOST_TOOLS: &str = include_str!("packages/host.list");

/// The additional packages of the tests: an SSH server and login shells, plugins, firewalls, archives and
/// disk tools, a scheduler, time zones.
pub(super) const TEST_TOOLS: &str = include_str!("packages/tests.list");

/// The packages for building a release's packages, besides dpkg.
pub(super) const DIST_TOOLS: &str = include_str!("packages/dist.list");

/// The packages for cross-compiling, besides a Rust compiler, and for running the result here.
pub(super) const CROSS_TOOLS: &str = include_str!("packages/cross.list");

/// Packages inside the lab, on top of Debian's minimal set.
pub(super) const PACKAGES: &[&str] = &[
    "bind9-dnsutils",
    "busybox-static",
    "ca-certificates",
    "containernetworking-plugins",
    "curl",
    "e2fsprogs",
    "git",
    "iproute2",
    "iptables",
    "iputils-ping",
    "jq",
    "kmod",
    "munge",
    "nftables",
    "openssh-client",
    "openssh-server",
    "passt",
    "procps",
    "python3-minimal",
    "rsync",
    "slurm-client",
    "slurmctld",
    "slurmd",
    "socat",
    "sudo",
    "uidmap",
    "xfsprogs",
];

/// Modules that the initrd loads to reach the root disk and the network.
pub(super) const INITRD_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "virtio_net"];

/// Our files in the images: path, mode, contents.
pub(super) const FILES: &[(&str, u32, &str)] = &[
    ("lab-init", 0o755, include_str!("files/lab-init")),
    ("etc/inittab", 0o644, include_str!("files/inittab")),
    ("etc/ssh/sshd_config", 0o644, include_str!("files/sshd_config")),
    ("etc/hostname", 0o644, "kvmhost\n"),
    ("etc/hosts", 0o644, "127.0.0.1 localhost kvmhost\n::1 localhost\n"),
    ("etc/resolv.conf", 0o644, "nameserver 10.0.2.3\n"),
];

/// The first process of the initrd.
pub(super) const INITRD_INIT: &str = include_str!("files/initrd-init");

/// Shell lines run as root with `$1` = the new root directory, after its packages are installed: an
/// unprivileged user with access to `/dev/kvm`, for leases without root. The password is `*` and not `!`,
/// because sshd without PAM refuses locked accounts.
pub(super) const CUSTOMIZE: &str = r#"
chroot "$1" groupadd --system kvm
chroot "$1" useradd --create-home --shell /bin/bash --groups kvm --password '*' lab
chroot "$1" usermod --password '*' root
ln -sf /bin/busybox "$1/sbin/init"
for name in poweroff reboot halt; do ln -sf /bin/busybox "$1/sbin/$name"; done
mkdir -p "$1/artefacts" "$1/var/lib/crabbox"
install -d -m 700 "$1/root/.ssh"
chroot "$1" install -d -m 700 -o lab -g lab /home/lab/.ssh
rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/* "$1"/etc/ssh/ssh_host_*
"#;

/// The name of the images for this recipe with the kernel `kernel_version`: 16 hexadecimal digits.
pub(super) fn digest(kernel_version: &str) -> String {
    let mut hasher = Sha256::new();
    let mut add = |part: &str| {
        // The length prefix keeps two adjacent parts from being read as one.
        hasher.update(part.len().to_le_bytes());
        hasher.update(part);
    };
    add(&VERSION.to_string());
    add(SUITE);
    add(kernel_version);
    add(&DISK_BYTES.to_string());
    add(&PACKAGES.join(" "));
    add(&INITRD_MODULES.join(" "));
    add(INITRD_INIT);
    add(CUSTOMIZE);
    for (path, mode, content) in FILES {
        add(path);
        add(&mode.to_string());
        add(content);
    }
    hex(&hasher.finalize()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_kernel_is_another_image() {
        assert_ne!(digest("6.1.0-1-cloud-amd64"), digest("6.1.0-2-cloud-amd64"));
        assert_eq!(digest("x").len(), 16);
    }
}
