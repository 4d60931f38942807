//! The settings of a command: one typed field per key, each with its origin.
//!
//! Built only from a resolved table. Values that select programs or files of this host must have the type
//! [`HostPath`] or [`HostName`], so that later code needs no trust checks.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::key::Name;
use super::layer::{Layer, Origin, Sourced, Trusted};
use super::profiles::{Preset, Profile, ProofTemplate};
use super::provider::{Provider, ProviderError};
use super::table::Table;
use super::trust::{HostName, HostPath};
use super::value::Value;
use crate::duration::GoDuration;
use crate::volume::Volume;

/// All settings, before a provider has checked them.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `provider`: as written; see [`Settings::provider`].
    pub provider: Sourced<String>,
    /// `profile`.
    pub profile: Sourced<String>,
    /// `target`.
    pub target: Sourced<String>,
    /// `architecture`.
    pub architecture: Sourced<String>,
    /// `os`.
    pub os: Sourced<String>,
    /// `windows.mode`.
    pub windows_mode: Sourced<String>,
    /// `desktop`.
    pub desktop: Sourced<bool>,
    /// `desktopEnv`.
    pub desktop_env: Sourced<String>,
    /// `browser`.
    pub browser: Sourced<bool>,
    /// `code`.
    pub code: Sourced<bool>,
    /// `network`.
    pub network: Sourced<String>,
    /// `tailscale.enabled`.
    pub tailscale: Sourced<bool>,
    /// `class`.
    pub class: Sourced<String>,
    /// `serverType`.
    pub server_type: Sourced<String>,
    /// `ssh.*`.
    pub ssh: SshSettings,
    /// `workRoot`.
    pub work_root: Sourced<String>,
    /// `ttl`, greater than zero.
    pub ttl: Sourced<GoDuration>,
    /// `idleTimeout`, greater than zero.
    pub idle_timeout: Sourced<GoDuration>,
    /// `sync.*`.
    pub sync: SyncSettings,
    /// `env.allow`, or the profile's list in its place.
    pub env_allow: Sourced<Vec<String>>,
    /// Variables for commands, from the profile.
    pub env: BTreeMap<String, String>,
    /// Files that runs fetch, from the profile.
    pub artifact_globs: Vec<String>,
    /// Named commands: the profile's take precedence.
    pub presets: BTreeMap<String, Preset>,
    /// Texts of proofs, by name: the profile's take precedence.
    pub proof_templates: BTreeMap<String, ProofTemplate>,
    /// `run.preflightTools`.
    pub preflight_tools: Sourced<Vec<String>>,
    /// `results.*`.
    pub results: ResultsSettings,
    /// `cache.*`.
    pub cache: CacheSettings,
    /// `lease.expose`.
    pub expose: Sourced<Vec<u16>>,
    /// `static.*`.
    pub static_host: StaticSettings,
    /// `firecracker.*`.
    pub firecracker: FirecrackerSettings,
}

/// `ssh.*`.
#[derive(Debug, Clone)]
pub struct SshSettings {
    /// `ssh.user`.
    pub user: Sourced<String>,
    /// `ssh.key`, `~` expanded.
    pub key: Trusted<PathBuf>,
    /// `ssh.port`.
    pub port: Sourced<u16>,
    /// `ssh.fallbackPorts`.
    pub fallback_ports: Trusted<Vec<u16>>,
}

/// `sync.*`.
#[derive(Debug, Clone)]
pub struct SyncSettings {
    /// `sync.exclude`, from all layers in order.
    pub exclude: Sourced<Vec<String>>,
    /// `sync.include`, from all layers without duplicates.
    pub include: Sourced<Vec<String>>,
    /// `sync.delete`.
    pub delete: Sourced<bool>,
    /// `sync.checksum`.
    pub checksum: Sourced<bool>,
    /// `sync.gitSeed`.
    pub git_seed: Sourced<bool>,
    /// `sync.fingerprint`.
    pub fingerprint: Sourced<bool>,
    /// `sync.baseRef`.
    pub base_ref: Sourced<String>,
    /// `sync.timeout`, greater than zero.
    pub timeout: Sourced<GoDuration>,
    /// `sync.warnFiles`, greater than zero.
    pub warn_files: Sourced<i64>,
    /// `sync.warnBytes`, greater than zero.
    pub warn_bytes: Sourced<i64>,
    /// `sync.failFiles`, greater than zero.
    pub fail_files: Sourced<i64>,
    /// `sync.failBytes`, greater than zero.
    pub fail_bytes: Sourced<i64>,
    /// `sync.allowLarge`.
    pub allow_large: Sourced<bool>,
}

/// `results.*`.
#[derive(Debug, Clone)]
pub struct ResultsSettings {
    /// `results.junit`.
    pub junit: Sourced<Vec<String>>,
    /// `results.auto`.
    pub auto: Sourced<bool>,
    /// `results.failOnFailures`.
    pub fail_on_failures: Sourced<bool>,
}

/// `cache.*`.
#[derive(Debug, Clone)]
pub struct CacheSettings {
    /// `cache.pnpm`.
    pub pnpm: Sourced<bool>,
    /// `cache.npm`.
    pub npm: Sourced<bool>,
    /// `cache.docker`.
    pub docker: Sourced<bool>,
    /// `cache.git`.
    pub git: Sourced<bool>,
    /// `cache.maxGB`, greater than zero.
    pub max_gb: Sourced<i64>,
    /// `cache.purgeOnRelease`.
    pub purge_on_release: Sourced<bool>,
    /// `cache.volumes`: never from a repository, which could otherwise read data left by leases of another
    /// repository.
    pub volumes: Trusted<Vec<Volume>>,
}

/// The host of the `ssh` provider: `static.*`, with the settings used in their absence. Empty texts mean "not
/// set".
///
/// Trusted as a whole: they are the destination of the user's secrets and key, so none of them may come from
/// a repository.
#[derive(Debug, Clone)]
pub struct StaticSettings {
    /// `static.id`.
    pub id: Trusted<String>,
    /// `static.name`.
    pub name: Trusted<String>,
    /// `static.host`.
    pub host: Trusted<String>,
    /// `static.user`.
    pub user: Trusted<String>,
    /// `static.port`.
    pub port: Trusted<Option<u16>>,
    /// `static.workRoot`.
    pub work_root: Trusted<String>,
    /// `ssh.user` as set by the user of this host.
    pub ssh_user: Trusted<String>,
    /// `ssh.port` as set by the user of this host.
    pub ssh_port: Trusted<u16>,
    /// `workRoot` as set by the user of this host.
    pub general_work_root: Trusted<String>,
}

/// `firecracker.*` as configured; [`super::firecracker::plan`] validates them.
#[derive(Debug, Clone)]
pub struct FirecrackerSettings {
    /// `firecracker.host`: as written, or empty.
    pub host: Sourced<HostName>,
    /// `firecracker.binary`.
    pub binary: Sourced<HostPath>,
    /// `firecracker.jailer`: empty, `none`, or a program.
    pub jailer: Sourced<HostPath>,
    /// `firecracker.kernel`.
    pub kernel: Sourced<HostPath>,
    /// `firecracker.rootfs`.
    pub rootfs: Sourced<HostPath>,
    /// `firecracker.image`: a name or digest, or empty.
    pub image: Sourced<HostName>,
    /// `firecracker.warm`: `auto` or `off`.
    pub warm: Sourced<HostName>,
    /// `firecracker.pool`.
    pub pool: Sourced<i64>,
    /// `firecracker.poolMaxAge`, greater than zero.
    pub pool_max_age: Sourced<GoDuration>,
    /// `firecracker.user`.
    pub user: Sourced<String>,
    /// `firecracker.workRoot`.
    pub work_root: Sourced<String>,
    /// `firecracker.cpus`.
    pub cpus: Sourced<i64>,
    /// `firecracker.memoryMiB`.
    pub memory_mib: Sourced<i64>,
    /// `firecracker.diskMiB`.
    pub disk_mib: Sourced<i64>,
    /// `firecracker.network`.
    pub network: Sourced<HostName>,
    /// `firecracker.cniNetwork`.
    pub cni_network: Sourced<HostName>,
    /// `firecracker.cniConfDir`.
    pub cni_conf_dir: Sourced<HostPath>,
    /// `firecracker.cniBinDir`.
    pub cni_bin_dir: Sourced<HostPath>,
    /// `firecracker.launchTimeout`, greater than zero.
    pub launch_timeout: Sourced<GoDuration>,
    /// `firecracker.maxLeases`.
    pub max_leases: Sourced<i64>,
    /// `firecracker.maxLeasesPerOwner`.
    pub max_leases_per_owner: Sourced<i64>,
    /// `firecracker.maxMemoryMiBPerOwner`.
    pub max_memory_mib_per_owner: Sourced<i64>,
    /// `firecracker.reserveMemoryMiB`.
    pub reserve_memory_mib: Sourced<i64>,
    /// `firecracker.reserveDiskMiB`.
    pub reserve_disk_mib: Sourced<i64>,
    /// `firecracker.firstUid`.
    pub first_uid: Sourced<i64>,
    /// `firecracker.uidCount`.
    pub uid_count: Sourced<i64>,
    /// `firecracker.deleteOnRelease`.
    pub delete_on_release: Sourced<bool>,
}

impl Settings {
    /// The chosen provider. The compiled-in default is not usable, as in the Go program.
    pub fn provider(&self) -> Result<Provider, ProviderError> {
        if self.provider.is_default() {
            return Err(ProviderError::NotSelected);
        }
        Provider::by_name(&self.provider.value)
    }

    /// Drops `cache.volumes`: the volumes of this host belong to its user, not to a remote owner.
    pub fn leave_volumes(&mut self) {
        let none = Sourced {
            value: Vec::new(),
            origin: Origin::Default,
        };
        if let Some(none) = Trusted::new(none) {
            self.cache.volumes = none;
        }
    }

    /// Whether new microVMs are made on another host (`firecracker.host`).
    pub fn is_afar(&self) -> bool {
        !self.firecracker.host.value.as_str().trim().is_empty()
    }

    /// Adds the values of the chosen profile. A variable or flag that sets `env.allow` takes precedence.
    pub(super) fn take_profile(
        &mut self,
        profile: Profile,
        presets: BTreeMap<String, Preset>,
        proof_templates: BTreeMap<String, ProofTemplate>,
    ) {
        if let Some(allow) = profile.allow
            && self.env_allow.layer() < Layer::Environment
        {
            self.env_allow = allow;
        }
        self.env = profile.env;
        self.artifact_globs = profile.artifact_globs;
        self.presets = presets;
        self.presets.extend(profile.presets);
        self.proof_templates = proof_templates;
        self.proof_templates.extend(profile.proof_templates);
    }

    pub(super) fn from_table(table: &Table) -> Self {
        let read = Reader {
            table,
            trusted_only: false,
        };
        Self {
            provider: read.text(Name::ProviderName),
            profile: read.text(Name::Profile),
            target: read.text(Name::TargetOs),
            architecture: read.text(Name::Architecture),
            os: read.text(Name::OsImage),
            windows_mode: read.text(Name::WindowsMode),
            desktop: read.boolean(Name::Desktop),
            desktop_env: read.text(Name::DesktopEnv),
            browser: read.boolean(Name::Browser),
            code: read.boolean(Name::Code),
            network: read.text(Name::NetworkName),
            tailscale: read.boolean(Name::Tailscale),
            class: read.text(Name::Class),
            server_type: read.text(Name::ServerType),
            ssh: SshSettings {
                user: read.text(Name::SshUser),
                key: read.trusted(Name::SshKey, Reader::path),
                port: read.port(Name::SshPort),
                fallback_ports: read.trusted(Name::SshFallbackPorts, Reader::ports),
            },
            work_root: read.text(Name::WorkRoot),
            ttl: read.duration(Name::Ttl),
            idle_timeout: read.duration(Name::IdleTimeout),
            sync: read.sync(),
            env_allow: read.list(Name::EnvAllow),
            env: BTreeMap::new(),
            artifact_globs: Vec::new(),
            presets: BTreeMap::new(),
            proof_templates: BTreeMap::new(),
            preflight_tools: read.list(Name::PreflightTools),
            results: ResultsSettings {
                junit: read.list(Name::ResultsJunit),
                auto: read.boolean(Name::ResultsAuto),
                fail_on_failures: read.boolean(Name::ResultsFailOnFailures),
            },
            cache: CacheSettings {
                pnpm: read.boolean(Name::CachePnpm),
                npm: read.boolean(Name::CacheNpm),
                docker: read.boolean(Name::CacheDocker),
                git: read.boolean(Name::CacheGit),
                max_gb: read.integer(Name::CacheMaxGb),
                purge_on_release: read.boolean(Name::CachePurgeOnRelease),
                // The table has only the short form; the resolution sets the full value later.
                volumes: read.trusted(Name::CacheVolumes, |read, name| {
                    read.get(name, |_| Some(Vec::new()))
                }),
            },
            expose: read.ports(Name::Expose),
            static_host: StaticSettings {
                id: read.trusted(Name::StaticId, Reader::text),
                name: read.trusted(Name::StaticName, Reader::text),
                host: read.trusted(Name::StaticHost, Reader::text),
                user: read.trusted(Name::StaticUser, Reader::text),
                port: read.trusted(Name::StaticPort, |read, name| {
                    read.get(name, |value| match value {
                        Value::Port(port) => Some(*port),
                        _ => None,
                    })
                }),
                work_root: read.trusted(Name::StaticWorkRoot, Reader::text),
                ssh_user: read.trusted(Name::SshUser, Reader::text),
                ssh_port: read.trusted(Name::SshPort, Reader::port),
                general_work_root: read.trusted(Name::WorkRoot, Reader::text),
            },
            firecracker: read.firecracker(),
        }
    }
}

/// Takes values out of the table with the types given in the registry.
#[derive(Clone, Copy)]
struct Reader<'a> {
    table: &'a Table,
    /// Whether repository files are left out.
    trusted_only: bool,
}

impl Reader<'_> {
    fn get<T>(&self, name: Name, take: impl FnOnce(&Value) -> Option<T>) -> Sourced<T> {
        let sourced = if self.trusted_only {
            self.table.trusted(name)
        } else {
            self.table.get(name)
        };
        sourced.with(
            take(&sourced.value).expect("the registry gives every key one type, and a test reads them all"),
        )
    }

    /// The value of `read` from the layers that the user of this host controls.
    fn trusted<T>(&self, name: Name, read: impl FnOnce(&Self, Name) -> Sourced<T>) -> Trusted<T> {
        let only = Self {
            trusted_only: true,
            ..*self
        };
        Trusted::new(read(&only, name)).expect("the table keeps trusted layers apart")
    }

    fn ports(&self, name: Name) -> Sourced<Vec<u16>> {
        self.get(name, |value| match value {
            Value::Ports(ports) => Some(ports.clone()),
            _ => None,
        })
    }

    fn port(&self, name: Name) -> Sourced<u16> {
        self.get(name, |value| match value {
            Value::Port(port) => *port,
            _ => None,
        })
    }

    fn text(&self, name: Name) -> Sourced<String> {
        self.get(name, |value| match value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        })
    }

    fn path(&self, name: Name) -> Sourced<PathBuf> {
        self.get(name, |value| match value {
            Value::Path(path) => Some(path.clone()),
            _ => None,
        })
    }

    fn boolean(&self, name: Name) -> Sourced<bool> {
        self.get(name, |value| match value {
            Value::Bool(truth) => Some(*truth),
            _ => None,
        })
    }

    fn integer(&self, name: Name) -> Sourced<i64> {
        self.get(name, |value| match value {
            Value::Integer(number) => Some(*number),
            _ => None,
        })
    }

    fn duration(&self, name: Name) -> Sourced<GoDuration> {
        self.get(name, |value| match value {
            Value::Duration(span) => Some(*span),
            _ => None,
        })
    }

    fn list(&self, name: Name) -> Sourced<Vec<String>> {
        self.get(name, |value| match value {
            Value::List(items) => Some(items.clone()),
            _ => None,
        })
    }

    fn host_path(&self, name: Name) -> Sourced<HostPath> {
        let path = self.path(name);
        path.with(HostPath::from_trusted(&path).expect("no repository file sets a host-only key"))
    }

    fn host_name(&self, name: Name) -> Sourced<HostName> {
        let text = self.text(name);
        text.with(HostName::from_trusted(&text).expect("no repository file sets a host-only key"))
    }

    fn sync(&self) -> SyncSettings {
        SyncSettings {
            exclude: self.list(Name::SyncExclude),
            include: self.list(Name::SyncInclude),
            delete: self.boolean(Name::SyncDelete),
            checksum: self.boolean(Name::SyncChecksum),
            git_seed: self.boolean(Name::SyncGitSeed),
            fingerprint: self.boolean(Name::SyncFingerprint),
            base_ref: self.text(Name::SyncBaseRef),
            timeout: self.duration(Name::SyncTimeout),
            warn_files: self.integer(Name::SyncWarnFiles),
            warn_bytes: self.integer(Name::SyncWarnBytes),
            fail_files: self.integer(Name::SyncFailFiles),
            fail_bytes: self.integer(Name::SyncFailBytes),
            allow_large: self.boolean(Name::SyncAllowLarge),
        }
    }

    fn firecracker(&self) -> FirecrackerSettings {
        FirecrackerSettings {
            host: self.host_name(Name::FirecrackerHost),
            binary: self.host_path(Name::FirecrackerBinary),
            jailer: self.host_path(Name::FirecrackerJailer),
            kernel: self.host_path(Name::FirecrackerKernel),
            rootfs: self.host_path(Name::FirecrackerRootfs),
            image: self.host_name(Name::FirecrackerImage),
            warm: self.host_name(Name::FirecrackerWarm),
            pool: self.integer(Name::FirecrackerPool),
            pool_max_age: self.duration(Name::FirecrackerPoolMaxAge),
            user: self.text(Name::FirecrackerUser),
            work_root: self.text(Name::FirecrackerWorkRoot),
            cpus: self.integer(Name::FirecrackerCpus),
            memory_mib: self.integer(Name::FirecrackerMemory),
            disk_mib: self.integer(Name::FirecrackerDisk),
            network: self.host_name(Name::FirecrackerNetwork),
            cni_network: self.host_name(Name::FirecrackerCniNetwork),
            cni_conf_dir: self.host_path(Name::FirecrackerCniConfDir),
            cni_bin_dir: self.host_path(Name::FirecrackerCniBinDir),
            launch_timeout: self.duration(Name::FirecrackerLaunchTimeout),
            max_leases: self.integer(Name::FirecrackerMaxLeases),
            max_leases_per_owner: self.integer(Name::FirecrackerMaxLeasesPerOwner),
            max_memory_mib_per_owner: self.integer(Name::FirecrackerMaxMemoryPerOwner),
            reserve_memory_mib: self.integer(Name::FirecrackerReserveMemory),
            reserve_disk_mib: self.integer(Name::FirecrackerReserveDisk),
            first_uid: self.integer(Name::FirecrackerFirstUid),
            uid_count: self.integer(Name::FirecrackerUidCount),
            delete_on_release: self.boolean(Name::FirecrackerDeleteOnRelease),
        }
    }
}
