//! The VMM's directory: kernel, initrd with the seed, disks. Every path in it is relative to it, jailed or
//! not.
//!
//! The cost is the same for every image size: the kernel and the base are links, the layer is sparse. It must
//! never write to an image of the store, or let a path that Firecracker sees depend on the lease's location.

use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crabbox_core::fault::{self, Fault, Kind};
use crabbox_core::volume::MountPath;
use crabbox_fc::launch::JailLayout;
use crabbox_host::clone::{self, CloneError};
use crabbox_host::files::{self, FileError};
use crabbox_host::unix::{self, SocketError};
use crabbox_image::disk as image_disk;
use crabbox_image::guest::{self, BootNetwork};
use crabbox_image::kernel;
use crabbox_image::seed::{LeaseSeed, NoCloud, SeedFile, SeedNetwork, TemplateSeed, nocloud_fat};
use crabbox_ssh::keys::KeyPair;
use crabbox_store::templates::{LAYER, MEMORY, VMSTATE};
use rustix::fs::{Mode, OFlags};

use crate::lease::allocated::Allocated;
use crate::lease::keys::LeaseKeys;
use crate::request::{AcquireRequest, GuestSource, Start};
use crate::resource::network::GuestSide;

/// The kernel's name in the VMM's directory.
pub const KERNEL: &str = "vmlinux";
/// The initrd's name; it carries the seed of our image.
pub const INITRD: &str = "initrd.img";
/// The shared read-only base's name.
pub const BASE: &str = "base.ext4";
/// The private writable disk's name.
pub const DISK: &str = "disk.ext4";
/// The seed drive's name, for a foreign image.
pub(crate) const SEED: &str = "cidata.img";
/// The vsock's name; Firecracker appends `_<port>` for connections from the guest.
pub(crate) const VSOCK: &str = "vsock.sock";
/// Firecracker's log.
pub const LOG: &str = "firecracker.log";
/// Firecracker's API socket.
pub const API: &str = "api.sock";

/// Firecracker's file names for a snapshot that it writes; they differ from the names of the files that it
/// loads.
pub(crate) const FROZEN: [(&str, &str); 2] = [("frozen.memory", MEMORY), ("frozen.vmstate", VMSTATE)];

/// The disk method of a restored machine: a copy of its template's disk.
const TEMPLATE: &str = "template";

/// The disk method of our own image: an empty layer above the base that all leases share.
pub(crate) const SHARED_BASE: &str = "shared-base";

/// Why the directory could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A file could not be made.
    #[error(transparent)]
    Files(#[from] FileError),
    /// A file could not be copied.
    #[error(transparent)]
    Clone(#[from] CloneError),
    /// A disk could not be made.
    #[error(transparent)]
    Disk(#[from] image_disk::DiskError),
    /// The kernel is not valid.
    #[error("{} is not a usable guest kernel", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: kernel::KernelError,
    },
    /// The seed could not be made.
    #[error("cannot make the seed")]
    Seed(#[source] crabbox_image::seed::NoCloudError),
    /// The socket could not be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A file could not be given to the VMM's uid.
    #[error("cannot change the owner of {} to uid {uid}", path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// The uid.
        uid: u32,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A file could not be read or written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// Only a machine of our own image can be snapshotted.
    #[error("only crabbox's own images can have a template")]
    Foreign,
    /// The VMM's output is not what was requested.
    #[error("{} is not a private file of the VMM", path.display())]
    NotFrozen {
        /// The file.
        path: PathBuf,
    },
    /// The kernel returned no random bytes for the guest's seed.
    #[error("cannot generate entropy for the guest")]
    Entropy(#[source] std::io::Error),
}

impl Fault for DiskError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        let full = is_out_of_space(self);
        match self {
            _ if full => vec!["free some space on the state directory's file system, or stop a lease".to_owned()],
            Self::Kernel { .. } => vec![
                "firecracker.kernel must be an uncompressed x86_64 ELF kernel (vmlinux); leave it unset to use crabbox's own image"
                    .to_owned(),
            ],
            _ => Vec::new(),
        }
    }
}

/// Whether an error's root cause is a full file system.
pub(crate) fn is_out_of_space(error: &(dyn std::error::Error + 'static)) -> bool {
    let full = |error: &(dyn std::error::Error + 'static)| {
        error
            .downcast_ref::<std::io::Error>()
            .is_some_and(files::out_of_space)
            || matches!(error.downcast_ref(), Some(CloneError::NoSpace { .. }))
    };
    full(error) || fault::causes(error).any(full)
}

/// The inputs of the directory.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The VMM's directory.
    pub home: PathBuf,
    /// The jailer's own directory, which contains `home`.
    pub jail: Option<PathBuf>,
    /// Shared files that may be out of reach of a hard link.
    pub mounts: Vec<Shared>,
    request: &'a AcquireRequest,
    /// The template that the machine is restored from. It is opened once, so that all parts belong to the
    /// same template even if it is replaced meanwhile.
    template: Option<Opened>,
    uid: Option<u32>,
    id: String,
    hostname: String,
    /// The volumes that the lease holds.
    drives: &'a [Drive],
}

/// A volume that a lease holds.
#[derive(Debug, Clone)]
pub struct Drive {
    /// Its image in the store.
    pub image: PathBuf,
    /// The image's name in the VMM's directory.
    pub link: String,
    /// Where the guest mounts it.
    pub path: MountPath,
}

/// An open directory, which stays the same even if it is renamed.
#[derive(Debug)]
struct Opened(std::os::fd::OwnedFd);

impl Opened {
    fn at(dir: &Path) -> Result<Self, DiskError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::open(dir, flags, Mode::empty());
        Ok(Self(opened.map_err(|errno| FileError::io("open", dir, errno))?))
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// A shared file of the image store, and its place in the VMM's directory.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The file in the store.
    pub source: PathBuf,
    /// Its place.
    pub target: PathBuf,
}

/// The prepared directory.
#[derive(Debug)]
pub struct Home {
    /// Its path on the host.
    pub dir: PathBuf,
    /// How the private disk was made: a layer above a `shared-base`, a `reflink` or a `sparse-copy` of the
    /// whole image.
    pub method: &'static str,
    /// The file that carries the seed; a restored guest gets its identity over vsock instead.
    pub seed: Option<&'static str>,
    /// Whether the guest reports `ready` over vsock.
    pub says_ready: bool,
    /// The VMM's uid, if it has its own.
    pub uid: Option<u32>,
    /// The names of its volumes in the directory, in the order of their drives.
    pub drives: Vec<String>,
}

/// Plans the directory of an allocated lease that holds `drives`.
pub fn plan<'a>(
    request: &'a AcquireRequest,
    made: &Allocated,
    drives: &'a [Drive],
) -> Result<Plan<'a>, DiskError> {
    let record = &made.stored.record;
    let layout = made.uid.and(request.programs.jailer.as_ref()).and_then(|_| {
        // A name that the jailer would refuse is reported when the VMM is planned; until then nothing depends
        // on it.
        let id = record.vmid.parse().ok()?;
        JailLayout::new(&made.lease.dir().jails(), &request.programs.firecracker, id).ok()
    });
    let home = layout
        .as_ref()
        .map_or_else(|| made.lease.dir().path().join("vm"), JailLayout::root);
    let shared = |dir: &Path, name: &str| Shared {
        source: dir.join(name),
        target: home.join(name),
    };
    let mut mounts = match &request.guest {
        GuestSource::Ours { dir, .. } => vec![shared(dir, BASE)],
        GuestSource::Foreign { .. } => Vec::new(),
    };
    let template = match &request.start {
        Start::Restore { dir, .. } => Some(Opened::at(dir)?),
        Start::Boot | Start::Freeze { .. } => None,
    };
    if let Some(template) = &template {
        mounts.extend([MEMORY, VMSTATE].map(|name| shared(&template.path(), name)));
    }
    Ok(Plan {
        jail: layout.as_ref().map(JailLayout::home),
        home,
        mounts,
        request,
        template,
        uid: made.uid,
        id: made.lease.id().to_string(),
        hostname: format!("crabbox-{}", record.slug),
        drives,
    })
}

/// Makes the directory with all its contents except shared files that need a mount.
pub fn prepare(plan: &Plan<'_>, keys: &LeaseKeys, side: &GuestSide) -> Result<Home, DiskError> {
    files::create_private_dir(&plan.home)?;
    let (method, seed, says_ready) = match (&plan.request.guest, &plan.request.start) {
        (GuestSource::Ours { dir, .. }, Start::Boot) => (ours(plan, dir, keys, side)?, Some(INITRD), true),
        (GuestSource::Ours { .. }, Start::Restore { .. }) => {
            let template = plan.template.as_ref().ok_or(DiskError::Foreign)?;
            clone::clone_file(&template.path().join(LAYER), &plan.home.join(DISK))?;
            (TEMPLATE, None, true)
        }
        (
            GuestSource::Foreign {
                kernel,
                rootfs,
                initrd,
            },
            Start::Boot,
        ) => {
            if let Some(initrd) = initrd {
                clone::clone_file(initrd, &plan.home.join(INITRD))?;
            }
            (foreign(plan, kernel, rootfs, keys, side)?, Some(SEED), false)
        }
        (_, Start::Freeze { .. }) | (GuestSource::Foreign { .. }, Start::Restore { .. }) => {
            return Err(DiskError::Foreign);
        }
    };
    finish(plan, method, seed, says_ready)
}

/// The same for a machine that will be snapshotted, whose guest needs a host key to try its SSH server.
pub(crate) fn prepare_template(
    plan: &Plan<'_>,
    host_key: &KeyPair,
    side: &GuestSide,
) -> Result<Home, DiskError> {
    let GuestSource::Ours { dir, .. } = &plan.request.guest else {
        return Err(DiskError::Foreign);
    };
    files::create_private_dir(&plan.home)?;
    let (now, _) = crabbox_host::clock::unix_now();
    let seed = TemplateSeed {
        host_key_private: host_key.private_openssh.clone(),
        network: side.seed.clone(),
        unix_time: now,
        entropy: crabbox_host::random::bytes().map_err(DiskError::Entropy)?,
    };
    boots(plan, dir, &seed.to_cpio())?;
    finish(plan, SHARED_BASE, Some(INITRD), true)
}

/// The common contents of every directory, and their owner.
fn finish(
    plan: &Plan<'_>,
    method: &'static str,
    seed: Option<&'static str>,
    says_ready: bool,
) -> Result<Home, DiskError> {
    write_private(&plan.home.join(LOG), b"")?;
    let home = Home {
        dir: plan.home.clone(),
        method,
        seed,
        says_ready,
        uid: plan.uid,
        drives: plan.drives.iter().map(|drive| drive.link.clone()).collect(),
    };
    for drive in plan.drives {
        place_volume(drive, &home)?;
    }
    home.give(&[INITRD, DISK, SEED, LOG])?;
    Ok(home)
}

/// The files that give a restored machine this lease's identity.
pub(crate) fn identity(
    plan: &Plan<'_>,
    keys: &LeaseKeys,
    side: &GuestSide,
) -> Result<Vec<SeedFile>, DiskError> {
    Ok(lease_seed(plan, keys, side)?.files())
}

/// Moves a snapshot into `dir`: the disk, and the files that the VMM wrote. Called only after the VMM has
/// ended: until then it could write to them, or replace one by a link.
pub(crate) fn keep(home: &Home, dir: &Path) -> Result<(), DiskError> {
    let us = crabbox_host::process::euid();
    for (written, kept) in FROZEN.into_iter().chain([(DISK, LAYER)]) {
        let (from, to) = (home.join(written), dir.join(kept));
        let fail = |source| DiskError::Write {
            path: to.clone(),
            source,
        };
        std::fs::rename(&from, &to).map_err(fail)?;
        let facts = std::fs::symlink_metadata(&to).map_err(fail)?;
        let is_ours = facts.uid() == us || Some(facts.uid()) == home.uid;
        if !facts.is_file() || facts.nlink() != 1 || !is_ours {
            return Err(DiskError::NotFrozen { path: from });
        }
        std::os::unix::fs::lchown(&to, Some(us), None).map_err(fail)?;
    }
    Ok(())
}

/// Puts a shared file at its path, read-only: by hard link, or by bind mount across file systems.
pub fn mount(shared: &Shared) -> Result<(), DiskError> {
    files::place_read_only(&shared.source, &shared.target)?;
    Ok(())
}

fn ours(
    plan: &Plan<'_>,
    image: &Path,
    keys: &LeaseKeys,
    side: &GuestSide,
) -> Result<&'static str, DiskError> {
    boots(plan, image, &lease_seed(plan, keys, side)?.to_cpio())?;
    Ok(SHARED_BASE)
}

fn lease_seed(plan: &Plan<'_>, keys: &LeaseKeys, side: &GuestSide) -> Result<LeaseSeed, DiskError> {
    let (now, _) = crabbox_host::clock::unix_now();
    Ok(LeaseSeed {
        hostname: plan.hostname.clone(),
        instance_id: plan.id.clone(),
        user: plan.request.ssh_user.clone(),
        authorized_keys: keys.authorized.clone(),
        host_key_private: keys.host.private_openssh.clone(),
        host_key_public: keys.host.public_openssh.clone(),
        network: Some(side.seed.clone()),
        work_root: plan.request.work_root.clone(),
        unix_time: now,
        entropy: crabbox_host::random::bytes().map_err(DiskError::Entropy)?,
        volumes: plan
            .drives
            .iter()
            .map(|drive| drive.path.as_str().to_owned())
            .collect(),
    })
}

/// Makes the kernel, the initrd followed by `seed`, and an empty layer.
fn boots(plan: &Plan<'_>, image: &Path, seed: &[u8]) -> Result<(), DiskError> {
    place_kernel(plan, &image.join(KERNEL))?;
    let source = image.join(INITRD);
    let mut initrd = std::fs::read(&source).map_err(|error| DiskError::Write {
        path: source,
        source: error,
    })?;
    let padding = initrd.len().next_multiple_of(4) - initrd.len();
    initrd.extend(std::iter::repeat_n(0, padding));
    initrd.extend(seed);
    write_private(&plan.home.join(INITRD), &initrd)?;
    image_disk::make_layer(&plan.home.join(DISK), u64::from(plan.request.machine.disk_mib))?;
    Ok(())
}

fn foreign(
    plan: &Plan<'_>,
    kernel: &Path,
    rootfs: &Path,
    keys: &LeaseKeys,
    side: &GuestSide,
) -> Result<&'static str, DiskError> {
    place_kernel(plan, kernel)?;
    let report = image_disk::clone_rootfs(
        rootfs,
        &plan.home.join(DISK),
        u64::from(plan.request.machine.disk_mib),
    )?;
    let seed = NoCloud {
        instance_id: plan.id.clone(),
        hostname: plan.hostname.clone(),
        user: plan.request.ssh_user.clone(),
        authorized_keys: keys.authorized.clone(),
        host_key_private: keys.host.private_openssh.clone(),
        host_key_public: keys.host.public_openssh.clone(),
        work_root: plan.request.work_root.clone(),
        network: Some(side.seed.clone()),
    };
    write_private(
        &plan.home.join(SEED),
        &nocloud_fat(&seed).map_err(DiskError::Seed)?,
    )?;
    Ok(match report.method {
        clone::CloneMethod::Reflink => "reflink",
        clone::CloneMethod::SparseCopy => "sparse-copy",
    })
}

/// Checks the kernel and links it. If a link is impossible, or a jailed VMM could not read the shared file,
/// the lease gets its own copy.
fn place_kernel(plan: &Plan<'_>, kernel: &Path) -> Result<(), DiskError> {
    kernel::check_elf(kernel).map_err(|source| DiskError::Kernel {
        path: kernel.to_owned(),
        source,
    })?;
    let target = plan.home.join(KERNEL);
    let readable = std::fs::metadata(kernel).is_ok_and(|facts| facts.permissions().mode() & 0o004 != 0);
    if (plan.uid.is_none() || readable) && std::fs::hard_link(kernel, &target).is_ok() {
        return Ok(());
    }
    clone::clone_file(kernel, &target)?;
    give(plan.uid, &target)
}

/// Gives a private file of the lease to the VMM's uid, if it has its own.
fn give(uid: Option<u32>, path: &Path) -> Result<(), DiskError> {
    let Some(uid) = uid else { return Ok(()) };
    std::os::unix::fs::lchown(path, Some(uid), Some(uid)).map_err(|source| DiskError::Owner {
        path: path.to_owned(),
        uid,
        source,
    })
}

/// Hard-links the image of a volume into the VMM's directory, so that removing the directory does not remove
/// the volume.
fn place_volume(drive: &Drive, home: &Home) -> Result<(), DiskError> {
    let target = home.join(&drive.link);
    std::fs::hard_link(&drive.image, &target)
        .map_err(|source| FileError::io("hard-link to", &target, source).into())
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let fail = |source| DiskError::Write {
        path: path.to_owned(),
        source,
    };
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(fail)?;
    file.write_all(bytes).map_err(fail)
}

impl Home {
    /// The path of `name` in the directory.
    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Makes the listener that Firecracker connects to when the guest opens a connection to `port`.
    pub fn listen(&self, port: u32) -> Result<UnixListener, DiskError> {
        listen(&self.join(&format!("{VSOCK}_{port}")), self.uid)
    }

    /// Gives files to the VMM's uid, if it has its own.
    fn give(&self, names: &[&str]) -> Result<(), DiskError> {
        for path in names
            .iter()
            .map(|name| self.join(name))
            .filter(|path| path.exists())
        {
            give(self.uid, &path)?;
        }
        Ok(())
    }
}

/// Makes the socket at `path` for connections from a VMM with this uid.
fn listen(path: &Path, uid: Option<u32>) -> Result<UnixListener, DiskError> {
    let listener = unix::bind(path)?;
    if let Some(uid) = uid {
        give_socket(uid, path).map_err(|source| DiskError::Owner {
            path: path.to_owned(),
            uid,
            source,
        })?;
    }
    Ok(listener)
}

/// Gives the socket at `path` to `uid`, and nothing else that may have taken its name: the directory belongs
/// to a VMM, which may be running, and contains links to shared files of the image store.
fn give_socket(uid: u32, path: &Path) -> std::io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let socket = rustix::fs::open(path, flags, Mode::empty())?;
    let facts = rustix::fs::fstat(&socket)?;
    let kind = rustix::fs::FileType::from_raw_mode(facts.st_mode);
    if kind != rustix::fs::FileType::Socket
        || facts.st_nlink != 1
        || facts.st_uid != crabbox_host::process::euid()
    {
        return Err(std::io::Error::other("it is no longer the socket that was made"));
    }
    let (user, group) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(uid));
    let itself = rustix::fs::AtFlags::EMPTY_PATH;
    Ok(rustix::fs::chownat(&socket, "", Some(user), Some(group), itself)?)
}

/// Listens in place of a dead supervisor, in the directory of `disk`.
pub(crate) fn listen_again(disk: &Path, port: u32, uid: Option<u32>) -> Result<UnixListener, DiskError> {
    let path = disk.with_file_name(format!("{VSOCK}_{port}"));
    files::remove_if_there(&path).map_err(|source| FileError::io("remove the dead socket", &path, source))?;
    listen(&path, uid)
}

/// The kernel command line for the kind of image.
pub fn kernel_args(request: &AcquireRequest, side: &GuestSide) -> String {
    match &request.guest {
        GuestSource::Ours { .. } if request.start.is_boot() => guest::kernel_args(),
        GuestSource::Ours { .. } => guest::template_kernel_args(),
        GuestSource::Foreign { initrd: Some(_), .. } => guest::handover_kernel_args(),
        GuestSource::Foreign { initrd: None, .. } => {
            let SeedNetwork {
                address,
                gateway,
                dns,
                ..
            } = side.seed.clone();
            guest::foreign_kernel_args(Some(&BootNetwork {
                address,
                gateway,
                dns,
            }))
        }
    }
}
