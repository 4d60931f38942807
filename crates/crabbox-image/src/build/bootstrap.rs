//! The Debian part of a build: a root tree by mmdebstrap, and the cloud kernel's package from the same
//! archive.
//!
//! Packages are authenticated by the archive's signatures, which mmdebstrap and apt check. The kernel is
//! fetched with the new tree's own apt configuration, so that the build also works on a host of another
//! distribution; no package may be used unverified.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_core::shell::single_quoted;
use crabbox_host::command::Cmd;
use crabbox_host::environment::Environment;
use crabbox_host::files::{self, FileError};
use crabbox_host::tree::Tree;

use super::{BuildError, BuildRecipe, OwnInit};

/// The programs that a build needs, each with its Debian package.
pub const TOOLS: [(&str, &str); 5] = [
    ("mmdebstrap", "mmdebstrap"),
    ("unshare", "util-linux"),
    ("apt-get", "apt"),
    ("dpkg", "dpkg"),
    ("mke2fs", "e2fsprogs"),
];

/// The packages for the guest contract; `procps` and `iproute2` are for debugging, `sudo` for the user.
const PACKAGES: [&str; 11] = [
    "openssh-server",
    "rsync",
    "git",
    "curl",
    "ca-certificates",
    "python3",
    "tar",
    "sudo",
    "jq",
    "procps",
    "iproute2",
];

/// dpkg options, for the build and for later installations in the guest: no documentation, and no syncing,
/// since neither the tree nor a lease's disk has to survive a power cut. Licence files are kept.
const DPKG_OPTIONS: [&str; 8] = [
    "force-unsafe-io",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
];

/// Adds the user. `*` is a password that nothing matches; `!` would be a locked account, which sshd without
/// PAM refuses.
const USER_HOOK: &str = "chroot \"$1\" useradd --uid 1000 --user-group --create-home --shell /bin/bash \
                         --password '*' crabbox";

/// Downloads the newest cloud kernel into the directory of the script, with the apt configuration of the new
/// tree.
const KERNEL_HOOK: &str = r#"#!/bin/sh
set -e
cd "$(dirname "$0")"
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
release=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: linux-image-\([0-9].*\)$/\1/p' | head -n 1)
apt-get download -qq "linux-image-$release"
printf '%s' "$release" > release
"#;

/// Runs the user's script inside the tree. The tree's own shell interprets its first line; the script is
/// removed before the tree is packed.
const SCRIPT_HOOK: &str = r#"#!/bin/sh
set -e
install -m 700 "$(dirname "$0")/script" "$1/crabbox-build-script"
chroot "$1" /crabbox-build-script
rm -f "$1/crabbox-build-script"
"#;

/// Maximum size of a script, and maximum length of a kernel release, in bytes.
const SCRIPT_LIMIT: u64 = 64 << 20;
const RELEASE_LIMIT: u64 = 256;

/// Time limit for fetching and installing the packages.
const INSTALL_LIMIT: Duration = Duration::from_mins(30);

/// Time limit for unpacking one package.
const UNPACK_LIMIT: Duration = Duration::from_mins(5);

/// Makes the root tree `tree` and puts the kernel's package into `scratch`; returns the kernel's release.
pub(super) fn install(recipe: &BuildRecipe, tree: &Path, scratch: &Path) -> Result<String, BuildError> {
    let kernel_dir = scratch.join("kernel");
    files::create_private_dir(&kernel_dir)?;
    let hook = kernel_dir.join("hook");
    files::write_atomic(&hook, KERNEL_HOOK.as_bytes(), 0o700)?;

    let mut hooks = vec![USER_HOOK.to_owned(), shell_word(&hook)];
    if let Some(script) = &recipe.script {
        let content = files::read_regular(script, SCRIPT_LIMIT)
            .map_err(|source| FileError::io("read the script", script, source))?;
        let runner = kernel_dir.join("script-hook");
        files::write_atomic(&kernel_dir.join("script"), &content, 0o700)?;
        files::write_atomic(&runner, SCRIPT_HOOK.as_bytes(), 0o700)?;
        hooks.push(shell_word(&runner));
    }

    let packages: Vec<&str> = PACKAGES
        .into_iter()
        .chain((recipe.init == OwnInit::Systemd).then_some("systemd-sysv"))
        .chain(recipe.extra_packages.iter().map(String::as_str))
        .collect();
    // mmdebstrap mounts proc and more in the tree, and runs scripts of packages. In its own namespaces
    // nothing of that is visible here, and everything ends with it, and it ends with us: after a kill the
    // tree can be removed, and no process still writes to it.
    Cmd::new("unshare")
        .environment(Environment::Fetch)
        .args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "mmdebstrap",
        ])
        .args(["--mode=root", "--variant=minbase", "--format=directory"])
        .arg(format!("--include={}", packages.join(",")))
        .arg("--aptopt=Acquire::Languages \"none\"")
        .arg("--aptopt=Acquire::Retries \"3\"")
        .args(DPKG_OPTIONS.map(|option| format!("--dpkgopt={option}")))
        .args(hooks.iter().map(|hook| format!("--customize-hook={hook}")))
        .arg(&recipe.suite)
        .arg(tree)
        .args(&recipe.mirrors)
        .env("SOURCE_DATE_EPOCH", recipe.stamp_unix.to_string())
        .env("DEBIAN_FRONTEND", "noninteractive")
        .limit(INSTALL_LIMIT)
        .dies_with_us()
        .run()
        .map_err(|source| BuildError::Tool {
            stage: "installing packages",
            source: source.of("mmdebstrap"),
        })?;

    let release = kernel_dir.join("release");
    let text = files::read_regular(&release, RELEASE_LIMIT);
    let text = text.map_err(|source| FileError::io("read", &release, source))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A hook for mmdebstrap, which runs a hook without shell metacharacters directly; quotes the path otherwise.
fn shell_word(path: &Path) -> String {
    format!("{} \"$1\"", single_quoted(&path.to_string_lossy()))
}

/// Unpacks the kernel package that [`install`] left in `scratch`; returns the directory.
pub(super) fn unpack_kernel(recipe: &BuildRecipe, scratch: &Path) -> Result<PathBuf, BuildError> {
    let (dir, unpacked) = (scratch.join("kernel"), scratch.join("kernel/unpacked"));
    let package = Tree::open(&dir)?
        .names(Path::new(""))
        .map_err(|source| FileError::io("list", &dir, source))?
        .into_iter()
        .map(|name| dir.join(name))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .ok_or_else(|| BuildError::KernelPackage {
            suite: recipe.suite.clone(),
            missing: "linux-image-cloud-amd64".to_owned(),
        })?;
    Cmd::new("dpkg")
        .arg("--extract")
        .args([&package, &unpacked])
        .limit(UNPACK_LIMIT)
        .run()
        .map_err(|source| BuildError::Tool {
            stage: "unpacking the kernel",
            source,
        })?;
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_path_is_one_word_for_the_shell() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("it's a $HOME \"dir\"");
        // `cat` reads the script and its argument as files: both names must arrive unchanged.
        std::fs::write(&script, "script").unwrap();
        let line = format!("set -- {}; cat \"$1\"", shell_word(&script));
        let out = Cmd::new("sh")
            .arg("-c")
            .arg(line)
            .args(["sh", "/dev/null"])
            .run()
            .unwrap();
        assert_eq!(out.stdout_text(), "script");
    }
}
