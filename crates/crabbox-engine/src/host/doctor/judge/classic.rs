//! The seven checks of the Go program: its names, order, messages and classes.
//!
//! Where this program can do more (our image, a jailer, built-in networking), a check that would fail in the
//! Go program passes.

use std::path::Path;

use crabbox_core::config::firecracker::{FirecrackerPlan, Jailer};
use crabbox_core::network::NetworkMode;

use super::super::check::{Check, Class, Status};
use super::super::world::{Entry, FileKind, Image, World};
use super::network;

/// The device that the Go program checks.
const KVM: &str = "/dev/kvm";

pub(super) fn checks(plan: &FirecrackerPlan, world: &World) -> Vec<Check> {
    vec![
        host(world),
        kvm(world),
        binary(plan, world),
        jailer(plan, world),
        file("kernel", "firecracker.kernel", &world.guest.kernel, world),
        file("rootfs", "firecracker.rootfs", &world.guest.rootfs, world),
        network_check(plan, world),
    ]
}

fn ok(check: &'static str, message: String) -> Check {
    Check::firecracker(Status::Ok, check, message)
}

fn failed(check: &'static str, message: String) -> Check {
    Check::firecracker(Status::Failed, check, message)
}

fn host(world: &World) -> Check {
    let os = &world.host.os;
    if os == "linux" {
        return ok("host", "host=linux mutation=false".to_owned()).with("os", os);
    }
    failed("host", format!("host={os} requires a Linux KVM host"))
        .with("os", os)
        .trouble(
            Class::EnvironmentBlocked,
            "run crabbox on a Linux host with KVM, or use --provider ssh with such a host",
        )
}

fn kvm(world: &World) -> Check {
    const ENABLE: &str =
        "enable virtualization in the firmware or hypervisor, then: sudo modprobe -a kvm_intel kvm_amd";
    // Membership of the group `kvm` would not suffice: a lease also needs a network and a jail.
    const ACCESS: &str = "run crabbox as root";
    if world.host.os != "linux" {
        return Check::firecracker(Status::Skip, "kvm", "/dev/kvm check skipped on non-Linux host")
            .with("path", KVM)
            .with("reason", "unsupported_host");
    }
    let (message, fix) = match (&world.kvm.kind, &world.kvm.open) {
        (Err(trouble), _) => (format!("/dev/kvm unavailable: {trouble}"), ENABLE),
        (Ok(FileKind::Directory), _) => (
            "/dev/kvm must be a device file, not a directory".to_owned(),
            "sudo rmdir /dev/kvm; sudo modprobe -a kvm_intel kvm_amd",
        ),
        (_, Err(trouble)) => (format!("/dev/kvm not accessible: {trouble}"), ACCESS),
        (_, Ok(())) => return ok("kvm", "kvm=/dev/kvm mutation=false".to_owned()).with("path", KVM),
    };
    failed("kvm", message)
        .with("path", KVM)
        .trouble(Class::EnvironmentBlocked, fix)
}

fn binary(plan: &FirecrackerPlan, world: &World) -> Check {
    let configured = plan.binary.as_path();
    let check = match &world.vmm.firecracker {
        Ok(binary) => {
            let path = binary.path.display();
            return ok("binary", format!("binary={path} mutation=false"))
                .with("configured", configured.display())
                .with("path", path);
        }
        Err(_) if configured == Path::new("") => {
            failed("binary", "firecracker.binary is required".to_owned())
                .trouble(Class::ConfigurationIncomplete, "crabbox setup firecracker")
        }
        Err(trouble) => failed("binary", format!("firecracker.binary unavailable: {trouble}")).trouble(
            Class::EnvironmentBlocked,
            "`crabbox setup firecracker` (or set --firecracker-binary)",
        ),
    };
    check
        .with("configured", configured.display())
        .with("field", "firecracker.binary")
}

fn jailer(plan: &FirecrackerPlan, world: &World) -> Check {
    let configured = match &plan.jailer {
        Jailer::Auto => String::new(),
        Jailer::Off => "none".to_owned(),
        Jailer::Program(program) => program.as_path().display().to_string(),
    };
    match &world.vmm.jailer {
        Ok(Some(jailer)) => {
            let path = jailer.path.display();
            ok("jailer", format!("jailer={path} mutation=false")).with("path", path)
        }
        // Whether root may run without a jailer is reported by the check `jail` only.
        Ok(None) if world.host.euid == 0 && plan.jailer == Jailer::Auto => {
            Check::firecracker(Status::Skip, "jailer", "jailer=missing")
        }
        Ok(None) => Check::firecracker(Status::Skip, "jailer", "jailer=disabled"),
        Err(trouble) => failed("jailer", format!("firecracker.jailer unavailable: {trouble}"))
            .with("field", "firecracker.jailer")
            .trouble(
                Class::EnvironmentBlocked,
                "set --firecracker-jailer to the jailer, or to none to run without a jail",
            ),
    }
    .with("configured", configured)
}

fn file(check: &'static str, field: &'static str, entry: &Entry, world: &World) -> Check {
    let path = entry.path.display();
    let fix = match &world.guest.image {
        Image::None { .. } => "crabbox setup firecracker".to_owned(),
        _ => format!(
            "point {field} at the file, or unset firecracker.kernel and firecracker.rootfs and run `crabbox image build`"
        ),
    };
    let made = match &entry.kind {
        Ok(FileKind::Directory) => failed(
            check,
            format!("{field} must point to a file, got directory {path}"),
        )
        .trouble(Class::ConfigurationIncomplete, fix),
        Ok(_) => ok(check, format!("{check}={path} mutation=false")),
        Err(_) if entry.path == Path::new("") => {
            failed(check, format!("{field} is required")).trouble(Class::ConfigurationIncomplete, fix)
        }
        Err(trouble) => {
            failed(check, format!("{field} unavailable: {trouble}")).trouble(Class::EnvironmentBlocked, fix)
        }
    };
    made.with("path", path).with("field", field)
}

fn network_check(plan: &FirecrackerPlan, world: &World) -> Check {
    let name = plan.cni_network.as_str();
    let mode = plan.network.map_or("auto", NetworkMode::name);
    let check = match network::chosen(plan, world) {
        NetworkMode::Nat => ok("network", "network=nat mutation=false".to_owned()),
        NetworkMode::Cni => match cni_problems(plan, world) {
            None => ok(
                "network",
                format!("network=cni cni_network={name} mutation=false"),
            ),
            Some((problems, class)) => failed("network", format!("network=cni {problems}")).trouble(
                class,
                "use the built-in network: --firecracker-network nat (or install and configure CNI plugins)",
            ),
        },
    };
    check
        .with("mode", mode)
        .with("cniNetwork", name)
        .with("cniConfDir", plan.cni_conf_dir.as_path().display())
        .with("cniBinDir", plan.cni_bin_dir.as_path().display())
}

/// The problems of the configured CNI network, in the Go program's words, and their class.
fn cni_problems(plan: &FirecrackerPlan, world: &World) -> Option<(String, Class)> {
    let seen = &world.network;
    let (name, conf_dir) = (plan.cni_network.as_str(), plan.cni_conf_dir.as_path());
    let mut problems = Vec::new();
    let mut class = Class::ConfigurationIncomplete;
    if name.is_empty() {
        problems.push("firecracker.cniNetwork is required".to_owned());
    }
    // Plugins may also be in Debian's directory, so the configured directory only matters if that one is
    // missing.
    let bin_dir = seen
        .bin_dirs
        .first()
        .filter(|_| !seen.bin_dirs.iter().any(Entry::is_dir));
    for (key, entry) in [
        ("firecracker.cniConfDir", Some(&seen.conf_dir)),
        ("firecracker.cniBinDir", bin_dir),
    ] {
        match entry.map(|entry| (&entry.path, &entry.kind)) {
            None | Some((_, Ok(FileKind::Directory))) => {}
            Some((path, _)) if path == Path::new("") => problems.push(format!("{key} is required")),
            Some((_, Ok(_))) => {
                class = Class::EnvironmentBlocked;
                problems.push(format!("{key} must be a directory"));
            }
            Some((_, Err(trouble))) => {
                class = Class::EnvironmentBlocked;
                problems.push(format!("{key} {trouble}"));
            }
        }
    }
    if let (Err(trouble), true, false) = (&seen.chain, seen.conf_dir.is_dir(), name.is_empty()) {
        problems.push(format!(
            "firecracker.cniNetwork \"{name}\" unavailable in {}: {trouble}",
            conf_dir.display()
        ));
    }
    (!problems.is_empty()).then(|| (problems.join("; "), class))
}
