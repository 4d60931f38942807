//! What else on this host may drop forwarded packets. Only looked at: the rules of others are theirs, and only a packet proves passage
//! ([`super::passage`]).

use std::path::Path;

use serde_json::Value;

use super::rules::{listing, objects};
use super::{NatError, TABLE};

/// The tables of legacy iptables that exist in the namespace of a thread; nft does not see them.
const LEGACY_TABLES: &str = "/proc/thread-self/net/ip_tables_names";

/// A chain of somebody else's that every forwarded IPv4 packet passes and that may drop it: by its policy, or by a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardChain {
    /// Its family: `ip` or `inet`.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Its table belongs to a running program; the kernel refuses changes by anybody else (`flags owner`).
    pub owned: bool,
}

/// What others have put in the way of forwarded packets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filters {
    /// Their chains, as nft lists them.
    pub chains: Vec<ForwardChain>,
    /// Legacy iptables has a filter table.
    pub legacy: bool,
}

/// Every filter of others that a forwarded packet passes. A chain that has no rule and lets pass by its policy is none.
pub fn forward_filters() -> Result<Filters, NatError> {
    let ruleset = listing(&["-j", "list", "ruleset"])?;
    let legacy = std::fs::read_to_string(Path::new(LEGACY_TABLES)).unwrap_or_default();
    Ok(Filters {
        chains: chains(&ruleset),
        legacy: legacy.lines().any(|table| table == "filter"),
    })
}

fn chains(ruleset: &Value) -> Vec<ForwardChain> {
    let text = |object: &Value, key: &str| object[key].as_str().unwrap_or_default().to_owned();
    let has_rules = |chain: &Value| {
        objects(ruleset, "rule").any(|rule| {
            rule["family"] == chain["family"]
                && rule["table"] == chain["table"]
                && rule["chain"] == chain["name"]
        })
    };
    let owned = |chain: &Value| {
        objects(ruleset, "table")
            .filter(|table| table["family"] == chain["family"] && table["name"] == chain["table"])
            // One flag is a string, several are a list.
            .any(|table| table["flags"].to_string().contains("\"owner\""))
    };
    objects(ruleset, "chain")
        .filter(|chain| chain["hook"] == "forward")
        .filter(|chain| chain["family"] == "ip" || chain["family"] == "inet")
        .filter(|chain| !text(chain, "table").starts_with(TABLE))
        .filter(|chain| chain["policy"] == "drop" || has_rules(chain))
        .map(|chain| ForwardChain {
            family: text(chain, "family"),
            table: text(chain, "table"),
            chain: text(chain, "name"),
            owned: owned(chain),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_chain_counts_if_its_policy_or_a_rule_may_drop() {
        let chain = |family: &str, table: &str, name: &str, hook: &str, policy: &str| json!({"chain": {"family": family, "table": table, "name": name, "hook": hook, "policy": policy}});
        let ruleset = json!({"nftables": [
            {"table": {"family": "inet", "name": "firewalld", "flags": "owner"}},
            {"table": {"family": "ip", "name": "filter"}},
            chain("ip", "filter", "FORWARD", "forward", "drop"),
            chain("ip", "filter", "INPUT", "input", "drop"),
            chain("ip", "empty", "FORWARD", "forward", "accept"),
            chain("ip6", "filter", "FORWARD", "forward", "drop"),
            chain("inet", "firewalld", "filter_FORWARD", "forward", "accept"),
            {"rule": {"family": "inet", "table": "firewalld", "chain": "filter_FORWARD", "expr": []}},
            chain("ip", "crabbox_a1", "forward", "forward", "drop"),
        ]});
        let found: Vec<_> = chains(&ruleset)
            .into_iter()
            .map(|chain| (chain.table, chain.chain, chain.owned))
            .collect();
        let expected = [
            ("filter", "FORWARD", false),
            ("firewalld", "filter_FORWARD", true),
        ];
        let expected = expected.map(|(table, chain, owned)| (table.to_owned(), chain.to_owned(), owned));
        assert_eq!(found, expected);
    }
}
