//! Firecracker and its jailer: versions, digests, ownership, and the prerequisites of the jail.

use crabbox_core::config::firecracker::{FirecrackerPlan, Jailer};
use crabbox_fc::Version;
use crabbox_ssh::quote;

use super::super::check::{Check, Class, Status};
use super::super::world::{Binary, World};

/// The oldest Firecracker that leases were tested with.
const OLDEST: Version = Version::new(1, 12, 0);
/// The first Firecracker whose changes this program does not know.
const UNKNOWN: Version = Version::new(1, 18, 0);
/// The controllers that limit a jailed VMM.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Programs that were not found are skipped here: `binary` and `jailer` report them.
pub(super) fn checks(plan: &FirecrackerPlan, world: &World) -> Vec<Check> {
    let mut checks = Vec::new();
    let firecracker = world.vmm.firecracker.as_ref().ok();
    let jailer = world.vmm.jailer.as_ref().ok().and_then(Option::as_ref);
    checks.extend(
        firecracker.map(|binary| version("firecracker-version", binary, &world.vmm.pinned[0], Some(OLDEST))),
    );
    checks.extend(jailer.map(
        |binary| match version("jailer-version", binary, &world.vmm.pinned[1], None) {
            check if check.status.is_problem() => check,
            check => same_version(check, binary, firecracker),
        },
    ));
    if jailer.is_some() {
        checks.extend([ownership(firecracker, jailer), cgroup(world)]);
    } else if firecracker.is_some() && !matches!(plan.jailer, Jailer::Program(_)) {
        checks.push(no_jail(&plan.jailer, world));
    }
    checks
}

/// The jailer has no `oldest`: it must be of the same release as Firecracker, whose age is reported once.
fn version(check: &'static str, binary: &Binary, pinned: &str, oldest: Option<Version>) -> Check {
    let path = binary.path.display();
    let text = match &binary.version {
        Ok(text) => text,
        Err(trouble) => {
            return Check::firecracker(Status::Failed, check, format!("no version: {trouble}"))
                .with("path", path)
                .trouble(Class::EnvironmentBlocked, "crabbox setup firecracker");
        }
    };
    let digest = binary.digest.as_deref().unwrap_or("unreadable");
    let known = if digest == pinned { "pinned" } else { "unknown" };
    let facts = format!("version={text} digest={known} mutation=false");
    let made = match oldest {
        Some(oldest) if !text.parse::<Version>().is_ok_and(|version| version >= oldest) => {
            Check::firecracker(
                Status::Warning,
                check,
                format!("older than {oldest}, which is untested: {facts}"),
            )
            .trouble(Class::Degraded, "crabbox setup firecracker")
        }
        Some(_) if text.parse::<Version>().is_ok_and(|version| version >= UNKNOWN) => Check::firecracker(
            Status::Warning,
            check,
            format!("newer than any that this program knows, which end before {UNKNOWN}: {facts}"),
        )
        .trouble(
            Class::Degraded,
            "`crabbox setup firecracker` (it brings the one that everything is tested with), or a newer crabbox",
        ),
        _ => Check::firecracker(Status::Ok, check, facts),
    };
    made.with("path", path).with("sha256", digest)
}

fn same_version(check: Check, jailer: &Binary, firecracker: Option<&Binary>) -> Check {
    match (&jailer.version, firecracker.map(|binary| &binary.version)) {
        (Ok(ours), Some(Ok(theirs))) if ours != theirs => {
            let message =
                format!("version={ours} firecracker={theirs} mutation=false: they must be of one release");
            Check::firecracker(Status::Failed, "jailer-version", message).trouble(
                Class::EnvironmentBlocked,
                "`crabbox setup firecracker` (or name both programs of one release)",
            )
        }
        _ => check,
    }
}

/// Anyone who can replace a program that root starts is root.
fn ownership(firecracker: Option<&Binary>, jailer: Option<&Binary>) -> Check {
    let loose = [firecracker, jailer]
        .into_iter()
        .flatten()
        .find_map(|binary| binary.loose.as_ref());
    let Some(loose) = loose.map(|path| path.display()) else {
        return Check::firecracker(
            Status::Ok,
            "binary-ownership",
            "owner=root writable=root mutation=false",
        );
    };
    let quoted = quote::line([loose.to_string()]);
    let message = format!("others than root may change {loose}, from which root starts Firecracker");
    Check::firecracker(Status::Warning, "binary-ownership", message).trouble(
        Class::Hardening,
        format!("sudo chown root:root {quoted} && sudo chmod go-w {quoted}"),
    )
}

fn cgroup(world: &World) -> Check {
    const FIX: &str =
        "boot with systemd.unified_cgroup_hierarchy=1, or run without a jail: --firecracker-jailer none";
    let Some(controllers) = &world.host.cgroup else {
        return Check::firecracker(
            Status::Failed,
            "cgroup",
            "there is no unified control group tree (version 2) at /sys/fs/cgroup",
        )
        .trouble(Class::EnvironmentBlocked, FIX);
    };
    let missing: Vec<&str> = CONTROLLERS
        .into_iter()
        .filter(|name| !controllers.iter().any(|there| there == name))
        .collect();
    if missing.is_empty() {
        return Check::firecracker(
            Status::Ok,
            "cgroup",
            format!("controllers={} mutation=false", CONTROLLERS.join(",")),
        );
    }
    Check::firecracker(
        Status::Failed,
        "cgroup",
        format!("the control groups lack {}", missing.join(", ")),
    )
    .trouble(Class::EnvironmentBlocked, FIX)
}

fn no_jail(jailer: &Jailer, world: &World) -> Check {
    let root = world.host.euid == 0;
    let check = |status, message| Check::firecracker(status, "jail", message);
    match (root, jailer) {
        (true, Jailer::Off) => check(
            Status::Warning,
            "jail=none: Firecracker runs as root because firecracker.jailer is none",
        )
        .trouble(
            Class::Hardening,
            "leave firecracker.jailer and --firecracker-jailer unset (`crabbox config explain firecracker.jailer` tells where it is set)",
        ),
        (true, _) => check(
            Status::Failed,
            "jail=missing: there is no jailer in the directory of the Firecracker program, and running it as root was not allowed",
        )
        .trouble(
            Class::EnvironmentBlocked,
            "put the jailer of the same release beside it (`crabbox setup firecracker` brings both), or set --firecracker-jailer to it, or to none to run without a jail",
        ),
        (false, _) => check(Status::Warning, "jail=none: only root can build one")
            .trouble(Class::Hardening, "run crabbox as root"),
    }
}
