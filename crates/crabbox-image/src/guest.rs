//! The guest contract: what our kernel and initrd are told on the command line, and what a foreign image is told.
//!
//! Pure functions, in a fixed order. Nothing secret may ever be put here: every process of the guest can read it.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Arguments that the machine asks for, whatever boots, with the reason for each.
const MACHINE: [&str; 10] = [
    // The serial port is the one console that Firecracker has; the host keeps what is printed there.
    "console=ttyS0",
    // A reset through the keyboard controller, which Firecracker takes as "exit".
    "reboot=k",
    // A panic ends the VMM after a second instead of leaving a dead one.
    "panic=1",
    // There is no PCI bus; looking for one costs time.
    "pci=off",
    // The keyboard controller is there for the reset only: no mouse port, no multiplexer, no PnP, no keyboard talk. Probing
    // them takes tens of milliseconds.
    "i8042.noaux",
    "i8042.nomux",
    "i8042.nopnp",
    "i8042.dumbkbd",
    // One serial port, not four.
    "8250.nr_uarts=1",
    // The processor's generator may seed the pool: sshd must not wait for entropy.
    "random.trust_cpu=on",
];

/// Arguments for our image beyond these: each of the services costs boot time and nothing in the image uses it.
const OWN: [&str; 3] = [
    "apparmor=0",
    "audit=0",
    // Self tests of the crypto code are for kernel builders.
    "cryptomgr.notests",
];

/// Every byte on the emulated serial port is an exit of the virtual machine: errors only. systemd prints no status with it either.
const QUIET: &str = "quiet";

/// What tells the first process of our initrd to hand over to the init of a root file system that is not ours; `crabbox-guest` knows
/// the same word.
const HANDOVER: &str = "crabbox.init=/sbin/init";

/// Kernel arguments for our own image.
pub fn kernel_args() -> String {
    [MACHINE.as_slice(), &OWN, &[QUIET]].concat().join(" ")
}

/// Kernel arguments for an image with an init of its own that our initrd reaches. Its network comes with the seed.
pub fn handover_kernel_args() -> String {
    let root = ["root=/dev/vda", "rw"];
    [root.as_slice(), &MACHINE, &[QUIET, HANDOVER]].concat().join(" ")
}

/// The network that a foreign image is given on the kernel's command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootNetwork {
    /// Address and prefix of the guest.
    pub address: Ipv4Net,
    /// Its default gateway.
    pub gateway: Ipv4Addr,
    /// Name servers; the kernel takes two.
    pub dns: Vec<Ipv4Addr>,
}

/// Kernel arguments for anyone's cloud-init image, as the Go program gives them (`nomodules` included, which no kernel knows
/// and some scripts look for), in a fixed order. Its `noapic` is left out: a kernel with ACPI, which Firecracker has since 1.8, finds no
/// interrupt for its disks then and waits for them for ever.
pub fn foreign_kernel_args(network: Option<&BootNetwork>) -> String {
    let fixed = "root=/dev/vda rw console=ttyS0 reboot=k panic=1 pci=off nomodules";
    let Some(network) = network else {
        return fixed.to_owned();
    };
    // ip=<client>:<server>:<gateway>:<mask>:<host>:<device>:<autoconf>:<dns0>:<dns1>:<ntp>
    // (Documentation/admin-guide/nfs/nfsroot.rst)
    let dns = |index: usize| {
        network
            .dns
            .get(index)
            .map(Ipv4Addr::to_string)
            .unwrap_or_default()
    };
    let (address, mask, gateway) = (network.address.addr(), network.address.netmask(), network.gateway);
    format!(
        "{fixed} ip={address}::{gateway}:{mask}::eth0:off:{}:{}:",
        dns(0),
        dns(1)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_arguments_have_what_a_lease_relies_on() {
        let args = kernel_args();
        for needed in ["console=ttyS0", "reboot=k", "panic=1", "random.trust_cpu=on"] {
            assert!(
                args.split(' ').any(|arg| arg == needed),
                "{needed} is missing in {args}"
            );
        }
        // Firecracker's limit for the whole line, with what it adds itself, is 2048 bytes.
        assert!(args.len() < 1024 && args.is_ascii());
        // What our image leaves out may be what somebody's image wants.
        let handover = handover_kernel_args();
        let has = |word: &str| handover.split(' ').any(|arg| arg == word);
        assert!(has("root=/dev/vda") && has("crabbox.init=/sbin/init") && has("reboot=k"));
        assert!(
            !has("audit=0") && !has("apparmor=0") && !has("noapic"),
            "{handover}"
        );
    }

    #[test]
    fn foreign_arguments_are_the_go_programs_without_noapic() {
        let mut network = BootNetwork {
            address: "192.168.127.5/24".parse().unwrap(),
            gateway: Ipv4Addr::new(192, 168, 127, 1),
            dns: vec![Ipv4Addr::new(1, 1, 1, 1)],
        };
        let fixed = "root=/dev/vda rw console=ttyS0 reboot=k panic=1 pci=off nomodules";
        assert_eq!(foreign_kernel_args(None), fixed);
        let with =
            |dns: &str| format!("{fixed} ip=192.168.127.5::192.168.127.1:255.255.255.0::eth0:off:{dns}:");
        assert_eq!(foreign_kernel_args(Some(&network)), with("1.1.1.1:"));
        network.dns.push(Ipv4Addr::new(8, 8, 8, 8));
        assert_eq!(foreign_kernel_args(Some(&network)), with("1.1.1.1:8.8.8.8"));
        network.dns.clear();
        assert_eq!(foreign_kernel_args(Some(&network)), with(":"));
    }
}
