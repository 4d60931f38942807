//! Turns a Debian tree into a guest: the user's privileges, sshd, the ready check, and no traces of the build
//! machine.
//!
//! Every lease shares the tree, so it must never contain a host key, a machine id, a random seed or package
//! lists; process 1 of the guest adds what identifies a lease.

use std::io;
use std::path::Path;

use crabbox_guest_protocol::image;
use crabbox_host::files::FileError;
use crabbox_host::tree::Tree;
use rustix::io::Errno;

use super::{Agent, BuildError, OwnInit};
use crate::manifest::GuestContract;

/// Directories that have no files in an image: logs, and what is only of use to the machine that wrote it. In
/// a guest other file systems are mounted on the last two.
const EMPTIED_DIRS: [&str; 3] = ["var/log", "tmp", "run"];

/// The same for a tree that our recipe made: caches and translations that were not asked for. In anybody
/// else's tree they may be there for a reason.
const TRIMMED_DIRS: [&str; 3] = ["var/lib/apt/lists", "var/cache/apt", "usr/share/locale"];

/// Single files that must not exist, because they identify one machine.
const ABSENT: [&str; 10] = [
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
];

/// Single files that must not exist in a tree that our recipe made, because they differ from build to build.
const TRIMMED: [&str; 4] = [
    "var/cache/ldconfig/aux-cache",
    "var/cache/debconf/templates.dat-old",
    "var/cache/debconf/config.dat-old",
    "var/lib/dpkg/status-old",
];

/// The sshd settings of a lease, for an sshd that our process 1 does not start.
fn sshd_settings() -> String {
    let lines = image::SSHD_SETTINGS.map(|(name, value)| format!("{name} {value}\n"));
    format!("# Written by crabbox image build.\n{}", lines.concat())
}

/// The files to which a guest adds its user, with what they have if a tree has none, and their modes.
const ACCOUNTS: [(&str, &str, u32); 3] = [
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644),
    ("etc/group", "root:x:0:\n", 0o644),
    ("etc/shadow", "root:*:19000:0:99999:7:::\n", 0o600),
];

/// The ready check: exits with 0 when the guest can accept a sync and a command; otherwise prints what is
/// missing.
const READY: &str = r#"#!/bin/sh
# Written by crabbox image build. Usage: crabbox-ready [WORK_ROOT]
root=${1:-@WORK_ROOT@}
for tool in git rsync curl jq bash; do
  command -v "$tool" >/dev/null || { echo "crabbox-ready: $tool is missing" >&2; exit 1; }
done
[ -e @BOOTSTRAPPED@ ] || { echo "crabbox-ready: not set up yet" >&2; exit 1; }
[ -d "$root" ] && [ -w "$root" ] || { echo "crabbox-ready: cannot write to $root" >&2; exit 1; }
"#;

/// Directories into which crabbox writes; none of them may be a link that leads elsewhere.
const WRITTEN: [&str; 13] = [
    "etc",
    "etc/ssh",
    "etc/ssh/sshd_config.d",
    "etc/sudoers.d",
    "usr/lib/crabbox",
    LAST_WORDS,
    "usr/local/bin",
    "var/lib/crabbox",
    "var/lib/dbus",
    "var/lib/systemd",
    "var/cache/crabbox",
    "var/cache/crabbox/pnpm",
    "var/cache/crabbox/npm",
];

/// The directory of systemd's scripts at the end of a shutdown (`systemd-shutdown(8)`).
const LAST_WORDS: &str = "usr/lib/systemd/system-shutdown";

/// Firecracker has no power switch: a kernel that powers off only halts, and its microVM would stay until the
/// lease expires. A reset ends it. Systemd runs this after everything is unmounted.
const POWER_OFF: &str = r#"#!/bin/sh
# Written by crabbox image build.
case "$1" in
poweroff | halt) echo b > /proc/sysrq-trigger ;;
esac
"#;

/// A path of the guest in the form that a tree needs.
pub(super) fn below_root(path: &str) -> &str {
    path.trim_start_matches('/')
}

/// Who made a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Maker {
    /// Our recipe: what nobody asked for is left out.
    Ours,
    /// Somebody else: it loses only the identity of a machine, and logs.
    Others,
}

/// The contract of an image, and what it adds to a tree.
#[derive(Debug, Clone, Copy)]
pub(super) struct Contract<'a> {
    /// Facts about the guest.
    pub(super) guest: &'a GuestContract,
    /// Whether the image's own init runs in it.
    pub(super) init: OwnInit,
    /// The client agent to include, if any.
    pub(super) agent: Option<&'a Agent>,
    /// The maker of the tree.
    pub(super) maker: Maker,
    /// The time of every file that is written, in seconds since the Unix epoch.
    pub(super) stamp_unix: u32,
}

/// A tree that is being turned into a guest.
struct Settling<'a> {
    tree: &'a Tree,
    modified: i64,
}

impl Settling<'_> {
    /// Refuses a tree in which a path that [`apply`] writes or empties would be in another place, before
    /// anything is changed. Each write checks this again.
    fn check_places(&self, guest: &GuestContract) -> Result<(), BuildError> {
        let work_root = guest.work_root.trim_start_matches('/');
        for path in WRITTEN.into_iter().chain(EMPTIED_DIRS).chain([work_root]) {
            let real = self.tree.is_real_directory(Path::new(path));
            if !real.map_err(|source| self.failed("inspect", path, source))? {
                let path = path.to_owned();
                return Err(BuildError::Link { path });
            }
        }
        Ok(())
    }

    fn directory(&self, path: &str, owner: Option<u32>) -> Result<(), BuildError> {
        let made = self.tree.make_directory(Path::new(path), owner);
        made.map_err(|source| self.failed("create directory", path, source))
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>, mode: u32) -> Result<(), BuildError> {
        let written = self
            .tree
            .write(Path::new(path), content.as_ref(), mode, self.modified);
        written.map_err(|source| self.failed("write", path, source))
    }

    /// Removes the files in `dirs`, and `files`.
    fn strip(&self, dirs: &[&str], files: &[&str]) -> Result<(), BuildError> {
        for dir in dirs {
            let emptied = self.tree.remove_files(Path::new(dir));
            emptied.map_err(|source| self.failed("empty", dir, source))?;
        }
        files.iter().try_for_each(|file| self.remove(file))
    }

    fn remove(&self, path: &str) -> Result<(), BuildError> {
        let removed = self.tree.remove_plain(Path::new(path));
        removed.map_err(|source| self.failed("remove", path, source))
    }

    fn failed(&self, attempt: &'static str, path: &str, source: io::Error) -> BuildError {
        match Errno::from_io_error(&source) {
            Some(Errno::LOOP | Errno::NOTDIR) => BuildError::Link {
                path: path.to_owned(),
            },
            _ => FileError::io(attempt, &self.tree.shown(Path::new(path)), source).into(),
        }
    }
}

/// Applies the guest contract to `tree`, the root of the new file system.
pub(super) fn apply(tree: &Tree, contract: &Contract<'_>) -> Result<(), BuildError> {
    let Contract { guest, maker, .. } = *contract;
    let modified = i64::from(contract.stamp_unix);
    let settling = Settling { tree, modified };
    settling.check_places(guest)?;
    settling.directory("", None)?;
    settling.strip(&EMPTIED_DIRS, &ABSENT)?;
    if maker == Maker::Ours {
        settling.strip(&TRIMMED_DIRS, &TRIMMED)?;
    }
    for dir in ["etc/ssh/sshd_config.d", "etc/sudoers.d", "usr/local/bin"] {
        if tree.look(Path::new(dir)).is_err() {
            settling.directory(dir, None)?;
        }
    }
    for (path, content, mode) in ACCOUNTS {
        let found = tree.file(Path::new(path));
        if found
            .map_err(|source| settling.failed("open", path, source))?
            .is_none()
        {
            settling.write(path, content, mode)?;
        }
    }
    settling.write("etc/machine-id", "", 0o444)?;
    settling.write("etc/fstab", "", 0o644)?;
    settling.write("etc/motd", "", 0o644)?;
    let hosts = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";
    settling.write("etc/hosts", hosts, 0o644)?;
    let rights = format!("{} ALL=(ALL:ALL) NOPASSWD: ALL\n", guest.user);
    settling.write("etc/sudoers.d/crabbox", &rights, 0o440)?;
    settling.write("etc/ssh/sshd_config.d/99-crabbox.conf", sshd_settings(), 0o644)?;
    let ready = READY
        .replace("@WORK_ROOT@", &guest.work_root)
        .replace("@BOOTSTRAPPED@", image::BOOTSTRAPPED);
    settling.write(below_root(image::READY), &ready, 0o755)?;

    match contract.init {
        OwnInit::Systemd => {
            settling.directory("usr/lib/crabbox", None)?;
            settling.write(below_root(image::INIT), "/sbin/init\n", 0o644)?;
            settling.directory(LAST_WORDS, None)?;
            settling.write(&format!("{LAST_WORDS}/crabbox"), POWER_OFF, 0o755)?;
        }
        OwnInit::None => settling.remove(below_root(image::INIT))?,
    }
    if let Some(agent) = contract.agent {
        let dir = below_root(image::AGENTS);
        settling.directory("usr/lib/crabbox", None)?;
        settling.directory(dir, None)?;
        settling.write(&format!("{dir}/{}", agent.digest), &agent.program, 0o755)?;
    }
    settling.directory("var/lib/crabbox", None)?;
    settling.write(below_root(image::BOOTSTRAPPED), "", 0o644)?;
    settling.write("var/lib/crabbox/image-ready", "", 0o644)?;
    settling.directory(guest.work_root.trim_start_matches('/'), Some(guest.uid))?;
    // The paths where the Go program's run phases look for caches.
    for cache in ["pnpm", "npm"] {
        settling.directory(&format!("var/cache/crabbox/{cache}"), Some(guest.uid))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crabbox_host::command::Cmd;
    use std::os::unix::fs::MetadataExt as _;

    /// The directories that Debian's packages create, and the leftovers of a build in them.
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

    fn settle(tree: &tempfile::TempDir, maker: Maker, agent: Option<&Agent>) {
        let contract = Contract {
            guest: &GuestContract::default(),
            init: OwnInit::None,
            agent,
            maker,
            stamp_unix: 1_000_000_000,
        };
        apply(&Tree::open(tree.path()).unwrap(), &contract).unwrap();
    }

    #[test]
    fn a_tree_of_others_loses_identity_and_logs_only() {
        let kept = [
            "usr/share/locale/de/LC_MESSAGES/program.mo",
            "var/lib/apt/lists/some_Packages",
            "var/cache/apt/archives/some.deb",
            "var/lib/dpkg/status-old",
        ];
        for (maker, is_kept) in [(Maker::Ours, false), (Maker::Others, true)] {
            let tree = debian_tree();
            for file in kept {
                let path = tree.path().join(file);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, "of the maker").unwrap();
            }
            settle(&tree, maker, None);
            for file in kept {
                assert_eq!(tree.path().join(file).exists(), is_kept, "{maker:?} {file}");
            }
            for file in [
                "etc/ssh/ssh_host_ed25519_key",
                "etc/hostname",
                "var/log/apt/history.log",
            ] {
                assert!(!tree.path().join(file).exists(), "{maker:?} {file}");
            }
        }
    }

    #[test]
    fn what_is_written_has_the_time_of_the_stamp() {
        let tree = debian_tree();
        settle(&tree, Maker::Others, None);
        for file in [
            "etc/hosts",
            "usr/local/bin/crabbox-ready",
            "etc/sudoers.d/crabbox",
        ] {
            let facts = tree.path().join(file).metadata().unwrap();
            assert_eq!(facts.mtime(), 1_000_000_000, "{file}");
        }
    }

    #[test]
    fn nothing_of_the_building_machine_stays() {
        let tree = debian_tree();
        let agent = Agent {
            digest: "d1".to_owned(),
            program: b"agent".to_vec(),
        };
        settle(&tree, Maker::Ours, Some(&agent));
        let agent = tree.path().join("usr/lib/crabbox/agents/d1").metadata().unwrap();
        assert_eq!((agent.mode() & 0o7777, agent.uid()), (0o755, 0));
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
        settle(&tree, Maker::Ours, None);
        let facts = |path: &str| tree.path().join(path).metadata().unwrap();
        assert_eq!(
            (facts("work/crabbox").uid(), facts("work/crabbox").mode() & 0o7777),
            (1000, 0o755)
        );
        assert_eq!(facts("work").uid(), 0);
        // sudo ignores a file that others can write.
        assert_eq!(facts("etc/sudoers.d/crabbox").mode() & 0o7777, 0o440);
    }

    #[test]
    fn the_ready_check_names_what_is_missing() {
        let tree = debian_tree();
        settle(&tree, Maker::Ours, None);
        let script = tree.path().join("usr/local/bin/crabbox-ready");
        let missing = Cmd::new("/bin/sh")
            .arg(&script)
            .env("PATH", "/nonexistent")
            .capture()
            .unwrap();
        assert_eq!(missing.stderr_text(), "crabbox-ready: git is missing");
        assert_eq!(missing.status.code(), Some(1));
        // All but the shell that every command of a lease needs.
        let bin = tempfile::tempdir().unwrap();
        for program in ["git", "rsync", "curl", "jq"] {
            std::os::unix::fs::symlink("/bin/true", bin.path().join(program)).unwrap();
        }
        let missing = Cmd::new("/bin/sh")
            .arg(&script)
            .env("PATH", bin.path())
            .capture()
            .unwrap();
        assert_eq!(missing.stderr_text(), "crabbox-ready: bash is missing");
    }
}
