//! Detects whether this machine is virtual, from its processor and its firmware.
//!
//! A hypervisor can hide itself or report another name, so the result must never be taken for proof of
//! hardware.

use std::path::Path;

/// The hypervisor that the processor reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announced {
    /// None.
    Nobody,
    /// The hypervisor with this signature: twelve bytes, padded with zeros.
    By([u8; 12]),
    /// This kind of processor does not report it.
    Unreadable,
}

/// The bit of CPUID leaf 1, register ECX, that processors leave clear and hypervisors set.
#[cfg(target_arch = "x86_64")]
const PRESENT: u32 = 1 << 31;

/// The leaf in which a hypervisor names itself.
#[cfg(target_arch = "x86_64")]
const SIGNATURE: u32 = 0x4000_0000;

/// Queries the processor.
#[cfg(target_arch = "x86_64")]
pub fn announced() -> Announced {
    use std::arch::x86_64::__cpuid;
    if __cpuid(1).ecx & PRESENT == 0 {
        return Announced::Nobody;
    }
    let leaf = __cpuid(SIGNATURE);
    let mut signature = [0; 12];
    for (part, register) in signature.chunks_exact_mut(4).zip([leaf.ebx, leaf.ecx, leaf.edx]) {
        part.copy_from_slice(&register.to_le_bytes());
    }
    Announced::By(signature)
}

/// Queries the processor.
#[cfg(not(target_arch = "x86_64"))]
pub fn announced() -> Announced {
    Announced::Unreadable
}

/// The manufacturer of this machine according to the firmware; `None` if it has no entry.
pub fn maker() -> Option<String> {
    let maker = std::fs::read_to_string(Path::new("/sys/class/dmi/id/sys_vendor")).ok()?;
    Some(maker.trim().to_owned()).filter(|maker| !maker.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_kernel_and_we_see_the_same_bit() {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap();
        let has = flags.split_whitespace().any(|flag| flag == "hypervisor");
        assert_eq!(announced() != Announced::Nobody, has);
    }
}
