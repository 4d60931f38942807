//! What a guest may reach and who may reach it, as an nft rule set for the namespace of its lease.
//!
//! Only the host itself may open connections to the guest. The guest reaches the internet, but not the host,
//! its networks or other leases. The rule set is text made only from typed values: no text from a user or a
//! guest may enter it unchecked.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::inner::{GUEST_ADDRESS, Inner, TAP_ADDRESS};

/// The networks of a site: private (RFC 1918) and carrier-grade NAT (RFC 6598) ranges.
const SITE: [&str; 4] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"];

/// Ranges that are closed under every policy: the blocks of the IANA special-purpose registry (RFC 6890) that
/// are not globally reachable, multicast, and the addresses outside of those blocks at which clouds serve a
/// machine's credentials.
const SPECIAL: [&str; 12] = [
    "0.0.0.0/8",
    // Alibaba Cloud's metadata service, inside a range that `lan` opens.
    "100.100.100.200/32",
    "127.0.0.0/8",
    // Azure's metadata service and wire server: a public address that only machines in Azure can reach.
    "168.63.129.16/32",
    "169.254.0.0/16",
    // IETF protocol assignments; includes Oracle Cloud's metadata service, 192.0.0.192.
    "192.0.0.0/24",
    "192.0.2.0/24",
    // The anycast range of 6to4 relays, deprecated by RFC 7526.
    "192.88.99.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    // Multicast, reserved, and the limited broadcast address.
    "224.0.0.0/3",
];

/// Maximum number of open connections from a guest beyond its namespace. The host's connection tracking
/// table, which all programs share (65,536 entries on a host with 2 GiB, `nf_conntrack_max`), has room for
/// sixteen such guests; a build needs some hundreds.
const MOST_FLOWS: u32 = 4096;

/// Rate of new connections per second from a guest, and the burst before the rate applies. A package manager
/// opens some dozens.
const NEW_FLOWS: &str = "300/second burst 2048 packets";

/// DNS queries per second from a guest to the forwarder; each of them is a flow of the host.
const QUESTIONS: &str = "200/second burst 1000 packets";

/// The chain in which every rule for a new outgoing flow ends, so that each flow is counted.
const ADMIT: &str = "goto admit";

/// The usual MTU of Ethernet in bytes, which the guest assumes.
const ETHERNET_MTU: u32 = 1500;

/// The access policy of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// The guest may open connections to the internet.
    pub internet: bool,
    /// The guest may also reach private ranges beyond the host, but not the host and not its neighbours on
    /// the outer subnet.
    pub lan: bool,
    /// Destinations that the guest may reach regardless of the other settings.
    pub allow: Vec<Ipv4Net>,
    /// The guest may query the DNS forwarder at its gateway.
    pub dns: bool,
    /// The host's own addresses (`crabbox_host::netlink::own_addresses`): the guest may not reach them, even
    /// public ones, and connections from them to the guest count as the host's.
    pub host_addresses: Vec<Ipv4Addr>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            internet: true,
            lan: false,
            allow: Vec::new(),
            dns: true,
            host_addresses: Vec::new(),
        }
    }
}

/// The rule set for `inner`; replaces an earlier one.
pub(crate) fn ruleset(inner: &Inner) -> String {
    let (outer, tap, policy) = (&inner.outer.ifname, &inner.tap, &inner.policy);
    let address = inner.outer.address;
    let mut host = vec![inner.outer.gateway];
    host.extend(&policy.host_addresses);
    let host = joined(&host);
    let forward = [mss_clamp(inner), outgoing(inner)].concat();
    let mut rules = format!(
        "table ip crabbox
delete table ip crabbox
table ip crabbox {{
  set host {{
    type ipv4_addr
    elements = {{ {host} }}
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname \"{outer}\" ip daddr {address} dnat to {GUEST_ADDRESS}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname \"{outer}\" ip saddr {GUEST_ADDRESS} snat to {address}
  }}
  chain admit {{
    limit rate over {NEW_FLOWS} drop
    ct count over {MOST_FLOWS} reject with icmp type admin-prohibited
    accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    ct state invalid drop
    ct state established,related accept
    iifname \"{outer}\" oifname \"{tap}\" ip saddr @host ct status dnat accept
    iifname != \"{tap}\" drop
    oifname != \"{outer}\" drop
    ip saddr != {GUEST_ADDRESS} drop
{forward}  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname \"lo\" accept
    iifname \"{tap}\" meta l4proto udp limit rate over {QUESTIONS} drop
    ct state established,related accept
{input}  }}
}}
",
        input = incoming(inner),
    );
    // A kernel without IPv6 has no such table, and nothing to drop.
    if Path::new("/proc/sys/net/ipv6").exists() {
        rules.push_str(NO_IPV6);
    }
    rules
}

/// IPv6 is off in the namespace; this rule blocks it as well.
const NO_IPV6: &str = "table ip6 crabbox
delete table ip6 crabbox
table ip6 crabbox {
  chain forward {
    type filter hook forward priority filter; policy drop;
  }
  chain input {
    type filter hook input priority filter; policy drop;
  }
}
";

/// Rules for new connections from the guest to destinations outside the namespace.
fn outgoing(inner: &Inner) -> String {
    let policy = &inner.policy;
    let mut rules = String::new();
    if !policy.allow.is_empty() {
        // An interval set must not contain overlapping networks, so each network gets a rule of its own.
        for network in &policy.allow {
            line(&mut rules, &format!("ip daddr {network} {ADMIT}"));
        }
    }
    for range in SPECIAL {
        line(&mut rules, &format!("ip daddr {range} drop"));
    }
    // Reject instead of drop: a program in the guest gets an error at once instead of waiting for minutes.
    let refuse = "reject with icmp type admin-prohibited";
    line(&mut rules, &format!("ip daddr @host {refuse}"));
    line(&mut rules, &format!("ip daddr {} {refuse}", inner.outer.subnet()));
    if policy.lan {
        for range in SITE {
            line(&mut rules, &format!("ip daddr {range} {ADMIT}"));
        }
    } else {
        for range in SITE {
            line(&mut rules, &format!("ip daddr {range} {refuse}"));
        }
    }
    line(&mut rules, if policy.internet { ADMIT } else { refuse });
    rules
}

/// Rules for packets from the guest to the namespace itself.
fn incoming(inner: &Inner) -> String {
    let mut rules = String::new();
    let from_guest = format!(
        "iifname \"{}\" ip saddr {GUEST_ADDRESS} ip daddr {TAP_ADDRESS}",
        inner.tap
    );
    line(&mut rules, &format!("{from_guest} icmp type echo-request accept"));
    if inner.policy.dns {
        line(&mut rules, &format!("{from_guest} udp dport 53 accept"));
        line(&mut rules, &format!("{from_guest} tcp dport 53 accept"));
    }
    rules
}

/// The guest assumes an MTU of 1500 bytes; if the outer network carries less, connections must negotiate a
/// smaller segment size.
fn mss_clamp(inner: &Inner) -> String {
    let mut rules = String::new();
    if (1..ETHERNET_MTU).contains(&inner.outer.mtu) {
        // An MSS is the MTU less 20 bytes of IPv4 and 20 bytes of TCP header.
        let mss = inner.outer.mtu.saturating_sub(40);
        line(
            &mut rules,
            &format!("tcp flags & (syn | rst) == syn tcp option maxseg size set {mss}"),
        );
    }
    rules
}

fn line(rules: &mut String, rule: &str) {
    // Writing to a string cannot fail.
    writeln!(rules, "    {rule}").ok();
}

fn joined(addresses: &[Ipv4Addr]) -> String {
    let mut list: Vec<Ipv4Addr> = addresses.to_vec();
    list.sort_unstable();
    list.dedup();
    list.iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
