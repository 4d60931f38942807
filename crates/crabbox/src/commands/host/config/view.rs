//! What `config show` prints: the Go program's JSON object and text lines, limited to the keys that this program has.

use std::collections::BTreeMap;
use std::path::Path;

use crabbox_core::config::jobs::Job;
use crabbox_core::config::settings::{CacheSettings, FirecrackerSettings, SyncSettings};
use crabbox_core::config::{Settings, firecracker};
use crabbox_core::duration::GoDuration;
use crabbox_core::volume::Volume;
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
    /// By their names.
    jobs: BTreeMap<String, JobView>,
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
    volumes: Vec<VolumeView>,
}

/// A volume as it is configured.
#[derive(Debug, Serialize, JsonSchema)]
struct VolumeView {
    name: String,
    key: String,
    path: String,
    #[serde(rename = "sizeGB")]
    size_gb: u32,
    required: bool,
}

/// A job as it is configured; a text that is not set is empty.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the fields are those of a job in the configuration"
)]
struct JobView {
    provider: String,
    target: String,
    windows_mode: String,
    profile: String,
    class: String,
    architecture: String,
    server_type: String,
    market: String,
    ttl: String,
    idle_timeout: String,
    desktop: bool,
    desktop_env: String,
    browser: bool,
    code: bool,
    network: String,
    shell: bool,
    command: String,
    no_sync: bool,
    sync_only: bool,
    checksum: bool,
    force_sync_large: bool,
    junit: Vec<String>,
    label: String,
    artifact_globs: Vec<String>,
    required_artifacts: Vec<String>,
    downloads: Vec<String>,
    stop: String,
    hydrate: HydrateView,
}

/// What a job asks of a forge, which this program refuses when it is run.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct HydrateView {
    actions: bool,
    github_runner: bool,
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
    /// The view of these settings and jobs, with the terms that a new lease would get.
    pub(super) fn new<'a>(
        settings: &Settings,
        terms: Terms,
        jobs: impl IntoIterator<Item = (&'a String, &'a Job)>,
    ) -> Self {
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
            jobs: jobs
                .into_iter()
                .map(|(name, job)| (name.clone(), JobView::new(job)))
                .collect(),
            firecracker: FirecrackerView::new(&settings.firecracker),
            ttl: settings.ttl.value,
            idle_timeout: settings.idle_timeout.value,
        }
    }

    /// The text form, without its first line, which names the user's file.
    pub(super) fn lines(&self) -> Vec<String> {
        let sync = &self.sync;
        let names: Vec<&str> = self.jobs.keys().map(String::as_str).collect();
        let jobs = (!names.is_empty()).then(|| format!("jobs={}", names.join(",")));
        let mut lines = vec![
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
        ];
        lines.extend(jobs);
        lines.extend([self.firecracker.line(), self.firecracker.our_line()]);
        lines
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
            volumes: cache.volumes.value.iter().map(VolumeView::new).collect(),
        }
    }

    fn line(&self) -> String {
        format!(
            "cache pnpm={} npm={} docker={} git={} max_gb={} purge_on_release={} volumes={}",
            self.pnpm,
            self.npm,
            self.docker,
            self.git,
            self.max_gb,
            self.purge_on_release,
            self.volumes.len()
        )
    }
}

impl VolumeView {
    fn new(volume: &Volume) -> Self {
        Self {
            name: volume.name.clone(),
            key: volume.key.clone(),
            path: volume.path.as_str().to_owned(),
            size_gb: volume.size_gib,
            required: volume.required,
        }
    }
}

impl JobView {
    fn new(job: &Job) -> Self {
        let text = |flag| job.values_of(flag).last().unwrap_or_default().to_owned();
        let list = |flag| job.values_of(flag).map(str::to_owned).collect();
        Self {
            provider: text("provider"),
            target: text("target"),
            windows_mode: text("windows-mode"),
            profile: text("profile"),
            class: text("class"),
            architecture: text("arch"),
            server_type: text("type"),
            market: text("market"),
            ttl: text("ttl"),
            idle_timeout: text("idle-timeout"),
            desktop: job.has("desktop"),
            desktop_env: text("desktop-env"),
            browser: job.has("browser"),
            code: job.has("code"),
            network: text("network"),
            shell: job.has("shell"),
            command: job.command.clone().unwrap_or_default(),
            no_sync: job.has("no-sync"),
            sync_only: job.has("sync-only"),
            checksum: job.has("checksum"),
            force_sync_large: job.has("force-sync-large"),
            junit: list("junit"),
            label: text("label"),
            artifact_globs: list("artifact-glob"),
            required_artifacts: list("require-artifact"),
            downloads: list("download"),
            stop: job.stop.clone().unwrap_or_default(),
            hydrate: HydrateView {
                actions: job.foreign.contains(&"hydrate.actions"),
                github_runner: job.foreign.contains(&"hydrate.githubRunner"),
            },
        }
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
            network: firecracker::word(settings.network.value.as_str()),
            cni_network: settings.cni_network.value.as_str().to_owned(),
            cni_conf_dir: text(settings.cni_conf_dir.value.as_path()),
            cni_bin_dir: text(settings.cni_bin_dir.value.as_path()),
            launch_timeout: settings.launch_timeout.value,
            delete_on_release: settings.delete_on_release.value,
            host: settings.host.value.as_str().to_owned(),
            image: settings.image.value.as_str().to_owned(),
            warm: firecracker::word(settings.warm.value.as_str()),
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

    /// Keys that the Go program lacks, on a separate line: readers of its line must find it unchanged.
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
