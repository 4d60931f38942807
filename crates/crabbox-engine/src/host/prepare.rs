//! Turns a validated configuration into a complete request: finds the programs, the guest and the network on
//! this host.
//!
//! Only looks; creates nothing. An error about something missing names the setting for it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_core::config::firecracker::{FirecrackerPlan, Jailer};
use crabbox_core::duration::GoDuration;
use crabbox_core::external::External;
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::id::LeaseId;
use crabbox_core::network::NetworkMode;
use crabbox_core::record::LeaseRecord;
use crabbox_host::command::find_on_path;
use crabbox_image::kernel::{self, KernelError};
use crabbox_image::manifest::{INITRD, Init};
use crabbox_image::store::{Image, Store, StoreError};
use crabbox_machine::context::Engine;
use crabbox_machine::request::{AcquireRequest, GuestSource, Jail, Machine, NetworkRequest, Programs, Start};
use crabbox_machine::resource::network::DEBIAN_CNI;
use crabbox_ssh::control::ControlError;

/// The image that is used unless another is named.
pub(crate) const DEFAULT_IMAGE: &str = "default";

/// Why this host cannot make the lease.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The system is not Linux, or has no KVM.
    #[error("/dev/kvm unavailable")]
    Kvm(#[source] std::io::Error),
    /// A program is missing.
    #[error("{key} unavailable: {}", absent(path))]
    Program {
        /// The setting that names it.
        key: &'static str,
        /// Its configured name or path.
        path: PathBuf,
    },
    /// Root would run the VMM without a jail, which nobody has allowed.
    #[error("there is no jailer in the directory of {}, so Firecracker would run as root", firecracker.display())]
    NoJailer {
        /// The program that would run; absolute, with links resolved.
        firecracker: PathBuf,
        /// Whether it is where `crabbox setup firecracker` puts it, so that set-up would install the jailer,
        /// too.
        ours: bool,
    },
    /// The kernel or root file system is missing.
    #[error("{key} unavailable: {}", path.display())]
    File {
        /// The setting that names it.
        key: &'static str,
        /// Its configured path.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The kernel or root file system is not a regular file.
    #[error("{key} must point to a file, got {}", path.display())]
    NotAFile {
        /// The setting that names it.
        key: &'static str,
        /// Its configured path.
        path: PathBuf,
    },
    /// Only one of kernel and root file system is set.
    #[error("{set} is set and {unset} is not: an image of your own needs both")]
    Half {
        /// The setting that is set.
        set: &'static str,
        /// The setting that is not.
        unset: &'static str,
    },
    /// Both a stored image and separate files are configured.
    #[error("firecracker.image and {key} are both set: a lease boots one of them")]
    Both {
        /// The other setting.
        key: &'static str,
    },
    /// The kernel is not usable.
    #[error("firecracker.kernel {} is not a usable guest kernel", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: KernelError,
    },
    /// There is no guest image.
    #[error("there is no guest image on this host")]
    NoImage(#[source] StoreError),
    /// The configured image cannot be used.
    #[error("firecracker.image {image} unavailable")]
    Image {
        /// Its name or digest.
        image: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The CNI network cannot be loaded.
    #[error(transparent)]
    Network(#[from] crabbox_cni::LoadError),
    /// The range of built-in networking is invalid.
    #[error("the range of built-in networking is not an IPv4 network")]
    Range(#[source] ipnet::AddrParseError),
    /// The socket of the shared connection has no private directory.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// No random bytes are available.
    #[error("cannot generate a lease id")]
    Random(#[source] std::io::Error),
}

/// The message for a missing program with this name or path.
fn absent(path: &Path) -> String {
    if path.parent() == Some(Path::new("")) {
        format!("there is no program {:?} in PATH", path.display().to_string())
    } else {
        format!("{} is not an executable file", path.display())
    }
}

impl Fault for PrepareError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Kvm(_) => "this needs a Linux host with KVM, and root",
            Self::Program {
                key: "firecracker.jailer",
                ..
            } => "set firecracker.jailer to the jailer, or to none to run without a jail",
            Self::NoJailer { ours: true, .. } => {
                "run `crabbox setup firecracker` (it installs the jailer), or accept a VMM that runs as root with --firecracker-jailer none"
            }
            Self::NoJailer { ours: false, .. } => {
                "put the jailer of the same release into that directory, or name it with firecracker.jailer, or accept a VMM that runs as root with --firecracker-jailer none"
            }
            Self::Program { .. } => {
                "run `crabbox setup firecracker` (or this command with --yes), or set firecracker.binary"
            }
            Self::File { .. } | Self::NotAFile { .. } | Self::Half { .. } => {
                "set firecracker.kernel and firecracker.rootfs to your image, or leave both unset to use crabbox's own"
            }
            Self::Both { .. } => "unset one of them",
            Self::Image { .. } => {
                "`crabbox image list` shows the images; unset firecracker.image for the default one"
            }
            Self::Kernel { .. } => "it must be an uncompressed x86_64 ELF kernel (vmlinux), not a bzImage",
            Self::NoImage(_) => {
                "run `crabbox setup firecracker` (or this command with --yes), or set firecracker.kernel and firecracker.rootfs"
            }
            Self::Network(_) => {
                "name a network that exists with --firecracker-cni-network and --firecracker-cni-conf-dir, or use --firecracker-network nat"
            }
            Self::Control(error) => return error.hints(),
            Self::Random(_) | Self::Range(_) => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

/// What a command adds to the configuration of a lease.
#[derive(Debug, Clone)]
pub struct NewLease {
    /// The requested slug.
    pub slug: Option<String>,
    /// Whether the user asked to keep the lease.
    pub keep: bool,
    /// Whether to take over another repository's claim. Has no effect on a new machine, which has no claim.
    pub reclaim: bool,
    /// The names that another program gives the lease, if one requested it.
    pub external: Option<External>,
}

/// Completes the request for a new lease.
pub fn request(
    engine: &Engine,
    plan: &FirecrackerPlan,
    new: &NewLease,
) -> Result<AcquireRequest, PrepareError> {
    let kvm = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    kvm.map_err(PrepareError::Kvm)?;
    let found = Found {
        programs: programs(engine, plan)?,
        guest: guest(engine, plan)?,
        network: network_request(plan)?,
    };
    complete(engine, plan, new, found)
}

/// What a lease's machine is made from on this host.
struct Found {
    programs: Programs,
    guest: GuestSource,
    network: NetworkRequest,
}

/// Completes the request for a pool member with the record `made`. Its supervisor already knows what the
/// machine was made from, so those parts of the request are placeholders and are not looked up.
pub(crate) fn request_of(
    engine: &Engine,
    plan: &FirecrackerPlan,
    made: &LeaseRecord,
) -> Result<AcquireRequest, PrepareError> {
    let new = NewLease {
        slug: None,
        keep: false,
        reclaim: false,
        external: None,
    };
    let found = Found {
        programs: Programs {
            firecracker: made.binary_path.clone().into(),
            jailer: None,
        },
        guest: GuestSource::Foreign {
            kernel: made.kernel_path.clone().into(),
            rootfs: made.source_rootfs.clone().into(),
            initrd: None,
        },
        network: NetworkRequest {
            mode: NetworkMode::Nat,
            cni_conf_dir: made.cni_conf_dir.clone().into(),
            cni_bin_dirs: Vec::new(),
            cni_network: made.cni_network.clone(),
            nat_range: crabbox_net::nat::DEFAULT_RANGE
                .parse()
                .map_err(PrepareError::Range)?,
        },
    };
    let request = complete(engine, plan, &new, found)?;
    Ok(AcquireRequest {
        lease_id: made.lease_id.clone(),
        ..request
    })
}

fn complete(
    engine: &Engine,
    plan: &FirecrackerPlan,
    new: &NewLease,
    found: Found,
) -> Result<AcquireRequest, PrepareError> {
    let id = LeaseId::from_random(crabbox_host::random::bytes().map_err(PrepareError::Random)?);
    Ok(AcquireRequest {
        places: (&engine.places).into(),
        control_dir: engine.control_dir()?.path().to_owned(),
        lease_id: id.to_string(),
        slug: new.slug.clone(),
        external: new.external.clone(),
        keep: new.keep,
        ttl: duration(plan.ttl),
        idle: duration(plan.idle_timeout),
        profile: plan.profile.clone(),
        class: plan.class.clone(),
        server_type: plan.server_type.clone(),
        exposed: plan.exposed.clone(),
        ssh_user: plan.user.clone(),
        ssh_port: plan.ssh_port,
        work_root: plan.work_root.clone(),
        machine: machine(plan),
        limits: plan.limits,
        programs: found.programs,
        guest: found.guest,
        network: found.network,
        launch_timeout: duration(plan.launch_timeout),
        delete_on_release: plan.delete_on_release,
        failpoint: engine.failpoint.clone(),
        start: Start::Boot,
        pool: None,
        owner: None,
        job: None,
        // Only claimed leases have volumes: neither pool members nor template machines do.
        volumes: Vec::new(),
    })
}

/// The machine size that `plan` asks for.
pub(crate) fn machine(plan: &FirecrackerPlan) -> Machine {
    Machine {
        cpus: plan.cpus,
        memory_mib: plan.memory_mib,
        disk_mib: u32::try_from(plan.disk_mib).unwrap_or(u32::MAX),
    }
}

fn duration(duration: GoDuration) -> Duration {
    Duration::from_nanos(u64::try_from(duration.nanoseconds()).unwrap_or(0))
}

/// Finds the VMM and its jailer.
pub fn programs(engine: &Engine, plan: &FirecrackerPlan) -> Result<Programs, PrepareError> {
    let binary = plan.binary.as_path();
    let ours = engine.places.firecracker().join("firecracker");
    let firecracker = find_on_path(binary.as_os_str(), &engine.path)
        .or_else(|| Some(ours).filter(|ours| binary == Path::new("firecracker") && ours.is_file()))
        .ok_or_else(|| PrepareError::Program {
            key: "firecracker.binary",
            path: binary.to_owned(),
        })?;
    // The jailer resolves links and uses the last path component. Do the same, or our paths would differ from
    // its own.
    let firecracker = firecracker.canonicalize().unwrap_or(firecracker);
    let jailer = jailer(engine, plan, &firecracker)?;
    Ok(Programs { firecracker, jailer })
}

fn jailer(engine: &Engine, plan: &FirecrackerPlan, firecracker: &Path) -> Result<Option<Jail>, PrepareError> {
    let jailer = match &plan.jailer {
        Jailer::Off => None,
        Jailer::Program(program) => Some(
            find_on_path(program.as_path().as_os_str(), &engine.path).ok_or_else(|| {
                PrepareError::Program {
                    key: "firecracker.jailer",
                    path: program.as_path().to_owned(),
                }
            })?,
        ),
        Jailer::Auto => jailer_beside(
            firecracker,
            &engine.places.firecracker(),
            rustix::process::geteuid().is_root(),
        )?,
    };
    Ok(jailer.map(|jailer| Jail {
        jailer,
        first_uid: plan.first_uid,
        uid_count: plan.uid_count,
    }))
}

/// The jailer beside `firecracker`. Only root can use one; other users run the VMM with their own limited
/// rights. Root without a jailer is refused, so that a VMM only runs with root's rights if somebody chose
/// that. `fetched` is where set-up puts the programs.
fn jailer_beside(firecracker: &Path, fetched: &Path, root: bool) -> Result<Option<PathBuf>, PrepareError> {
    if !root {
        return Ok(None);
    }
    let found = find_on_path(firecracker.with_file_name("jailer").as_os_str(), OsStr::new(""));
    found.map(Some).ok_or_else(|| PrepareError::NoJailer {
        ours: fetched
            .canonicalize()
            .is_ok_and(|fetched| firecracker.parent() == Some(&fetched)),
        firecracker: firecracker.to_owned(),
    })
}

/// What to boot: the configured image or files, or the default image.
pub fn guest(engine: &Engine, plan: &FirecrackerPlan) -> Result<GuestSource, PrepareError> {
    let (kernel, rootfs) = (plan.kernel.value.as_path(), plan.rootfs.value.as_path());
    let named = !plan.image.as_str().is_empty();
    for (key, default) in [
        ("firecracker.kernel", plan.kernel.is_default()),
        ("firecracker.rootfs", plan.rootfs.is_default()),
    ] {
        if named && !default {
            return Err(PrepareError::Both { key });
        }
    }
    // When an image is named, files that merely exist at the default paths do not count as configured.
    let chosen = |default: bool, path: &Path| !named && (!default || path.exists());
    let kernel_chosen = chosen(plan.kernel.is_default(), kernel);
    let rootfs_chosen = chosen(plan.rootfs.is_default(), rootfs);
    match (kernel_chosen, rootfs_chosen) {
        (true, true) => {
            regular("firecracker.kernel", kernel)?;
            regular("firecracker.rootfs", rootfs)?;
            kernel::check_elf(kernel).map_err(|source| PrepareError::Kernel {
                path: kernel.to_owned(),
                source,
            })?;
            Ok(GuestSource::Foreign {
                kernel: kernel.to_owned(),
                rootfs: rootfs.to_owned(),
                initrd: None,
            })
        }
        (true, false) => Err(PrepareError::Half {
            set: "firecracker.kernel",
            unset: "firecracker.rootfs",
        }),
        (false, true) => Err(PrepareError::Half {
            set: "firecracker.rootfs",
            unset: "firecracker.kernel",
        }),
        (false, false) => {
            let wanted = plan.image.as_str();
            let image = stored_image(&engine.places.images(), wanted).map_err(|source| {
                if named {
                    let image = wanted.to_owned();
                    PrepareError::Image { image, source }
                } else {
                    PrepareError::NoImage(source)
                }
            })?;
            Ok(match image.manifest.init {
                Init::Ours => GuestSource::Ours {
                    digest: image.manifest.digest.clone(),
                    dir: image.dir,
                },
                Init::CloudInit => GuestSource::Foreign {
                    kernel: image.kernel(),
                    rootfs: image.base(),
                    initrd: Some(image.initrd()).filter(|_| image.manifest.files.contains_key(INITRD)),
                },
            })
        }
    }
}

/// The image that `wanted` names; the default one if it is empty.
pub(crate) fn stored_image(store: &Path, wanted: &str) -> Result<Image, StoreError> {
    if wanted.is_empty() {
        return our_image(store);
    }
    if store.is_dir() {
        return Store::open(store)?.get(wanted);
    }
    let reference = wanted.to_owned();
    Err(StoreError::NotFound { reference })
}

/// The image called `default`, or else the newest.
pub(crate) fn our_image(store: &Path) -> Result<Image, StoreError> {
    // Opening the store would create it.
    if !store.is_dir() {
        let reference = DEFAULT_IMAGE.to_owned();
        return Err(StoreError::NotFound { reference });
    }
    let store = Store::open(store)?;
    match store.get(DEFAULT_IMAGE) {
        Err(error @ StoreError::NotFound { .. }) => store.list()?.images.into_iter().next().ok_or(error),
        other => other,
    }
}

fn regular(key: &'static str, path: &Path) -> Result<(), PrepareError> {
    let facts = std::fs::metadata(path).map_err(|source| PrepareError::File {
        key,
        path: path.to_owned(),
        source,
    })?;
    if facts.is_file() {
        Ok(())
    } else {
        Err(PrepareError::NotAFile {
            key,
            path: path.to_owned(),
        })
    }
}

/// The network for leases of `plan`.
pub(crate) fn network_request(plan: &FirecrackerPlan) -> Result<NetworkRequest, PrepareError> {
    let (dir, name) = (plan.cni_conf_dir.as_path(), plan.cni_network.as_str());
    let mode = NetworkMode::choose(plan.network, || crabbox_cni::load(dir, name).is_ok());
    if plan.network == Some(NetworkMode::Cni) {
        // The user chose CNI explicitly, so report its problems.
        crabbox_cni::load(dir, name)?;
    }
    Ok(NetworkRequest {
        mode,
        cni_conf_dir: dir.to_owned(),
        cni_bin_dirs: vec![plan.cni_bin_dir.as_path().to_owned(), PathBuf::from(DEBIAN_CNI)],
        cni_network: name.to_owned(),
        nat_range: crabbox_net::nat::DEFAULT_RANGE
            .parse()
            .map_err(PrepareError::Range)?,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt as _;

    use super::*;

    fn program(path: &Path) {
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(path)
            .unwrap();
    }

    #[test]
    fn root_without_a_jailer_is_refused_and_others_run_with_their_own_rights() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let firecracker = dir.join("firecracker");
        program(&firecracker);
        let elsewhere = Path::new("/nonexistent");
        assert_eq!(jailer_beside(&firecracker, elsewhere, false).unwrap(), None);
        for (fetched, hint) in [(elsewhere, "put the jailer"), (&dir, "crabbox setup firecracker")] {
            let error = jailer_beside(&firecracker, fetched, true).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage);
            let hints = error.hints();
            assert!(
                hints[0].contains(hint) && hints[0].contains("--firecracker-jailer none"),
                "{hints:?}"
            );
        }
        program(&dir.join("jailer"));
        let found = jailer_beside(&firecracker, elsewhere, true).unwrap();
        assert_eq!(found, Some(dir.join("jailer")));
    }
}
