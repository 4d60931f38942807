//! The complete `nat` mode: no CNI, no iptables, nothing on the host but `nft`.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Instant;

use crabbox_host::command::Cmd;
use crabbox_host::netlink::Netlink;
use crabbox_host::netns;
use crabbox_net::nat::{self, OwnedLink};
use crabbox_net::{NatError, NatSpec, Outer, Policy, attach_nat, detach_nat, map_inner};

use crate::lab::{
    ELSEWHERE, Guest, HOST_PUBLIC, Lab, greeting, greeting_soon, inner, links, rules, serve, setting, wire,
};

pub(crate) fn spec(netns: &Path, tag: &str, subnet: &str) -> NatSpec {
    let spec = NatSpec {
        lease: format!("cbx_{tag}"),
        tag: tag.to_owned(),
        netns: netns.to_owned(),
        ifname: "veth0".to_owned(),
        subnet: subnet.parse().unwrap(),
    };
    // Serialised and read back, as from the journal.
    serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap()
}

/// A lease with a guest.
pub(crate) fn lease(lab: &Lab, tag: &str, subnet: &str, policy: Policy) -> (NatSpec, Outer, Guest) {
    let spec = spec(&lab.namespace(tag), tag, subnet);
    let outer = attach_nat(&spec).unwrap();
    map_inner(&inner(&spec.netns, outer.clone(), policy)).unwrap();
    let guest = Guest::behind(lab, &spec.netns, &format!("guest-{tag}"));
    (spec, outer, guest)
}

#[test]
fn a_table_is_somebody_s_as_long_as_a_link_without_a_label_has_its_tag() {
    Lab::run(|_| {
        Cmd::new("nft")
            .args(["add", "table", "ip", "crabbox_0badcafe"])
            .run()
            .unwrap();
        Netlink::open().unwrap().add_veth("cbx0badcafe", "peer0").unwrap();
        assert_eq!(nat::owned_tables().unwrap(), Vec::<String>::new());
        assert_eq!(nat::owned_links().unwrap(), []);
        Cmd::new("ip").args(["link", "del", "cbx0badcafe"]).run().unwrap();
        assert_eq!(nat::owned_tables().unwrap(), ["0badcafe"]);
    });
}

#[test]
fn a_guest_is_reached_and_reaches_the_internet_and_nothing_is_left() {
    Lab::run(|lab| {
        let netns = lab.namespace("lease");
        let spec = spec(&netns, "a1", "10.213.0.0/30");
        let started = Instant::now();
        let outer = attach_nat(&spec).unwrap();
        println!("attach: {:?}", started.elapsed());
        assert_eq!(outer.address, Ipv4Addr::new(10, 213, 0, 2));
        assert_eq!(
            nat::owned_links().unwrap(),
            [OwnedLink {
                lease: "cbx_a1".to_owned(),
                tag: "a1".to_owned()
            }]
        );
        assert_eq!(nat::owned_tables().unwrap(), ["a1"]);
        map_inner(&inner(&netns, outer.clone(), Policy::default())).unwrap();
        let guest = Guest::behind(lab, &netns, "guest");
        guest.within(|| serve(Ipv4Addr::UNSPECIFIED, 22, "ssh"));
        assert_eq!(greeting(outer.address, 22).unwrap(), "ssh");
        // The internet has no route to 10.213/16: a reply proves the masquerade.
        assert_eq!(guest.within(|| greeting(ELSEWHERE, 80)).unwrap(), "internet");
        assert_eq!(setting("ip_forward"), "0", "the host as a whole is no router");
        assert_eq!(setting("conf/up0/forwarding"), "1");

        let started = Instant::now();
        detach_nat(&spec).unwrap();
        println!("detach: {:?}", started.elapsed());
        assert_eq!((links(), rules()), (Vec::new(), String::new()));
        assert_eq!(setting("conf/up0/forwarding"), "0");
        detach_nat(&spec).unwrap();
        netns::remove(&netns).unwrap();
        detach_nat(&spec).unwrap();
    });
}

#[test]
fn forwarding_that_was_on_stays_on() {
    Lab::run(|lab| {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let spec = spec(&lab.namespace("lease"), "a1", "10.213.0.0/30");
        attach_nat(&spec).unwrap();
        detach_nat(&spec).unwrap();
        assert_eq!(
            (
                setting("ip_forward").as_str(),
                setting("conf/up0/forwarding").as_str()
            ),
            ("1", "1")
        );
        assert_eq!(rules(), "");
    });
}

#[test]
fn the_last_lease_switches_forwarding_off_and_not_the_first() {
    Lab::run(|lab| {
        let (one, _, _guest) = lease(lab, "a1", "10.213.0.0/30", Policy::default());
        let (two, _, guest) = lease(lab, "b2", "10.213.0.4/30", Policy::default());
        detach_nat(&one).unwrap();
        assert_eq!(guest.within(|| greeting(ELSEWHERE, 80)).unwrap(), "internet");
        detach_nat(&two).unwrap();
        assert_eq!(
            (setting("conf/up0/forwarding").as_str(), rules().as_str()),
            ("0", "")
        );
    });
}

/// A network behind a second uplink of the host (such as a VPN), and a neighbour on the first uplink that
/// sends to it through the host.
fn vpn(lab: &Lab) {
    let vpn = lab.namespace("vpn");
    wire("vpn0", "10.99.0.1/24", &vpn, "eth0", "10.99.0.2/24");
    Netlink::open()
        .unwrap()
        .add_route("10.98.0.0/16".parse().unwrap(), VPN)
        .unwrap();
    netns::within(&vpn, || {
        let mut netlink = Netlink::open().unwrap();
        netlink
            .add_route("0.0.0.0/0".parse().unwrap(), Ipv4Addr::new(10, 99, 0, 1))
            .unwrap();
        serve(Ipv4Addr::UNSPECIFIED, 80, "vpn");
    })
    .unwrap();
    netns::within(&lab.internet, || {
        let mut netlink = Netlink::open().unwrap();
        netlink
            .add_route("10.99.0.0/24".parse().unwrap(), HOST_PUBLIC)
            .unwrap();
    })
    .unwrap();
}

/// The machine in the network of [`vpn`].
const VPN: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

#[test]
fn what_we_switched_on_forwards_for_our_links_only() {
    Lab::run(|lab| {
        vpn(lab);
        let neighbour = || netns::within(&lab.internet, || greeting_soon(VPN, 80)).unwrap();
        let (one, _, guest) = lease(lab, "a1", "10.213.0.0/30", Policy::default());
        let (two, ..) = lease(lab, "b2", "10.213.0.4/30", Policy::default());
        assert_eq!(setting("conf/vpn0/forwarding"), "1");
        assert_eq!(setting("conf/up0/forwarding"), "1");
        assert_eq!(greeting(VPN, 80).unwrap(), "vpn", "the host itself uses its VPN");
        neighbour().unwrap_err();
        assert_eq!(guest.within(|| greeting(ELSEWHERE, 80)).unwrap(), "internet");
        detach_nat(&two).unwrap();
        neighbour().unwrap_err();
        assert_eq!(guest.within(|| greeting(ELSEWHERE, 80)).unwrap(), "internet");
        // To show that the path itself is open: without the guard the neighbour gets through. A later lease
        // closes it again.
        Cmd::new("nft")
            .args(["flush", "chain", "ip", "crabbox_host", "forward"])
            .run()
            .unwrap();
        assert_eq!(
            netns::within(&lab.internet, || greeting(VPN, 80))
                .unwrap()
                .unwrap(),
            "vpn"
        );
        let (three, ..) = lease(lab, "c3", "10.213.0.8/30", Policy::default());
        neighbour().unwrap_err();
        detach_nat(&three).unwrap();
        detach_nat(&one).unwrap();
        assert_eq!(setting("conf/vpn0/forwarding"), "0");
        assert_eq!(rules(), "");
    });
}

#[test]
fn a_host_that_was_a_router_stays_one() {
    Lab::run(|lab| {
        vpn(lab);
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let neighbour = || netns::within(&lab.internet, || greeting(VPN, 80)).unwrap();
        assert_eq!(neighbour().unwrap(), "vpn");
        let (spec, ..) = lease(lab, "a1", "10.213.0.0/30", Policy::default());
        assert_eq!(neighbour().unwrap(), "vpn");
        detach_nat(&spec).unwrap();
        assert_eq!(neighbour().unwrap(), "vpn");
    });
}

#[test]
fn a_link_of_that_name_without_our_label_is_left_alone() {
    Lab::run(|lab| {
        Netlink::open().unwrap().add_veth("cbxa1", "theirs").unwrap();
        let spec = spec(&lab.namespace("lease"), "a1", "10.213.0.0/30");
        assert!(matches!(attach_nat(&spec).unwrap_err(), NatError::Link { .. }));
        assert!(
            matches!(detach_nat(&spec).unwrap_err(), NatError::NotOurs { label, .. } if label.is_empty())
        );
        Netlink::open()
            .unwrap()
            .set_alias("cbxa1", "crabbox:cbx_other")
            .unwrap();
        assert!(matches!(detach_nat(&spec).unwrap_err(), NatError::NotOurs { .. }));
        assert!(links().iter().any(|link| link.name == "cbxa1"));
    });
}

#[test]
fn a_lease_without_a_record_is_removed_by_what_its_link_says() {
    Lab::run(|lab| {
        attach_nat(&spec(&lab.namespace("lease"), "c3", "10.213.0.0/30")).unwrap();
        let [orphan] = nat::owned_links().unwrap().try_into().unwrap();
        nat::remove(&orphan.lease, &orphan.tag).unwrap();
        assert_eq!((links(), rules()), (Vec::new(), String::new()));
        // The state after a namespace has died: its link is gone, the table is not.
        attach_nat(&spec(&lab.namespace("second"), "d4", "10.213.0.0/30")).unwrap();
        Netlink::open().unwrap().delete_link("cbxd4").unwrap();
        let [tag] = nat::owned_tables().unwrap().try_into().unwrap();
        nat::remove("", &tag).unwrap();
        assert_eq!(rules(), "");
    });
}

#[test]
fn a_failure_half_way_leaves_nothing() {
    Lab::run(|lab| {
        let netns = lab.namespace("lease");
        netns::within(&netns, || {
            Netlink::open().unwrap().add_veth("veth0", "other").unwrap();
        })
        .unwrap();
        attach_nat(&spec(&netns, "a1", "10.213.0.0/30")).unwrap_err();
        assert_eq!((links(), rules()), (Vec::new(), String::new()));
    });
}

#[test]
fn values_that_this_program_never_saves_are_refused() {
    Lab::run(|lab| {
        let netns = lab.namespace("lease");
        let bad = [
            ("", "10.213.0.0/30"),
            ("123456789", "10.213.0.0/30"),
            ("a;b", "10.213.0.0/30"),
            ("a1", "10.213.0.0/29"),
        ];
        for (tag, subnet) in bad {
            let spec = spec(&netns, tag, subnet);
            assert!(
                matches!(attach_nat(&spec).unwrap_err(), NatError::Spec { .. }),
                "{tag} {subnet}"
            );
            assert!(
                matches!(detach_nat(&spec).unwrap_err(), NatError::Spec { .. }),
                "{tag} {subnet}"
            );
        }
    });
}
