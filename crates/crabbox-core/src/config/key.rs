//! The registry of configuration keys: the single source of truth for paths, types, defaults, variables, flags and trust.
//!
//! Reading files, the environment and flags, `config show`, `config explain` and the documentation are all driven by this
//! table. A key must never be read under a name that is not in this table.

use super::choice::Choice;

/// The type of a key's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text; an empty one counts as not set.
    Text,
    /// A path on this host; `~` is the home directory.
    Path,
    /// A program: a path, or a name without a slash that is looked up on `PATH`.
    Program,
    /// A signed 64-bit integer.
    Integer,
    /// A TCP port, 1 to 65535.
    Port,
    /// A boolean.
    Bool,
    /// A duration in Go's syntax; it must be positive.
    Duration,
    /// A list of texts.
    List,
    /// A list of TCP ports.
    Ports,
    /// One of a fixed set of names.
    Choice(Choice),
}

impl Kind {
    /// Description of the expected value, for an error message.
    pub(crate) const fn expectation(self) -> &'static str {
        match self {
            Self::Text => "a text",
            Self::Path => "a path",
            Self::Program => "a program name or path",
            Self::Integer => "a whole number",
            Self::Port => "a port number from 1 to 65535",
            Self::Bool => "true or false",
            Self::Duration => "a duration such as 90m or 1h30m",
            Self::List => "a list of texts",
            Self::Ports => "a list of port numbers",
            Self::Choice(choice) => choice.names(),
        }
    }
}

/// Which layers may set a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Any layer.
    Open,
    /// Only layers that the user of this host controls, because the key selects what runs on it.
    HostOnly,
    /// Only layers that the user of this host controls, because the key is part of the destination of their files, secrets
    /// and logins. All keys of a destination are trusted together: a host approved by the user with a port chosen by a
    /// repository is another server.
    Destination,
    /// Like [`Trust::Destination`] for a host of provider `ssh`; any layer for a machine that we make.
    DestinationOfHost,
}

impl Trust {
    /// Whether a repository file may set the key for some provider.
    pub const fn is_open_to_repositories(self) -> bool {
        matches!(self, Self::Open | Self::DestinationOfHost)
    }
}

/// How a later layer combines with earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    /// The later value replaces the earlier one.
    Replace,
    /// The later list is appended, with duplicates.
    Append,
    /// The later list is appended, without duplicates.
    AppendUnique,
    /// The later number replaces the earlier one if it is greater than zero, otherwise it is ignored.
    WhenPositive,
}

/// The set of commands that have a key's flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Every command that uses a provider: `--provider`.
    Provider,
    /// The flags of a provider, on the same commands.
    ProviderOptions,
    /// Kind of machine and static host: `--target` and similar.
    Target,
    /// `--network`.
    Network,
    /// Commands that may create a lease.
    Create,
    /// `run` only.
    Run,
}

/// A command-line flag that sets a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag {
    /// Its name without dashes.
    pub name: &'static str,
    /// The commands that have it.
    pub group: Group,
}

/// One configuration key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its identity.
    pub name: Name,
    /// Its path in a YAML file, components separated by dots.
    pub path: &'static str,
    /// Alternative paths.
    pub aliases: &'static [&'static str],
    /// The type of its value.
    pub kind: Kind,
    /// The default, in the spelling of an environment variable.
    pub default: &'static str,
    /// Environment variables; the first one that is set and not empty applies.
    pub variables: &'static [&'static str],
    /// The flag, if there is one.
    pub flag: Option<Flag>,
    /// Who may set it.
    pub trust: Trust,
    /// How layers combine.
    pub merge: Merge,
    /// One line of description.
    pub doc: &'static str,
}

impl Key {
    /// The key with this YAML path or alias.
    pub fn by_path(path: &str) -> Option<&'static Self> {
        KEYS.iter()
            .find(|key| key.path == path || key.aliases.contains(&path))
    }
}

impl Name {
    /// The table row of this key.
    pub fn key(self) -> &'static Key {
        &KEYS[self as usize]
    }
}

/// The contents of the rows below; the registry adds identity and documentation.
const fn row(path: &'static str, kind: Kind, default: &'static str) -> Key {
    Key {
        name: Name::Profile,
        path,
        aliases: &[],
        kind,
        default,
        variables: &[],
        flag: None,
        trust: Trust::Open,
        merge: Merge::Replace,
        doc: "",
    }
}

impl Key {
    const fn env(mut self, variables: &'static [&'static str]) -> Self {
        self.variables = variables;
        self
    }

    const fn flag(mut self, name: &'static str, group: Group) -> Self {
        self.flag = Some(Flag { name, group });
        self
    }

    const fn alias(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    const fn merge(mut self, merge: Merge) -> Self {
        self.merge = merge;
        self
    }

    const fn host_only(mut self) -> Self {
        self.trust = Trust::HostOnly;
        self
    }

    const fn trust(mut self, trust: Trust) -> Self {
        self.trust = trust;
        self
    }
}

macro_rules! registry {
    ($(#[doc = $doc:literal] $name:ident = $row:expr;)+) => {
        /// The identity of a configuration key.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Name {
            $(#[doc = $doc] $name,)+
        }

        /// Every key, in the order of [`Name`].
        pub const KEYS: &[Key] = &[$(Key { name: Name::$name, doc: $doc.trim_ascii(), ..$row },)+];
    };
}

use Group::{Create, Network, Provider, ProviderOptions, Run, Target};
use Kind::{Bool, Duration, Integer, List, Path, Port, Ports, Program, Text};
use Trust::{Destination, DestinationOfHost};

registry! {
    /// Name of the profile, one of those under profiles.
    Profile = row("profile", Text, "default").env(&["CRABBOX_PROFILE"]).flag("profile", Create);
    /// Who provides the machine: firecracker, or ssh for a host that exists already.
    ProviderName = row("provider", Kind::Choice(Choice::Provider), "hetzner").env(&["CRABBOX_PROVIDER"]).flag("provider", Provider);
    /// Operating system of the machine: linux, macos or windows.
    TargetOs = row("target", Kind::Choice(Choice::Target), "linux").alias(&["targetOS"])
        .env(&["CRABBOX_TARGET", "CRABBOX_TARGET_OS"]).flag("target", Target);
    /// Processor architecture of the machine.
    Architecture = row("architecture", Kind::Choice(Choice::Architecture), "amd64").env(&["CRABBOX_ARCH"]).flag("arch", Create);
    /// Selects an image of the provider.
    OsImage = row("os", Kind::Choice(Choice::OsImage), "").env(&["CRABBOX_OS"]).flag("os", Create);
    /// Windows flavour: normal or wsl2.
    WindowsMode = row("windows.mode", Kind::Choice(Choice::WindowsMode), "normal").env(&["CRABBOX_WINDOWS_MODE"]).flag("windows-mode", Target);
    /// Whether the machine has a desktop.
    Desktop = row("desktop", Bool, "false").env(&["CRABBOX_DESKTOP"]).flag("desktop", Create);
    /// Which desktop it has, where a provider has one: xfce, wayland or gnome. None here has.
    DesktopEnv = row("desktopEnv", Kind::Choice(Choice::DesktopEnv), "xfce").env(&["CRABBOX_DESKTOP_ENV"]).flag("desktop-env", Create);
    /// Whether a browser is installed.
    Browser = row("browser", Bool, "false").env(&["CRABBOX_BROWSER"]).flag("browser", Create);
    /// Whether a web editor is installed.
    Code = row("code", Bool, "false").env(&["CRABBOX_CODE"]).flag("code", Create);
    /// How the machine is reached: auto, public or tailscale.
    NetworkName = row("network", Kind::Choice(Choice::Network), "auto").env(&["CRABBOX_NETWORK"]).flag("network", Network);
    /// Whether the machine joins a Tailscale network, which no provider here supports.
    Tailscale = row("tailscale.enabled", Bool, "false").env(&["CRABBOX_TAILSCALE"]);
    /// Machine class, recorded as a label.
    Class = row("class", Text, "beast").env(&["CRABBOX_DEFAULT_CLASS"]).flag("class", Create);
    /// Machine type, recorded as a label.
    ServerType = row("serverType", Text, "").env(&["CRABBOX_SERVER_TYPE"]).flag("type", Create);
    /// User to log in as.
    SshUser = row("ssh.user", Text, "crabbox").env(&["CRABBOX_SSH_USER"]).trust(DestinationOfHost);
    /// Private key for hosts that have no key of their own lease.
    SshKey = row("ssh.key", Path, "~/.ssh/id_ed25519").env(&["CRABBOX_SSH_KEY"]).trust(Destination);
    /// Port of the SSH server.
    SshPort = row("ssh.port", Port, "2222").env(&["CRABBOX_SSH_PORT"]).flag("ssh-port", Create)
        .trust(DestinationOfHost);
    /// Ports to try when that one does not answer.
    SshFallbackPorts = row("ssh.fallbackPorts", Ports, "22").env(&["CRABBOX_SSH_FALLBACK_PORTS"])
        .trust(Destination);
    /// Directory on the machine under which working trees are placed.
    WorkRoot = row("workRoot", Text, "/work/crabbox").env(&["CRABBOX_WORK_ROOT"])
        .trust(DestinationOfHost);
    /// Maximum lifetime of a lease.
    Ttl = row("ttl", Duration, "90m").alias(&["lease.ttl"]).env(&["CRABBOX_TTL"]).flag("ttl", Create);
    /// Maximum idle time of a lease.
    IdleTimeout = row("idleTimeout", Duration, "30m").alias(&["lease.idleTimeout"])
        .env(&["CRABBOX_IDLE_TIMEOUT"]).flag("idle-timeout", Create);
    /// Ports to record in the label `crabbox_exposed_ports` of a new lease, at most ten; nothing is opened.
    Expose = row("lease.expose", Ports, "").flag("expose", Create).merge(Merge::AppendUnique);
    /// Patterns of files that are not synced.
    SyncExclude = row("sync.exclude", List, "").alias(&["sync.excludes"]).merge(Merge::Append);
    /// Patterns of files that are synced although git ignores them.
    SyncInclude = row("sync.include", List, "").alias(&["sync.includes"]).merge(Merge::AppendUnique);
    /// Whether files deleted locally are deleted in the lease.
    SyncDelete = row("sync.delete", Bool, "true").env(&["CRABBOX_SYNC_DELETE"]);
    /// Whether files are compared by content instead of size and time.
    SyncChecksum = row("sync.checksum", Bool, "false").env(&["CRABBOX_SYNC_CHECKSUM"]).flag("checksum", Run);
    /// Whether the tree in the lease gets a git repository, made from the local one.
    SyncGitSeed = row("sync.gitSeed", Bool, "true").env(&["CRABBOX_SYNC_GIT_SEED"]);
    /// Whether an unchanged tree is recognised and not synced again.
    SyncFingerprint = row("sync.fingerprint", Bool, "true").env(&["CRABBOX_SYNC_FINGERPRINT"]);
    /// Branch, tag or commit to include in the lease's repository, with the history up to its merge base with HEAD.
    SyncBaseRef = row("sync.baseRef", Text, "").env(&["CRABBOX_SYNC_BASE_REF"]);
    /// Maximum time of a sync.
    SyncTimeout = row("sync.timeout", Duration, "15m").env(&["CRABBOX_SYNC_TIMEOUT"]);
    /// Number of files above which a sync warns.
    SyncWarnFiles = row("sync.warnFiles", Integer, "50000").env(&["CRABBOX_SYNC_WARN_FILES"]).merge(Merge::WhenPositive);
    /// Number of bytes above which a sync warns.
    SyncWarnBytes = row("sync.warnBytes", Integer, "5368709120").env(&["CRABBOX_SYNC_WARN_BYTES"]).merge(Merge::WhenPositive);
    /// Number of files above which a sync fails.
    SyncFailFiles = row("sync.failFiles", Integer, "150000").env(&["CRABBOX_SYNC_FAIL_FILES"]).merge(Merge::WhenPositive);
    /// Number of bytes above which a sync fails.
    SyncFailBytes = row("sync.failBytes", Integer, "21474836480").env(&["CRABBOX_SYNC_FAIL_BYTES"]).merge(Merge::WhenPositive);
    /// Whether to allow a sync that exceeds `sync.failFiles` or `sync.failBytes`.
    SyncAllowLarge = row("sync.allowLarge", Bool, "false").env(&["CRABBOX_SYNC_ALLOW_LARGE"]).flag("force-sync-large", Run);
    /// Names of variables that are forwarded to the remote command.
    EnvAllow = row("env.allow", List, "CI,NODE_OPTIONS").env(&["CRABBOX_ENV_ALLOW"]);
    /// Tools whose versions are probed before a run.
    PreflightTools = row("run.preflightTools", List, "").env(&["CRABBOX_PREFLIGHT_TOOLS"]).flag("preflight-tools", Run);
    /// Patterns of JUnit reports to collect.
    ResultsJunit = row("results.junit", List, "").env(&["CRABBOX_RESULTS_JUNIT"]).flag("junit", Run);
    /// Whether reports are looked for where test runners usually put them.
    ResultsAuto = row("results.auto", Bool, "false").env(&["CRABBOX_RESULTS_AUTO"]).flag("results-auto", Run);
    /// Whether failures in the reports fail a run whose command succeeded.
    ResultsFailOnFailures = row("results.failOnFailures", Bool, "false")
        .env(&["CRABBOX_RESULTS_FAIL_ON_FAILURES"]).flag("fail-on-test-failures", Run);
    /// Whether `cache` manages pnpm's store in a lease.
    CachePnpm = row("cache.pnpm", Bool, "true").env(&["CRABBOX_CACHE_PNPM"]);
    /// Whether `cache` manages npm's cache.
    CacheNpm = row("cache.npm", Bool, "true").env(&["CRABBOX_CACHE_NPM"]);
    /// Whether `cache` manages Docker's images and layers.
    CacheDocker = row("cache.docker", Bool, "true").env(&["CRABBOX_CACHE_DOCKER"]);
    /// Whether `cache` manages shared git objects.
    CacheGit = row("cache.git", Bool, "true").env(&["CRABBOX_CACHE_GIT"]);
    /// How large the caches of a lease should get, in GiB; it is shown, and nothing is removed for it.
    CacheMaxGb = row("cache.maxGB", Integer, "80").env(&["CRABBOX_CACHE_MAX_GB"]).merge(Merge::WhenPositive);
    /// Whether the caches of a lease should go with it; it is shown: those of a microVM always do, those of a host stay.
    CachePurgeOnRelease = row("cache.purgeOnRelease", Bool, "false").env(&["CRABBOX_CACHE_PURGE_ON_RELEASE"]);
    /// Drives of this host that outlive their leases; a list of name, key, path, sizeGB and required in a file, NAME=KEY:PATH elsewhere.
    CacheVolumes = row("cache.volumes", List, "").env(&["CRABBOX_CACHE_VOLUMES"]).flag("cache-volume", Create).host_only();
    /// Lease id of the static host.
    StaticId = row("static.id", Text, "").env(&["CRABBOX_STATIC_ID"]).trust(Destination);
    /// Name of the static host.
    StaticName = row("static.name", Text, "").env(&["CRABBOX_STATIC_NAME"]).trust(Destination);
    /// Address of the static host.
    StaticHost = row("static.host", Text, "").env(&["CRABBOX_STATIC_HOST"]).flag("static-host", Target)
        .trust(Destination);
    /// User on the static host.
    StaticUser = row("static.user", Text, "").env(&["CRABBOX_STATIC_USER"]).flag("static-user", Target)
        .trust(Destination);
    /// SSH port of the static host.
    StaticPort = row("static.port", Port, "").env(&["CRABBOX_STATIC_PORT"]).flag("static-port", Target)
        .trust(Destination);
    /// Work root on the static host.
    StaticWorkRoot = row("static.workRoot", Text, "").env(&["CRABBOX_STATIC_WORK_ROOT"]).flag("static-work-root", Target)
        .trust(Destination);
    /// The KVM host that leases are made on, as user@host or user@host:port; empty: this one.
    FirecrackerHost = row("firecracker.host", Text, "")
        .env(&["CRABBOX_FIRECRACKER_HOST"]).flag("firecracker-host", ProviderOptions).host_only();
    /// The Firecracker program.
    FirecrackerBinary = row("firecracker.binary", Program, "firecracker")
        .env(&["CRABBOX_FIRECRACKER_BINARY"]).flag("firecracker-binary", ProviderOptions).host_only();
    /// The jailer program. Empty: `jailer` in the directory of the Firecracker program (required for root); none: no jail.
    FirecrackerJailer = row("firecracker.jailer", Program, "")
        .env(&["CRABBOX_FIRECRACKER_JAILER"]).flag("firecracker-jailer", ProviderOptions).host_only();
    /// The guest kernel, an uncompressed ELF file.
    FirecrackerKernel = row("firecracker.kernel", Path, "/var/lib/crabbox/firecracker/vmlinux")
        .env(&["CRABBOX_FIRECRACKER_KERNEL"]).flag("firecracker-kernel", ProviderOptions).host_only();
    /// The guest root file system, an ext4 image.
    FirecrackerRootfs = row("firecracker.rootfs", Path, "/var/lib/crabbox/firecracker/rootfs.ext4")
        .env(&["CRABBOX_FIRECRACKER_ROOTFS"]).flag("firecracker-rootfs", ProviderOptions).host_only();
    /// The image of `crabbox image list` that leases run, by name or digest; empty: the one called default, else the newest.
    FirecrackerImage = row("firecracker.image", Text, "")
        .env(&["CRABBOX_FIRECRACKER_IMAGE"]).flag("firecracker-image", ProviderOptions).host_only();
    /// Whether a new lease is restored from a matching template of `crabbox image warm`: auto, or off.
    FirecrackerWarm = row("firecracker.warm", Text, "auto")
        .env(&["CRABBOX_FIRECRACKER_WARM"]).flag("firecracker-warm", ProviderOptions).host_only();
    /// How many unused leases are kept ready for a warmup or run with the same settings; 0 is none.
    FirecrackerPool = row("firecracker.pool", Integer, "0")
        .env(&["CRABBOX_FIRECRACKER_POOL"]).flag("firecracker-pool", ProviderOptions).host_only();
    /// How long such a lease waits to be used before it ends.
    FirecrackerPoolMaxAge = row("firecracker.poolMaxAge", Duration, "30m")
        .env(&["CRABBOX_FIRECRACKER_POOL_MAX_AGE"]).flag("firecracker-pool-max-age", ProviderOptions).host_only();
    /// User of the guest; becomes the SSH user.
    FirecrackerUser = row("firecracker.user", Text, "crabbox")
        .env(&["CRABBOX_FIRECRACKER_USER"]).flag("firecracker-user", ProviderOptions);
    /// Directory in the guest under which working trees are placed.
    FirecrackerWorkRoot = row("firecracker.workRoot", Text, "/work/crabbox")
        .env(&["CRABBOX_FIRECRACKER_WORK_ROOT"]).flag("firecracker-work-root", ProviderOptions);
    /// Virtual processors.
    FirecrackerCpus = row("firecracker.cpus", Integer, "4")
        .env(&["CRABBOX_FIRECRACKER_CPUS"]).flag("firecracker-cpus", ProviderOptions);
    /// Memory in MiB.
    FirecrackerMemory = row("firecracker.memoryMiB", Integer, "4096")
        .env(&["CRABBOX_FIRECRACKER_MEMORY_MIB"]).flag("firecracker-memory-mib", ProviderOptions);
    /// Size of the disk in MiB.
    FirecrackerDisk = row("firecracker.diskMiB", Integer, "16384")
        .env(&["CRABBOX_FIRECRACKER_DISK_MIB"]).flag("firecracker-disk-mib", ProviderOptions);
    /// Network mode: cni, nat (built in), or auto: cni when its network is configured, else nat.
    FirecrackerNetwork = row("firecracker.network", Text, "auto")
        .env(&["CRABBOX_FIRECRACKER_NETWORK"]).flag("firecracker-network", ProviderOptions).host_only();
    /// Name of the CNI network.
    FirecrackerCniNetwork = row("firecracker.cniNetwork", Text, "crabbox-firecracker")
        .env(&["CRABBOX_FIRECRACKER_CNI_NETWORK"]).flag("firecracker-cni-network", ProviderOptions).host_only();
    /// Directory of the CNI network configurations.
    FirecrackerCniConfDir = row("firecracker.cniConfDir", Path, "/etc/cni/conf.d")
        .env(&["CRABBOX_FIRECRACKER_CNI_CONF_DIR"]).flag("firecracker-cni-conf-dir", ProviderOptions).host_only();
    /// Directory of the CNI plugins.
    FirecrackerCniBinDir = row("firecracker.cniBinDir", Path, "/opt/cni/bin")
        .env(&["CRABBOX_FIRECRACKER_CNI_BIN_DIR"]).flag("firecracker-cni-bin-dir", ProviderOptions).host_only();
    /// Maximum time until a new microVM answers over SSH.
    FirecrackerLaunchTimeout = row("firecracker.launchTimeout", Duration, "2m")
        .env(&["CRABBOX_FIRECRACKER_LAUNCH_TIMEOUT"]).flag("firecracker-launch-timeout", ProviderOptions);
    /// Maximum number of concurrent leases; 0 is no limit.
    FirecrackerMaxLeases = row("firecracker.maxLeases", Integer, "0")
        .env(&["CRABBOX_FIRECRACKER_MAX_LEASES"]).host_only();
    /// Maximum number of concurrent leases of one remote owner; 0 is no limit.
    FirecrackerMaxLeasesPerOwner = row("firecracker.maxLeasesPerOwner", Integer, "0")
        .env(&["CRABBOX_FIRECRACKER_MAX_LEASES_PER_OWNER"]).host_only();
    /// Maximum total memory in MiB of a remote owner's leases, with the overhead of their VMMs; 0 is no limit.
    FirecrackerMaxMemoryPerOwner = row("firecracker.maxMemoryMiBPerOwner", Integer, "0")
        .env(&["CRABBOX_FIRECRACKER_MAX_MEMORY_MIB_PER_OWNER"]).host_only();
    /// Memory in MiB that leases leave to the host.
    FirecrackerReserveMemory = row("firecracker.reserveMemoryMiB", Integer, "256")
        .env(&["CRABBOX_FIRECRACKER_RESERVE_MEMORY_MIB"]).host_only();
    /// Disk in MiB that a new lease leaves free.
    FirecrackerReserveDisk = row("firecracker.reserveDiskMiB", Integer, "512")
        .env(&["CRABBOX_FIRECRACKER_RESERVE_DISK_MIB"]).host_only();
    /// First uid of those that jailed Firecrackers run under, one a lease (gid: the same number); above all ranges of Debian and systemd.
    FirecrackerFirstUid = row("firecracker.firstUid", Integer, "1900000000")
        .env(&["CRABBOX_FIRECRACKER_FIRST_UID"]).host_only();
    /// Number of such uids.
    FirecrackerUidCount = row("firecracker.uidCount", Integer, "4096")
        .env(&["CRABBOX_FIRECRACKER_UID_COUNT"]).host_only();
    /// Whether the files of a lease are removed when it is released.
    FirecrackerDeleteOnRelease = row("firecracker.deleteOnRelease", Bool, "true")
        .env(&["CRABBOX_FIRECRACKER_DELETE_ON_RELEASE"]).flag("firecracker-delete-on-release", ProviderOptions);
}

/// The section of jobs, which are not keys: commands by name.
pub const JOBS: &str = "jobs";

/// The section of profiles: defaults for runs by profile name.
pub const PROFILES: &str = "profiles";

/// The section of presets: commands by name.
pub const PRESETS: &str = "presets";

/// The section of proof templates: texts for proofs of runs, by name.
pub const PROOF_TEMPLATES: &str = "proofTemplates";

/// Sections of which this program reads at most some keys, and the Go program more: reported to the user once per file, never taken for a typing error.
pub(crate) const FOREIGN_SECTIONS: &[&str] = &[
    "actions",
    "broker",
    "capacity",
    "external",
    "hostId",
    "shard",
    "tailscale",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_in_the_order_of_their_names() {
        for (index, key) in KEYS.iter().enumerate() {
            assert_eq!(key.name as usize, index, "{}", key.path);
            assert_eq!(key.name.key().path, key.path);
        }
    }

    #[test]
    fn no_path_variable_or_flag_is_used_twice() {
        let paths = KEYS
            .iter()
            .flat_map(|key| [key.path].into_iter().chain(key.aliases.iter().copied()));
        let variables = KEYS.iter().flat_map(|key| key.variables.iter().copied());
        let flags = KEYS.iter().filter_map(|key| key.flag).map(|flag| flag.name);
        for names in [paths.collect::<Vec<_>>(), variables.collect(), flags.collect()] {
            let mut sorted = names.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), names.len());
        }
    }

    #[test]
    fn what_selects_programs_and_files_of_the_host_is_host_only() {
        for key in KEYS.iter().filter(|key| key.path.starts_with("firecracker.")) {
            let named = key.path.contains("etwork") || key.path == "firecracker.image";
            let selects = named || matches!(key.kind, Kind::Path | Kind::Program);
            // The same holds for settings that keep leases from taking over the host.
            let guards = [".host", ".max", ".reserve", "Uid", "uidCount", ".warm", ".pool"]
                .iter()
                .any(|part| key.path.contains(part));
            assert_eq!(key.trust == Trust::HostOnly, selects || guards, "{}", key.path);
        }
    }
}
