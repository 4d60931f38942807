//! The findings of `doctor` on a healthy host, and on the same host with a fault; it changes neither.

use crabbox_e2e::{Host, assert_nothing_left};

/// A lease for which the emulated host has room.
const SIZE: &str = "--firecracker-cpus 1 --firecracker-memory-mib 256 --firecracker-disk-mib 2048";

/// The name and status of each check of a report.
fn checks(document: &serde_json::Value) -> Vec<(String, String)> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let all = document["checks"].as_array().into_iter().flatten();
    all.map(|check| (text(&check["check"]), text(&check["status"])))
        .collect()
}

#[test]
fn a_host_that_is_ready_is_found_ready_with_a_boot_and_left_as_it_was() {
    let host = Host::alone();
    let before = host.residue();
    let report = host
        .crabbox(&format!("doctor --provider firecracker --json --probe {SIZE}"))
        .exits(0)
        .json();
    assert_eq!(report["ok"], true, "{report:#}");
    let checks = checks(&report);
    let failed: Vec<_> = checks.iter().filter(|(_, status)| status == "failed").collect();
    assert!(failed.is_empty(), "{failed:?}");
    // The Go program's seven checks, and a boot that proves that KVM works.
    for name in ["host", "kvm", "binary", "jailer", "kernel", "rootfs", "network"] {
        assert!(
            checks.contains(&(name.to_owned(), "ok".to_owned())),
            "{name}: {report:#}"
        );
    }
    let said = report.to_string();
    assert!(
        said.contains("boot=") && !said.contains("boot=untried"),
        "{report:#}"
    );
    assert_nothing_left(&before, &host.residue());
}

#[test]
fn each_fault_fails_its_own_check_and_names_the_fix() {
    let host = Host::alone();
    let before = host.residue();
    for (amiss, name) in [
        ("--firecracker-binary /nonexistent/firecracker", "binary"),
        (
            "--firecracker-network cni --firecracker-cni-network nobody",
            "network",
        ),
        (
            "--firecracker-kernel /etc/passwd --firecracker-rootfs /etc/passwd",
            "image",
        ),
        ("--firecracker-memory-mib 1000000", "memory"),
    ] {
        let report = host.crabbox(&format!("doctor --provider firecracker --json {SIZE} {amiss}"));
        assert_ne!(report.code, Some(0), "{report:?}");
        let failed: Vec<String> = checks(&report.json())
            .into_iter()
            .filter(|(_, status)| status == "failed")
            .map(|(name, _)| name)
            .collect();
        assert!(failed.contains(&name.to_owned()), "{amiss}: {failed:?}");
    }
    assert_nothing_left(&before, &host.residue());
}
