//! Foreign images: a Debian with systemd and cloud-init as anyone would build it, unaware of crabbox, both as
//! a kernel with a root file system and as an OCI image.
//!
//! Made once per recipe and cached; only the import, which depends on our code, is repeated when that
//! changes.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use crabbox_host::clone;
use crabbox_host::command::Cmd;
use crabbox_host::files;
use crabbox_image::build::{KernelOf, OwnInit, STAMP_UNIX, TreeRecipe, build_tree};
use crabbox_image::import::{ImportRecipe, import_ready};
use crabbox_image::source::Source;
use crabbox_image::store::Store;

use sha2::{Digest as _, Sha256};

use crate::cache::Cache;
use crate::stage::stage;
use crate::workspace;

mod oci;

/// The name in the lab of the image with its own kernel, booted by cloud-init.
const NAME: &str = "cloud";

/// The name in the lab of the image made from OCI layers, with our kernel and its own systemd.
const SYSTEMD: &str = "systemd";

/// Packages of both. cloud-init configures the network with `ifupdown`; the kernel is the distribution's own.
const PACKAGES: &str = "systemd-sysv,dbus,udev,kmod,ifupdown,cloud-init,openssh-server,sudo,rsync,git,curl,ca-certificates,jq,\
                        python3,tar,iproute2,procps,linux-image-cloud-amd64";

/// Files left out to speed up copying into the lab: nothing that runs.
const LEFT_OUT: [&str; 7] = [
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/boot/System.map-*",
    "/lib/modules/*/kernel/drivers/net/ethernet/*",
    "/lib/modules/*/kernel/drivers/infiniband/*",
];

/// Keeps the kernel's package from building an initrd, which takes a minute and is never booted.
const NO_INITRD: &str = r#"mkdir -p "$1/etc/initramfs-tools"; echo update_initramfs=no > "$1/etc/initramfs-tools/update-initramfs.conf""#;

/// The image must not contain host keys generated on the build machine.
const NO_HOST_KEYS: &str = r#"rm -f "$1"/etc/ssh/ssh_host_*"#;

/// As for the lab itself: programs that are started again and again, as systemd and cloud-init do, are
/// otherwise translated each time.
const NO_RANDOM_ADDRESSES: &str = r#"echo kernel.randomize_va_space=0 > "$1/etc/sysctl.d/emulated.conf""#;

/// Length of the file system in MiB; sparse.
const ROOM_MIB: u64 = 700;

/// The foreign images on disk.
struct Brought {
    kernel: PathBuf,
    rootfs: PathBuf,
    /// The directory of an OCI layout.
    layout: PathBuf,
}

impl Brought {
    fn of(dir: &Path) -> Self {
        Self {
            kernel: dir.join("vmlinuz"),
            rootfs: dir.join("rootfs.ext4"),
            layout: dir.join("oci"),
        }
    }
}

/// Makes sure that `store`, which has our image, also has both of these, imported with the first process
/// `guest`.
pub(super) fn ensure(store: &Store, guest: &Path, cache: &Cache) -> Result<()> {
    let Brought {
        kernel,
        rootfs,
        layout,
    } = stage("building somebody's images", || build(cache))?;
    let recipe = ImportRecipe {
        name: NAME.to_owned(),
        kernel,
        rootfs,
        guest_binary: Some(guest.to_owned()),
    };
    stage("importing the cloud-init image", || {
        Ok(import_ready(&recipe, store, &super::quiet)?)
    })?;
    let recipe = TreeRecipe {
        name: SYSTEMD.to_owned(),
        source: Source::named(&format!("oci:{}", layout.display()), workspace::root())?,
        init: OwnInit::Systemd,
        kernel_of: KernelOf::Otherwise(store.get("default")?),
        guest_binary: guest.to_owned(),
        agent: None,
        stamp_unix: STAMP_UNIX,
    };
    stage("building an image of the OCI layers", || {
        Ok(build_tree(&recipe, store, &super::quiet)?)
    })?;
    Ok(())
}

/// The recipe of the foreign images.
fn recipe() -> String {
    format!(
        "{PACKAGES}\n{LEFT_OUT:?}\n{NO_INITRD}\n{NO_HOST_KEYS}\n{NO_RANDOM_ADDRESSES}\n{ROOM_MIB}\n{}\n",
        oci::UPPER
    )
}

/// The key of all images, given the key of ours.
pub(super) fn key(ours: &str) -> String {
    short(&format!("{ours}\n{}", recipe()))
}

fn short(text: &str) -> String {
    crabbox_core::id::hex(&Sha256::digest(text)[..8])
}

/// The foreign images, from the cache or newly made.
fn build(cache: &Cache) -> Result<Brought> {
    let dir = cache.entry("foreign", &short(&recipe()), make)?;
    Ok(Brought::of(&dir))
}

/// Makes them in the empty directory `dir`.
fn make(dir: &Path) -> Result<()> {
    let brought = Brought::of(dir);
    let tree = dir.join("tree");
    bootstrap(&tree)?;
    let boot = tree.join("boot");
    let found = std::fs::read_dir(&boot)?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz-"))
        .with_context(|| format!("no kernel in {}", boot.display()))?;
    clone::clone_file(&found.path(), &brought.kernel)?;
    File::create_new(&brought.rootfs)?.set_len(ROOM_MIB << 20)?;
    Cmd::inheriting("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-d"])
        .args([&tree, &brought.rootfs])
        .run()?;
    oci::layout(&tree, &brought.layout)?;
    files::remove_tree(&tree)?;
    Ok(())
}

/// Installs the packages in `tree`.
fn bootstrap(tree: &Path) -> Result<()> {
    Cmd::inheriting("mmdebstrap")
        .args(["--mode=root", "--variant=minbase", "--format=directory"])
        .arg(format!("--include={PACKAGES}"))
        .arg("--aptopt=Acquire::Languages \"none\"")
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .args(["--dpkgopt=force-unsafe-io", "--dpkgopt=force-confold"])
        .args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")))
        .arg(format!("--essential-hook={NO_INITRD}"))
        .arg(format!("--customize-hook={NO_HOST_KEYS}"))
        .arg(format!("--customize-hook={NO_RANDOM_ADDRESSES}"))
        .arg("bookworm")
        .arg(tree)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .run()?;
    Ok(())
}
