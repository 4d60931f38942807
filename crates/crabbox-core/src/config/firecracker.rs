//! Turns settings into a validated plan of a Firecracker lease.
//!
//! It applies the Go program's normalisation and checks in the same order and with the same messages, with
//! three differences listed in ARCHITECTURE.md: an explicit SSH port is kept (also 2222), `network` may be
//! `nat` or `auto`, and a jailer is allowed. It must only use the settings: whether files exist is checked by
//! doctor.

use super::Provider;
use super::fit::{self, Unfit};
use super::layer::Sourced;
use super::settings::Settings;
use super::trust::{HostName, HostPath};
use crate::admission::{Limits, Quota};
use crate::duration::GoDuration;
use crate::fault::{Fault, Kind};
use crate::labels;
use crate::network::NetworkMode;
use crate::volume::Volume;

/// Maximum number of virtual processors of a Firecracker microVM.
pub(crate) const MAX_CPUS: u32 = 32;
/// Minimum memory in MiB with which our guest can boot.
pub(crate) const MIN_MEMORY_MIB: u32 = 64;
/// Maximum plausible memory in MiB (16 TiB); a larger value is a typing error.
pub(crate) const MAX_MEMORY_MIB: u32 = 16 << 20;
/// Maximum size of the uid range for jailed VMMs.
pub(crate) const MAX_UID_COUNT: u32 = 1 << 20;
/// Maximum first uid: the range must end below 2^32 - 2, since -1 and -2 are not usable (`setresuid(2)`,
/// `nobody` of NFS).
pub(crate) const MAX_UID: u32 = u32::MAX - 2 - MAX_UID_COUNT;
/// Maximum disk size in MiB of ext4 with 4 KiB blocks and 32-bit block numbers (16 TiB).
pub(crate) const MAX_DISK_MIB: u64 = 16 << 20;
/// The default server type of a microVM.
pub const SERVER_TYPE: &str = "microvm";

/// The longest work root in bytes that our guest accepts.
pub(crate) const MAX_WORK_ROOT: usize = 1024;

/// Maximum pool size; a larger value is a typing error.
pub(crate) const MAX_POOL: i64 = 256;

/// Whether and how the VMM is jailed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Jailer {
    /// The default: for root, the jailer in the directory of the Firecracker program, which must exist; for
    /// other users, no jail.
    Auto,
    /// No jail, on explicit request.
    Off,
    /// With this jailer program.
    Program(HostPath),
}

/// A validated Firecracker lease; no files or programs have been looked up yet.
#[derive(Debug, Clone)]
pub struct FirecrackerPlan {
    /// The Firecracker program: a path, or a name for `PATH`.
    pub binary: HostPath,
    /// The jailer.
    pub jailer: Jailer,
    /// The guest kernel. Its origin shows whether it was set or is the default.
    pub kernel: Sourced<HostPath>,
    /// The root file system image, with its origin too.
    pub rootfs: Sourced<HostPath>,
    /// The image in the store, by name or digest; empty for the default one.
    pub image: HostName,
    /// Whether a lease is restored from a template if one fits.
    pub warm: bool,
    /// The size of the pool.
    pub pool: u32,
    /// The maximum age of a pool member.
    pub pool_max_age: GoDuration,
    /// User to make in the guest and to log in as.
    pub user: String,
    /// Absolute path of the directory for working trees in the guest.
    pub work_root: String,
    /// Virtual processors, 1 to [`MAX_CPUS`].
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Disk in MiB.
    pub disk_mib: u64,
    /// The limits for admission.
    pub limits: Limits,
    /// The quota of one remote owner.
    pub quota: Quota,
    /// First uid of the range for jailed VMMs.
    pub first_uid: u32,
    /// Size of the uid range.
    pub uid_count: u32,
    /// The network mode; `None` is `auto`, for which [`NetworkMode::choose`] decides depending on the host.
    pub network: Option<NetworkMode>,
    /// The CNI network.
    pub cni_network: HostName,
    /// CNI configuration directory.
    pub cni_conf_dir: HostPath,
    /// CNI plugin directories.
    pub cni_bin_dir: HostPath,
    /// The launch timeout of the guest.
    pub launch_timeout: GoDuration,
    /// Whether the lease's files are deleted when it is released.
    pub delete_on_release: bool,
    /// SSH port of the guest.
    pub ssh_port: u16,
    /// Label `server_type`.
    pub server_type: String,
    /// Label `class`.
    pub class: String,
    /// Label `profile`.
    pub profile: String,
    /// Time to live of the lease.
    pub ttl: GoDuration,
    /// Idle timeout of the lease.
    pub idle_timeout: GoDuration,
    /// Ports that the lease is declared to offer, in the form of the label.
    pub exposed: String,
    /// The cache volumes of the lease.
    pub volumes: Vec<Volume>,
}

/// Why the settings do not describe a Firecracker lease; the messages are the Go program's if it has one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFirecracker {
    /// A setting that this provider does not support.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The user is empty.
    #[error("provider=firecracker requires firecracker.user")]
    User,
    /// A user name that no Linux system accepts, or that cannot be quoted safely.
    #[error("provider=firecracker requires firecracker.user to be a Linux user name, found {user:?}")]
    UserName {
        /// The name as configured.
        user: String,
    },
    /// The work root is relative, or climbs out of itself.
    #[error("provider=firecracker requires firecracker.workRoot to be an absolute POSIX path")]
    WorkRoot,
    /// A work root that is absolute but that our guest refuses.
    #[error(
        "provider=firecracker requires firecracker.workRoot to lie below / without dots in up to {MAX_WORK_ROOT} bytes"
    )]
    WorkRootOfGuest,
    /// A size that is zero or less.
    #[error("provider=firecracker requires {key} > 0")]
    NotPositive {
        /// The key.
        key: &'static str,
    },
    /// A size outside the supported range.
    #[error("provider=firecracker requires {key} between {least} and {most}, found {found}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// The smallest value.
        least: u64,
        /// The largest value.
        most: u64,
        /// The value as configured.
        found: i64,
    },
    /// An unknown network mode.
    #[error("provider=firecracker supports firecracker.network=cni, nat or auto only, found {network:?}")]
    Network {
        /// The mode as configured.
        network: String,
    },
    /// An implausible pool size.
    #[error("provider=firecracker requires firecracker.pool between 0 and {MAX_POOL}, found {found}")]
    Pool {
        /// The number as configured.
        found: i64,
    },
    /// An invalid value of `firecracker.warm`.
    #[error("provider=firecracker supports firecracker.warm=auto or off only, found {warm:?}")]
    Warm {
        /// The word as configured.
        warm: String,
    },
    /// A volume would hide the work root, or be inside it, where a sync removes files that are not its own.
    #[error(
        "provider=firecracker requires cache volume {name:?} to be mounted neither in nor around firecracker.workRoot {work_root}"
    )]
    VolumeInWorkRoot {
        /// The volume's name.
        name: String,
        /// The work root.
        work_root: String,
    },
}

impl Fault for InvalidFirecracker {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Unfit(unfit) => unfit.hints(),
            _ => Vec::new(),
        }
    }
}

/// Normalises and checks the settings, in the Go program's order.
pub fn plan(settings: &Settings) -> Result<FirecrackerPlan, InvalidFirecracker> {
    fit::check(settings, Provider::Firecracker)?;
    let firecracker = &settings.firecracker;
    let user = preferred(&firecracker.user, &settings.ssh.user);
    if user.is_empty() {
        return Err(InvalidFirecracker::User);
    }
    if !is_user_name(user) {
        return Err(InvalidFirecracker::UserName {
            user: user.to_owned(),
        });
    }
    let work_root = work_root(settings)?;
    let cpus = size("firecracker.cpus", &firecracker.cpus, 1, u64::from(MAX_CPUS))?;
    let memory = size(
        "firecracker.memoryMiB",
        &firecracker.memory_mib,
        u64::from(MIN_MEMORY_MIB),
        u64::from(MAX_MEMORY_MIB),
    )?;
    let disk_mib = size("firecracker.diskMiB", &firecracker.disk_mib, 1, MAX_DISK_MIB)?;
    let network = network_mode(firecracker.network.value.as_str())?;
    let warm = warm(firecracker.warm.value.as_str())?;
    Ok(FirecrackerPlan {
        binary: firecracker.binary.value.clone(),
        jailer: jailer(&firecracker.jailer.value),
        kernel: firecracker.kernel.clone(),
        rootfs: firecracker.rootfs.clone(),
        image: firecracker.image.value.clone(),
        warm,
        pool: pool(firecracker.pool.value)?,
        pool_max_age: firecracker.pool_max_age.value,
        user: user.to_owned(),
        work_root: work_root.to_owned(),
        cpus: u32::try_from(cpus).unwrap_or(MAX_CPUS),
        memory_mib: u32::try_from(memory).unwrap_or(MAX_MEMORY_MIB),
        disk_mib,
        limits: Limits {
            max_leases: amount("firecracker.maxLeases", &firecracker.max_leases)?,
            reserve_memory_mib: amount("firecracker.reserveMemoryMiB", &firecracker.reserve_memory_mib)?,
            reserve_disk_mib: amount("firecracker.reserveDiskMiB", &firecracker.reserve_disk_mib)?,
        },
        quota: Quota {
            max_leases: amount("firecracker.maxLeasesPerOwner", &firecracker.max_leases_per_owner)?,
            max_memory_mib: amount(
                "firecracker.maxMemoryMiBPerOwner",
                &firecracker.max_memory_mib_per_owner,
            )?,
        },
        first_uid: uid("firecracker.firstUid", &firecracker.first_uid, MAX_UID)?,
        uid_count: uid("firecracker.uidCount", &firecracker.uid_count, MAX_UID_COUNT)?,
        network,
        cni_network: firecracker.cni_network.value.clone(),
        cni_conf_dir: firecracker.cni_conf_dir.value.clone(),
        cni_bin_dir: firecracker.cni_bin_dir.value.clone(),
        launch_timeout: firecracker.launch_timeout.value,
        delete_on_release: firecracker.delete_on_release.value,
        // The generic default is meant for cloud images; a microVM listens on the usual port.
        ssh_port: if settings.ssh.port.is_default() {
            22
        } else {
            settings.ssh.port.value
        },
        server_type: Some(settings.server_type.value.clone())
            .filter(|server_type| !server_type.is_empty())
            .unwrap_or_else(|| SERVER_TYPE.to_owned()),
        class: settings.class.value.clone(),
        profile: settings.profile.value.clone(),
        ttl: settings.ttl.value,
        idle_timeout: settings.idle_timeout.value,
        exposed: labels::exposed(&settings.expose.value),
        volumes: settings.cache.volumes.value.clone(),
    })
}

/// The work root, after checking that no volume is inside or above it.
fn work_root(settings: &Settings) -> Result<&str, InvalidFirecracker> {
    let work_root = preferred(&settings.firecracker.work_root, &settings.work_root);
    if !is_absolute_posix(work_root) {
        return Err(InvalidFirecracker::WorkRoot);
    }
    if !is_taken_by_guest(work_root) {
        return Err(InvalidFirecracker::WorkRootOfGuest);
    }
    if let Some(volume) = meets_work_root(&settings.cache.volumes.value, work_root) {
        return Err(InvalidFirecracker::VolumeInWorkRoot {
            name: volume.name.clone(),
            work_root: work_root.to_owned(),
        });
    }
    Ok(work_root)
}

/// The provider's own value, unless it is the default and the generic value is not.
fn preferred<'a>(own: &'a Sourced<String>, generic: &'a Sourced<String>) -> &'a str {
    let generic_counts = own.is_default() && !generic.is_default() && !generic.value.is_empty();
    if generic_counts {
        &generic.value
    } else {
        &own.value
    }
}

fn size(key: &'static str, value: &Sourced<i64>, least: u64, most: u64) -> Result<u64, InvalidFirecracker> {
    let found = value.value;
    let Some(number) = u64::try_from(found).ok().filter(|number| *number > 0) else {
        return Err(InvalidFirecracker::NotPositive { key });
    };
    if (least..=most).contains(&number) {
        Ok(number)
    } else {
        Err(InvalidFirecracker::OutOfRange {
            key,
            least,
            most,
            found,
        })
    }
}

/// A number of uids: never zero, since uid 0 is root.
fn uid(key: &'static str, value: &Sourced<i64>, most: u32) -> Result<u32, InvalidFirecracker> {
    size(key, value, 1, u64::from(most)).map(|number| u32::try_from(number).unwrap_or(most))
}

/// A number that may be zero.
fn amount(key: &'static str, value: &Sourced<i64>) -> Result<u64, InvalidFirecracker> {
    u64::try_from(value.value)
        .ok()
        .filter(|amount| *amount <= MAX_DISK_MIB)
        .ok_or(InvalidFirecracker::OutOfRange {
            key,
            least: 0,
            most: MAX_DISK_MIB,
            found: value.value,
        })
}

/// Normalises a word of the configuration.
pub fn word(text: &str) -> String {
    text.trim().to_ascii_lowercase()
}

fn network_mode(text: &str) -> Result<Option<NetworkMode>, InvalidFirecracker> {
    let name = word(text);
    if matches!(name.as_str(), "auto" | "") {
        return Ok(None);
    }
    let mode = NetworkMode::by_name(&name).ok_or_else(|| InvalidFirecracker::Network {
        network: text.to_owned(),
    })?;
    Ok(Some(mode))
}

fn warm(text: &str) -> Result<bool, InvalidFirecracker> {
    match word(text).as_str() {
        "auto" | "" => Ok(true),
        "off" => Ok(false),
        _ => Err(InvalidFirecracker::Warm {
            warm: text.to_owned(),
        }),
    }
}

fn pool(found: i64) -> Result<u32, InvalidFirecracker> {
    u32::try_from(found)
        .ok()
        .filter(|_| found <= MAX_POOL)
        .ok_or(InvalidFirecracker::Pool { found })
}

fn jailer(program: &HostPath) -> Jailer {
    match program.as_path().to_str() {
        Some("") => Jailer::Auto,
        Some("none") => Jailer::Off,
        _ => Jailer::Program(program.clone()),
    }
}

/// The first volume inside or above the work root, which may contain redundant slashes.
fn meets_work_root<'a>(volumes: &'a [Volume], work_root: &str) -> Option<&'a Volume> {
    let parts = work_root.split('/').filter(|part| !part.is_empty());
    let plain: String = parts.flat_map(|part| ["/", part]).collect();
    volumes.iter().find(|volume| volume.path.meets(&plain))
}

/// A user name that Debian's useradd(8) accepts: it is written to seed files and ssh arguments, where a dash
/// or blank would be harmful.
fn is_user_name(name: &str) -> bool {
    let mut chars = name.chars();
    name.len() <= 32
        && chars.next().is_some_and(|c| c.is_ascii_lowercase() || c == '_')
        && chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-'))
}

fn is_absolute_posix(path: &str) -> bool {
    path.starts_with('/')
        && path.len() > 1
        && !path.contains(['\0', '\n', '\r', '\\'])
        && !path.split('/').any(|part| part == "..")
}

/// The rule of our guest's init for its work root. Checked here because a refusal by the guest would cost a
/// machine, and its message could not name the setting.
fn is_taken_by_guest(path: &str) -> bool {
    path.len() <= MAX_WORK_ROOT
        && path.split('/').any(|part| !part.is_empty())
        && !path.split('/').any(|part| part == ".")
}

#[cfg(test)]
mod tests;
