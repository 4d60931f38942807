//! The rules of the test path: those of a lease, a counter at the end of every hook, and a final rule that
//! keeps packets on this host.
//!
//! They are loaded again for each attempt. They must never match a packet of another program, or of another
//! test: redirected packets belong to one of our connections. Where they leave, connection tracking cannot be
//! asked; they are known by a mark there, which is this test's tag, because masquerade may have changed their
//! port, and by their port, because other rules may have changed the mark.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::super::rules::{drop_table, listing, objects, ruleset};
use super::super::{NatError, NatSpec};
use super::{Far, Hook, PORT};
use crate::nft;

/// A priority after every filter that other programs are likely to have; only the kernel's own hooks come
/// later.
const LAST: i32 = i32::MAX - 1;
/// A priority before every filter.
const FIRST: i32 = i32::MIN;

/// The connection that is let through, and where to.
#[derive(Debug, Clone)]
pub(super) struct Guard<'a> {
    spec: &'a NatSpec,
    lease: Ipv4Addr,
    /// The far side's address, and the port of the lease side.
    connection: Option<(Ipv4Addr, u16)>,
    /// Links by which that connection may leave.
    open: Vec<String>,
    /// Real uplinks, each with our link that gets its outgoing packets.
    handed: Vec<(String, String)>,
}

/// Number of packets that have reached the end of each hook.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) out_prerouting: u64,
    pub(super) out_forward: u64,
    pub(super) out_postrouting: u64,
    /// Where a packet leaves through a real uplink, before the filters there.
    pub(super) out_egress: u64,
    pub(super) back_prerouting: u64,
    pub(super) back_forward: u64,
}

impl Counted {
    /// The hook at which the outgoing packet was dropped, if it was.
    pub(super) fn outward(&self) -> Option<Hook> {
        match self {
            Self {
                out_prerouting: 0, ..
            } => Some(Hook::Prerouting),
            Self { out_forward: 0, .. } => Some(Hook::Forward),
            Self {
                out_postrouting: 0, ..
            } => Some(Hook::Postrouting),
            _ => None,
        }
    }

    /// The hook at which the reply was dropped, if it was sent and did not arrive.
    pub(super) fn back(&self) -> Hook {
        match self {
            Self {
                back_prerouting: 0, ..
            } => Hook::Prerouting,
            Self { back_forward: 0, .. } => Hook::Forward,
            _ => Hook::Postrouting,
        }
    }
}

impl<'a> Guard<'a> {
    /// Lets no packet out.
    pub(super) fn closed(spec: &'a NatSpec, lease: Ipv4Addr) -> Self {
        Self {
            spec,
            lease,
            connection: None,
            open: Vec::new(),
            handed: Vec::new(),
        }
    }

    /// Counts the connection from `port` to `target`.
    pub(super) fn but(mut self, target: Ipv4Addr, port: u16) -> Self {
        self.connection = Some((target, port));
        self
    }

    /// Lets that connection out through `link`, which is ours.
    pub(super) fn letting_out(mut self, link: &str) -> Self {
        self.open.push(link.to_owned());
        self
    }

    /// Lets it out through real uplinks, and redirects it to our links at the last hook.
    pub(super) fn handing_on(mut self, far: &[Far]) -> Self {
        for far in far {
            let Some(uplink) = &far.uplink else { continue };
            self.open.push(uplink.clone());
            self.handed.push((uplink.clone(), far.link.clone()));
        }
        self
    }

    /// Loads the rules in place of earlier ones.
    pub(super) fn load(&self) -> Result<(), NatError> {
        let table = self.spec.table();
        nft::apply("load the rules that keep a packet on this host", &self.rules())
            .map_err(|source| NatError::Filter { table, source })
    }

    fn rules(&self) -> String {
        let (table, link, lease) = (self.spec.table(), self.spec.link(), self.lease);
        let mark = &self.spec.tag;
        let mut rules = ruleset(self.spec, lease);
        let (mut there, mut back, mut out) = (String::new(), String::new(), String::new());
        if let Some((target, port)) = self.connection {
            let first = format!("ip daddr {target} tcp dport {PORT} tcp sport {port}");
            there = format!("iifname \"{link}\" {first} tcp flags & (syn | ack) == syn counter name");
            back =
                format!("ip saddr {target} tcp sport {PORT} ip daddr {lease} tcp dport {port} counter name");
            for uplink in &self.open {
                // Writing to a string cannot fail, here and below. After masquerade only the original
                // direction has the lease's address.
                writeln!(
                    out,
                    "    oifname \"{uplink}\" ip daddr {target} tcp dport {PORT} ct original ip saddr {lease} ct original proto-src {port} \
                     counter name out_postrouting meta mark set 0x{mark} accept"
                )
                .ok();
            }
        }
        let counting = |rule: &str, name: &str| match rule {
            "" => String::new(),
            rule => format!("    {rule} {name}\n"),
        };
        write!(
            rules,
            "table ip {table} {{
  counter out_prerouting {{ }}
  counter out_forward {{ }}
  counter out_postrouting {{ }}
  counter back_prerouting {{ }}
  counter back_forward {{ }}
  chain last_prerouting {{
    type filter hook prerouting priority {LAST}; policy accept;
{there_in}{back_in}  }}
  chain last_forward {{
    type filter hook forward priority {LAST}; policy accept;
{there_on}{back_on}  }}
  chain last_postrouting {{
    type filter hook postrouting priority {LAST}; policy accept;
    oifname \"{link}\" accept
{out}    ct original ip saddr {lease} counter name out_postrouting drop
    iifname \"{link}\" counter name out_postrouting drop
  }}
}}
",
            there_in = counting(&there, "out_prerouting"),
            back_in = counting(&back, "back_prerouting"),
            there_on = counting(&there, "out_forward"),
            back_on = counting(&back, "back_forward"),
        )
        .ok();
        if let (Some((target, port)), false) = (self.connection, self.handed.is_empty()) {
            write!(
                rules,
                "table netdev {table}\ndelete table netdev {table}\ntable netdev {table} {{\n  counter out_egress {{ }}\n"
            )
            .ok();
            let ours = format!("ip daddr {target} tcp dport {PORT} meta mark 0x{mark}");
            let by_port = format!("ip daddr {target} tcp dport {PORT} tcp sport {port}");
            for (number, (uplink, own)) in self.handed.iter().enumerate() {
                write!(
                    rules,
                    "  chain come{number} {{
    type filter hook egress device \"{uplink}\" priority {FIRST}; policy accept;
    {ours} counter name out_egress
  }}
  chain leave{number} {{
    type filter hook egress device \"{uplink}\" priority {LAST}; policy accept;
    {ours} fwd to \"{own}\"
    {by_port} fwd to \"{own}\"
  }}
"
                )
                .ok();
            }
            rules.push_str("}\n");
        }
        rules
    }

    /// The counters since the rules were loaded.
    pub(super) fn counted(&self) -> Result<Counted, NatError> {
        let (listed, table) = (listing(&["-j", "list", "counters"])?, self.spec.table());
        let count = |name: &str| {
            objects(&listed, "counter")
                .find(|counter| counter["table"] == table.as_str() && counter["name"] == name)
                .and_then(|counter| counter["packets"].as_u64())
                .unwrap_or(0)
        };
        Ok(Counted {
            out_prerouting: count("out_prerouting"),
            out_forward: count("out_forward"),
            out_postrouting: count("out_postrouting"),
            out_egress: count("out_egress"),
            back_prerouting: count("back_prerouting"),
            back_forward: count("back_forward"),
        })
    }
}

/// Removes all rules of the test path.
pub(super) fn remove(spec: &NatSpec) -> Result<(), NatError> {
    remove_at_uplinks(&spec.table())?;
    drop_table(&spec.table())
}

/// Removes the rules at the uplinks, if there are any. Not every nft and kernel knows their family, so it is
/// checked first.
pub(in super::super) fn remove_at_uplinks(table: &str) -> Result<(), NatError> {
    let tables = listing(&["-j", "list", "tables"])?;
    if !objects(&tables, "table").any(|found| found["family"] == "netdev" && found["name"] == table) {
        return Ok(());
    }
    nft::apply(
        "drop the rules at the uplinks",
        &format!("delete table netdev {table}\n"),
    )
    .map_err(|source| NatError::Filter {
        table: table.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_tests_at_once_do_not_take_each_others_packets() {
        let lease = Ipv4Addr::new(10, 213, 0, 2);
        let rules = |tag: &str, port| {
            let spec = NatSpec {
                lease: String::new(),
                tag: tag.to_owned(),
                netns: std::path::PathBuf::new(),
                ifname: "veth0".to_owned(),
                subnet: "10.213.0.0/30".parse().unwrap(),
            };
            let mut guard = Guard::closed(&spec, lease).but(Ipv4Addr::new(198, 51, 100, 1), port);
            guard.open.push("up0".to_owned());
            guard.handed.push(("up0".to_owned(), "upl".to_owned()));
            guard.rules()
        };
        let taken = |rules: &str| -> Vec<String> {
            let at_the_uplink = rules.lines().skip_while(|line| !line.starts_with("table netdev"));
            let taking = at_the_uplink.filter(|line| line.contains("ip daddr"));
            taking.map(|line| line.trim().to_owned()).collect()
        };
        let (one, other) = (taken(&rules("00000001", 4001)), taken(&rules("00000003", 4003)));
        assert_eq!(one.len(), 3, "{one:?}");
        assert!(one.iter().all(|line| !other.contains(line)), "{one:?} {other:?}");
        assert!(rules("00000001", 4001).contains("meta mark set 0x00000001 accept"));
    }
}
