//! Turns a Debian tree into a guest: the user's rights, sshd, the ready check, and nothing of the building machine.
//!
//! The tree is about to be shared by every lease, so it must hold no host key, no machine id, no seed of randomness and
//! no package lists; the guest's first process brings what makes a lease itself.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use crabbox_host::files::{self, FileError};

use super::{BuildError, OwnInit};
use crate::manifest::GuestContract;

/// What is emptied or absent in an image: logs, caches, lists, and everything that would identify one machine.
const EMPTIED_DIRS: [&str; 6] = [
    "var/lib/apt/lists",
    "var/cache/apt",
    "var/log",
    "tmp",
    "run",
    "usr/share/locale",
];

/// Single files that must not be there.
const ABSENT: [&str; 14] = [
    "etc/ssh/ssh_host_rsa_key",
    "etc/ssh/ssh_host_rsa_key.pub",
    "etc/ssh/ssh_host_ecdsa_key",
    "etc/ssh/ssh_host_ecdsa_key.pub",
    "etc/ssh/ssh_host_ed25519_key",
    "etc/ssh/ssh_host_ed25519_key.pub",
    "etc/hostname",
    "etc/resolv.conf",
    "var/lib/systemd/random-seed",
    "var/lib/dbus/machine-id",
    "var/cache/ldconfig/aux-cache",
    "var/cache/debconf/templates.dat-old",
    "var/cache/debconf/config.dat-old",
    "var/lib/dpkg/status-old",
];

/// Nothing to look up, nothing to negotiate that the lease does not use. Without PAM a login is some 16 ms shorter here.
const SSHD: &str = "\
# Written by crabbox image build.
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
HostKey /etc/ssh/ssh_host_ed25519_key
AcceptEnv LANG LC_*
ClientAliveInterval 0
MaxSessions 100
MaxStartups 100
";

/// Exits 0 when the guest can take a sync and a command; says what is missing otherwise.
const READY: &str = r#"#!/bin/sh
# Written by crabbox image build. Usage: crabbox-ready [WORK_ROOT]
root=${1:-@WORK_ROOT@}
for tool in git rsync curl jq; do
  command -v "$tool" >/dev/null || { echo "crabbox-ready: $tool is missing" >&2; exit 1; }
done
[ -e /var/lib/crabbox/bootstrapped ] || { echo "crabbox-ready: not set up yet" >&2; exit 1; }
[ -d "$root" ] && [ -w "$root" ] || { echo "crabbox-ready: cannot write to $root" >&2; exit 1; }
"#;

/// Directories that are written into; none of them may lead elsewhere.
const WRITTEN: [&str; 14] = [
    "etc",
    "etc/ssh",
    "etc/ssh/sshd_config.d",
    "etc/sudoers.d",
    "usr/lib/crabbox",
    LAST_WORDS,
    "usr/local/bin",
    "var/lib/crabbox",
    "var/lib/dbus",
    "var/lib/dpkg",
    "var/lib/systemd",
    "var/cache/crabbox",
    "var/cache/debconf",
    "var/cache/ldconfig",
];

/// Where systemd looks for what it runs last (`systemd-shutdown(8)`).
const LAST_WORDS: &str = "usr/lib/systemd/system-shutdown";

/// Firecracker has no power switch: a kernel that is told to power off halts, and its microVM would stand there until the lease is too
/// old. A reset ends it. Everything is unmounted when systemd runs this.
const POWER_OFF: &str = r#"#!/bin/sh
# Written by crabbox image build.
case "$1" in
poweroff | halt) echo b > /proc/sysrq-trigger ;;
esac
"#;

/// The file that tells the guest's first process which init to hand over to; `crabbox-guest` knows the same path.
const INIT: &str = "usr/lib/crabbox/init";

/// Whether no part of `path` that is there is a symbolic link, so that a write below `tree` stays in it.
pub(super) fn is_real(tree: &Path, path: &str) -> bool {
    let parts = Path::new(path)
        .ancestors()
        .filter(|part| !part.as_os_str().is_empty());
    parts
        .map(|part| std::fs::symlink_metadata(tree.join(part)))
        .all(|found| {
            found.map_or_else(
                |error| error.kind() == std::io::ErrorKind::NotFound,
                |facts| !facts.is_symlink(),
            )
        })
}

/// Refuses a tree in which anything that [`apply`] writes to or empties would be somewhere else.
fn check_places(tree: &Path, guest: &GuestContract) -> Result<(), BuildError> {
    let work_root = guest.work_root.trim_start_matches('/');
    for path in WRITTEN.into_iter().chain(EMPTIED_DIRS).chain([work_root]) {
        let good = is_real(tree, path)
            && std::fs::symlink_metadata(tree.join(path)).map_or(true, |facts| facts.is_dir());
        if !good {
            let path = path.to_owned();
            return Err(BuildError::Link { path });
        }
    }
    Ok(())
}

/// Settles everything that packages leave open. `tree` is the root of the file system to be.
pub(super) fn apply(tree: &Path, guest: &GuestContract, init: OwnInit) -> Result<(), BuildError> {
    check_places(tree, guest)?;
    for dir in EMPTIED_DIRS {
        empty_files(&tree.join(dir))?;
    }
    for dir in ["etc/ssh/sshd_config.d", "etc/sudoers.d", "usr/local/bin"] {
        if !tree.join(dir).is_dir() {
            directory(&tree.join(dir), None)?;
        }
    }
    for file in ABSENT {
        files::remove_tree(&tree.join(file))?;
    }
    let write = |path: &str, text: &str, mode| files::write_atomic(&tree.join(path), text.as_bytes(), mode);
    write("etc/machine-id", "", 0o444)?;
    write("etc/fstab", "", 0o644)?;
    write("etc/motd", "", 0o644)?;
    write(
        "etc/hosts",
        "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
        0o644,
    )?;
    let user = &guest.user;
    write(
        "etc/sudoers.d/crabbox",
        &format!("{user} ALL=(ALL:ALL) NOPASSWD: ALL\n"),
        0o440,
    )?;
    write("etc/ssh/sshd_config.d/99-crabbox.conf", SSHD, 0o644)?;
    write(
        "usr/local/bin/crabbox-ready",
        &READY.replace("@WORK_ROOT@", &guest.work_root),
        0o755,
    )?;

    match init {
        OwnInit::Systemd => {
            directory(&tree.join("usr/lib/crabbox"), None)?;
            write(INIT, "/sbin/init\n", 0o644)?;
            directory(&tree.join(LAST_WORDS), None)?;
            write(&format!("{LAST_WORDS}/crabbox"), POWER_OFF, 0o755)?;
        }
        OwnInit::None => files::remove_tree(&tree.join(INIT))?,
    }
    directory(&tree.join("var/lib/crabbox"), None)?;
    write("var/lib/crabbox/bootstrapped", "", 0o644)?;
    write("var/lib/crabbox/image-ready", "", 0o644)?;
    let work_root = tree.join(guest.work_root.trim_start_matches('/'));
    directory(&work_root, Some(guest.uid))?;
    // Where the Go program's run phases look for caches.
    for cache in ["pnpm", "npm"] {
        directory(&tree.join("var/cache/crabbox").join(cache), Some(guest.uid))?;
    }
    Ok(())
}

/// Makes `path` and its parents (0755), the last one owned by `owner` when given.
fn directory(path: &Path, owner: Option<u32>) -> Result<(), FileError> {
    let fail = |source| FileError::io("create directory", path, source);
    std::fs::create_dir_all(path).map_err(fail)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).map_err(fail)?;
    if owner.is_some() {
        chown(path, owner, owner).map_err(|source| FileError::io("change the owner of", path, source))?;
    }
    Ok(())
}

/// Removes every file below `dir` and keeps the directories, whose owners and modes daemons rely on.
fn empty_files(dir: &Path) -> Result<(), FileError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(FileError::io("list", dir, source)),
    };
    for entry in entries {
        let entry = entry.map_err(|source| FileError::io("list", dir, source))?;
        let path = entry.path();
        let kind = entry
            .file_type()
            .map_err(|source| FileError::io("look at", &path, source))?;
        if kind.is_dir() {
            empty_files(&path)?;
        } else {
            files::remove_tree(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crabbox_host::command::Cmd;
    use std::os::unix::fs::MetadataExt as _;

    /// The directories that Debian's packages bring, and what a build leaves in them.
    fn debian_tree() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        for dir in [
            "etc/ssh/sshd_config.d",
            "etc/sudoers.d",
            "usr/local/bin",
            "var/log/apt",
            "var/cache/ldconfig",
            "var/lib/apt/lists/partial",
            "var/lib/systemd",
        ] {
            std::fs::create_dir_all(tree.path().join(dir)).unwrap();
        }
        for file in [
            "etc/ssh/ssh_host_ed25519_key",
            "etc/machine-id",
            "etc/fstab",
            "etc/hostname",
            "var/log/apt/history.log",
            "var/lib/apt/lists/some_Packages",
            "var/lib/systemd/random-seed",
        ] {
            std::fs::write(tree.path().join(file), "of this machine").unwrap();
        }
        tree
    }

    #[test]
    fn nothing_of_the_building_machine_stays() {
        let tree = debian_tree();
        apply(tree.path(), &GuestContract::default(), OwnInit::None).unwrap();
        let found = Cmd::new("grep")
            .args(["-r", "of this machine"])
            .arg(tree.path())
            .capture()
            .unwrap();
        assert_eq!((found.status.code(), found.stdout_text().as_str()), (Some(1), ""));
        assert!(tree.path().join("var/log/apt").is_dir(), "directories stay");
        assert_eq!(
            std::fs::read_to_string(tree.path().join("etc/machine-id")).unwrap(),
            ""
        );
        assert_eq!(
            std::fs::read_to_string(tree.path().join("etc/fstab")).unwrap(),
            ""
        );
    }

    #[test]
    fn the_user_owns_the_work_root_and_sudo_would_read_its_file() {
        let tree = debian_tree();
        apply(tree.path(), &GuestContract::default(), OwnInit::None).unwrap();
        let facts = |path: &str| tree.path().join(path).metadata().unwrap();
        assert_eq!(
            (facts("work/crabbox").uid(), facts("work/crabbox").mode() & 0o7777),
            (1000, 0o755)
        );
        assert_eq!(facts("work").uid(), 0);
        // sudo ignores a file that others could write.
        assert_eq!(facts("etc/sudoers.d/crabbox").mode() & 0o7777, 0o440);
    }

    #[test]
    fn the_ready_check_names_what_is_missing() {
        let tree = debian_tree();
        apply(tree.path(), &GuestContract::default(), OwnInit::None).unwrap();
        let script = tree.path().join("usr/local/bin/crabbox-ready");
        let missing = Cmd::new("/bin/sh")
            .arg(&script)
            .env("PATH", "/nonexistent")
            .capture()
            .unwrap();
        assert_eq!(missing.stderr_text(), "crabbox-ready: git is missing");
        assert_eq!(missing.status.code(), Some(1));
    }
}
