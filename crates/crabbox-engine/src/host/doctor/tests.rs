//! A healthy host with one fault at a time: each must be caught by the right check with the right class, and
//! by no other.

#![expect(
    clippy::unnecessary_wraps,
    reason = "a world is made of values that might not have been seen"
)]

use std::path::Path;

use crabbox_core::config::firecracker::{self, FirecrackerPlan};
use crabbox_core::config::{ConfigFile, Inputs, Settings, resolve};
use crabbox_net::nat::{FilterChain, Filters, Hook, Passage};

use super::world::*;
use super::*;
use crate::host::probe::{Judged, Verdict};

mod every_provider;
mod warm;

/// Settings with these variables, each without its `CRABBOX_`.
fn settings(variables: &[(&str, &str)]) -> Settings {
    let files: [ConfigFile; 0] = [];
    let lookup = |name: &str| {
        let name = name.strip_prefix("CRABBOX_")?;
        variables
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| (*value).to_owned())
    };
    let inputs = Inputs {
        files: &files,
        environment: &lookup,
        flags: &[],
        home: None,
        cwd: Path::new("/w"),
        user_file: None,
    };
    resolve(&inputs).unwrap().settings
}

fn plan(variables: &[(&str, &str)]) -> FirecrackerPlan {
    firecracker::plan(&settings(variables)).unwrap()
}

fn no_such(path: &str) -> ObserveError {
    ObserveError::call("stat", Path::new(path), &std::io::Error::from_raw_os_error(2))
}

fn entry(path: &str, kind: FileKind) -> Entry {
    Entry {
        path: path.into(),
        kind: Ok(kind),
    }
}

fn absent(path: &str) -> Entry {
    Entry {
        path: path.into(),
        kind: Err(no_such(path)),
    }
}

fn tool(path: &str, version: &[u32]) -> Option<Tool> {
    Some(Tool {
        path: path.into(),
        version: Some(version.to_vec()),
    })
}

fn binary(path: &str, digest: &str) -> Binary {
    Binary {
        path: path.into(),
        version: Ok("1.12.1".into()),
        digest: Ok(digest.into()),
        loose: None,
    }
}

fn worthy() -> Observed<Contract> {
    Ok(Contract::default())
}

fn foreign() -> Image {
    image_with(Ok(()), Ok(2048), worthy())
}

/// A foreign image with this kernel, this size of its root file system (in MiB) and this contract.
fn image_with(kernel: Observed<()>, rootfs: Observed<u64>, contract: Observed<Contract>) -> Image {
    Image::Foreign {
        kernel,
        rootfs: rootfs.map(|mib| Ext4 {
            mib,
            used_mib: mib / 3,
        }),
        contract,
    }
}

fn lacking(missing: &[&'static str]) -> Observed<Contract> {
    Ok(Contract {
        missing: missing.to_vec(),
        host_key: false,
    })
}

/// A host on which every check passes.
fn healthy() -> World {
    World {
        host: Host {
            os: "linux".into(),
            euid: 0,
            capabilities: u64::MAX,
            kernel: "6.1.0-56-cloud-amd64".into(),
            cpus: 8,
            memory_mib: 32_000,
            available_mib: 30_000,
            tun: Ok(()),
            cgroup: Some(["cpu", "io", "memory", "pids"].map(str::to_owned).to_vec()),
            nested: false,
            swaps: Vec::new(),
            ksm: false,
            smt: false,
            vulnerable: Vec::new(),
            microcode: "0x1".into(),
        },
        tools: Tools::from([
            ("git", tool("/usr/bin/git", &[2, 39, 5])),
            ("ssh", tool("/usr/bin/ssh", &[9, 2])),
            ("ssh-keygen", tool("/usr/bin/ssh-keygen", &[])),
            ("rsync", tool("/usr/bin/rsync", &[3, 2, 7])),
            ("nft", tool("/usr/sbin/nft", &[1, 0, 6])),
            ("mke2fs", tool("/usr/sbin/mke2fs", &[1, 47, 0])),
            ("e2fsck", tool("/usr/sbin/e2fsck", &[1, 47, 0])),
            ("resize2fs", tool("/usr/sbin/resize2fs", &[1, 47, 0])),
        ]),
        kvm: Kvm {
            kind: Ok(FileKind::Other),
            open: Ok(()),
            answers: Ok(()),
            probe: None,
            remembered: None,
        },
        vmm: Vmm {
            firecracker: Ok(binary("/usr/local/bin/firecracker", "f")),
            jailer: Ok(Some(binary("/usr/local/bin/jailer", "j"))),
            pinned: ["f".into(), "j".into()],
        },
        guest: Guest {
            kernel: entry("/images/vmlinux", FileKind::File),
            rootfs: entry("/images/base.ext4", FileKind::File),
            image: Image::Ours {
                digest: "0123456789abcdef".into(),
                kernel: "6.1.0".into(),
                kernel_sha256: "k".into(),
                damage: Vec::new(),
                contract: worthy(),
            },
        },
        network: Network {
            conf_dir: entry("/etc/cni/conf.d", FileKind::Directory),
            bin_dirs: vec![
                entry("/opt/cni/bin", FileKind::Directory),
                entry("/usr/lib/cni", FileKind::Directory),
            ],
            chain: Ok(Chain {
                file: "/etc/cni/conf.d/10-crabbox.conflist".into(),
                plugins: vec![("ptp".into(), Some("/opt/cni/bin/ptp".into()))],
            }),
            forwards: true,
            passage: Ok(Passage::Open),
            filters: Filters::default(),
        },
        storage: Storage {
            dir: "/state".into(),
            reflink: Ok(true),
            free_mib: Ok(100_000),
        },
        warm: warm::ready(),
        residue: Ok(Vec::new()),
    }
}

/// Status and class of every check that did not pass, by name.
fn unwell(checks: &[Check]) -> Vec<(&str, Status, &str)> {
    let bad = checks
        .iter()
        .filter(|check| !matches!(check.status, Status::Ok | Status::Skip));
    bad.map(|check| (check.check, check.status, check.details["class"].as_str()))
        .collect()
}

const BLOCKED: &str = "environment_blocked";
const INCOMPLETE: &str = "configuration_incomplete";
const DEGRADED: &str = "degraded";
const HARDENING: &str = "hardening";

type Variables = &'static [(&'static str, &'static str)];

/// A fault: its name, the settings, the change to a healthy host, and the only check that may notice it.
struct Fault(
    &'static str,
    Variables,
    fn(&mut World),
    (&'static str, Status, &'static str),
);

#[rustfmt::skip]
fn faults() -> Vec<Fault> {
    use Status::{Failed, Missing, Warning};
    const CNI: Variables = &[("FIRECRACKER_NETWORK", "cni")];
    const PLAIN: Variables = &[];
    vec![
        Fault("no kvm device", PLAIN, |w| { w.kvm.kind = Err(no_such("/dev/kvm")); w.kvm.open = Err(no_such("/dev/kvm")); }, ("kvm", Failed, BLOCKED)),
        Fault("kvm is a directory", PLAIN, |w| w.kvm.kind = Ok(FileKind::Directory), ("kvm", Failed, BLOCKED)),
        Fault("kvm may not be opened", PLAIN, |w| w.kvm.open = Err(ObserveError::new("open /dev/kvm: permission denied")), ("kvm", Failed, BLOCKED)),
        Fault("kvm answers strangely", PLAIN, |w| w.kvm.answers = Err(ObserveError::new("KVM has API version 11")), ("kvm-api", Failed, BLOCKED)),
        Fault("kvm ran no guest earlier", PLAIN, |w| w.kvm.remembered = Some(Verdict::Broken { reason: "silence".into(), console: vec![] }), ("kvm-api", Failed, BLOCKED)),
        Fault("kvm runs no guest", PLAIN, |w| w.kvm.probe = Some(Ok(Judged { verdict: Verdict::Broken { reason: "silence".into(), console: vec![] }, remembered: false })), ("kvm-boot", Failed, BLOCKED)),
        Fault("the probe could not be made", PLAIN, |w| w.kvm.probe = Some(Err(ObserveError::new("no kernel"))), ("kvm-boot", Failed, BLOCKED)),
        Fault("no firecracker", PLAIN, |w| w.vmm = Vmm { firecracker: Err(ObserveError::new("exec: \"firecracker\": executable file not found in $PATH")), jailer: Ok(None), ..w.vmm.clone() }, ("binary", Failed, BLOCKED)),
        Fault("firecracker is something else", PLAIN, |w| w.vmm.firecracker.as_mut().unwrap().version = Err(ObserveError::new("it printed hello")), ("firecracker-version", Failed, BLOCKED)),
        Fault("firecracker is old", PLAIN, |w| { w.vmm.firecracker.as_mut().unwrap().version = Ok("1.7.0".into()); w.vmm.jailer.as_mut().unwrap().as_mut().unwrap().version = Ok("1.7.0".into()); }, ("firecracker-version", Warning, DEGRADED)),
        Fault("firecracker is of the future", PLAIN, |w| { w.vmm.firecracker.as_mut().unwrap().version = Ok("2.0.0".into()); w.vmm.jailer.as_mut().unwrap().as_mut().unwrap().version = Ok("2.0.0".into()); }, ("firecracker-version", Warning, DEGRADED)),
        Fault("configured jailer is gone", &[("FIRECRACKER_JAILER", "/x/jailer")], |w| w.vmm.jailer = Err(no_such("/x/jailer")), ("jailer", Failed, BLOCKED)),
        Fault("jailer of another release", PLAIN, |w| w.vmm.jailer = Ok(Some(Binary { version: Ok("1.13.0".into()), ..binary("/j", "j") })), ("jailer-version", Failed, BLOCKED)),
        Fault("jailer does not run", PLAIN, |w| w.vmm.jailer = Ok(Some(Binary { version: Err(ObserveError::new("exec format error")), ..binary("/j", "j") })), ("jailer-version", Failed, BLOCKED)),
        Fault("no jailer for root", PLAIN, |w| w.vmm.jailer = Ok(None), ("jail", Failed, BLOCKED)),
        Fault("anyone may replace firecracker", PLAIN, |w| w.vmm.firecracker.as_mut().unwrap().loose = Some("/home/u".into()), ("binary-ownership", Warning, HARDENING)),
        Fault("old control groups", PLAIN, |w| w.host.cgroup = None, ("cgroup", Failed, BLOCKED)),
        Fault("a controller is missing", PLAIN, |w| w.host.cgroup = Some(vec!["cpu".into(), "memory".into()]), ("cgroup", Failed, BLOCKED)),
        Fault("kernel is gone", &[("FIRECRACKER_KERNEL", "/x"), ("FIRECRACKER_ROOTFS", "/r")], |w| { w.guest.image = image_with(Err(no_such("/x")), Ok(1), worthy()); w.guest.kernel = absent("/x"); }, ("kernel", Failed, BLOCKED)),
        Fault("kernel is a directory", PLAIN, |w| { w.guest.image = foreign(); w.guest.kernel = entry("/x", FileKind::Directory); }, ("kernel", Failed, INCOMPLETE)),
        Fault("rootfs is gone", PLAIN, |w| { w.guest.image = image_with(Ok(()), Err(no_such("/r")), Err(no_such("/r"))); w.guest.rootfs = absent("/r"); }, ("rootfs", Failed, BLOCKED)),
        Fault("rootfs is a directory", PLAIN, |w| { w.guest.image = foreign(); w.guest.rootfs = entry("/r", FileKind::Directory); }, ("rootfs", Failed, INCOMPLETE)),
        Fault("kernel is a bzImage", PLAIN, |w| w.guest.image = image_with(Err(ObserveError::new("a compressed bzImage")), Ok(1), worthy()), ("image", Failed, INCOMPLETE)),
        Fault("rootfs is a whole disk", PLAIN, |w| w.guest.image = image_with(Ok(()), Err(ObserveError::new("it is a whole disk")), worthy()), ("image", Failed, INCOMPLETE)),
        Fault("rootfs is larger than the disk", &[("FIRECRACKER_DISK_MIB", "1024")], |w| w.guest.image = foreign(), ("image", Failed, INCOMPLETE)),
        Fault("rootfs without sshd", PLAIN, |w| w.guest.image = image_with(Ok(()), Ok(1), lacking(&["sshd", "git"])), ("image", Failed, BLOCKED)),
        Fault("rootfs without git", PLAIN, |w| w.guest.image = image_with(Ok(()), Ok(1), lacking(&["git"])), ("image", Warning, DEGRADED)),
        Fault("rootfs with a host key", PLAIN, |w| w.guest.image = image_with(Ok(()), Ok(1), Ok(Contract { missing: vec![], host_key: true })), ("image", Warning, HARDENING)),
        Fault("our image is damaged", PLAIN, |w| w.guest.image = Image::Ours { digest: "0".into(), kernel: "6".into(), kernel_sha256: "k".into(), damage: vec!["base.ext4 has 1 bytes".into()], contract: worthy() }, ("image", Failed, BLOCKED)),
        Fault("our image lacks a program", PLAIN, |w| w.guest.image = Image::Ours { digest: "0".into(), kernel: "6".into(), kernel_sha256: "k".into(), damage: vec![], contract: lacking(&["rsync"]) }, ("image", Failed, BLOCKED)),
        Fault("no CNI network", CNI, |w| w.network.chain = Err(ObserveError::new("there is no CNI network")), ("network", Failed, INCOMPLETE)),
        Fault("no CNI directory", CNI, |w| { w.network.conf_dir = absent("/etc/cni/conf.d"); w.network.chain = Err(no_such("/etc/cni/conf.d")); }, ("network", Failed, BLOCKED)),
        Fault("no plugin directory", CNI, |w| { w.network.bin_dirs = vec![absent("/opt/cni/bin"), absent("/usr/lib/cni")]; }, ("network", Failed, BLOCKED)),
        Fault("a plugin is missing", PLAIN, |w| w.network.chain.as_mut().unwrap().plugins.push(("host-local".into(), None)), ("cni-plugins", Missing, BLOCKED)),
        Fault("no nft", PLAIN, |w| { w.tools.insert("nft", None); }, ("nft", Missing, BLOCKED)),
        Fault("old nft", PLAIN, |w| { w.tools.insert("nft", tool("/usr/sbin/nft", &[0, 8])); }, ("nft", Failed, BLOCKED)),
        Fault("docker drops what is forwarded", PLAIN, |w| w.network.passage = Ok(Passage::Outward(Hook::Forward)), ("forwarding", Warning, DEGRADED)),
        Fault("no rights", PLAIN, |w| { w.host.euid = 1000; w.host.capabilities = 0; }, ("privileges", Failed, BLOCKED)),
        Fault("no tap devices", PLAIN, |w| w.host.tun = Err(no_such("/dev/net/tun")), ("privileges", Failed, BLOCKED)),
        Fault("ancient host kernel", PLAIN, |w| w.host.kernel = "4.19.0-27-amd64".into(), ("host-kernel", Warning, DEGRADED)),
        Fault("more memory than there is", &[("FIRECRACKER_MEMORY_MIB", "64000")], |_| (), ("memory", Failed, BLOCKED)),
        Fault("little memory left", PLAIN, |w| w.host.available_mib = 1000, ("memory", Warning, DEGRADED)),
        Fault("more processors than there are", PLAIN, |w| w.host.cpus = 2, ("cpus", Warning, DEGRADED)),
        Fault("full disk", PLAIN, |w| w.storage.free_mib = Ok(100), ("disk-space", Failed, BLOCKED)),
        Fault("disk nearly full", PLAIN, |w| w.storage.free_mib = Ok(9000), ("disk-space", Warning, DEGRADED)),
        Fault("copies of a foreign image", PLAIN, |w| { w.guest.image = foreign(); w.storage.reflink = Ok(false); }, ("reflink", Warning, DEGRADED)),
        Fault("state cannot be written", PLAIN, |w| w.storage.reflink = Err(ObserveError::new("permission denied")), ("reflink", Failed, BLOCKED)),
        Fault("old ssh", PLAIN, |w| { w.tools.insert("ssh", tool("/usr/bin/ssh", &[8, 3])); }, ("tools", Failed, BLOCKED)),
        Fault("no mke2fs", PLAIN, |w| { w.tools.insert("mke2fs", None); }, ("tools", Failed, BLOCKED)),
        Fault("no jail, as root", &[("FIRECRACKER_JAILER", "none")], |w| w.vmm.jailer = Ok(None), ("jail", Warning, HARDENING)),
        Fault("no template", PLAIN, |w| w.warm.template = Ok(Frozen::Absent), ("warm", Warning, DEGRADED)),
        Fault("template set aside", PLAIN, |w| w.warm.template = Ok(Frozen::SetAside { failures: 2 }), ("warm", Warning, DEGRADED)),
        Fault("template written to", PLAIN, |w| w.warm.template = Ok(Frozen::Unusable { why: "its memory has changed (written to)".into() }), ("warm", Warning, DEGRADED)),
        Fault("firecracker whose restored machines are deaf", PLAIN, |w| { w.vmm.firecracker.as_mut().unwrap().version = Ok("1.16.0".into()); w.vmm.jailer.as_mut().unwrap().as_mut().unwrap().version = Ok("1.16.0".into()); }, ("warm", Warning, DEGRADED)),
        Fault("a file system without hard links", PLAIN, |w| w.warm.links = Some(Ok(false)), ("warm", Warning, DEGRADED)),
        Fault("something left behind", PLAIN, |w| w.residue = Ok(vec!["link cbx01234567".into()]), ("orphans", Warning, "residue")),
        Fault("nested", PLAIN, |w| w.host.nested = true, ("nested", Warning, DEGRADED)),
        Fault("open swap", PLAIN, |w| w.host.swaps = vec!["/swapfile".into()], ("swap", Warning, HARDENING)),
        Fault("merged pages", PLAIN, |w| w.host.ksm = true, ("ksm", Warning, HARDENING)),
        Fault("shared cores", PLAIN, |w| w.host.smt = true, ("smt", Warning, HARDENING)),
        Fault("leaky processor", PLAIN, |w| w.host.vulnerable = vec!["mds: Vulnerable".into()], ("cpu-vulnerabilities", Warning, HARDENING)),
    ]
}

#[test]
fn a_healthy_host_has_nothing_to_fix_in_any_mode() {
    for network in ["auto", "cni", "nat"] {
        let checks = judge::firecracker(&plan(&[("FIRECRACKER_NETWORK", network)]), &healthy());
        assert_eq!(unwell(&checks), [], "{network}");
        assert!(checks.iter().all(|check| !check.details.contains_key("fix")));
        let seven: Vec<_> = checks.iter().take(7).map(|check| check.check).collect();
        assert_eq!(
            seven,
            ["host", "kvm", "binary", "jailer", "kernel", "rootfs", "network"]
        );
        let readers = checks.iter().filter(|check| check.check != "reflink");
        assert!(readers.clone().all(|check| check.details["mutation"] == "false"));
    }
}

fn forwarding(passage: Observed<Passage>, filters: Filters) -> Check {
    let mut world = healthy();
    world.network.passage = passage;
    world.network.filters = filters;
    let checks = judge::firecracker(&plan(&[]), &world);
    checks
        .into_iter()
        .find(|check| check.check == "forwarding")
        .unwrap()
}

#[test]
fn a_packet_that_could_not_be_sent_is_no_verdict() {
    let check = forwarding(Err(ObserveError::new("only root can")), Filters::default());
    assert_eq!(
        (check.status, check.details["reason"].as_str()),
        (Status::Skip, "only root can")
    );
    assert!(!check.details.contains_key("fix"));
}

#[test]
fn the_fix_names_every_filter_in_the_way_and_none_that_cannot_be_changed() {
    let chain = |family: &str, table: &str, chain: &str, owned| FilterChain {
        family: family.to_owned(),
        table: table.to_owned(),
        chain: chain.to_owned(),
        hook: Hook::Forward,
        owned,
    };
    let insert = |chain: &str| {
        format!(
            "sudo nft 'insert rule {chain} iifname \"cbx*\" counter accept; insert rule {chain} oifname \"cbx*\" counter accept'"
        )
    };
    let legacy = "sudo iptables-legacy -I FORWARD -i cbx+ -j ACCEPT; sudo iptables-legacy -I FORWARD -o cbx+ -j ACCEPT";
    let firewalld =
        "sudo firewall-cmd --permanent --zone=trusted --add-interface=cbx+; sudo firewall-cmd --reload";
    let docker = chain("ip", "filter", "FORWARD", false);
    let cases = [
        (vec![], false, "sudo nft list ruleset".to_owned()),
        (vec![docker.clone()], false, insert("ip filter FORWARD")),
        (vec![], true, legacy.to_owned()),
        (
            vec![chain("inet", "firewalld", "filter_FORWARD", true)],
            false,
            firewalld.to_owned(),
        ),
        (
            vec![chain("inet", "x", "it's", false)],
            false,
            "sudo nft list ruleset".to_owned(),
        ),
        (
            vec![docker, chain("inet", "firewalld", "filter_FORWARD", false)],
            true,
            [
                insert("ip filter FORWARD"),
                insert("inet firewalld filter_FORWARD"),
                legacy.to_owned(),
            ]
            .join("; "),
        ),
    ];
    for (chains, legacy, fix) in cases {
        let legacy: Vec<String> = legacy.then(|| "filter".to_owned()).into_iter().collect();
        for passage in [Passage::Outward(Hook::Forward), Passage::Reply(Hook::Forward)] {
            let check = forwarding(
                Ok(passage),
                Filters {
                    chains: chains.clone(),
                    legacy: legacy.clone(),
                },
            );
            assert_eq!((check.status, &check.details["fix"]), (Status::Warning, &fix));
        }
        for passage in [Passage::Open, Passage::OpenByUplink] {
            let check = forwarding(
                Ok(passage),
                Filters {
                    chains: chains.clone(),
                    legacy: legacy.clone(),
                },
            );
            assert_eq!(
                check.status,
                Status::Ok,
                "rules are not judged where a packet passes"
            );
        }
    }
}

#[test]
fn a_fix_is_for_the_place_where_packets_are_dropped_and_names_packets_of_leases_alone() {
    use Hook::{Egress, Forward, Postrouting, Prerouting};
    let chains = [Prerouting, Forward, Postrouting, Egress].map(|hook| FilterChain {
        family: "ip".to_owned(),
        table: "t".to_owned(),
        chain: format!("{hook:?}"),
        hook,
        owned: false,
    });
    let filters = Filters {
        chains: chains.to_vec(),
        legacy: ["raw", "mangle", "filter", "nat"].map(str::to_owned).to_vec(),
    };
    let into = |chain: &str, link: &str| format!("insert rule ip t {chain} {link} \"cbx*\" counter accept");
    let both = |chain: &str| {
        format!(
            "sudo nft '{}; {}'",
            into(chain, "iifname"),
            into(chain, "oifname")
        )
    };
    let legacy = |words: &str| format!("sudo iptables-legacy {words}");
    let forward = [
        both("Forward"),
        legacy("-t mangle -I FORWARD -i cbx+ -j ACCEPT"),
        legacy("-t mangle -I FORWARD -o cbx+ -j ACCEPT"),
        legacy("-I FORWARD -i cbx+ -j ACCEPT"),
        legacy("-I FORWARD -o cbx+ -j ACCEPT"),
    ];
    let postrouting = [
        both("Postrouting"),
        legacy("-t mangle -I POSTROUTING -s 10.213.0.0/16 -j ACCEPT"),
        legacy("-t mangle -I POSTROUTING -o cbx+ -j ACCEPT"),
    ];
    let comes_in = [
        format!("sudo nft '{}'", into("Prerouting", "iifname")),
        legacy("-t raw -I PREROUTING -i cbx+ -j ACCEPT"),
        legacy("-t mangle -I PREROUTING -i cbx+ -j ACCEPT"),
    ];
    let is_looked_at = [
        "sudo nft list chain ip t Prerouting".to_owned(),
        legacy("-t raw -S PREROUTING"),
        legacy("-t mangle -S PREROUTING"),
    ];
    for (passage, fix, by) in [
        (
            Passage::Outward(Forward),
            &forward[..],
            "legacy iptables mangle FORWARD, legacy iptables FORWARD",
        ),
        (
            Passage::Reply(Postrouting),
            &postrouting,
            "ip t Postrouting, legacy iptables mangle POSTROUTING",
        ),
        (
            Passage::Outward(Prerouting),
            &comes_in,
            "ip t Prerouting, legacy iptables raw PREROUTING",
        ),
        (Passage::Reply(Prerouting), &is_looked_at, "the replies to what"),
        (
            Passage::Outward(Egress),
            &["sudo nft list chain ip t Egress".to_owned()],
            "(ip t Egress)",
        ),
    ] {
        let check = forwarding(Ok(passage), filters.clone());
        assert_eq!(check.details["fix"], fix.join("; "), "{passage:?}");
        assert!(check.message.contains(by), "{}", check.message);
    }
}

#[test]
fn every_fault_is_caught_by_its_check_and_by_no_other() {
    let faults = faults();
    assert!(faults.len() >= 30);
    for Fault(name, variables, inject, expected) in faults {
        let mut world = healthy();
        inject(&mut world);
        let checks = judge::firecracker(&plan(variables), &world);
        // Consequences of a fault (no image without a kernel, no version check without a jailer) are not
        // reported again.
        assert_eq!(unwell(&checks), [expected], "{name}");
        let check = checks.iter().find(|check| check.check == expected.0).unwrap();
        assert!(
            check.details.get("fix").is_some_and(|fix| !fix.is_empty()),
            "{name} has no fix"
        );
        assert!(
            !check.message.is_empty() && !check.message.contains('\n'),
            "{name}"
        );
        assert_eq!(is_well(&checks), expected.1 == Status::Warning, "{name}");
    }
}

#[test]
fn without_any_image_the_reference_s_two_checks_and_ours_say_so() {
    let mut world = healthy();
    world.guest = Guest {
        kernel: absent("/var/lib/crabbox/firecracker/vmlinux"),
        rootfs: absent("/var/lib/crabbox/firecracker/rootfs.ext4"),
        image: Image::None { trouble: None },
    };
    let checks = judge::firecracker(&plan(&[]), &world);
    let expected = [
        ("kernel", Status::Failed, BLOCKED),
        ("rootfs", Status::Failed, BLOCKED),
        ("image", Status::Missing, BLOCKED),
    ];
    assert_eq!(unwell(&checks), expected);
    for (name, _, _) in expected {
        let check = checks.iter().find(|check| check.check == name).unwrap();
        assert_eq!(check.details["fix"], "crabbox setup firecracker");
    }
}

#[test]
fn the_documents_are_those_of_the_reference() {
    let mut world = healthy();
    world.guest.image = foreign();
    world.guest.kernel = absent("/x");
    world.vmm.jailer = Ok(None);
    let checks = judge::firecracker(&plan(&[("FIRECRACKER_JAILER", "none")]), &world);
    let json =
        |name: &str| serde_json::to_string(checks.iter().find(|check| check.check == name).unwrap()).unwrap();
    assert_eq!(
        json("host"),
        r#"{"status":"ok","check":"host","provider":"firecracker","message":"host=linux mutation=false","details":{"host":"linux","mutation":"false","os":"linux","provider":"firecracker"}}"#
    );
    let kernel = json("kernel");
    let message = "firecracker.kernel unavailable: stat /x: no such file or directory";
    assert!(kernel.contains(&format!(r#""message":"{message}""#)), "{kernel}");
    assert!(
        kernel.contains(r#""class":"environment_blocked","field":"firecracker.kernel","fix":"#),
        "{kernel}"
    );
    assert!(
        kernel.contains(r#""mutation":"false","path":"/x","provider":"firecracker"}"#),
        "{kernel}"
    );
    assert_eq!(
        json("jailer"),
        r#"{"status":"skip","check":"jailer","provider":"firecracker","message":"jailer=disabled","details":{"configured":"none","jailer":"disabled","mutation":"false","provider":"firecracker"}}"#
    );
    assert!(
        json("network").contains(r#""message":"network=cni cni_network=crabbox-firecracker mutation=false""#)
    );
}

#[test]
fn another_system_is_told_by_the_first_check_and_nothing_is_made_up() {
    let mut world = healthy();
    world.host.os = "darwin".into();
    let checks = judge::firecracker(&plan(&[]), &world);
    assert_eq!(checks.len(), 7);
    assert_eq!(checks[0].message, "host=darwin requires a Linux KVM host");
    assert_eq!(
        (checks[1].status, checks[1].details["reason"].as_str()),
        (Status::Skip, "unsupported_host")
    );
}

#[test]
fn the_network_s_problems_are_listed_in_the_reference_s_words() {
    let mut world = healthy();
    world.network.conf_dir = entry("/etc/cni/conf.d", FileKind::File);
    world.network.bin_dirs = vec![absent("/opt/cni/bin"), absent("/usr/lib/cni")];
    world.network.chain = Err(ObserveError::new("not a directory"));
    let checks = judge::firecracker(&plan(&[("FIRECRACKER_NETWORK", "cni")]), &world);
    let network = checks.iter().find(|check| check.check == "network").unwrap();
    assert_eq!(
        network.message,
        "network=cni firecracker.cniConfDir must be a directory; firecracker.cniBinDir stat /opt/cni/bin: no such file or directory"
    );
    assert_eq!(network.details["class"], BLOCKED);
    world.network.conf_dir = entry("/etc/cni/conf.d", FileKind::Directory);
    world.network.bin_dirs[1] = entry("/usr/lib/cni", FileKind::Directory);
    let checks = judge::firecracker(&plan(&[("FIRECRACKER_NETWORK", "cni")]), &world);
    let network = checks.iter().find(|check| check.check == "network").unwrap();
    assert_eq!(
        network.message,
        "network=cni firecracker.cniNetwork \"crabbox-firecracker\" unavailable in /etc/cni/conf.d: not a directory"
    );
}

#[test]
fn lines_have_the_reference_s_columns() {
    let check = Check::generic(Status::Ok, "git", "/usr/bin/git");
    assert_eq!(check.to_string(), "ok      git      /usr/bin/git");
    assert_eq!(
        Check::generic(Status::Missing, "rsync", "").to_string(),
        "missing rsync"
    );
}
