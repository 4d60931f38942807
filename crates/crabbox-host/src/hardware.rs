//! The properties of this host on which a snapshot depends: processor, its mitigations, kernel and KVM.
//!
//! The text is only compared as a whole, never parsed. A value that cannot be read must never be left out:
//! that it is unreadable is a fact, too.

use std::fmt::Write as _;
use std::path::Path;

/// The lines of `/proc/cpuinfo` that identify a processor, including its microcode
/// (`arch/x86/kernel/cpu/proc.c`).
const PROCESSOR: [&str; 8] = [
    "vendor_id",
    "cpu family",
    "model",
    "model name",
    "stepping",
    "microcode",
    "flags",
    "bugs",
];

/// Single files whose contents are included.
const FILES: [&str; 3] = [
    "/proc/sys/kernel/osrelease",
    "/proc/sys/kernel/version",
    "/sys/devices/system/clocksource/clocksource0/current_clocksource",
];

/// Directories in which each file is included.
const DIRECTORIES: [&str; 4] = [
    "/sys/devices/system/cpu/vulnerabilities",
    "/sys/module/kvm/parameters",
    "/sys/module/kvm_intel/parameters",
    "/sys/module/kvm_amd/parameters",
];

/// The properties of this host, one per line. Firecracker requires "identical software and hardware" where a
/// snapshot is loaded (its document on snapshot support), and checks little of it.
pub fn facts() -> String {
    let mut text = String::new();
    match std::fs::read_to_string("/proc/cpuinfo") {
        Ok(cpuinfo) => text.push_str(&processor(&cpuinfo)),
        Err(_) => text.push_str("/proc/cpuinfo=unreadable\n"),
    }
    for file in FILES {
        fact(&mut text, Path::new(file));
    }
    for dir in DIRECTORIES {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut files: Vec<_> = entries.map(|entry| entry.path()).collect();
        files.sort();
        for file in files {
            fact(&mut text, &file);
        }
    }
    text
}

fn fact(text: &mut String, file: &Path) {
    let value = std::fs::read_to_string(file);
    let value = value.as_ref().map_or("unreadable", |value| value.trim());
    // Writing to a String cannot fail.
    writeln!(text, "{}={value}", file.display()).ok();
}

/// The facts of the first processor. All processors of a host are alike, otherwise it could not run KVM.
fn processor(cpuinfo: &str) -> String {
    let mut text = String::new();
    for line in cpuinfo.lines().take_while(|line| !line.trim().is_empty()) {
        if let Some((name, value)) = line.split_once(':')
            && PROCESSOR.contains(&name.trim())
        {
            writeln!(text, "{}={}", name.trim(), value.trim()).ok();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_host_is_the_same_twice_and_its_kernel_is_among_it() {
        let text = facts();
        assert_eq!(text, facts());
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        assert!(
            text.contains(&format!("/proc/sys/kernel/osrelease={}\n", release.trim())),
            "{text}"
        );
    }

    #[test]
    fn another_microcode_is_another_processor_and_another_speed_is_not() {
        let cpuinfo = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmicrocode\t: 0x1\ncpu MHz\t\t: 2000.1\nflags\t\t: fpu vme\n\nprocessor\t: 1\nmicrocode\t: 0x9\n";
        let one = processor(cpuinfo);
        assert_eq!(one, "vendor_id=AuthenticAMD\nmicrocode=0x1\nflags=fpu vme\n");
        assert_eq!(one, processor(&cpuinfo.replace("2000.1", "3000")));
        assert_ne!(one, processor(&cpuinfo.replace("0x1", "0x2")));
    }
}
