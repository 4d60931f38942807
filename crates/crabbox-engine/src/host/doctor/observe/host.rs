//! The machine itself: privileges, sizes, and the kernel's report on its own safety.

use std::path::Path;

use super::super::world::Host;
use super::{kernel_file, opens};

/// Observes the machine.
pub(super) fn host() -> Host {
    let status = kernel_file("/proc/self/status");
    let cpuinfo = kernel_file("/proc/cpuinfo");
    let meminfo = kernel_file("/proc/meminfo");
    let root = Path::new("/sys/fs/cgroup/cgroup.controllers");
    Host {
        os: std::env::consts::OS.to_owned(),
        euid: rustix::process::geteuid().as_raw(),
        capabilities: field(&status, "CapEff")
            .and_then(|bits| u64::from_str_radix(bits, 16).ok())
            .unwrap_or(0),
        kernel: kernel_file("/proc/sys/kernel/osrelease"),
        cpus: std::thread::available_parallelism()
            .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
        memory_mib: mib(&meminfo, "MemTotal"),
        available_mib: mib(&meminfo, "MemAvailable"),
        tun: opens(Path::new("/dev/net/tun")),
        cgroup: root
            .exists()
            .then(|| kernel_file(root).split_whitespace().map(str::to_owned).collect()),
        nested: field(&cpuinfo, "flags")
            .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor")),
        swaps: swaps(&kernel_file("/proc/swaps")),
        ksm: kernel_file("/sys/kernel/mm/ksm/run") == "1",
        smt: kernel_file("/sys/devices/system/cpu/smt/active") == "1",
        vulnerable: vulnerable(Path::new("/sys/devices/system/cpu/vulnerabilities")),
        microcode: field(&cpuinfo, "microcode").unwrap_or("unknown").to_owned(),
    }
}

/// The value behind `name:` in a file of such lines; the first match counts.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
}

/// A value of `/proc/meminfo`, which counts in KiB.
fn mib(meminfo: &str, name: &str) -> u64 {
    let value = field(meminfo, name).and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    value.unwrap_or(0) / 1024
}

/// Swap areas that are on neither compressed memory nor an encrypted device.
fn swaps(table: &str) -> Vec<String> {
    let areas = table
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next());
    areas
        .filter(|area| !area.starts_with("/dev/zram") && !is_encrypted(area))
        .map(str::to_owned)
        .collect()
}

/// Whether dm-crypt made the device.
fn is_encrypted(device: &str) -> bool {
    let real = std::fs::canonicalize(device).unwrap_or_default();
    let Some(name) = real.file_name() else {
        return false;
    };
    kernel_file(Path::new("/sys/class/block").join(name).join("dm/uuid")).starts_with("CRYPT-")
}

fn vulnerable(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let mut found: Vec<String> = entries
        .filter_map(|entry| {
            let words = kernel_file(entry.path());
            words
                .starts_with("Vulnerable")
                .then(|| format!("{}: {words}", entry.file_name().to_string_lossy()))
        })
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_tables_are_read_as_it_writes_them() {
        let meminfo = "MemTotal:       24627864 kB\nMemFree:        1 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(
            (mib(meminfo, "MemTotal"), mib(meminfo, "MemAvailable")),
            (24050, 2)
        );
        assert_eq!(mib("", "MemTotal"), 0);
        let table =
            "Filename\tType\tSize\tUsed\tPriority\n/swapfile file 1 0 -2\n/dev/zram0 partition 1 0 5\n";
        assert_eq!(swaps(table), ["/swapfile"]);
        assert_eq!(
            field("flags\t\t: fpu hypervisor\n", "flags"),
            Some("fpu hypervisor")
        );
    }

    #[test]
    fn only_what_the_kernel_calls_vulnerable_counts() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("meltdown"), "Not affected\n").unwrap();
        std::fs::write(
            dir.path().join("mds"),
            "Vulnerable: Clear CPU buffers attempted, no microcode\n",
        )
        .unwrap();
        std::fs::write(dir.path().join("l1tf"), "Mitigation: PTE Inversion\n").unwrap();
        assert_eq!(
            vulnerable(dir.path()),
            ["mds: Vulnerable: Clear CPU buffers attempted, no microcode"]
        );
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        let host = host();
        assert!(host.memory_mib > 0 && host.available_mib <= host.memory_mib && host.cpus > 0);
        assert_eq!(host.os, "linux");
    }
}
