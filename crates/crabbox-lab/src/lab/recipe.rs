//! What a lab is made of. Everything that decides the bytes of its images is named here and goes into one digest, so that
//! an image is never used for a recipe it was not built from; nothing here touches the disk.

use sha2::{Digest as _, Sha256};

/// To be raised when the way of building changes and none of the other inputs does.
const VERSION: u32 = 1;

/// The Debian release of the lab.
pub(super) const SUITE: &str = "bookworm";

/// The Debian package whose dependency is the current kernel for clouds; it has `kvm-amd` and little else.
pub(super) const KERNEL_META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Size of the root disk in bytes; sparse, room for several leases.
pub(super) const DISK_BYTES: u64 = 8 << 30;

/// Packages of this machine that build and run a lab, one a line; `cargo xtask` reads them too, before it is compiled.
pub(super) const TOOLS: &str = include_str!("packages/lab.list");

/// What a host needs on which leases are made, and looked for after them.
pub(super) const HOST_TOOLS: &str = include_str!("packages/host.list");

/// What the tests call besides: a server to speak to and login shells for it, plugins, firewalls of others, archives and disks to look at,
/// a scheduler.
pub(super) const TEST_TOOLS: &str = include_str!("packages/tests.list");

/// What puts the packages of a release together, beside dpkg.
pub(super) const DIST_TOOLS: &str = include_str!("packages/dist.list");

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
    "nftables",
    "openssh-client",
    "openssh-server",
    "passt",
    "procps",
    "python3-minimal",
    "rsync",
    "socat",
    "sudo",
    "uidmap",
    "xfsprogs",
];

/// Modules that the initrd loads to reach the root disk and the network.
pub(super) const INITRD_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "virtio_net"];

/// Files of ours that go into the images: path, mode, content.
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

/// Shell lines run as root with `$1` = the new root directory, after its packages are in: an unprivileged user with
/// access to `/dev/kvm`, for leases without root. `*` and not `!` as password: sshd without PAM refuses locked accounts.
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
        // The length in front keeps two neighbouring parts from being read as one.
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

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or('0');
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_kernel_is_another_image() {
        assert_ne!(digest("6.1.0-1-cloud-amd64"), digest("6.1.0-2-cloud-amd64"));
        assert_eq!(digest("x").len(), 16);
        assert_eq!(hex(&[0x0f, 0xa0]), "0fa0");
    }
}
