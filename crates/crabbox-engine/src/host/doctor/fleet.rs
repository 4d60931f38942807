//! The doctor of a fleet: whether Slurm's configuration is one under which a lease is a job, and nothing of it stays behind.
//!
//! It reads `slurm.conf`, `gres.conf` and what makes this host a gateway, and asks Slurm nothing: a configuration is wrong before
//! anything runs by it. It must never write one, or judge what is not about leases.

mod conf;

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crabbox_core::fault::{self, Fault as _};

use self::conf::Conf;
use super::check::{Check, Class, Status};
use super::observe::programs;
use crate::placement::gateway::{Gateway, GatewayError};

/// Where Slurm of Debian has its configuration.
pub const DIR: &str = "/etc/slurm";

/// The least time, in seconds, in which a lease is torn down with its network on a busy host.
const TEARDOWN: u64 = 10;

/// After how many seconds a silent host may be given up: sooner a busy one would be, later its leases are missed for long.
const SILENCE: std::ops::RangeInclusive<u64> = 10..=300;

/// The least time, in seconds, that a job is known after its end: how a lease was lost is asked for then.
const REMEMBERED: u64 = 3600;

/// What the configuration is judged by.
#[derive(Debug, Default)]
pub struct Facts {
    /// The text of `slurm.conf`.
    pub slurm: String,
    /// The text of `gres.conf`.
    pub gres: String,
    /// The text of the program that `Epilog` names, when only root can write it; otherwise what is wrong with it.
    pub epilog: Option<Result<String, String>>,
    /// This host's name, without its domain.
    pub hostname: String,
    /// This host's memory, in MiB; 0 where it is not known.
    pub memory_mib: u64,
    /// What of it is left to the host (`firecracker.reserveMemoryMiB`), in MiB.
    pub reserve_mib: u64,
    /// The hosts that this one is the gateway of.
    pub gateway: Option<Behind>,
}

/// What a gateway says of its fleet.
#[derive(Debug, Default)]
pub struct Behind {
    /// The partition.
    pub partition: String,
    /// The hosts.
    pub nodes: Vec<String>,
}

/// Every check of the fleet that this host belongs to.
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

fn behind(gateway: &Gateway) -> Behind {
    Behind {
        partition: gateway.partition().to_owned(),
        nodes: gateway.names().map(str::to_owned).collect(),
    }
}

fn unusable(error: &GatewayError) -> Check {
    Check::generic(Status::Failed, "gateway", fault::chain(error))
        .trouble(Class::ConfigurationIncomplete, error.hints().join("; "))
}

/// The text of the epilog's program, or why it is none.
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

/// Places and disk are counted on each host.
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

/// Memory is given to one job at a time.
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

/// What a job leaves is taken back.
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

/// A lease is never made a second time behind its client's back.
fn once(conf: &Conf) -> Check {
    match conf.text("JobRequeue", "1") {
        "0" => well("requeue", "0"),
        found => weak(
            "requeue",
            format!("JobRequeue={found}: a job that somebody else submits may come back"),
            "set JobRequeue=0; leases say so themselves",
        ),
    }
}

/// All processes of a job are found.
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

/// A lease that is told to end has time for it.
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

/// A dead host is noticed.
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

/// A host that was away takes leases again.
fn return_to_service(conf: &Conf) -> Check {
    match conf.text("ReturnToService", "0") {
        "2" => well("return", "2"),
        "1" => weak(
            "return",
            "ReturnToService=1: a host that was rebooted stays down until somebody says otherwise",
            "set ReturnToService=2, once docs/examples/slurm/crabbox-fleet.service runs before slurmd",
        ),
        found => wrong(
            "return",
            format!("ReturnToService={found}: a host that was away for a moment stays down"),
            "set ReturnToService=2",
        ),
    }
}

/// Who speaks for whom is proven.
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

/// Nothing that fails before a lease takes its host away from all others, and no epilog waits for another one.
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
            "leave Prolog unset, and have the health check look at the host",
        ),
    }
}

/// What became of a lease can be asked for.
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

/// What no host may ever have is refused at once.
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

/// That this host is one of the fleet, without which nothing of it can be judged.
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

/// Leases are the gateway's to submit: whoever else does runs what they like on a host, next to the leases of others.
fn submitters(conf: &Conf, facts: &Facts) -> Option<Check> {
    let is_meant = |partition: &&conf::Partition| {
        let is_gateway_s = |behind: &Behind| behind.partition == partition.name;
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

/// A host that cannot make leases any more is seen.
fn health(conf: &Conf) -> Check {
    match (
        conf.get("HealthCheckProgram"),
        conf.seconds("HealthCheckInterval", 0),
    ) {
        (Some(path), Some(1..)) => well("health", path),
        _ => weak(
            "health",
            "no HealthCheckProgram runs: a host whose KVM or image went away goes on refusing leases",
            "set HealthCheckProgram to docs/examples/slurm/crabbox-health and HealthCheckInterval=60",
        ),
    }
}

/// What Slurm gives of this host is there.
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

/// The gateway and Slurm speak of the same hosts.
fn known(conf: &Conf, behind: &Behind) -> Check {
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
