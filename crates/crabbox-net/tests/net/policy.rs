//! Who may reach whom, proved by connections through a real tap.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use crabbox_host::command::Cmd;
use crabbox_host::{netlink, netns};
use crabbox_net::{GUEST_ADDRESS, Policy, TAP_ADDRESS};

use crate::lab::{ELSEWHERE, HOST_PUBLIC, INTERNET, LAN, Lab, greeting, refusal, serve};
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
            // A refusal is told at once, in place of a wait.
            assert_eq!(greeting(LAN, 80).unwrap_err().kind(), ErrorKind::HostUnreachable);
        });
    });
}

#[test]
fn the_host_s_own_addresses_are_closed_by_the_list_of_them() {
    // The host's own table would stop these as well; it is dropped, so that the namespace's rule stands alone.
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
        // Not even the other lease's namespace can, whose rules bind only its guest.
        netns::within(&two.netns, || refusal(one.address, 22)).unwrap();
        // With the host's own barrier gone, the guard in the first lease's namespace still holds.
        Cmd::new("nft").args(["flush", "ruleset"]).run().unwrap();
        netns::within(&two.netns, || refusal(one.address, 22)).unwrap();
        let internet = netns::within(&lab.internet, || {
            Cmd::new("ip")
                .args(["route", "add", "10.213.0.0/16", "via", "203.0.113.1"])
                .run()
                .unwrap();
            refusal(one.address, 22)
        });
        internet.unwrap();
        // The path itself is open: without the guard both get through.
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
        // The gateway's hardware address is known before the lies begin, so that none of them is lost for want of it.
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
