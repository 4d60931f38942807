//! What `config show` prints: the Go program's JSON object and text lines, as far as this program has their keys.

use std::path::Path;

use crabbox_core::config::Settings;
use crabbox_core::config::settings::{CacheSettings, FirecrackerSettings, SyncSettings};
use crabbox_core::duration::GoDuration;
use crabbox_engine::provider::capability::Capability;
use crabbox_engine::provider::registry;
use crabbox_engine::provider::terms::Terms;
use crabbox_workspace::sync;
use schemars::JsonSchema;
use serde::Serialize;

/// The JSON object; fields in the Go program's order, ours behind them.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct ConfigView {
    profile: String,
    provider: String,
    provider_selected: bool,
    provider_source: &'static str,
    target: String,
    architecture: String,
    os: String,
    windows_mode: String,
    class: String,
    server_type: String,
    server_type_explicit: bool,
    ssh_key: String,
    ssh_user: String,
    ssh_port: String,
    ssh_fallback_ports: Vec<String>,
    work_root: String,
    sync: SyncView,
    env: EnvView,
    run: RunView,
    r#static: StaticView,
    results: ResultsView,
    cache: CacheView,
    firecracker: FirecrackerView,
    #[schemars(with = "String")]
    ttl: GoDuration,
    #[schemars(with = "String")]
    idle_timeout: GoDuration,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct SyncView {
    exclude: Vec<String>,
    include: Vec<String>,
    delete: bool,
    checksum: bool,
    git_seed: bool,
    fingerprint: bool,
    base_ref: String,
    #[schemars(with = "String")]
    timeout: GoDuration,
    warn_files: i64,
    warn_bytes: i64,
    fail_files: i64,
    fail_bytes: i64,
    allow_large: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
struct EnvView {
    allow: Vec<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct RunView {
    preflight_tools: Vec<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct StaticView {
    id: String,
    name: String,
    host: String,
    user: String,
    port: String,
    work_root: String,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct ResultsView {
    junit: Vec<String>,
    auto: bool,
    fail_on_failures: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct CacheView {
    pnpm: bool,
    npm: bool,
    docker: bool,
    git: bool,
    #[serde(rename = "maxGB")]
    max_gb: i64,
    purge_on_release: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct FirecrackerView {
    binary: String,
    jailer: String,
    kernel: String,
    rootfs: String,
    user: String,
    work_root: String,
    cpus: i64,
    #[serde(rename = "memoryMiB")]
    memory_mib: i64,
    #[serde(rename = "diskMiB")]
    disk_mib: i64,
    network: String,
    cni_network: String,
    cni_conf_dir: String,
    cni_bin_dir: String,
    #[schemars(with = "String")]
    launch_timeout: GoDuration,
    delete_on_release: bool,
    /// The KVM host on which leases are made; empty for this machine.
    host: String,
    image: String,
    warm: String,
    pool: i64,
    #[schemars(with = "String")]
    pool_max_age: GoDuration,
    max_leases: i64,
    max_leases_per_owner: i64,
    #[serde(rename = "maxMemoryMiBPerOwner")]
    max_memory_mib_per_owner: i64,
    #[serde(rename = "reserveMemoryMiB")]
    reserve_memory_mib: i64,
    #[serde(rename = "reserveDiskMiB")]
    reserve_disk_mib: i64,
    first_uid: i64,
    uid_count: i64,
}

impl ConfigView {
    /// The view of these settings, with what a lease would be like.
    pub(super) fn new(settings: &Settings, terms: Terms) -> Self {
        let ports = terms.fallback_ports.iter();
        Self {
            profile: settings.profile.value.clone(),
            provider: settings
                .provider()
                .map_or_else(|_| String::new(), |provider| provider.name().to_owned()),
            provider_selected: settings.provider().is_ok(),
            provider_source: settings.provider.layer().source_name(),
            target: settings.target.value.clone(),
            architecture: settings.architecture.value.clone(),
            os: settings.os.value.clone(),
            // Only Windows machines have a mode.
            windows_mode: match settings.provider() {
                Ok(which) if registry::capabilities(which).has(Capability::MakesMachine) => String::new(),
                _ => settings.windows_mode.value.clone(),
            },
            class: settings.class.value.clone(),
            server_type: terms.server_type,
            server_type_explicit: !settings.server_type.is_default(),
            ssh_key: text(&settings.ssh.key.value),
            ssh_user: terms.user,
            ssh_port: terms.port.to_string(),
            ssh_fallback_ports: ports.map(u16::to_string).collect(),
            work_root: terms.work_root,
            sync: SyncView::new(&settings.sync),
            env: EnvView {
                allow: settings.env_allow.value.clone(),
            },
            run: RunView {
                preflight_tools: settings.preflight_tools.value.clone(),
            },
            r#static: StaticView::new(settings),
            results: ResultsView {
                junit: settings.results.junit.value.clone(),
                auto: settings.results.auto.value,
                fail_on_failures: settings.results.fail_on_failures.value,
            },
            cache: CacheView::new(&settings.cache),
            firecracker: FirecrackerView::new(&settings.firecracker),
            ttl: settings.ttl.value,
            idle_timeout: settings.idle_timeout.value,
        }
    }

    /// The text form, without its first line, which names the user's file.
    pub(super) fn lines(&self) -> Vec<String> {
        let sync = &self.sync;
        vec![
            format!(
                "provider={} provider_selected={} provider_source={} target={} arch={} os={} windows_mode={} class={} type={} profile={}",
                blank(&self.provider),
                self.provider_selected,
                self.provider_source,
                blank(&self.target),
                blank(&self.architecture),
                blank(&self.os),
                blank(&self.windows_mode),
                blank(&self.class),
                blank(&self.server_type),
                blank(&self.profile)
            ),
            format!(
                "ssh={}@<host>:{} fallback_ports={} key={}",
                self.ssh_user,
                self.ssh_port,
                joined(&self.ssh_fallback_ports),
                blank(&self.ssh_key)
            ),
            format!(
                "lease ttl={} idle_timeout={} work_root={}",
                self.ttl,
                self.idle_timeout,
                blank(&self.work_root)
            ),
            format!(
                "sync delete={} checksum={} git_seed={} fingerprint={} base_ref={} excludes={} includes={} timeout={}",
                sync.delete,
                sync.checksum,
                sync.git_seed,
                sync.fingerprint,
                blank(&sync.base_ref),
                sync.exclude.len(),
                sync.include.len(),
                sync.timeout
            ),
            format!("env allow={}", joined(&self.env.allow)),
            format!("run preflight_tools={}", joined(&self.run.preflight_tools)),
            self.r#static.line(),
            format!(
                "results junit={} auto={} fail_on_failures={}",
                joined(&self.results.junit),
                self.results.auto,
                self.results.fail_on_failures
            ),
            self.cache.line(),
            self.firecracker.line(),
            self.firecracker.our_line(),
        ]
    }
}

impl SyncView {
    fn new(settings: &SyncSettings) -> Self {
        Self {
            exclude: sync::excludes(settings),
            include: settings.include.value.clone(),
            delete: settings.delete.value,
            checksum: settings.checksum.value,
            git_seed: settings.git_seed.value,
            fingerprint: settings.fingerprint.value,
            base_ref: settings.base_ref.value.clone(),
            timeout: settings.timeout.value,
            warn_files: settings.warn_files.value,
            warn_bytes: settings.warn_bytes.value,
            fail_files: settings.fail_files.value,
            fail_bytes: settings.fail_bytes.value,
            allow_large: settings.allow_large.value,
        }
    }
}

impl StaticView {
    fn new(settings: &Settings) -> Self {
        let host = &settings.static_host;
        Self {
            id: host.id.value.clone(),
            name: host.name.value.clone(),
            host: host.host.value.clone(),
            user: host.user.value.clone(),
            port: host.port.value.map_or_else(String::new, |port| port.to_string()),
            work_root: host.work_root.value.clone(),
        }
    }

    fn line(&self) -> String {
        format!(
            "static id={} name={} host={} user={} port={} work_root={}",
            blank(&self.id),
            blank(&self.name),
            blank(&self.host),
            blank(&self.user),
            blank(&self.port),
            blank(&self.work_root)
        )
    }
}

impl CacheView {
    fn new(cache: &CacheSettings) -> Self {
        Self {
            pnpm: cache.pnpm.value,
            npm: cache.npm.value,
            docker: cache.docker.value,
            git: cache.git.value,
            max_gb: cache.max_gb.value,
            purge_on_release: cache.purge_on_release.value,
        }
    }

    fn line(&self) -> String {
        format!(
            "cache pnpm={} npm={} docker={} git={} max_gb={} purge_on_release={}",
            self.pnpm, self.npm, self.docker, self.git, self.max_gb, self.purge_on_release
        )
    }
}

impl FirecrackerView {
    fn new(settings: &FirecrackerSettings) -> Self {
        Self {
            binary: text(settings.binary.value.as_path()),
            jailer: text(settings.jailer.value.as_path()),
            kernel: text(settings.kernel.value.as_path()),
            rootfs: text(settings.rootfs.value.as_path()),
            user: settings.user.value.clone(),
            work_root: settings.work_root.value.clone(),
            cpus: settings.cpus.value,
            memory_mib: settings.memory_mib.value,
            disk_mib: settings.disk_mib.value,
            network: settings.network.value.as_str().to_owned(),
            cni_network: settings.cni_network.value.as_str().to_owned(),
            cni_conf_dir: text(settings.cni_conf_dir.value.as_path()),
            cni_bin_dir: text(settings.cni_bin_dir.value.as_path()),
            launch_timeout: settings.launch_timeout.value,
            delete_on_release: settings.delete_on_release.value,
            host: settings.host.value.as_str().to_owned(),
            image: settings.image.value.as_str().to_owned(),
            warm: settings.warm.value.as_str().to_owned(),
            pool: settings.pool.value,
            pool_max_age: settings.pool_max_age.value,
            max_leases: settings.max_leases.value,
            max_leases_per_owner: settings.max_leases_per_owner.value,
            max_memory_mib_per_owner: settings.max_memory_mib_per_owner.value,
            reserve_memory_mib: settings.reserve_memory_mib.value,
            reserve_disk_mib: settings.reserve_disk_mib.value,
            first_uid: settings.first_uid.value,
            uid_count: settings.uid_count.value,
        }
    }

    fn line(&self) -> String {
        format!(
            "firecracker binary={} jailer={} kernel={} rootfs={} user={} work_root={} cpus={} memory_mib={} disk_mib={} network={} cni_network={} cni_conf_dir={} cni_bin_dir={} launch_timeout={} delete_on_release={}",
            blank(&self.binary),
            blank(&self.jailer),
            blank(&self.kernel),
            blank(&self.rootfs),
            blank(&self.user),
            blank(&self.work_root),
            self.cpus,
            self.memory_mib,
            self.disk_mib,
            blank(&self.network),
            blank(&self.cni_network),
            blank(&self.cni_conf_dir),
            blank(&self.cni_bin_dir),
            self.launch_timeout,
            self.delete_on_release
        )
    }

    /// The keys that the Go program has not, on a line of their own: its line is as its readers know it.
    fn our_line(&self) -> String {
        format!(
            "firecracker host={} image={} warm={} pool={} pool_max_age={} max_leases={} max_leases_per_owner={} max_memory_mib_per_owner={} reserve_memory_mib={} reserve_disk_mib={} first_uid={} uid_count={}",
            blank(&self.host),
            blank(&self.image),
            blank(&self.warm),
            self.pool,
            self.pool_max_age,
            self.max_leases,
            self.max_leases_per_owner,
            self.max_memory_mib_per_owner,
            self.reserve_memory_mib,
            self.reserve_disk_mib,
            self.first_uid,
            self.uid_count
        )
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn blank(text: &str) -> &str {
    if text.trim().is_empty() { "-" } else { text }
}

fn joined(items: &[String]) -> String {
    blank(&items.join(",")).to_owned()
}
