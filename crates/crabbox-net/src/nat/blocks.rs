//! Other programs' rules on this host that may drop forwarded packets. They are only read and must never be
//! changed; only a test packet proves that packets pass ([`super::passage`]).

use std::path::Path;

use serde_json::Value;

use super::rules::{listing, objects};
use super::{Hook, NatError, TABLE};

/// The tables of legacy iptables in the current thread's namespace; nft does not show them.
const LEGACY_TABLES: &str = "/proc/thread-self/net/ip_tables_names";

/// A chain of another program that an IPv4 packet of a lease passes and that may drop it: by its policy, or
/// by a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterChain {
    /// Its family: `ip`, `inet` or `netdev`.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Its hook in the path of a packet.
    pub hook: Hook,
    /// Its table belongs to a running program; the kernel refuses changes by any other (`flags owner`).
    pub owned: bool,
}

/// The filters of other programs for forwarded packets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filters {
    /// Their chains, as listed by nft.
    pub chains: Vec<FilterChain>,
    /// The tables of legacy iptables, for example `filter` or `mangle`.
    pub legacy: Vec<String>,
}

/// Every filter of other programs that a packet of a lease passes. A chain that cannot drop a packet is left
/// out.
pub fn filters() -> Result<Filters, NatError> {
    let ruleset = listing(&["-j", "list", "ruleset"])?;
    let legacy = std::fs::read_to_string(Path::new(LEGACY_TABLES)).unwrap_or_default();
    Ok(Filters {
        chains: chains(&ruleset),
        legacy: legacy.lines().map(str::to_owned).collect(),
    })
}

fn chains(ruleset: &Value) -> Vec<FilterChain> {
    let text = |object: &Value, key: &str| object[key].as_str().unwrap_or_default().to_owned();
    let owned = |chain: &Value| {
        objects(ruleset, "table")
            .filter(|table| table["family"] == chain["family"] && table["name"] == chain["table"])
            // nft prints a single flag as a string, several as a list.
            .any(|table| table["flags"].to_string().contains("\"owner\""))
    };
    objects(ruleset, "chain")
        .filter_map(|chain| Some((chain, hook(chain)?)))
        .filter(|(chain, _)| !text(chain, "table").starts_with(TABLE))
        .filter(|(chain, _)| chain["policy"] == "drop" || may_drop(ruleset, chain))
        .map(|(chain, hook)| FilterChain {
            family: text(chain, "family"),
            table: text(chain, "table"),
            chain: text(chain, "name"),
            hook,
            owned: owned(chain),
        })
        .collect()
}

/// The hook of a chain in the path of a forwarded IPv4 packet; `None` if it is not in the path.
fn hook(chain: &Value) -> Option<Hook> {
    match (chain["family"].as_str()?, chain["hook"].as_str()?) {
        ("ip" | "inet", "forward") => Some(Hook::Forward),
        ("ip" | "inet", "prerouting") | ("netdev" | "inet", "ingress") => Some(Hook::Prerouting),
        ("ip" | "inet", "postrouting") => Some(Hook::Postrouting),
        ("netdev", "egress") => Some(Hook::Egress),
        _ => None,
    }
}

/// Whether a rule of `chain`, or of a chain that it jumps to, may drop a packet. Rules that nft cannot show
/// count as such.
fn may_drop(ruleset: &Value, chain: &Value) -> bool {
    let (family, table) = (&chain["family"], &chain["table"]);
    let (mut ahead, mut known) = (vec![&chain["name"]], Vec::new());
    while let Some(name) = ahead.pop() {
        if known.contains(&name) {
            continue;
        }
        known.push(name);
        let rules = objects(ruleset, "rule")
            .filter(|rule| rule["family"] == *family && rule["table"] == *table && rule["chain"] == *name);
        for part in rules.flat_map(|rule| rule["expr"].as_array().into_iter().flatten()) {
            for kind in part.as_object().into_iter().flatten() {
                match (kind.0.as_str(), kind.1) {
                    ("jump" | "goto", to) => ahead.push(&to["target"]),
                    ("drop" | "reject" | "queue" | "synproxy" | "notrack" | "xt" | "vmap", _) => return true,
                    _ => {}
                }
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_chain_counts_if_its_policy_or_a_rule_may_drop() {
        let chain = |family: &str, table: &str, name: &str, hook: &str, policy: &str| json!({"chain": {"family": family, "table": table, "name": name, "hook": hook, "policy": policy}});
        let rule = |family: &str, table: &str, chain: &str, expr: Value| json!({"rule": {"family": family, "table": table, "chain": chain, "expr": [expr]}});
        let ruleset = json!({"nftables": [
            {"table": {"family": "inet", "name": "firewalld", "flags": "owner"}},
            {"table": {"family": "ip", "name": "filter"}},
            chain("ip", "filter", "FORWARD", "forward", "drop"),
            chain("ip", "filter", "INPUT", "input", "drop"),
            chain("ip", "empty", "FORWARD", "forward", "accept"),
            chain("ip6", "filter", "FORWARD", "forward", "drop"),
            chain("inet", "firewalld", "filter_FORWARD", "forward", "accept"),
            rule("inet", "firewalld", "filter_FORWARD", json!({"reject": {"type": "icmpx"}})),
            chain("ip", "crabbox_a1", "forward", "forward", "drop"),
            // A jump to a second chain, which jumps back.
            chain("ip", "deep", "first", "postrouting", "accept"),
            rule("ip", "deep", "first", json!({"jump": {"target": "second"}})),
            rule("ip", "deep", "second", json!({"goto": {"target": "first"}})),
            rule("ip", "deep", "second", json!({"drop": null})),
            chain("ip", "nat", "POSTROUTING", "postrouting", "accept"),
            rule("ip", "nat", "POSTROUTING", json!({"masquerade": null})),
            chain("netdev", "edge", "eth0", "ingress", "drop"),
            chain("netdev", "edge", "out", "egress", "drop"),
            chain("inet", "edge", "eth0", "ingress", "drop"),
        ]});
        let found: Vec<_> = chains(&ruleset)
            .into_iter()
            .map(|chain| (chain.table, chain.chain, chain.hook, chain.owned))
            .collect();
        let expected = [
            ("filter", "FORWARD", Hook::Forward, false),
            ("firewalld", "filter_FORWARD", Hook::Forward, true),
            ("deep", "first", Hook::Postrouting, false),
            ("edge", "eth0", Hook::Prerouting, false),
            ("edge", "out", Hook::Egress, false),
            ("edge", "eth0", Hook::Prerouting, false),
        ];
        let expected =
            expected.map(|(table, chain, hook, owned)| (table.to_owned(), chain.to_owned(), hook, owned));
        assert_eq!(found, expected);
    }
}
