//! The guest contract: the kernel command line for our image, and for a foreign image.
//!
//! Pure functions, in a fixed order. Nothing secret may ever be put here: every process of the guest can read
//! it.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// An argument of the kernel command line, with its reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argument {
    /// In the kernel's syntax.
    pub word: &'static str,
    /// Its effect here.
    pub reason: &'static str,
    /// Its purpose.
    pub purpose: Purpose,
}

/// The purpose of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A lease does not work without it.
    Needed,
    /// The guest is ready sooner: `cargo xtask bench boot --kernel-args` measures by how much.
    Speed,
}

const fn needed(word: &'static str, reason: &'static str) -> Argument {
    Argument {
        word,
        reason,
        purpose: Purpose::Needed,
    }
}

const fn speed(word: &'static str, reason: &'static str) -> Argument {
    Argument {
        word,
        reason,
        purpose: Purpose::Speed,
    }
}

/// Arguments that the machine needs, whatever boots.
const MACHINE: [Argument; 11] = [
    needed(
        "console=ttyS0",
        "the serial port is the one console that Firecracker has; the host keeps what is printed there",
    ),
    needed(
        "reboot=k",
        "a reset through the keyboard controller, which Firecracker takes as \"exit\"",
    ),
    needed(
        "panic=1",
        "a panic ends the VMM after a second instead of leaving a dead one",
    ),
    needed(
        "random.trust_cpu=on",
        "the processor's generator may seed the pool: sshd never waits for entropy, whatever the kernel's own default is",
    ),
    speed("pci=off", "there is no PCI bus to look for"),
    speed(
        "i8042.noaux",
        "the keyboard controller is there for the reset only: no mouse",
    ),
    speed("i8042.nomux", "as above: no multiplexer"),
    speed("i8042.nopnp", "as above: no PnP"),
    speed("i8042.dumbkbd", "as above: no keyboard to talk to"),
    speed("8250.nr_uarts=1", "one serial port, not four"),
    // It also suppresses systemd's status messages.
    speed(
        "quiet",
        "every byte on the emulated serial port is an exit of the virtual machine: errors only",
    ),
];

/// Additional arguments for our image: each disabled service would cost boot time, and nothing in the image
/// uses it.
const OWN: [Argument; 3] = [
    speed("apparmor=0", "nothing in our image has a profile"),
    speed("audit=0", "nothing in our image reads an audit log"),
    speed(
        "cryptomgr.notests",
        "self tests of the crypto code are for kernel builders",
    ),
];

/// Additional arguments for a template: during a snapshot its clocks stand still, and may jump at the
/// restore.
const FROZEN: [Argument; 2] = [
    needed(
        "nowatchdog",
        "a processor that stood still is not taken for one that hangs",
    ),
    needed(
        "rcupdate.rcu_cpu_stall_suppress=1",
        "as above: no complaint on the console of each lease",
    ),
];

/// Makes process 1 of our initrd start the init of a foreign root file system; `crabbox-guest` has the same
/// constant.
const HANDOVER: &str = "crabbox.init=/sbin/init";

/// The command line of our own image's kernel: every argument with its reason, in the order of the command
/// line.
pub fn arguments() -> Vec<Argument> {
    [MACHINE.as_slice(), &OWN].concat()
}

/// Kernel arguments for our own image.
pub fn kernel_args() -> String {
    words(&arguments()).join(" ")
}

/// Kernel arguments for a template of our own image.
pub fn template_kernel_args() -> String {
    words(&[arguments().as_slice(), &FROZEN].concat()).join(" ")
}

/// Kernel arguments for an image with its own init that is reached through our initrd. Its network
/// configuration is in the seed.
pub fn handover_kernel_args() -> String {
    [&["root=/dev/vda", "rw"], words(&MACHINE).as_slice(), &[HANDOVER]]
        .concat()
        .join(" ")
}

fn words(arguments: &[Argument]) -> Vec<&'static str> {
    arguments.iter().map(|argument| argument.word).collect()
}

/// The network of a foreign image on the kernel command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootNetwork {
    /// Address and prefix of the guest.
    pub address: Ipv4Net,
    /// Its default gateway.
    pub gateway: Ipv4Addr,
    /// Name servers; the kernel takes two.
    pub dns: Vec<Ipv4Addr>,
}

/// Kernel arguments for a foreign cloud-init image, as in the Go program (including `nomodules`, which is
/// unknown to kernels but which some scripts look for), in a fixed order. The Go program's `noapic` is left
/// out: with it a kernel with ACPI, which Firecracker provides since 1.8, finds no interrupt for its disks
/// and waits for them forever.
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
        // A foreign image may need what our own image disables.
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
