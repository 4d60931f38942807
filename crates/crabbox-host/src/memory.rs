//! Memory of the host and of single processes, as counted by the kernel. The values are a snapshot in time
//! and must never be taken for a promise, since other programs use memory meanwhile.

use std::path::Path;

/// Memory available for new work without swapping, in MiB: `MemAvailable` of `/proc/meminfo`
/// (`proc_meminfo(5)`). `None` if the kernel does not report it.
pub fn available_mib() -> Option<u64> {
    kib(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable").map(|kib| kib / 1024)
}

/// Total memory of the host, in MiB: `MemTotal` of the same file.
pub fn total_mib() -> Option<u64> {
    kib(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal").map(|kib| kib / 1024)
}

/// Private, non-reclaimable memory of the process `pid`, in MiB: `RssAnon` and `RssShmem` of
/// `/proc/<pid>/status` (`proc_pid_status(5)`). Pages of files are left out: several processes may share
/// them, and each page may still become private. `None` if the process does not exist.
pub fn private_mib(pid: u32) -> Option<u64> {
    let status = Path::new("/proc").join(pid.to_string()).join("status");
    let status = std::fs::read_to_string(status).ok()?;
    Some((kib(&status, "RssAnon")? + kib(&status, "RssShmem")?) / 1024)
}

/// The value after `name:` in a file whose lines count in KiB.
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
        assert!(available_mib().unwrap() > 0 && available_mib() <= total_mib());
        let block = vec![1_u8; 64 << 20];
        assert!(private_mib(std::process::id()).unwrap() >= 64);
        drop(block);
        assert_eq!(private_mib(0), None);
    }

    #[test]
    fn a_name_is_taken_whole() {
        let text = "MemAvailableToo: 1 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(kib(text, "MemAvailable"), Some(2048));
        assert_eq!(kib(text, "Mem"), None);
    }
}
