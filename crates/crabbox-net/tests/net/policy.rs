//! Which peers can reach each other, tested by connections through a real tap.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use crabbox_host::command::Cmd;
use crabbox_host::{netlink, netns};
use crabbox_net::{GUEST_ADDRESS, Policy, TAP_ADDRESS};

use crate::lab::{ELSEWHERE, HOST_PUBLIC, INTERNET, LAN, Lab, greeting, refusal, serve, setting};
use crate::nat::lease;

/// The default policy, with the addresses of the host as the engine reads them.
fn policy() -> Policy {
    let own = netlink::own_addresses()
        .unwrap()
        .into_iter()
        .filter_map(|address| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        });
    Policy {
        host_addresses: own.collect(),
        ..Policy::default()
    }
}

#[test]
fn the_guest_reaches_the_internet_and_neither_the_host_nor_its_lan() {
    Lab::run(|lab| {
        serve(Ipv4Addr::UNSPECIFIED, 80, "host");
        let (_, outer, guest) = lease(lab, "a1", "10.213.0.0/30", policy());
        assert_eq!(
            greeting(LAN, 80).unwrap(),
            "lan",
            "the host itself reaches its LAN"
        );
        guest.within(|| {
            assert_eq!(greeting(INTERNET, 80).unwrap(), "internet");
            assert_eq!(greeting(ELSEWHERE, 80).unwrap(), "internet");
            for forbidden in [
                LAN,
                Ipv4Addr::new(192, 168, 77, 1),
                outer.gateway,
                HOST_PUBLIC,
                outer.address,
                TAP_ADDRESS,
            ] {
                refusal(forbidden, 80);
            }
            let metadata = refusal(Ipv4Addr::new(169, 254, 169, 254), 80);
            assert_eq!(metadata.kind(), ErrorKind::TimedOut);
            // A rejected connection fails at once instead of timing out.
            assert_eq!(greeting(LAN, 80).unwrap_err().kind(), ErrorKind::HostUnreachable);
        });
    });
}

#[test]
fn the_host_s_own_addresses_are_closed_by_the_list_of_them() {
    // The host's own table would block these too; it is removed, so that only the namespace's rule is tested.
    Lab::run(|lab| {
        serve(Ipv4Addr::UNSPECIFIED, 80, "host");
        let (spec, _, without) = lease(lab, "a1", "10.213.0.0/30", Policy::default());
        let (other, _, with) = lease(lab, "b2", "10.213.0.4/30", policy());
        for table in [spec.table(), other.table()] {
            Cmd::new("nft")
                .args(["delete", "table", "ip", &table])
                .run()
                .unwrap();
        }
        assert_eq!(without.within(|| greeting(HOST_PUBLIC, 80)).unwrap(), "host");
        with.within(|| refusal(HOST_PUBLIC, 80));
    });
}

#[test]
fn only_the_host_reaches_the_guest() {
    Lab::run(|lab| {
        let (_, one, server) = lease(lab, "a1", "10.213.0.0/30", policy());
        let (two, _, client) = lease(lab, "b2", "10.213.0.4/30", policy());
        server.within(|| serve(Ipv4Addr::UNSPECIFIED, 22, "ssh"));
        assert_eq!(greeting(one.address, 22).unwrap(), "ssh");
        client.within(|| refusal(one.address, 22));
        // The other lease's namespace cannot either, although its rules only bind its guest.
        netns::within(&two.netns, || refusal(one.address, 22)).unwrap();
        // Even without the host's own rules, the guard in the first lease's namespace holds.
        Cmd::new("nft").args(["flush", "ruleset"]).run().unwrap();
        netns::within(&two.netns, || refusal(one.address, 22)).unwrap();
        let internet = netns::within(&lab.internet, || {
            Cmd::new("ip")
                .args(["route", "add", "10.213.0.0/16", "via", "9.9.9.1"])
                .run()
                .unwrap();
            refusal(one.address, 22)
        });
        internet.unwrap();
        // To show that the path itself is open: without the guard both get through.
        netns::within(&lab.path("a1"), || {
            let open = "add rule ip crabbox forward accept\n";
            Cmd::new("nft")
                .args(["flush", "chain", "ip", "crabbox", "forward"])
                .run()
                .unwrap();
            Cmd::new("nft").args(["-f", "-"]).stdin(open).run().unwrap();
        })
        .unwrap();
        assert_eq!(
            netns::within(&two.netns, || greeting(one.address, 22))
                .unwrap()
                .unwrap(),
            "ssh"
        );
        assert_eq!(
            netns::within(&lab.internet, || greeting(one.address, 22))
                .unwrap()
                .unwrap(),
            "ssh"
        );
    });
}

#[test]
fn the_lan_can_be_allowed_and_the_internet_taken_away() {
    Lab::run(|lab| {
        std::fs::write("/proc/sys/net/ipv4/conf/lan0/forwarding", "1").unwrap();
        serve(Ipv4Addr::UNSPECIFIED, 80, "host");
        let (_, outer, guest) = lease(
            lab,
            "a1",
            "10.213.0.0/30",
            Policy {
                lan: true,
                internet: false,
                ..policy()
            },
        );
        guest.within(|| {
            assert_eq!(greeting(LAN, 80).unwrap(), "lan");
            refusal(INTERNET, 80);
            refusal(outer.gateway, 80);
            refusal(Ipv4Addr::new(192, 168, 77, 1), 80);
        });
        let allow = vec![
            format!("{LAN}/32").parse().unwrap(),
            "192.168.77.0/30".parse().unwrap(),
        ];
        let (_, _, guest) = lease(
            lab,
            "b2",
            "10.213.0.4/30",
            Policy {
                allow,
                internet: false,
                ..policy()
            },
        );
        guest.within(|| {
            assert_eq!(greeting(LAN, 80).unwrap(), "lan");
            refusal(INTERNET, 80);
        });
    });
}

#[test]
fn a_guest_that_pretends_to_be_another_is_not_believed() {
    Lab::run(|lab| {
        let (_, _, guest) = lease(lab, "a1", "10.213.0.0/30", policy());
        let seen = netns::within(&lab.internet, || UdpSocket::bind((INTERNET, 53)).unwrap()).unwrap();
        seen.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        // Resolve the gateway's hardware address before sending forged packets, so that none of them is lost.
        assert_eq!(guest.within(|| greeting(INTERNET, 80)).unwrap(), "internet");
        guest.within(|| {
            Cmd::new("ip")
                .args(["address", "add", "10.213.0.6/32", "dev", "lo"])
                .run()
                .unwrap();
            Cmd::new("ip")
                .args(["address", "add", "198.51.100.7/32", "dev", "lo"])
                .run()
                .unwrap();
            for false_source in ["10.213.0.6:0", "198.51.100.7:0"] {
                UdpSocket::bind(false_source)
                    .unwrap()
                    .send_to(b"false", (INTERNET, 53))
                    .unwrap();
            }
        });
        seen.recv(&mut [0; 16]).unwrap_err();
        guest.within(|| {
            UdpSocket::bind((GUEST_ADDRESS, 0))
                .unwrap()
                .send_to(b"true", (INTERNET, 53))
                .unwrap()
        });
        let (_, sender) = seen.recv_from(&mut [0; 16]).unwrap();
        assert_eq!(sender.ip(), IpAddr::V4(HOST_PUBLIC));
    });
}

#[test]
fn the_gateway_answers_ping_and_dns_and_nothing_else() {
    Lab::run(|lab| {
        let (spec, _, guest) = lease(lab, "a1", "10.213.0.0/30", policy());
        netns::within(&spec.netns, || {
            serve(TAP_ADDRESS, 53, "dns");
            serve(TAP_ADDRESS, 54, "no");
        })
        .unwrap();
        assert_eq!(guest.within(|| greeting(TAP_ADDRESS, 53)).unwrap(), "dns");
        guest.within(|| refusal(TAP_ADDRESS, 54));
        let (spec, _, guest) = lease(
            lab,
            "b2",
            "10.213.0.4/30",
            Policy {
                dns: false,
                ..policy()
            },
        );
        netns::within(&spec.netns, || serve(TAP_ADDRESS, 53, "dns")).unwrap();
        guest.within(|| refusal(TAP_ADDRESS, 53));
    });
}

#[test]
fn there_is_no_ipv6_in_the_namespace() {
    Lab::run(|lab| {
        let (spec, ..) = lease(lab, "a1", "10.213.0.0/30", policy());
        let addresses = netns::within(&spec.netns, || {
            netlink::Netlink::open().unwrap().addresses().unwrap()
        });
        assert!(
            addresses
                .unwrap()
                .iter()
                .all(|entry| entry.address.addr().is_ipv4())
        );
    });
}

#[test]
fn ranges_that_are_never_the_internet_are_closed_though_the_host_reaches_them() {
    Lab::run(|lab| {
        // Metadata services first: Azure's, Oracle's, Alibaba's, and the common link-local one. Addresses to
        // which the host itself would not send are left out.
        let closed = [
            [168, 63, 129, 16],
            [192, 0, 0, 192],
            [100, 100, 100, 200],
            [169, 254, 169, 254],
            [192, 0, 2, 1],
            [192, 88, 99, 1],
            [198, 18, 0, 1],
            [198, 19, 255, 254],
            [198, 51, 100, 1],
            [203, 0, 113, 1],
        ]
        .map(Ipv4Addr::from);
        // Public addresses next to the closed ranges.
        let open = [
            [168, 63, 129, 17],
            [192, 0, 1, 1],
            [192, 88, 98, 1],
            [198, 20, 0, 1],
        ]
        .map(Ipv4Addr::from);
        netns::within(&lab.internet, || {
            let mut netlink = netlink::Netlink::open().unwrap();
            for address in closed.iter().chain(&open) {
                netlink
                    .add_address("lo", format!("{address}/32").parse().unwrap())
                    .unwrap();
            }
        })
        .unwrap();
        // The widest policy that does not allow specific destinations.
        let wide = Policy {
            lan: true,
            ..policy()
        };
        let (spec, _, guest) = lease(lab, "a1", "10.213.0.0/30", wide);
        // Test the open addresses first, so that hardware addresses are resolved and no packet below is lost.
        for address in open {
            assert_eq!(
                guest.within(|| greeting(address, 80)).unwrap(),
                "internet",
                "{address}"
            );
        }
        for address in closed {
            // A control: the same path, except for the guest's own rules.
            let beside = netns::within(&spec.netns, || greeting(address, 80)).unwrap();
            assert_eq!(beside.unwrap(), "internet", "{address}: the control");
            guest.within(|| refusal(address, 80));
        }
    });
}

/// Sends `count` packets from the guest, each the first of a flow, and ensures that each has left the guest.
/// Calls `after` every hundred packets.
fn flood(
    guest: &crate::lab::Guest,
    to: Ipv4Addr,
    ports: impl Fn(u16) -> u16 + Sync,
    count: u16,
    mut after: impl FnMut() + Send,
) {
    guest.within(|| {
        let socket = UdpSocket::bind((GUEST_ADDRESS, 0)).unwrap();
        for number in 0..count {
            // Nothing listens there; a later send may report the ICMP error for an earlier packet.
            socket.send_to(b"flood", (to, ports(number))).ok();
            if number % 100 == 99 {
                // The tap keeps the order: once this is answered, all earlier packets have been filtered.
                assert_eq!(greeting(TAP_ADDRESS, 53).unwrap(), "dns");
                after();
            }
        }
    });
}

/// Removes the rule that contains `part` from a chain of the lease, so that the other limit is tested alone.
fn without(netns: &Path, chain: &str, part: &str) {
    netns::within(netns, || {
        let listing = Cmd::new("nft")
            .args(["-a", "list", "chain", "ip", "crabbox", chain])
            .run()
            .unwrap()
            .stdout_text();
        let rule = listing.lines().find(|line| line.contains(part)).unwrap();
        let (_, handle) = rule.rsplit_once("# handle ").unwrap();
        Cmd::new("nft")
            .args(["delete", "rule", "ip", "crabbox", chain, "handle", handle])
            .run()
            .unwrap();
    })
    .unwrap();
}

/// The number of flows in the host's connection tracking, including the lab's own.
fn flows() -> u64 {
    setting("../netfilter/nf_conntrack_count").parse().unwrap()
}

/// An allowance for the tests' own connections.
const OWN_FLOWS: u64 = 200;

#[test]
fn a_guest_cannot_fill_the_host_s_connection_tracking() {
    Lab::run(|lab| {
        let (spec, _, guest) = lease(lab, "a1", "10.213.0.0/30", policy());
        let (_, _, bystander) = lease(lab, "b2", "10.213.0.4/30", policy());
        netns::within(&spec.netns, || serve(TAP_ADDRESS, 53, "dns")).unwrap();
        // A thousand connections at once are typical of a build, and pass.
        flood(&guest, ELSEWHERE, |number| 2000 + number, 1000, || {});
        assert!(flows() >= 1000, "{}", flows());
        // Ten thousand do not pass, with either limit alone.
        let started = Instant::now();
        without(&spec.netns, "admit", "ct count");
        flood(&guest, ELSEWHERE, |number| 10_000 + number, 10_000, || {});
        let admitted = 3048 + 300 * (started.elapsed().as_secs() + 1);
        assert!(flows() <= admitted + OWN_FLOWS, "{} of {admitted}", flows());
        assert_eq!(bystander.within(|| greeting(INTERNET, 80)).unwrap(), "internet");

        let (spec, _, guest) = lease(lab, "c3", "10.213.0.8/30", policy());
        netns::within(&spec.netns, || serve(TAP_ADDRESS, 53, "dns")).unwrap();
        without(&spec.netns, "admit", "limit rate");
        let before = flows();
        flood(&guest, ELSEWHERE, |number| 10_000 + number, 10_000, || {});
        let added = flows().saturating_sub(before);
        assert!((1000..=4096 + OWN_FLOWS).contains(&added), "{added}");
        assert_eq!(bystander.within(|| greeting(INTERNET, 80)).unwrap(), "internet");
    });
}

#[test]
fn a_guest_cannot_make_the_forwarder_ask_without_end() {
    Lab::run(|lab| {
        let (spec, _, guest) = lease(lab, "a1", "10.213.0.0/30", policy());
        let questions = netns::within(&spec.netns, || {
            serve(TAP_ADDRESS, 53, "dns");
            UdpSocket::bind((TAP_ADDRESS, 53)).unwrap()
        })
        .unwrap();
        questions.set_nonblocking(true).unwrap();
        let started = Instant::now();
        let mut asked = 0_u64;
        flood(
            &guest,
            TAP_ADDRESS,
            |_| 53,
            10_000,
            || {
                while questions.recv(&mut [0; 16]).is_ok() {
                    asked += 1;
                }
            },
        );
        let admitted = 1000 + 200 * (started.elapsed().as_secs() + 1);
        assert!((500..=admitted).contains(&asked), "{asked} of {admitted}");
    });
}
