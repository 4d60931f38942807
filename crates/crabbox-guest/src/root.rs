//! The root of the instance: a read-only base with a private layer above it, and the switch into it.
//!
//! ```text
//! /dev/vda  ext4, read-only   -> /base                 lower
//! /dev/vdb  ext4, private     -> /layer                upper (/layer/upper), overlay's own (/layer/work)
//! overlay                     -> /newroot -> /
//!           /layer/work-root  -> the work root,        beside the overlay: plain ext4, no copy-up, stable inodes
//!           /layer/tmp        -> /tmp
//! /dev/vdc… ext4, a volume    -> where the seed says, last of all
//! ```
//! The base must never be written to: several instances share it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind, mount_move, move_mount,
    open_tree, unmount,
};

use crate::accounts::Account;
use crate::clock;
use crate::failure::Failure;
use crate::seed::Volume;

/// How long the disks may take to appear: virtio-mmio needs milliseconds, an emulated host a second.
const DISK_WAIT: Duration = Duration::from_secs(5);

const BASE_DEVICE: &str = "/dev/vda";
pub(crate) const LAYER_DEVICE: &str = "/dev/vdb";
const NEW_ROOT: &str = "/newroot";

/// Where [`switch`] puts this program.
pub(crate) const PROGRAM: &str = "/run/crabbox/guest";

/// The read-ahead of the base device, and where to set it.
///
/// The kernel's default of 128 KiB is meant for disks that seek. On the base, every request is a memory copy
/// on the host and a world switch for which the guest waits: sshd and its libraries took over a hundred of
/// them in sequence.
const READ_AHEAD: (&str, &str) = ("/sys/block/vda/queue/read_ahead_kb", "2048");

/// Directories of the private layer that are mounted beside the overlay, once the root is switched.
#[derive(Debug)]
pub(crate) struct Layer {
    whole: OwnedFd,
    work_root: OwnedFd,
    tmp: OwnedFd,
}

impl Layer {
    /// The layer's own root, once everything is mounted; the switch has put it out of reach of every other
    /// process.
    pub(crate) fn into_whole(self) -> OwnedFd {
        self.whole
    }
}

/// Mounts `/proc`, `/sys` and `/dev` of the initramfs.
pub(crate) fn mount_kernel_filesystems() -> Result<(), Failure> {
    for (source, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        create_dir(target)?;
        let restrict = if source == "devtmpfs" {
            MountFlags::NOSUID
        } else {
            hardened()
        };
        mount_at(source, target, source, restrict, "")?;
    }
    Ok(())
}

/// Waits for the two disks.
pub(crate) fn wait_for_disks() -> Result<(), Failure> {
    wait_for(&[BASE_DEVICE, LAYER_DEVICE])
}

fn wait_for(devices: &[&'static str]) -> Result<(), Failure> {
    for device in devices.iter().map(Path::new) {
        clock::poll_until(DISK_WAIT, Duration::from_millis(1), || {
            device.exists().then_some(())
        })
        .ok_or_else(|| Failure::Missing {
            what: device.to_owned(),
            seconds: DISK_WAIT.as_secs(),
        })?;
    }
    Ok(())
}

/// Mounts base, layer and overlay; the new root is then complete, but not yet `/`.
pub(crate) fn assemble() -> Result<Layer, Failure> {
    for dir in ["/base", "/layer", NEW_ROOT] {
        create_dir(dir)?;
    }
    mount_at(
        BASE_DEVICE,
        "/base",
        "ext4",
        MountFlags::RDONLY | MountFlags::NOATIME,
        "",
    )?;
    // Optional.
    std::fs::write(READ_AHEAD.0, READ_AHEAD.1).ok();
    // `noinit_itable`: no kernel thread writes inode tables while the lease works.
    mount_at(
        LAYER_DEVICE,
        "/layer",
        "ext4",
        MountFlags::NOATIME,
        "noinit_itable",
    )?;
    for dir in ["/layer/upper", "/layer/work", "/layer/work-root", "/layer/tmp"] {
        create_dir(dir)?;
    }
    set_mode("/layer/tmp", 0o1777)?;
    // `redirect_dir`: a directory of the base can be renamed; `xino`: one device number, inode numbers that
    // stay.
    let options = "lowerdir=/base,upperdir=/layer/upper,workdir=/layer/work,redirect_dir=on,xino=on";
    mount_at("overlay", NEW_ROOT, "overlay", MountFlags::NOATIME, options)?;
    let whole = rustix::fs::open(
        "/layer",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(Failure::path("open", Path::new("/layer")))?;
    Ok(Layer {
        whole,
        work_root: detached("/layer/work-root")?,
        tmp: detached("/layer/tmp")?,
    })
}

/// Mounts the whole image that has its own init, writable, and makes it `/`; its init mounts the rest.
pub(crate) fn switch_to_image() -> Result<(), Failure> {
    wait_for(&[BASE_DEVICE])?;
    create_dir(NEW_ROOT)?;
    mount_at(BASE_DEVICE, NEW_ROOT, "ext4", MountFlags::NOATIME, "")?;
    move_kernel_filesystems()?;
    enter_new_root()
}

/// Makes the new root `/`. The initramfs is out of reach afterwards.
pub(crate) fn switch() -> Result<(), Failure> {
    move_kernel_filesystems()?;
    let run = format!("{NEW_ROOT}/run");
    create_dir(&run)?;
    mount_at(
        "tmpfs",
        &run,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        "mode=0755",
    )?;
    let program = format!("{NEW_ROOT}{PROGRAM}");
    create_dir(format!("{run}/crabbox"))?;
    std::fs::write(&program, b"").map_err(Failure::path("create", Path::new(&program)))?;
    mount_bind("/init", &program).map_err(Failure::path("bind /init on", Path::new(&program)))?;
    enter_new_root()
}

fn move_kernel_filesystems() -> Result<(), Failure> {
    for name in ["proc", "sys", "dev"] {
        let target = format!("{NEW_ROOT}/{name}");
        create_dir(&target)?;
        mount_move(format!("/{name}"), &target).map_err(Failure::path("move to", Path::new(&target)))?;
    }
    Ok(())
}

fn enter_new_root() -> Result<(), Failure> {
    let root = Path::new(NEW_ROOT);
    rustix::process::chdir(root).map_err(Failure::path("enter", root))?;
    mount_move(".", "/").map_err(Failure::path("move to / from", root))?;
    rustix::process::chroot(".").map_err(Failure::path("change root to", root))?;
    rustix::process::chdir("/").map_err(Failure::path("enter", Path::new("/")))
}

/// Mounts what programs expect: terminals, shared memory, cgroups, `/tmp`, and the links in `/dev`.
pub(crate) fn mount_runtime_filesystems(layer: &Layer) -> Result<(), Failure> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV;
    create_dir("/dev/pts")?;
    let terminals = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_at(
        "devpts",
        "/dev/pts",
        "devpts",
        terminals,
        "gid=5,mode=620,ptmxmode=666",
    )?;
    create_dir("/dev/shm")?;
    mount_at("tmpfs", "/dev/shm", "tmpfs", plain, "mode=1777")?;
    create_dir("/run/lock")?;
    set_mode("/run/lock", 0o1777)?;
    mount_at("cgroup2", "/sys/fs/cgroup", "cgroup2", hardened(), "")?;
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        if !Path::new(link).is_symlink() {
            std::os::unix::fs::symlink(target, link)
                .map_err(Failure::path("make the link", Path::new(link)))?;
        }
    }
    create_dir("/tmp")?;
    attach(&layer.tmp, "/tmp")
}

/// Creates the work root, on the private layer unless the image already has something there, and makes it its
/// user's.
pub(crate) fn mount_work_root(layer: &Layer, path: &Path, uid: u32, gid: u32) -> Result<(), Failure> {
    std::fs::create_dir_all(path).map_err(Failure::path("create", path))?;
    let mut entries = std::fs::read_dir(path).map_err(Failure::path("list", path))?;
    if entries.next().is_none() {
        attach(&layer.work_root, path)?;
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::chown(path, Some(uid), Some(gid)).map_err(Failure::path("give away", path))
}

/// Mounts `volume` for `account`, after the switch of the root. It is a whole ext4 file system with a
/// journal, which the host has checked for damage; but an earlier machine may have given it features unknown
/// to this kernel.
pub(crate) fn mount_volume(volume: &Volume, account: &Account) -> Result<(), Failure> {
    let Volume { device, path } = volume;
    clock::poll_until(DISK_WAIT, Duration::from_millis(1), || {
        device.exists().then_some(())
    })
    .ok_or_else(|| Failure::Missing {
        what: device.to_owned(),
        seconds: DISK_WAIT.as_secs(),
    })?;
    make_mount_point(path, account)?;
    // As for the layer, no kernel thread writes inode tables while the lease works. Override the error
    // behaviour stored in the volume, which might be to panic.
    mount(
        device,
        path,
        "ext4",
        MountFlags::NOATIME,
        c"noinit_itable,errors=remount-ro",
    )
    .map_err(Failure::path("mount", device))?;
    // Only the root directory: its contents keep their owners.
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    rustix::fs::chown(path, Some(uid), Some(gid)).map_err(|error| {
        // A volume reported as not mounted must not be mounted.
        unmount(path, UnmountFlags::DETACH).ok();
        Failure::path("give away", path)(error)
    })
}

/// Creates the directory `path`. Missing directories inside the user's home become the user's, so that others
/// can be created beside them.
fn make_mount_point(path: &Path, account: &Account) -> Result<(), Failure> {
    let mut missing: Vec<&Path> = path.ancestors().take_while(|dir| !dir.exists()).collect();
    missing.reverse();
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    for dir in missing {
        create_dir(dir)?;
        if dir.starts_with(&account.home) {
            rustix::fs::chown(dir, Some(uid), Some(gid)).map_err(Failure::path("give away", dir))?;
        }
    }
    Ok(())
}

fn hardened() -> MountFlags {
    MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC
}

fn mount_at(source: &str, target: &str, kind: &str, flags: MountFlags, options: &str) -> Result<(), Failure> {
    let options = std::ffi::CString::new(options).unwrap_or_default();
    mount(source, target, kind, flags, options.as_c_str()).map_err(|error| {
        // Blame the device if there is one, the mount point otherwise.
        let blamed = if source.starts_with('/') { source } else { target };
        Failure::path("mount", Path::new(blamed))(error)
    })
}

fn detached(dir: &str) -> Result<OwnedFd, Failure> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, dir, flags).map_err(Failure::path("clone the mount of", Path::new(dir)))
}

fn attach(tree: &OwnedFd, path: impl AsRef<Path>) -> Result<(), Failure> {
    let path = path.as_ref();
    move_mount(tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(Failure::path("attach the private layer to", path))
}

fn create_dir(path: impl AsRef<Path>) -> Result<(), Failure> {
    let path = path.as_ref();
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(Failure::path("create", path)(error))
        }
        _ => Ok(()),
    }
}

fn set_mode(path: &str, mode: u32) -> Result<(), Failure> {
    rustix::fs::chmod(path, Mode::from_raw_mode(mode))
        .map_err(Failure::path("set the mode of", Path::new(path)))
}
