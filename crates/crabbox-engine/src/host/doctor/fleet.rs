//! The doctor of a fleet: whether Slurm's configuration runs each lease as a job and cleans up after it.
//!
//! It reads `slurm.conf`, `gres.conf` and the gateway's configuration, and asks Slurm nothing, so that
//! mistakes are found before anything runs. It must never write a configuration, or judge settings that do
//! not concern leases.

mod conf;

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crabbox_core::fault::{self, Fault as _};

use self::conf::Conf;
use super::check::{Check, Class, Status};
use super::observe::programs;
use crate::placement::gateway::{Gateway, GatewayError};

/// Debian's directory for the Slurm configuration.
pub const DIR: &str = "/etc/slurm";

/// How long tearing down a lease and its network can take on a busy host, in seconds.
const TEARDOWN: u64 = 10;

/// The acceptable range of the timeout for a silent host, in seconds. A shorter one gives up busy hosts; with
/// a longer one their leases seem to run for too long.
const SILENCE: std::ops::RangeInclusive<u64> = 10..=300;

/// The minimum time, in seconds, that Slurm must remember an ended job, so that we can ask how a lease was
/// lost.
const REMEMBERED: u64 = 3600;

/// What the judgement is based on.
#[derive(Debug, Default)]
pub struct Facts {
    /// The text of `slurm.conf`.
    pub slurm: String,
    /// The text of `gres.conf`.
    pub gres: String,
    /// The text of the program that `Epilog` names if only root can write it; otherwise the problem with it.
    pub epilog: Option<Result<String, String>>,
    /// This host's name, without its domain.
    pub hostname: String,
    /// This host's memory, in MiB; 0 if unknown.
    pub memory_mib: u64,
    /// The memory reserved for the host itself (`firecracker.reserveMemoryMiB`), in MiB.
    pub reserve_mib: u64,
    /// The fleet behind this host, if it is a gateway.
    pub gateway: Option<GatewayFacts>,
}

/// A gateway's configuration of its fleet.
#[derive(Debug, Default)]
pub struct GatewayFacts {
    /// The partition.
    pub partition: String,
    /// The hosts.
    pub nodes: Vec<String>,
}

/// All checks of the fleet that this host belongs to.
pub fn checks(config: &Path, reserve_mib: u64) -> Vec<Check> {
    let dir = Path::new(DIR);
    let path = dir.join("slurm.conf");
    let Ok(slurm) = std::fs::read_to_string(&path) else {
        let message = format!("{} cannot be read", path.display());
        return vec![Check::generic(Status::Missing, "slurm", message).trouble(
            Class::EnvironmentBlocked,
            "install slurmd or slurm-client and write it as docs/fleet.md says, the same file on every host",
        )];
    };
    let epilog = Conf::read(&slurm)
        .get("Epilog")
        .map(|path| epilog(Path::new(path)));
    let (gateway, broken) = match Gateway::find(config) {
        Ok(found) => (found.as_ref().map(behind), None),
        Err(error) => (None, Some(unusable(&error))),
    };
    let facts = Facts {
        gres: std::fs::read_to_string(dir.join("gres.conf")).unwrap_or_default(),
        epilog,
        hostname: std::fs::read_to_string("/proc/sys/kernel/hostname")
            .unwrap_or_default()
            .trim()
            .split('.')
            .next()
            .unwrap_or_default()
            .to_owned(),
        memory_mib: crabbox_host::memory::total_mib().unwrap_or(0),
        reserve_mib,
        slurm,
        gateway,
    };
    let mut checks = judge(&facts);
    checks.extend(broken);
    checks
}

fn behind(gateway: &Gateway) -> GatewayFacts {
    GatewayFacts {
        partition: gateway.partition().to_owned(),
        nodes: gateway.names().map(str::to_owned).collect(),
    }
}

fn unusable(error: &GatewayError) -> Check {
    Check::generic(Status::Failed, "gateway", fault::chain(error))
        .trouble(Class::ConfigurationIncomplete, error.hints().join("; "))
}

/// The text of the epilog program, or the problem with it.
fn epilog(path: &Path) -> Result<String, String> {
    let shown = || path.display().to_string();
    let facts = std::fs::metadata(path).map_err(|error| format!("{}: {error}", shown()))?;
    if !facts.is_file() || facts.mode() & 0o111 == 0 {
        return Err(format!("{} is not an executable file", shown()));
    }
    if let Some(place) = programs::loose(path) {
        return Err(format!(
            "{}: others than root can change {}",
            shown(),
            place.display()
        ));
    }
    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", shown()))
}

/// Judges a configuration.
pub fn judge(facts: &Facts) -> Vec<Check> {
    let conf = Conf::read(&facts.slurm);
    let mut checks = vec![
        resources(&conf, &facts.gres),
        selection(&conf),
        take_back(&conf, facts.epilog.as_ref()),
        once(&conf),
        processes(&conf),
        kill(&conf),
        silence(&conf),
        return_to_service(&conf),
        trust(&conf),
        prolog(&conf),
        memory_of_jobs(&conf),
        health(&conf),
    ];
    checks.push(limits(&conf));
    checks.extend(here(&conf, facts));
    checks.extend(submitters(&conf, facts));
    checks.extend(room(&conf, facts));
    checks.extend(facts.gateway.as_ref().map(|behind| known(&conf, behind)));
    checks
}

fn well(check: &'static str, message: impl Into<String>) -> Check {
    Check::generic(Status::Ok, check, message)
}

fn wrong(check: &'static str, message: impl Into<String>, fix: impl std::fmt::Display) -> Check {
    Check::generic(Status::Failed, check, message).trouble(Class::ConfigurationIncomplete, fix)
}

fn weak(check: &'static str, message: impl Into<String>, fix: impl std::fmt::Display) -> Check {
    Check::generic(Status::Warning, check, message).trouble(Class::Degraded, fix)
}

/// Checks that every host declares how many leases and how much disk it has.
fn resources(conf: &Conf, gres: &str) -> Check {
    const KINDS: [&str; 2] = ["lease", "disk"];
    let types = conf.list("GresTypes");
    if let Some(kind) = KINDS.iter().find(|kind| !types.contains(**kind)) {
        let message = format!("GresTypes does not have {kind}: every submission is refused");
        return wrong("gres", message, "set GresTypes=lease,disk in slurm.conf");
    }
    let names: BTreeSet<String> = conf::sections(gres, "Name")
        .into_iter()
        .chain(conf::sections(gres, "NodeName"))
        .filter_map(|section| section.get("name").cloned())
        .collect();
    if let Some(kind) = KINDS.iter().find(|kind| !names.contains(**kind)) {
        let message = format!("gres.conf does not count {kind}: slurmd finds none on its host");
        return wrong(
            "gres",
            message,
            format!("add Name={kind} Count=.. to gres.conf on every host"),
        );
    }
    for node in conf.nodes() {
        let has = node.values.get("gres").map(String::as_str).unwrap_or_default();
        if let Some(kind) = KINDS
            .iter()
            .find(|kind| !has.split(',').any(|one| one.split(':').next() == Some(**kind)))
        {
            let message = format!("node {} has no {kind}: no lease is ever placed there", node.name);
            return wrong(
                "gres",
                message,
                format!("add Gres=lease:..,disk:.. to NodeName={}", node.name),
            );
        }
    }
    well("gres", "lease,disk")
}

/// Checks that memory is allocated exclusively to a job.
fn selection(conf: &Conf) -> Check {
    const FIX: &str = "set SelectType=select/cons_tres and SelectTypeParameters=CR_CPU_Memory";
    let select = conf.text("SelectType", "select/cons_tres");
    let parameters = conf.text("SelectTypeParameters", "");
    if select != "select/cons_tres" && select != "select/cons_res" {
        return wrong(
            "select",
            format!("SelectType={select} gives a job the whole host"),
            FIX,
        );
    }
    if !parameters.contains("Memory") {
        let message = format!(
            "SelectTypeParameters={parameters} does not count memory: hosts are promised more leases than they hold"
        );
        return wrong("select", message, FIX);
    }
    well("select", format!("{select} {parameters}"))
}

/// Checks that an epilog cleans up after a job.
fn take_back(conf: &Conf, epilog: Option<&Result<String, String>>) -> Check {
    const FIX: &str =
        "install docs/examples/slurm/crabbox-epilog as root's own and set Epilog to its path on every host";
    match (conf.get("Epilog"), epilog) {
        (None, _) => wrong(
            "epilog",
            "Epilog is not set: the lease of a killed job stays",
            FIX,
        ),
        (Some(_), Some(Err(why))) => wrong("epilog", why.clone(), FIX),
        (Some(path), Some(Ok(text))) if !text.contains("__epilog") => {
            let message = format!("{path} does not run crabbox: the lease of a killed job stays");
            wrong(
                "epilog",
                message,
                "have it end with the lines of docs/examples/slurm/crabbox-epilog",
            )
        }
        (Some(path), _) => well("epilog", path),
    }
}

/// Checks that jobs are not requeued, which would make a lease again without its client's knowledge.
fn once(conf: &Conf) -> Check {
    match conf.text("JobRequeue", "1") {
        "0" => well("requeue", "0"),
        found => weak(
            "requeue",
            format!("JobRequeue={found}: a job that another user submits may be requeued"),
            "set JobRequeue=0; leases say so themselves",
        ),
    }
}

/// Checks that Slurm tracks all processes of a job.
fn processes(conf: &Conf) -> Check {
    match conf.text("ProctrackType", "proctrack/cgroup") {
        found @ ("proctrack/cgroup" | "proctrack/linuxproc") => well("proctrack", found),
        found => weak(
            "proctrack",
            format!(
                "ProctrackType={found} loses a VMM, which is in a session of its own; the epilog ends it later"
            ),
            "set ProctrackType=proctrack/cgroup",
        ),
    }
}

/// Checks that a lease has enough time to end before it is killed.
fn kill(conf: &Conf) -> Check {
    match conf.seconds("KillWait", 30) {
        Some(seconds) if seconds >= TEARDOWN => well("killwait", format!("{seconds}s")),
        found => wrong(
            "killwait",
            format!("KillWait={}: a teardown takes up to {TEARDOWN} s", shown(found)),
            "set KillWait=30",
        ),
    }
}

/// Checks that a dead host is noticed, neither too early nor too late.
fn silence(conf: &Conf) -> Check {
    match conf.seconds("SlurmdTimeout", 300) {
        Some(seconds) if SILENCE.contains(&seconds) => well("slurmdtimeout", format!("{seconds}s")),
        found => wrong(
            "slurmdtimeout",
            format!(
                "SlurmdTimeout={}: leases of a dead host count as running for as long, and a busy one needs {} s",
                shown(found),
                SILENCE.start()
            ),
            "set SlurmdTimeout=60",
        ),
    }
}

fn shown(seconds: Option<u64>) -> String {
    seconds.map_or_else(|| "not a number".to_owned(), |seconds| seconds.to_string())
}

/// Checks that a host that was away returns to service by itself.
fn return_to_service(conf: &Conf) -> Check {
    match conf.text("ReturnToService", "0") {
        "2" => well("return", "2"),
        "1" => weak(
            "return",
            "ReturnToService=1: a rebooted host stays down until an administrator resumes it",
            "set ReturnToService=2, once docs/examples/slurm/crabbox-fleet.service runs before slurmd",
        ),
        found => wrong(
            "return",
            format!("ReturnToService={found}: a host that was away for a moment stays down"),
            "set ReturnToService=2",
        ),
    }
}

/// Checks that requests to Slurm are authenticated.
fn trust(conf: &Conf) -> Check {
    match conf.text("AuthType", "auth/munge") {
        "auth/munge" => well("auth", "munge"),
        found => wrong(
            "auth",
            format!("AuthType={found} is not what this was tried with"),
            "set AuthType=auth/munge, with one key on all hosts and nowhere else",
        ),
    }
}

/// Checks that no failing prolog can drain a host, and that epilogs do not wait for each other.
fn prolog(conf: &Conf) -> Check {
    if conf.list("PrologFlags").contains("Serial") {
        return wrong(
            "prolog",
            "PrologFlags has Serial: an epilog waits for that of another lease",
            "take Serial out of PrologFlags",
        );
    }
    match conf.get("Prolog") {
        None => well("prolog", "none"),
        Some(path) => weak(
            "prolog",
            format!("Prolog={path}: when it fails, its host is drained for all"),
            "leave Prolog unset, and let the health check examine the host",
        ),
    }
}

/// Checks that Slurm remembers ended jobs for long enough.
fn memory_of_jobs(conf: &Conf) -> Check {
    match conf.seconds("MinJobAge", 300) {
        Some(seconds) if seconds >= REMEMBERED => well("minjobage", format!("{seconds}s")),
        found => wrong(
            "minjobage",
            format!(
                "MinJobAge={}: how a lease was lost with its host is soon forgotten",
                shown(found)
            ),
            "set MinJobAge=86400",
        ),
    }
}

/// Checks that a job that exceeds the limits of the partition is refused at submission.
fn limits(conf: &Conf) -> Check {
    match conf.text("EnforcePartLimits", "NO") {
        found if found.eq_ignore_ascii_case("ALL") => well("limits", "ALL"),
        found => wrong(
            "limits",
            format!("EnforcePartLimits={found}: a lease whose ttl is above MaxTime is queued and never made"),
            "set EnforcePartLimits=ALL",
        ),
    }
}

/// Checks that this host belongs to the fleet; otherwise the fleet cannot be judged from here.
fn here(conf: &Conf, facts: &Facts) -> Option<Check> {
    if let Some(file) = conf.includes().first() {
        return Some(wrong(
            "include",
            format!(
                "slurm.conf includes {file}, which is not read here: nodes and partitions in it are not judged"
            ),
            "put what it says into slurm.conf",
        ));
    }
    let is_one = conf.nodes().iter().any(|node| node.is(&facts.hostname));
    (!is_one && facts.gateway.is_none()).then(|| {
        weak(
            "node",
            format!(
                "slurm.conf names no NodeName for {}: its memory and who submits to it are not judged",
                facts.hostname
            ),
            "run this on a host of the fleet, or call its node as the host is called",
        )
    })
}

/// Checks that only the gateway can submit jobs: anyone else who can could run any program on a host, next to
/// others' leases.
fn submitters(conf: &Conf, facts: &Facts) -> Option<Check> {
    let is_meant = |partition: &&conf::Partition| {
        let is_gateway_s = |behind: &GatewayFacts| behind.partition == partition.name;
        partition.has(&facts.hostname) && conf.nodes().iter().any(|node| node.is(&facts.hostname))
            || facts.gateway.as_ref().is_some_and(is_gateway_s)
    };
    let meant: Vec<_> = conf.partitions().iter().filter(is_meant).collect();
    let allowed = |partition: &conf::Partition| {
        let groups = partition.values.get("allowgroups");
        groups.map_or("ALL", String::as_str).to_owned()
    };
    let Some(open) = meant.iter().find(|partition| allowed(partition) != "root") else {
        return (!meant.is_empty()).then(|| well("submitters", "root"));
    };
    Some(wrong(
        "submitters",
        format!(
            "partition {} has AllowGroups={}: others than the gateway submit jobs to the hosts of leases",
            open.name,
            allowed(open)
        ),
        format!("add AllowGroups=root to PartitionName={}", open.name),
    ))
}

/// Checks that a host that can no longer make leases is detected.
fn health(conf: &Conf) -> Check {
    match (
        conf.get("HealthCheckProgram"),
        conf.seconds("HealthCheckInterval", 0),
    ) {
        (Some(path), Some(1..)) => well("health", path),
        _ => weak(
            "health",
            "no HealthCheckProgram runs: a host that lost its KVM or image keeps refusing leases",
            "set HealthCheckProgram to docs/examples/slurm/crabbox-health and HealthCheckInterval=60",
        ),
    }
}

/// Checks that this host really has the memory that Slurm hands out.
fn room(conf: &Conf, facts: &Facts) -> Option<Check> {
    let node = conf.nodes().into_iter().find(|node| node.is(&facts.hostname))?;
    let free = facts.memory_mib.saturating_sub(facts.reserve_mib);
    let fix = format!(
        "set RealMemory={free} for {} (its memory less firecracker.reserveMemoryMiB)",
        facts.hostname
    );
    Some(
        match node.values.get("realmemory").map(|text| text.parse::<u64>()) {
            Some(Ok(declared)) if declared <= free => {
                well("realmemory", format!("declared={declared} free={free}"))
            }
            Some(Ok(declared)) => wrong(
                "realmemory",
                format!(
                    "declared={declared} free={free}: leases are placed here that this host then refuses"
                ),
                fix,
            ),
            _ => wrong(
                "realmemory",
                "RealMemory is not set: Slurm gives this host no lease",
                fix,
            ),
        },
    )
}

/// Checks that the gateway and Slurm agree on the hosts.
fn known(conf: &Conf, behind: &GatewayFacts) -> Check {
    let nodes = conf.nodes();
    if !conf
        .partitions()
        .iter()
        .any(|partition| partition.name == behind.partition)
    {
        let message = format!("slurm.conf has no partition {}", behind.partition);
        return wrong(
            "gateway",
            message,
            "make `partition` of gateway.json a PartitionName of slurm.conf",
        );
    }
    if let Some(stranger) = behind
        .nodes
        .iter()
        .find(|name| !nodes.iter().any(|node| node.is(name)))
    {
        let message = format!("slurm.conf has no node {stranger}");
        return wrong(
            "gateway",
            message,
            format!("add NodeName={stranger}, or take it out of gateway.json"),
        );
    }
    let unreached = nodes
        .iter()
        .flat_map(|node| node.names())
        .find(|name| !behind.nodes.contains(name));
    match unreached {
        Some(name) => weak(
            "gateway",
            format!(
                "gateway.json does not say how {name} is reached: leases placed there are tried elsewhere"
            ),
            format!("add {name} to `nodes` of gateway.json and its key to known_hosts"),
        ),
        None => well("gateway", format!("hosts={}", behind.nodes.len())),
    }
}

#[cfg(test)]
mod tests;
