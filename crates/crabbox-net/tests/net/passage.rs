//! What becomes of a lease's packets under the firewalls that hosts have: the verdict is held against a lease that really tries.

use crabbox_host::command::Cmd;
use crabbox_host::netns;
use crabbox_net::nat::{self, Passage};
use crabbox_net::{NatSpec, attach_nat, detach_nat};

use crate::lab::{ELSEWHERE, Lab, greeting, links, refusal, rules};
use crate::nat::spec;

/// Docker's: a policy of drop, and chains for rules of the user's.
const DOCKER: &str = "table ip filter {
 chain DOCKER-USER { return; }
 chain FORWARD { type filter hook forward priority filter; policy drop; jump DOCKER-USER; }
}";
/// firewalld's: the policy accepts, the last rule refuses.
const FIREWALLD: &str = "table inet firewalld {
 chain filter_FORWARD {
  type filter hook forward priority filter + 10; policy accept;
  ct state { established, related } accept
  reject with icmpx admin-prohibited
 }
}";
/// A firewall that knows our interfaces.
const KNOWN: &str = "table inet f {
 chain forward {
  type filter hook forward priority 0; policy drop;
  iifname \"cbx*\" accept
  oifname \"cbx*\" accept
 }
}";
/// One that knows them in one direction only.
const ONE_WAY: &str = "table inet f {
 chain forward { type filter hook forward priority 0; policy drop; iifname \"cbx*\" accept; }
}";
/// One that knows our interfaces and the uplink's name.
const BY_UPLINK: &str = "table inet f {
 chain forward {
  type filter hook forward priority 0; policy drop;
  iifname \"cbx*\" oifname \"up0\" accept
  iifname \"up0\" ct state established,related accept
 }
}";
/// One that drops in a chain that a rule leads to.
const DEEP: &str = "table ip f {
 chain deep { tcp flags syn drop; }
 chain forward { type filter hook forward priority 0; policy accept; jump deep; }
}";
/// One that lets nothing go out of a link that is not ours.
const NO_UPLINK: &str = "table ip f {
 chain post { type filter hook forward priority 50; policy accept; oifname != \"cbx*\" reject; }
}";

fn nft(rules: &str) {
    Cmd::new("nft").args(["-f", "-"]).stdin(rules).run().unwrap();
}

fn legacy(rule: &str) {
    Cmd::new("iptables-legacy").args(rule.split(' ')).run().unwrap();
}

/// A lease on a host, which has no rules beside the lease's.
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

    /// Tries passage, and whether the lease reaches the internet of the lab; both have to say the same.
    fn look(&self, name: &str, expected: Passage) {
        let before = (rules(), links().len());
        assert_eq!(nat::passage().unwrap(), expected, "{name}");
        assert_eq!((rules(), links().len()), before, "{name} leaves something");
        netns::within(&self.spec.netns, || match expected {
            Passage::Open | Passage::OpenByUplink => drop(greeting(ELSEWHERE, 80).unwrap()),
            Passage::Outward | Passage::Reply => drop(refusal(ELSEWHERE, 80)),
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
            ("docker", DOCKER, Passage::Outward),
            ("firewalld", FIREWALLD, Passage::Outward),
            ("known", KNOWN, Passage::Open),
            ("one way", ONE_WAY, Passage::Reply),
            ("by uplink", BY_UPLINK, Passage::OpenByUplink),
            ("deep", DEEP, Passage::Outward),
            ("no uplink", NO_UPLINK, Passage::Outward),
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
        lease.look("policy", Passage::Outward);
        legacy("-I FORWARD -i cbx+ -j ACCEPT");
        lease.look("one way", Passage::Reply);
        legacy("-I FORWARD -o cbx+ -j ACCEPT");
        lease.look("both ways", Passage::Open);
        legacy("-P FORWARD ACCEPT");
        legacy("-F FORWARD");
        legacy("-A FORWARD -j REJECT");
        lease.look("refusal", Passage::Outward);
        let filters = nat::forward_filters().unwrap();
        assert!(filters.legacy && filters.chains.is_empty(), "{filters:?}");
        detach_nat(&lease.spec).unwrap();
    });
}

#[test]
fn no_packet_leaves_the_host() {
    Lab::run(|_| {
        // What is sent towards the uplink of this host passes every filter, and is counted at the last moment before it would leave.
        nft(
            "table netdev out {\n chain up0 {\n type filter hook egress device up0 priority 0;\n ip daddr 198.51.100.0/24 counter\n }\n}\n",
        );
        nft(BY_UPLINK);
        assert_eq!(nat::passage().unwrap(), Passage::OpenByUplink);
        let counted = rules();
        assert!(counted.contains("counter packets 0 bytes 0"), "{counted}");
        assert_eq!(links(), []);
    });
}
