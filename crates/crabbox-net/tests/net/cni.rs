//! The `cni` mode with the plugins that Debian ships.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Instant;

use crabbox_cni::Attachment;
use crabbox_host::command::Cmd;
use crabbox_host::netlink::Netlink;
use crabbox_host::netns;
use crabbox_net::cni::Misfit;
use crabbox_net::nat;
use crabbox_net::{AttachCniError, CniSpec, Outer, Policy, attach_cni, detach_cni, map_inner, plan_cni};

use crate::lab::{Guest, HOST_PUBLIC, INTERNET, LAN, Lab, greeting, inner, links, refusal, serve};

/// Where Debian's `containernetworking-plugins` installs them.
const PLUGINS: &str = "/usr/lib/cni";

fn network(lab: &Lab, plugins: &str) {
    lab.write(
        "net.d/10-lab.conflist",
        &format!(r#"{{"cniVersion":"1.0.0","name":"lab","plugins":[{plugins}]}}"#),
    );
}

fn ipam(lab: &Lab) -> String {
    let data = lab.path("ipam");
    let routes = r#""routes":[{"dst":"0.0.0.0/0"}]"#;
    format!(
        r#"{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"10.99.0.0/24"}}]],{routes}}}"#,
        data.display()
    )
}

/// A tag for the lease with this name, computed from its bytes.
fn tag(lease: &str) -> String {
    let sum = lease.bytes().fold(0_u32, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u32::from(byte))
    });
    format!("{sum:08x}")
}

fn plan(lab: &Lab, lease: &str) -> Attachment {
    let spec = CniSpec {
        conf_dir: lab.path("net.d"),
        bin_dirs: vec![lab.path("bin"), PathBuf::from(PLUGINS)],
        network: "lab".to_owned(),
        container_id: format!("cbx-{lease}-{}", tag(lease)),
        netns: lab.path(lease),
        ifname: "veth0".to_owned(),
        cache_dir: lab.path("cache"),
    };
    plan_cni(&spec).unwrap()
}

/// A lease whose attachment was serialised and read back, as in the engine's journal.
fn attach(lab: &Lab, lease: &str) -> (Attachment, Outer) {
    netns::create(&lab.path(lease)).unwrap();
    let saved = serde_json::to_string(&plan(lab, lease)).unwrap();
    let attachment: Attachment = serde_json::from_str(&saved).unwrap();
    let outer = attach_cni(&attachment).unwrap();
    (attachment, outer)
}

fn reserved(lab: &Lab) -> Vec<String> {
    let mut files: Vec<_> = std::fs::read_dir(lab.path("ipam/lab"))
        .map(|entries| {
            entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect()
        })
        .unwrap_or_default();
    files.retain(|name| name.starts_with("10."));
    files
}

#[test]
fn ptp_carries_a_lease_and_leaves_nothing() {
    Lab::run(|lab| {
        network(lab, &format!(r#"{{"type":"ptp","ipam":{}}}"#, ipam(lab)));
        let started = Instant::now();
        let (attachment, outer) = attach(lab, "lease");
        println!("create and attach: {:?}", started.elapsed());
        assert_eq!(
            (outer.ifname.as_str(), outer.prefix, outer.mtu),
            ("veth0", 24, 1500)
        );
        assert_eq!(outer.gateway, Ipv4Addr::new(10, 99, 0, 1));
        let started = Instant::now();
        map_inner(&inner(&attachment.netns, outer.clone(), Policy::default())).unwrap();
        println!("map: {:?}", started.elapsed());
        let guest = Guest::behind(lab, &attachment.netns, "guest");
        guest.within(|| serve(Ipv4Addr::UNSPECIFIED, 22, "ssh"));
        assert_eq!(
            greeting(outer.address, 22).unwrap(),
            "ssh",
            "the host reaches the guest at the outer address"
        );
        assert_eq!((reserved(lab).len(), links().len()), (1, 1));

        // The configuration is gone, the lease's saved attachment is not.
        std::fs::remove_dir_all(lab.path("net.d")).unwrap();
        let started = Instant::now();
        detach_cni(&attachment).unwrap();
        println!("detach: {:?}", started.elapsed());
        assert_eq!((reserved(lab), links()), (Vec::new(), Vec::new()));
        assert_eq!(std::fs::read_dir(lab.path("cache/results")).unwrap().count(), 0);
        detach_cni(&attachment).unwrap();
        drop(guest);
        netns::remove(&attachment.netns).unwrap();
        detach_cni(&attachment).unwrap();
    });
}

#[test]
fn an_address_that_the_host_gets_later_is_closed_as_well() {
    Lab::run(|lab| {
        network(lab, &format!(r#"{{"type":"ptp","ipam":{}}}"#, ipam(lab)));
        let (attachment, outer) = attach(lab, "lease");
        map_inner(&inner(&attachment.netns, outer.clone(), Policy::default())).unwrap();
        let guest = Guest::behind(lab, &attachment.netns, "guest");
        guest.within(|| serve(Ipv4Addr::UNSPECIFIED, 22, "ssh"));
        let later = Ipv4Addr::new(8, 8, 4, 4);
        Netlink::open()
            .unwrap()
            .add_address("lo", format!("{later}/32").parse().unwrap())
            .unwrap();
        serve(Ipv4Addr::UNSPECIFIED, 80, "host");
        assert_eq!(greeting(later, 80).unwrap(), "host", "the control");
        guest.within(|| refusal(later, 80));
        // Connections that the host opens still get replies.
        assert_eq!(greeting(outer.address, 22).unwrap(), "ssh");
        let [table] = nat::owned_tables().unwrap().try_into().unwrap();
        assert_eq!(table, tag("lease"));
        // To show that the path itself is open: without the table the guest gets through.
        nat::remove("", &table).unwrap();
        assert_eq!(guest.within(|| greeting(later, 80)).unwrap(), "host");
        // Detaching succeeds without the table, too.
        detach_cni(&attachment).unwrap();
        let (attachment, _) = attach(lab, "second");
        assert_eq!(nat::owned_tables().unwrap(), [tag("second")]);
        detach_cni(&attachment).unwrap();
        assert_eq!(nat::owned_tables().unwrap(), Vec::<String>::new());
    });
}

#[test]
fn a_namespace_that_died_first_is_detached_all_the_same() {
    Lab::run(|lab| {
        network(lab, &format!(r#"{{"type":"ptp","ipam":{}}}"#, ipam(lab)));
        let (attachment, _) = attach(lab, "lease");
        netns::remove(&attachment.netns).unwrap();
        // What a reboot leaves: the file exists, but no namespace is mounted on it.
        std::fs::write(&attachment.netns, "").unwrap();
        assert_eq!(reserved(lab).len(), 1);
        detach_cni(&attachment).unwrap();
        assert_eq!(reserved(lab), Vec::<String>::new());
        std::fs::remove_file(&attachment.netns).unwrap();
    });
}

#[test]
fn a_bridge_carries_two_leases_that_do_not_see_each_other() {
    Lab::run(|lab| {
        let bridge = r#""type":"bridge","bridge":"lab0","isGateway":true"#;
        network(lab, &format!(r#"{{{bridge},"ipam":{}}}"#, ipam(lab)));
        // The internet needs a route back, because this chain does not masquerade.
        netns::within(&lab.internet, || {
            let back = "10.99.0.0/24".parse().unwrap();
            Netlink::open().unwrap().add_route(back, HOST_PUBLIC).unwrap();
        })
        .unwrap();
        let leases = ["one", "two"].map(|name| {
            let (attachment, outer) = attach(lab, name);
            map_inner(&inner(&attachment.netns, outer.clone(), Policy::default())).unwrap();
            let guest = Guest::behind(lab, &attachment.netns, &format!("guest-{name}"));
            guest.within(|| serve(Ipv4Addr::UNSPECIFIED, 22, "ssh"));
            (attachment, outer, guest)
        });
        for (_, outer, guest) in &leases {
            assert_eq!(greeting(outer.address, 22).unwrap(), "ssh");
            assert_eq!(guest.within(|| greeting(INTERNET, 80)).unwrap(), "internet");
            guest.within(|| refusal(LAN, 80));
        }
        let [(first, outer, _), (second, _, client)] = &leases;
        client.within(|| refusal(outer.address, 22));
        netns::within(&second.netns, || refusal(outer.address, 22)).unwrap();
        // Both leases share a bridge, and the path is open: without the guard in the first lease, the second
        // gets through.
        netns::within(&first.netns, || {
            Cmd::new("nft")
                .args(["add", "chain", "ip", "crabbox", "forward", "{ policy accept; }"])
                .run()
                .unwrap();
            Cmd::new("nft")
                .args(["flush", "chain", "ip", "crabbox", "forward"])
                .run()
                .unwrap();
        })
        .unwrap();
        assert_eq!(
            netns::within(&second.netns, || greeting(outer.address, 22))
                .unwrap()
                .unwrap(),
            "ssh"
        );
        detach_cni(first).unwrap();
        detach_cni(second).unwrap();
        assert_eq!(reserved(lab), Vec::<String>::new());
        // The bridge belongs to the network, not to the lease, and stays.
        assert_eq!(
            links().iter().map(|link| link.name.as_str()).collect::<Vec<_>>(),
            ["lab0"]
        );
    });
}

#[test]
fn macvlan_puts_the_guest_on_the_lan() {
    Lab::run(|lab| {
        let static_ipam =
            r#"{"type":"static","addresses":[{"address":"192.168.77.50/24","gateway":"192.168.77.2"}]}"#;
        network(
            lab,
            &format!(
                r#"{{"type":"macvlan","master":"lan0","dns":{{"nameservers":["192.168.77.2"]}},"ipam":{static_ipam}}}"#
            ),
        );
        let (attachment, outer) = attach(lab, "lease");
        assert_eq!(
            (outer.gateway, outer.dns.as_slice()),
            (LAN, [IpAddr::V4(LAN)].as_slice())
        );
        map_inner(&inner(&attachment.netns, outer.clone(), Policy::default())).unwrap();
        let guest = Guest::behind(lab, &attachment.netns, "guest");
        guest.within(|| serve(Ipv4Addr::UNSPECIFIED, 22, "ssh"));
        assert_eq!(
            netns::within(&lab.lan, || greeting(outer.address, 22))
                .unwrap()
                .unwrap(),
            "ssh"
        );
        guest.within(|| refusal(LAN, 80));
        detach_cni(&attachment).unwrap();
        assert_eq!(links(), Vec::new());
    });
}

/// A plugin that returns `result` for ADD, made from what an earlier plugin of the chain left in the
/// namespace.
fn fake(lab: &Lab, name: &str, result: &str) {
    let script =
        format!("#!/bin/sh\ncat >/dev/null\ntest $CNI_COMMAND = ADD || exit 0\ncat <<END\n{result}\nEND\n");
    // Written by a child process: otherwise a fork by another test could hold the writable descriptor when
    // the script is run ("text file busy").
    let file = lab.path("bin").join(name);
    Cmd::new("install")
        .args(["-D", "-m", "755", "/dev/stdin"])
        .arg(file)
        .stdin(script)
        .run()
        .unwrap();
}

fn chain_with(lab: &Lab, result: &str) {
    network(
        lab,
        &format!(r#"{{"type":"ptp","ipam":{}}},{{"type":"last"}}"#, ipam(lab)),
    );
    fake(lab, "last", result);
}

#[test]
fn a_chain_that_ends_in_tc_redirect_tap_keeps_its_own_tap() {
    Lab::run(|lab| {
        let result = r#"{"cniVersion":"1.0.0","interfaces":[
            {"name":"vethhost","mac":"aa:aa:aa:aa:aa:aa"},
            {"name":"veth0","mac":"bb:bb:bb:bb:bb:bb","sandbox":"$CNI_NETNS"},
            {"name":"tap7","mac":"cc:cc:cc:cc:cc:cc","sandbox":"$CNI_NETNS"},
            {"name":"tap7","mac":"bb:bb:bb:bb:bb:bb","sandbox":"$CNI_CONTAINERID"}],
            "ips":[{"interface":3,"address":"10.99.0.7/24","gateway":"10.99.0.1"}],"dns":{"nameservers":["9.9.9.9"]}}"#;
        chain_with(lab, result);
        let (attachment, outer) = attach(lab, "lease");
        let tap = outer.guest_tap.clone().unwrap();
        assert_eq!(
            (tap.tap.as_str(), tap.mac.as_str()),
            ("tap7", "bb:bb:bb:bb:bb:bb")
        );
        assert_eq!((outer.address, outer.prefix), (Ipv4Addr::new(10, 99, 0, 7), 24));
        map_inner(&inner(&attachment.netns, outer, Policy::default())).unwrap();
        let taps = netns::within(&attachment.netns, || {
            links().into_iter().any(|link| link.name == "tap0")
        });
        assert!(!taps.unwrap(), "nothing of ours is put beside it");
        detach_cni(&attachment).unwrap();
    });
}

#[test]
fn a_result_that_no_lease_can_use_is_undone() {
    let veth =
        r#""interfaces":[{"name":"veth0","sandbox":"$CNI_NETNS"},{"name":"g","sandbox":"$CNI_CONTAINERID"}]"#;
    let two = r#""interfaces":[{"name":"veth0","sandbox":"$CNI_NETNS"}],
        "ips":[{"interface":0,"address":"10.99.0.7/24"},{"interface":0,"address":"10.99.0.8/24"},{"interface":0,"address":"fd00::1/64"}]"#;
    let cases = [
        (
            r#""ips":[]"#,
            "it has to yield one IPv4 address for veth0, and yields none",
        ),
        (
            two,
            "it has to yield one IPv4 address for veth0, and yields 10.99.0.7/24 and 10.99.0.8/24",
        ),
        (
            veth,
            "it yields the guest interface g without a tap of that name, as tc-redirect-tap makes it",
        ),
    ];
    for (rest, why) in cases {
        Lab::run(|lab| {
            chain_with(lab, &format!(r#"{{"cniVersion":"1.0.0",{rest}}}"#));
            netns::create(&lab.path("lease")).unwrap();
            let error = attach_cni(&plan(lab, "lease")).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("the CNI network lab cannot carry a lease: {why}")
            );
            assert_eq!((reserved(lab), links()), (Vec::new(), Vec::new()));
        });
    }
}

#[test]
fn an_address_without_a_gateway_takes_the_default_route_s_and_fails_without_one() {
    Lab::run(|lab| {
        let bare = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"veth0","sandbox":"$CNI_NETNS"}],"ips":[{"interface":0,"address":"10.99.0.2/24"}]}"#;
        chain_with(lab, bare);
        let (attachment, outer) = attach(lab, "lease");
        assert_eq!(outer.gateway, Ipv4Addr::new(10, 99, 0, 1));
        detach_cni(&attachment).unwrap();
        let no_route = ipam(lab).replace(r#","routes":[{"dst":"0.0.0.0/0"}]"#, "");
        network(
            lab,
            &format!(r#"{{"type":"ptp","ipam":{no_route}}},{{"type":"last"}}"#),
        );
        netns::create(&lab.path("other")).unwrap();
        let error = attach_cni(&plan(lab, "other")).unwrap_err();
        assert!(
            matches!(
                error,
                AttachCniError::Unfit {
                    why: Misfit::NoGateway { .. },
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(reserved(lab), Vec::<String>::new());
    });
}
