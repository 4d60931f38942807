//! Memory of the host and of single processes, as the kernel counts it. Only looks; it must never be taken for a promise, since others
//! take memory meanwhile.

use std::path::Path;

/// What new work could take without swapping, in MiB: `MemAvailable` of `/proc/meminfo` (`proc_meminfo(5)`). `None` when the kernel
/// does not say.
pub fn available_mib() -> Option<u64> {
    kib(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable").map(|kib| kib / 1024)
}

/// What the process `pid` has in memory, in MiB: `VmRSS` of `/proc/<pid>/status`. `None` when there is no such process.
pub fn resident_mib(pid: u32) -> Option<u64> {
    let status = Path::new("/proc").join(pid.to_string()).join("status");
    kib(&std::fs::read_to_string(status).ok()?, "VmRSS").map(|kib| kib / 1024)
}

/// The value behind `name:` in a file of such lines that count in KiB.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_and_this_host_have_memory() {
        assert!(available_mib().unwrap() > 0);
        let block = vec![1_u8; 64 << 20];
        assert!(resident_mib(std::process::id()).unwrap() >= 64);
        drop(block);
        assert_eq!(resident_mib(0), None);
    }

    #[test]
    fn a_name_is_taken_whole() {
        let text = "MemAvailableToo: 1 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(kib(text, "MemAvailable"), Some(2048));
        assert_eq!(kib(text, "Mem"), None);
    }
}
