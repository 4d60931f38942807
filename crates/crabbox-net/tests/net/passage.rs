//! The result of the forwarding test under firewalls that are common on hosts, compared with a lease that
//! really connects.

use crabbox_host::command::Cmd;
use crabbox_host::netns;
use crabbox_net::nat::{self, Hook, Passage};
use crabbox_net::{NatSpec, attach_nat, detach_nat};

use crate::lab::{ELSEWHERE, Lab, greeting, links, refusal, rules, setting};
use crate::nat::spec;

/// Docker's rules: a policy of drop, and chains for the user's rules.
const DOCKER: &str = "table ip filter {
 chain DOCKER-USER { return; }
 chain FORWARD { type filter hook forward priority filter; policy drop; jump DOCKER-USER; }
}";
/// firewalld's rules: the policy accepts, the last rule rejects.
const FIREWALLD: &str = "table inet firewalld {
 chain filter_FORWARD {
  type filter hook forward priority filter + 10; policy accept;
  ct state { established, related } accept
  reject with icmpx admin-prohibited
 }
}";
/// A firewall that lets our interfaces pass.
const KNOWN: &str = "table inet f {
 chain forward {
  type filter hook forward priority 0; policy drop;
  iifname \"cbx*\" accept
  oifname \"cbx*\" accept
 }
}";
/// A firewall that lets them pass in one direction only.
const ONE_WAY: &str = "table inet f {
 chain forward { type filter hook forward priority 0; policy drop; iifname \"cbx*\" accept; }
}";
/// A firewall that matches our interfaces and the uplink's name.
const BY_UPLINK: &str = "table inet f {
 chain forward {
  type filter hook forward priority 0; policy drop;
  iifname \"cbx*\" oifname \"up0\" accept
  iifname \"up0\" ct state established,related accept
 }
}";
/// A firewall that drops in a chain reached by a jump.
const DEEP: &str = "table ip f {
 chain deep { tcp flags syn drop; }
 chain forward { type filter hook forward priority 0; policy accept; jump deep; }
}";
/// A firewall that drops everything that leaves through a link that is not ours.
const NO_UPLINK: &str = "table ip f {
 chain post { type filter hook forward priority 50; policy accept; oifname != \"cbx*\" reject; }
}";

/// Another program masquerades first, and chooses the ports, as Kubernetes' does.
const OTHER_PORTS: &str = "table ip ports {
 chain post { type nat hook postrouting priority 90; policy accept; oifname \"up0\" masquerade fully-random; }
}";

/// Another program marks what leaves by the uplink.
const OTHER_MARK: &str = "table netdev marks {
 chain up { type filter hook egress device \"up0\" priority 0; policy accept; meta mark set 1; }
}";

fn nft(rules: &str) {
    Cmd::new("nft").args(["-f", "-"]).stdin(rules).run().unwrap();
}

fn legacy(rule: &str) {
    Cmd::new("iptables-legacy").args(rule.split(' ')).run().unwrap();
}

/// The rules of the host without counters, because our test packets are counted like any others.
fn uncounted() -> String {
    let rules = rules();
    let words = rules.split(' ').filter(|word| word.parse::<u64>().is_err());
    words.collect::<Vec<_>>().join(" ")
}

/// A lease on a host that has no other rules.
struct Lease {
    spec: NatSpec,
    bare: String,
}

impl Lease {
    fn new(lab: &Lab) -> Self {
        let spec = spec(&lab.namespace("lease"), "a1", "10.213.0.0/30");
        attach_nat(&spec).unwrap();
        Self { spec, bare: rules() }
    }

    /// Runs the forwarding test, and checks whether the lease reaches the internet of the lab; both results
    /// must agree.
    fn look(&self, name: &str, expected: Passage) {
        let before = (uncounted(), links().len());
        assert_eq!(nat::passage().unwrap(), expected, "{name}");
        assert_eq!((uncounted(), links().len()), before, "{name} leaves something");
        netns::within(&self.spec.netns, || match expected {
            Passage::Open | Passage::OpenByUplink => drop(greeting(ELSEWHERE, 80).unwrap()),
            Passage::Outward(_) | Passage::Reply(_) => drop(refusal(ELSEWHERE, 80)),
        })
        .unwrap();
    }
}

#[test]
fn the_verdict_is_what_happens_to_a_lease_under_every_shape_of_firewall() {
    Lab::run(|lab| {
        let lease = Lease::new(lab);
        lease.look("no rules", Passage::Open);
        for (name, firewall, expected) in [
            ("docker", DOCKER, Passage::Outward(Hook::Forward)),
            ("firewalld", FIREWALLD, Passage::Outward(Hook::Forward)),
            ("known", KNOWN, Passage::Open),
            ("one way", ONE_WAY, Passage::Reply(Hook::Forward)),
            ("by uplink", BY_UPLINK, Passage::Open),
            ("deep", DEEP, Passage::Outward(Hook::Forward)),
            ("no uplink", NO_UPLINK, Passage::Outward(Hook::Forward)),
        ] {
            nft(firewall);
            lease.look(name, expected);
            nft("flush ruleset");
            nft(&lease.bare);
        }
        detach_nat(&lease.spec).unwrap();
    });
}

#[test]
fn rules_of_legacy_iptables_count_although_nft_does_not_list_them() {
    Lab::run(|lab| {
        let lease = Lease::new(lab);
        legacy("-P FORWARD DROP");
        lease.look("policy", Passage::Outward(Hook::Forward));
        legacy("-I FORWARD -i cbx+ -j ACCEPT");
        lease.look("one way", Passage::Reply(Hook::Forward));
        legacy("-I FORWARD -o cbx+ -j ACCEPT");
        lease.look("both ways", Passage::Open);
        legacy("-P FORWARD ACCEPT");
        legacy("-F FORWARD");
        legacy("-A FORWARD -j REJECT");
        lease.look("refusal", Passage::Outward(Hook::Forward));
        let filters = nat::filters().unwrap();
        assert_eq!(
            (filters.legacy.as_slice(), filters.chains.len()),
            (&["filter".to_owned()][..], 0)
        );
        detach_nat(&lease.spec).unwrap();
    });
}

/// Rules that name the real uplink, or match at one point of the path: each is one chain,
/// `HOOK PRIORITY | RULE | VERDICT`.
const AT_ONE_PLACE: &[(&str, &str, &str, Passage)] = &[
    ("forward", "0", "oifname \"up0\" drop", OUT_FORWARD),
    (
        "forward",
        "-150",
        "iifname \"cbx*\" oifname \"up0\" reject with tcp reset",
        OUT_FORWARD,
    ),
    (
        "forward",
        "0",
        "iifname \"up0\" drop",
        Passage::Reply(Hook::Forward),
    ),
    (
        "forward",
        "0",
        "ct state established drop",
        Passage::Reply(Hook::Forward),
    ),
    ("postrouting", "0", "oifname \"up0\" drop", OUT_POSTROUTING),
    (
        "postrouting",
        "mangle",
        "ip saddr 10.213.0.0/16 drop",
        OUT_POSTROUTING,
    ),
    ("postrouting", "0", "iifname \"cbx*\" drop", OUT_POSTROUTING),
    // After masquerade, so the source address is the uplink's.
    (
        "postrouting",
        "200",
        "oifname \"up0\" ip saddr 9.9.9.1 drop",
        OUT_POSTROUTING,
    ),
    (
        "postrouting",
        "0",
        "oifname \"cbx*\" ct state established drop",
        Passage::Reply(Hook::Postrouting),
    ),
    (
        "prerouting",
        "raw",
        "iifname \"cbx*\" drop",
        Passage::Outward(Hook::Prerouting),
    ),
    (
        "prerouting",
        "mangle",
        "ip saddr 10.213.0.0/16 tcp flags syn drop",
        Passage::Outward(Hook::Prerouting),
    ),
    (
        "prerouting",
        "raw",
        "iifname \"up0\" drop",
        Passage::Reply(Hook::Prerouting),
    ),
    (
        "prerouting",
        "raw",
        "iifname \"up0\" tcp flags & (syn|ack) == (syn|ack) drop",
        Passage::Reply(Hook::Prerouting),
    ),
    // Replies to an untracked connection cannot pass back through masquerade.
    (
        "prerouting",
        "raw",
        "iifname \"up0\" notrack",
        Passage::Reply(Hook::Prerouting),
    ),
    (
        "prerouting",
        "mangle",
        "ct state established drop",
        Passage::Reply(Hook::Prerouting),
    ),
    (
        "ingress device \"up0\"",
        "0",
        "meta protocol ip drop",
        Passage::Reply(Hook::Prerouting),
    ),
    (
        "egress device \"up0\"",
        "0",
        "meta protocol ip drop",
        Passage::Outward(Hook::Egress),
    ),
    // Rules that do not match a lease's packets do not matter.
    ("postrouting", "0", "oifname \"lan0\" drop", Passage::Open),
    ("forward", "0", "iifname \"lan0\" drop", Passage::Open),
    ("forward", "0", "ct state invalid drop", Passage::Open),
    (
        "prerouting",
        "raw",
        "iifname \"up0\" tcp flags & (syn|ack) == syn drop",
        Passage::Open,
    ),
    ("postrouting", "0", "ip saddr 192.168.0.0/16 drop", Passage::Open),
    ("input", "0", "drop", Passage::Open),
    ("output", "0", "meta l4proto tcp drop", Passage::Open),
];
const OUT_FORWARD: Passage = Passage::Outward(Hook::Forward);
const OUT_POSTROUTING: Passage = Passage::Outward(Hook::Postrouting);

fn chain(hook: &str, priority: &str, rule: &str) -> String {
    let family = if hook.contains("device") { "netdev" } else { "ip" };
    format!(
        "table {family} f {{\n chain c {{\n type filter hook {hook} priority {priority}; policy accept;\n {rule}\n }}\n}}\n"
    )
}

#[test]
fn the_verdict_is_what_happens_wherever_on_the_way_through_the_real_uplink_a_rule_stands() {
    Lab::run(|lab| {
        let lease = Lease::new(lab);
        for (hook, priority, rule, expected) in AT_ONE_PLACE {
            nft(&chain(hook, priority, rule));
            lease.look(&format!("{hook} {priority}: {rule}"), *expected);
            nft("flush ruleset");
            nft(&lease.bare);
        }
        detach_nat(&lease.spec).unwrap();
    });
}

#[test]
fn a_host_that_masquerades_with_other_ports_is_judged_like_any_other() {
    Lab::run(|lab| {
        let lease = Lease::new(lab);
        for (hook, priority, rule, expected) in [
            ("input", "0", "drop", Passage::Open),
            ("postrouting", "0", "oifname \"up0\" drop", OUT_POSTROUTING),
            (
                "egress device \"up0\"",
                "0",
                "meta protocol ip drop",
                Passage::Outward(Hook::Egress),
            ),
            (
                "prerouting",
                "raw",
                "iifname \"up0\" drop",
                Passage::Reply(Hook::Prerouting),
            ),
        ] {
            nft(OTHER_PORTS);
            nft(&chain(hook, priority, rule));
            lease.look(&format!("{hook} {priority}: {rule}"), expected);
            nft("flush ruleset");
            nft(&lease.bare);
        }
        detach_nat(&lease.spec).unwrap();
    });
}

#[test]
fn tables_of_iptables_at_every_place_count_legacy_and_not() {
    Lab::run(|lab| {
        let lease = Lease::new(lab);
        for (table, rule, expected) in [
            ("filter", "FORWARD -o up0 -j DROP", OUT_FORWARD),
            (
                "filter",
                "FORWARD -i up0 -j REJECT",
                Passage::Reply(Hook::Forward),
            ),
            ("mangle", "FORWARD -i cbx+ -o up0 -j DROP", OUT_FORWARD),
            ("mangle", "POSTROUTING -o up0 -j DROP", OUT_POSTROUTING),
            ("mangle", "POSTROUTING -s 10.213.0.0/16 -j DROP", OUT_POSTROUTING),
            (
                "mangle",
                "PREROUTING -i up0 -j DROP",
                Passage::Reply(Hook::Prerouting),
            ),
            (
                "raw",
                "PREROUTING -i up0 -p tcp -j DROP",
                Passage::Reply(Hook::Prerouting),
            ),
            (
                "raw",
                "PREROUTING -i cbx+ -j DROP",
                Passage::Outward(Hook::Prerouting),
            ),
            (
                "mangle",
                "FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j DROP",
                Passage::Reply(Hook::Forward),
            ),
            ("filter", "FORWARD -o lan0 -j DROP", Passage::Open),
        ] {
            for program in ["iptables-legacy", "iptables-nft"] {
                let run = |verb: &str| {
                    let words = rule.split(' ');
                    Cmd::new(program)
                        .args(["-t", table, verb])
                        .args(words)
                        .run()
                        .unwrap();
                };
                run("-A");
                lease.look(&format!("{program} -t {table} {rule}"), expected);
                run("-D");
            }
        }
        detach_nat(&lease.spec).unwrap();
    });
}

#[test]
fn a_host_without_a_default_route_is_judged_by_its_neighbours() {
    Lab::run(|_| {
        Cmd::new("ip").args(["route", "del", "default"]).run().unwrap();
        Cmd::new("ip")
            .args(["link", "set", "lan0", "down"])
            .run()
            .unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let look = |rules: &str, expected| {
            nft(rules);
            let before = (self::rules(), links().len());
            assert_eq!(nat::passage().unwrap(), expected, "{rules}");
            assert_eq!((self::rules(), links().len()), before, "{rules}");
            nft("flush ruleset");
        };
        look("", Passage::Open);
        look(
            &chain("postrouting", "0", "oifname \"up0\" drop"),
            OUT_POSTROUTING,
        );
        look(
            &chain("forward", "0", "iifname \"up0\" drop"),
            Passage::Reply(Hook::Forward),
        );
        look(BY_UPLINK, Passage::Open);
        // A host without any uplink: only one of our links can stand in for one.
        Cmd::new("ip").args(["link", "set", "up0", "down"]).run().unwrap();
        look("", Passage::Open);
        look(DOCKER, OUT_FORWARD);
        look(ONE_WAY, Passage::Reply(Hook::Forward));
    });
}

#[test]
fn an_uplink_whose_replies_cannot_be_tried_is_judged_by_what_passes_to_it() {
    Lab::run(|lab| {
        // The next hop no longer answers ARP requests.
        netns::within(&lab.internet, || {
            Cmd::new("ip")
                .args(["link", "set", "eth0", "down"])
                .run()
                .unwrap();
        })
        .unwrap();
        Cmd::new("ip")
            .args(["neigh", "flush", "dev", "up0"])
            .run()
            .unwrap();
        nft(BY_UPLINK);
        assert_eq!(nat::passage().unwrap(), Passage::OpenByUplink);
        nft("flush ruleset");
        assert_eq!(nat::passage().unwrap(), Passage::Open);
        nft(&chain("postrouting", "0", "oifname \"up0\" drop"));
        assert_eq!(nat::passage().unwrap(), OUT_POSTROUTING);
    });
}

#[test]
fn an_uplink_that_does_not_forward_yet_is_judged_as_far_as_its_replies_come() {
    Lab::run(|_| {
        assert_eq!(setting("conf/up0/forwarding"), "0");
        assert_eq!(nat::passage().unwrap(), Passage::Open);
        nft(&chain("prerouting", "raw", "iifname \"up0\" drop"));
        assert_eq!(nat::passage().unwrap(), Passage::Reply(Hook::Prerouting));
        assert_eq!(setting("conf/up0/forwarding"), "0", "the host is left as it was");
    });
}

#[test]
fn no_packet_leaves_the_host() {
    Lab::run(|lab| {
        netns::within(&lab.internet, || {
            nft("table netdev in {\n chain eth0 {\n type filter hook ingress device eth0 priority 0;\n meta protocol ip counter\n }\n}\n");
        })
        .unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        for (firewall, expected) in [
            ("", Passage::Open),
            (BY_UPLINK, Passage::Open),
            (OTHER_PORTS, Passage::Open),
            ("flush ruleset", Passage::Open),
            (OTHER_MARK, Passage::Open),
            ("flush ruleset", Passage::Open),
            (ONE_WAY, Passage::Reply(Hook::Forward)),
        ] {
            nft(firewall);
            assert_eq!(nat::passage().unwrap(), expected, "{firewall}");
        }
        let seen = netns::within(&lab.internet, rules).unwrap();
        assert!(seen.contains("counter packets 0 bytes 0"), "{seen}");
        assert_eq!(links(), []);
    });
}

#[test]
fn no_packet_leaves_by_an_uplink_that_has_no_frames() {
    Lab::run(|_| {
        for words in [
            "tuntap add dev tun0 mode tun",
            "address add 10.99.0.1/24 dev tun0",
            "link set tun0 up",
            "route replace default dev tun0",
        ] {
            Cmd::new("ip").args(words.split(' ')).run().unwrap();
        }
        nft(
            "table netdev out {\n chain tun0 {\n type filter hook egress device tun0 priority 0;\n ip daddr 198.51.100.0/24 counter\n }\n}\n",
        );
        assert_eq!(nat::passage().unwrap(), Passage::Open);
        let counted = rules();
        assert!(counted.contains("counter packets 0 bytes 0"), "{counted}");
        nft(&chain("postrouting", "0", "oifname \"tun0\" drop"));
        assert_eq!(nat::passage().unwrap(), OUT_POSTROUTING);
    });
}
