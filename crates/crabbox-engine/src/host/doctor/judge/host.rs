//! The host: KVM beyond its device file, privileges, memory, processors, disk, and the programs that leases
//! need.

use crabbox_core::admission::{LEASE_DISK_MIB, VMM_OVERHEAD_MIB};
use crabbox_core::config::firecracker::FirecrackerPlan;

use super::super::check::{Check, Class, Status};
use super::super::world::{FileKind, Image, Observed, World};
use crate::host::probe::{Judged, Verdict};

/// `CAP_NET_ADMIN` and `CAP_SYS_ADMIN` (`linux/capability.h`), needed to make a network namespace and its
/// devices.
const CAPABILITIES: u64 = (1 << 12) | (1 << 21);
/// The oldest host kernel that Firecracker supports.
const OLDEST_KERNEL: [u32; 2] = [5, 10];

/// A program, the oldest suitable version, its package, and whether only foreign images need it.
const TOOLS: [(&str, &[u32], &str, bool); 6] = [
    // 8.4: the uses of `StrictHostKeyChecking` and multiplexing in this program.
    ("ssh", &[8, 4], "openssh-client", false),
    ("rsync", &[3, 1], "rsync", false),
    ("git", &[2, 25], "git", false),
    // 1.46: `sparse_super2` together with the features of our layers.
    ("mke2fs", &[1, 46], "e2fsprogs", false),
    ("e2fsck", &[1, 46], "e2fsprogs", true),
    ("resize2fs", &[], "e2fsprogs", true),
];

pub(super) fn checks(plan: &FirecrackerPlan, world: &World) -> Vec<Check> {
    let mut checks = vec![kvm_api(world)];
    checks.extend(world.kvm.probe.as_ref().map(kvm_boot));
    checks.push(privileges(world));
    checks.push(host_kernel(world));
    checks.push(memory(plan, world));
    checks.push(cpus(plan, world));
    checks.push(disk_space(plan, world));
    checks.push(reflink(world));
    checks.push(tools(world));
    checks
}

/// Skipped if the device does not open, because the check `kvm` reports that. A boot probe's verdict that is
/// still valid outweighs what KVM says about itself.
fn kvm_api(world: &World) -> Check {
    const RELOAD: &str = "sudo dmesg | grep -i kvm; then reload the module: sudo modprobe -r kvm_intel kvm_amd; \
                          sudo modprobe -a kvm_intel kvm_amd";
    let kvm = &world.kvm;
    if kvm.open.is_err() || kvm.kind != Ok(FileKind::Other) {
        let message = "kvm_api=unchecked reason=kvm_unavailable mutation=false";
        return Check::firecracker(Status::Skip, "kvm-api", message);
    }
    if let Err(trouble) = &kvm.answers {
        let message = format!("/dev/kvm does not work: {trouble}");
        return Check::firecracker(Status::Failed, "kvm-api", message)
            .trouble(Class::EnvironmentBlocked, RELOAD);
    }
    let facts = "kvm_api=12 mutation=false";
    match &kvm.remembered {
        // A probe in this run is reported by `kvm-boot`.
        _ if kvm.probe.is_some() => Check::firecracker(Status::Ok, "kvm-api", facts),
        Some(Verdict::Broken { reason, .. }) => {
            let message = format!("{facts} boot=broken: a guest was tried since this host started: {reason}");
            Check::firecracker(Status::Failed, "kvm-api", message).trouble(
                Class::EnvironmentBlocked,
                "use another host; after a change to this one: `crabbox doctor --provider firecracker --probe`",
            )
        }
        Some(Verdict::Works { millis }) => Check::firecracker(
            Status::Ok,
            "kvm-api",
            format!("{facts} boot=worked guest_after={millis}ms"),
        ),
        _ => Check::firecracker(Status::Ok, "kvm-api", format!("{facts} boot=untried"))
            .with("proof", "--probe"),
    }
}

fn kvm_boot(probe: &Observed<Judged>) -> Check {
    const FIX: &str = "use another host: this one's KVM cannot run a guest (nested virtualization that is switched off or broken, as a rule)";
    let check = match probe {
        Ok(Judged {
            verdict: Verdict::Works { millis },
            ..
        }) => Check::firecracker(
            Status::Ok,
            "kvm-boot",
            format!("kvm_boot=works guest_after={millis}ms mutation=true"),
        ),
        Ok(Judged {
            verdict: Verdict::Broken { reason, console },
            ..
        }) => {
            let guest = console.iter().rfind(|line| !line.contains("[crabbox-probe:"));
            let last = guest
                .map(|line| format!("; the console ends with: {line}"))
                .unwrap_or_default();
            Check::firecracker(
                Status::Failed,
                "kvm-boot",
                format!("kvm_boot=broken mutation=true {reason}{last}"),
            )
            .trouble(Class::EnvironmentBlocked, FIX)
        }
        Ok(Judged {
            verdict: Verdict::Absent { reason },
            ..
        }) => Check::firecracker(
            Status::Failed,
            "kvm-boot",
            format!("kvm_boot=absent mutation=true {reason}"),
        )
        .trouble(Class::EnvironmentBlocked, "see the check kvm"),
        Err(trouble) => Check::firecracker(
            Status::Failed,
            "kvm-boot",
            format!("kvm_boot=untried mutation=true {trouble}"),
        )
        .trouble(
            Class::EnvironmentBlocked,
            "fix the checks binary, kernel and rootfs first",
        ),
    };
    check.with("mutation", "true")
}

fn privileges(world: &World) -> Check {
    const FIX: &str = "run crabbox as root: making a lease's network and jail needs it";
    let host = &world.host;
    let euid = host.euid;
    if host.capabilities & CAPABILITIES != CAPABILITIES {
        let message = format!(
            "euid={euid} lacks CAP_NET_ADMIN or CAP_SYS_ADMIN, which making a network namespace needs"
        );
        return Check::firecracker(Status::Failed, "privileges", message)
            .trouble(Class::EnvironmentBlocked, FIX);
    }
    if let Err(trouble) = &host.tun {
        return Check::firecracker(
            Status::Failed,
            "privileges",
            format!("euid={euid} cannot make a tap device: {trouble}"),
        )
        .trouble(Class::EnvironmentBlocked, "sudo modprobe tun");
    }
    Check::firecracker(
        Status::Ok,
        "privileges",
        format!("euid={euid} capabilities=sufficient tun=opens mutation=false"),
    )
}

fn host_kernel(world: &World) -> Check {
    let release = &world.host.kernel;
    let numbers: Vec<u32> = release
        .split(['.', '-'])
        .map_while(|number| number.parse().ok())
        .collect();
    if numbers.as_slice() >= OLDEST_KERNEL.as_slice() {
        return Check::firecracker(
            Status::Ok,
            "host-kernel",
            format!("release={release} mutation=false"),
        );
    }
    let message =
        format!("release={release} is older than 5.10, the oldest kernel that Firecracker supports");
    Check::firecracker(Status::Warning, "host-kernel", message)
        .trouble(Class::Degraded, "upgrade the host's kernel to 5.10 or later")
}

fn memory(plan: &FirecrackerPlan, world: &World) -> Check {
    let needed = u64::from(plan.memory_mib) + VMM_OVERHEAD_MIB;
    let (total, available) = (world.host.memory_mib, world.host.available_mib);
    let facts = format!("needed_mib={needed} available_mib={available} total_mib={total} mutation=false");
    if needed > total {
        let fits = total.saturating_sub(VMM_OVERHEAD_MIB) / 2;
        return Check::firecracker(
            Status::Failed,
            "memory",
            format!("a lease does not fit into this host: {facts}"),
        )
        .trouble(
            Class::EnvironmentBlocked,
            format!("--firecracker-memory-mib {fits}"),
        );
    }
    if needed > available {
        return Check::firecracker(
            Status::Warning,
            "memory",
            format!("a lease would have to swap: {facts}"),
        )
        .trouble(
            Class::Degraded,
            "stop a lease that `crabbox list` shows, or lower --firecracker-memory-mib",
        );
    }
    Check::firecracker(Status::Ok, "memory", facts)
}

fn cpus(plan: &FirecrackerPlan, world: &World) -> Check {
    let (wanted, there) = (plan.cpus, world.host.cpus);
    let message = format!("vcpus={wanted} host_cpus={there} mutation=false");
    if wanted > there {
        return Check::firecracker(Status::Warning, "cpus", message)
            .trouble(Class::Degraded, format!("--firecracker-cpus {there}"));
    }
    Check::firecracker(Status::Ok, "cpus", message)
}

fn disk_space(plan: &FirecrackerPlan, world: &World) -> Check {
    const FIX: &str = "free space there, stop a lease, or set XDG_STATE_HOME to a larger file system";
    let dir = world.storage.dir.display();
    let free = match &world.storage.free_mib {
        Ok(free) => *free,
        Err(trouble) => {
            return Check::firecracker(
                Status::Failed,
                "disk-space",
                format!("free space is not known: {trouble}"),
            )
            .trouble(Class::EnvironmentBlocked, FIX);
        }
    };
    let copy = match (&world.guest.image, &world.storage.reflink) {
        (
            Image::Foreign {
                rootfs: Ok(rootfs), ..
            },
            Err(_) | Ok(false),
        ) => rootfs.used_mib,
        _ => 0,
    };
    let (needed, full) = (LEASE_DISK_MIB + copy, plan.disk_mib);
    let facts = format!("free_mib={free} needed_mib={needed} disk_mib={full} dir={dir} mutation=false");
    if free < needed {
        return Check::firecracker(
            Status::Failed,
            "disk-space",
            format!("no room for a lease: {facts}"),
        )
        .trouble(Class::EnvironmentBlocked, FIX);
    }
    if free < full {
        return Check::firecracker(
            Status::Warning,
            "disk-space",
            format!("a lease cannot fill its disk: {facts}"),
        )
        .trouble(Class::Degraded, FIX);
    }
    Check::firecracker(Status::Ok, "disk-space", facts)
}

/// Tested by trying, which leaves a short trace: for an instant there are two unnamed files.
fn reflink(world: &World) -> Check {
    let dir = world.storage.dir.display();
    let needs = matches!(world.guest.image, Image::Foreign { .. });
    let made = |status, message: String| Check::firecracker(status, "reflink", message);
    let check = match &world.storage.reflink {
        Ok(true) => made(Status::Ok, format!("reflink=works dir={dir}")),
        // The disks of our own image start as empty layers, so nothing has to be copied.
        Ok(false) if !needs => made(Status::Ok, format!("reflink=no needed=false dir={dir}")),
        Ok(false) => made(
            Status::Warning,
            format!("reflink=no dir={dir}: each lease copies the whole root file system"),
        )
        .trouble(
            Class::Degraded,
            "set XDG_STATE_HOME to a directory on XFS or Btrfs, or use crabbox's own image",
        ),
        Err(trouble) => made(Status::Failed, format!("reflink=untried dir={dir}: {trouble}")).trouble(
            Class::EnvironmentBlocked,
            format!("make {dir} writable for this user, or set XDG_STATE_HOME"),
        ),
    };
    check.with("mutation", "unnamed-temporary-file")
}

fn tools(world: &World) -> Check {
    let foreign = matches!(world.guest.image, Image::Foreign { .. });
    let (mut facts, mut wrong, mut packages) = (Vec::new(), Vec::new(), Vec::new());
    for (name, oldest, package, foreign_only) in TOOLS {
        let tool = world.tools.get(name).and_then(Option::as_ref);
        if foreign_only && !foreign {
            continue;
        }
        let problem = match tool {
            None => Some(format!("{name} is not installed")),
            Some(tool) => {
                facts.push(format!("{name}={}", tool.version_text()));
                let old = tool.version.as_deref().is_some_and(|version| version < oldest);
                old.then(|| format!("{name} {} is too old", tool.version_text()))
            }
        };
        if let Some(problem) = problem {
            wrong.push(problem);
            packages.push(package);
        }
    }
    packages.dedup();
    let facts = format!("{} mutation=false", facts.join(" "));
    if wrong.is_empty() {
        return Check::firecracker(Status::Ok, "tools", facts);
    }
    Check::firecracker(Status::Failed, "tools", format!("{}: {facts}", wrong.join("; "))).trouble(
        Class::EnvironmentBlocked,
        format!("sudo apt-get install {}", packages.join(" ")),
    )
}
