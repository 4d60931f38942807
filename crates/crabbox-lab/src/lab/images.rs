//! The lab's images: kernel, initrd, root disk and keys, built once per recipe and cached under its digest. A
//! finished one must never be changed, because labs run from it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use crabbox_host::command::Cmd;

use super::{initrd, packages, recipe};
use crate::cache::Cache;
use crate::stage::stage;

/// The host name under which the lab's key is pinned; ports change, this does not.
pub(super) const HOST_KEY_ALIAS: &str = "crabbox-lab";

/// A finished set of images.
#[derive(Debug, Clone)]
pub(super) struct Images {
    dir: PathBuf,
    /// As in `/lib/modules/<version>`.
    pub(super) kernel_version: String,
}

impl Images {
    /// The unpacked Debian kernel package: `boot/vmlinuz-<version>`, `lib/modules/<version>` with its
    /// `modules.dep`.
    pub(super) fn kernel_dir(&self) -> PathBuf {
        self.dir.join("kernel")
    }

    pub(super) fn kernel(&self) -> PathBuf {
        self.kernel_dir()
            .join(format!("boot/vmlinuz-{}", self.kernel_version))
    }

    pub(super) fn initrd(&self) -> PathBuf {
        self.dir.join("initrd.img")
    }

    /// The root file system; only ever a backing file.
    pub(super) fn root_disk(&self) -> PathBuf {
        self.dir.join("root.img")
    }

    /// The private key that opens the lab.
    pub(super) fn key(&self) -> PathBuf {
        self.dir.join("id")
    }

    /// Pins the lab's host key to [`HOST_KEY_ALIAS`].
    pub(super) fn known_hosts(&self) -> PathBuf {
        self.dir.join("known_hosts")
    }
}

/// Finds the images of the current recipe in `cache`, or builds them.
pub(super) fn ensure(cache: &Cache) -> Result<Images> {
    let kernel_version = packages::kernel_version()?;
    let at = |dir: PathBuf| Images {
        dir,
        kernel_version: kernel_version.clone(),
    };
    let dir = cache.entry("lab", &recipe::digest(&kernel_version), |dir| {
        if !rustix::process::geteuid().is_root() {
            bail!("the lab's images are built once, as root (mmdebstrap); run: sudo cargo xtask lab up");
        }
        let building = at(dir.to_owned());
        stage("fetch the Debian cloud kernel", || unpack_kernel(&building))?;
        stage("make keys", || make_keys(&building))?;
        let root = building.dir.join("root");
        stage("build the root file system (under a minute)", || {
            build_root(&building, &root)
        })?;
        stage("build the initrd", || initrd::build(&building, &root))?;
        stage("write the root disk", || write_disk(&building, &root))?;
        remove_tree(&root)
    })?;
    Ok(at(dir))
}

fn unpack_kernel(images: &Images) -> Result<()> {
    let package = format!("linux-image-{}", images.kernel_version);
    let fetch = || {
        packages::apt(
            Cmd::inheriting("apt-get")
                .args(["download", "-qq", &package])
                .cwd(&images.dir),
        )
    };
    if fetch().is_err() {
        // apt's lists are older than the mirror and name files that are gone.
        packages::update()?;
        fetch()?;
    }
    let archive = fs::read_dir(&images.dir)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download left no file for {package}"))?;
    Cmd::inheriting("dpkg")
        .arg("-x")
        .arg(&archive)
        .arg(images.kernel_dir())
        .run()?;
    fs::remove_file(archive)?;
    Cmd::inheriting("/sbin/depmod")
        .arg("-b")
        .arg(images.kernel_dir())
        .arg(&images.kernel_version)
        .run()?;
    Ok(())
}

fn make_keys(images: &Images) -> Result<()> {
    for name in ["id", "host_key"] {
        let path = images.dir.join(name);
        Cmd::inheriting("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "crabbox-lab", "-f"])
            .arg(path)
            .run()?;
    }
    let public = fs::read_to_string(images.dir.join("host_key.pub"))?;
    fs::write(images.known_hosts(), format!("{HOST_KEY_ALIAS} {public}"))?;
    Ok(())
}

fn build_root(images: &Images, root: &Path) -> Result<()> {
    let customize = format!("--customize-hook={}", recipe::CUSTOMIZE.trim());
    // Even if killed, it leaves no mounts, because it mounts in its own namespace, and it writes only below
    // `root`.
    Cmd::inheriting("mmdebstrap")
        .args(["--quiet", "--variant=minbase", "--format=directory", &customize])
        .arg(format!("--include={}", recipe::PACKAGES.join(",")))
        .arg(recipe::SUITE)
        .arg(root)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C.UTF-8")
        .run()?;
    for (path, mode, content) in recipe::FILES {
        write_file(&root.join(path), *mode, content.as_bytes())?;
    }
    let authorized = fs::read(images.dir.join("id.pub"))?;
    for home in ["root", "home/lab"] {
        write_file(&root.join(home).join(".ssh/authorized_keys"), 0o644, &authorized)?;
    }
    write_file(
        &root.join("etc/ssh/ssh_host_ed25519_key"),
        0o600,
        &fs::read(images.dir.join("host_key"))?,
    )?;
    let modules = root.join("lib/modules");
    fs::create_dir_all(&modules)?;
    let source = images
        .kernel_dir()
        .join("lib/modules")
        .join(&images.kernel_version);
    Cmd::inheriting("cp").arg("-a").arg(source).arg(modules).run()?;
    Ok(())
}

pub(super) fn write_file(path: &Path, mode: u32, content: &[u8]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        // mmdebstrap may have left a symlink to a file of this machine.
        fs::remove_file(path).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        fs::write(path, content)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn write_disk(images: &Images, root: &Path) -> Result<()> {
    let disk = images.root_disk();
    fs::File::create_new(&disk)?.set_len(recipe::DISK_BYTES)?;
    Cmd::inheriting("/sbin/mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-L", "lab", "-m", "0", "-d"])
        .arg(root)
        .arg(&disk)
        .run()?;
    Ok(())
}

/// Removes one of our directories with its contents, if it exists. Refuses if something is mounted in there:
/// a killed mmdebstrap may leave this machine's own `/dev` or `/sys` mounted in the directory it was filling.
pub(crate) fn remove_tree(dir: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the list of mounts")?;
    remove_unmounted(&mounts, dir)
}

fn remove_unmounted(mountinfo: &str, dir: &Path) -> Result<()> {
    if let Some(mount) = mount_below(mountinfo, dir) {
        bail!(
            "{mount} is mounted inside {}; unmount it, then try again",
            dir.display()
        );
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// The first mount point of `mountinfo` (field 5) inside `dir`.
fn mount_below<'a>(mountinfo: &'a str, dir: &Path) -> Option<&'a str> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .find(|point| Path::new(point).starts_with(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_with_a_mount_inside_is_not_removed() {
        let line = "36 35 98:0 / /lab/root/dev rw,noatime - devtmpfs udev rw";
        assert_eq!(mount_below(line, Path::new("/lab/root")), Some("/lab/root/dev"));
        assert_eq!(mount_below(line, Path::new("/lab/roo")), None);
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("root");
        fs::create_dir_all(dir.join("dev")).unwrap();
        assert!(remove_unmounted(&format!("36 35 98:0 / {}/dev rw - x y", dir.display()), &dir).is_err());
        assert!(
            dir.join("dev").exists(),
            "the guard is asked before anything is touched"
        );
        remove_unmounted(line, &dir).unwrap();
        assert!(!dir.exists());
    }

    #[test]
    fn a_file_replaces_a_link_and_not_its_target() {
        let home = tempfile::tempdir().unwrap();
        let (target, link) = (home.path().join("target"), home.path().join("link"));
        fs::write(&target, "theirs").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write_file(&link, 0o600, b"ours").unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "theirs");
        assert_eq!(fs::metadata(&link).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
