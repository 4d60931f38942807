//! What makes a host less secure or slower than necessary, following Firecracker's advice for production
//! hosts. Warnings only.

use super::super::check::{Check, Class, Status};
use super::super::world::World;

pub(super) fn checks(world: &World) -> Vec<Check> {
    let host = &world.host;
    vec![
        flag("nested", host.nested, Class::Degraded, "this host is itself a virtual machine: guests are slower", "use a bare-metal host where time matters"),
        listed("swap", &host.swaps, "memory of guests can reach a disk unencrypted", "sudo swapoff -a (or encrypt the swap area)"),
        flag("ksm", host.ksm, Class::Hardening, "equal pages of guests are merged, which lets one guess the other's memory", "echo 0 | sudo tee /sys/kernel/mm/ksm/run"),
        flag("smt", host.smt, Class::Hardening, "processors share their cores, so guests can watch each other's timing", "echo off | sudo tee /sys/devices/system/cpu/smt/control (only where guests distrust each other)"),
        listed("cpu-vulnerabilities", &host.vulnerable, "the kernel calls this processor vulnerable", "update microcode (sudo apt-get install intel-microcode amd64-microcode) and kernel, and do not boot with mitigations=off")
            .with("microcode", &host.microcode),
    ]
}

fn flag(check: &'static str, on: bool, class: Class, why: &str, fix: &str) -> Check {
    let message = format!("{check}={on} mutation=false");
    if on {
        Check::firecracker(Status::Warning, check, format!("{message}: {why}")).trouble(class, fix)
    } else {
        Check::firecracker(Status::Ok, check, message)
    }
}

fn listed(check: &'static str, found: &[String], why: &str, fix: &str) -> Check {
    let message = format!("{check}={} mutation=false", found.len());
    if found.is_empty() {
        return Check::firecracker(Status::Ok, check, message);
    }
    Check::firecracker(
        Status::Warning,
        check,
        format!("{message}: {why}: {}", found.join("; ")),
    )
    .trouble(Class::Hardening, fix)
}
