//! The rules of one lease in the host's namespace: a separate table, which is removed as a whole at the end.
//! They must never change a table of another program.

use std::net::Ipv4Addr;

use serde_json::Value;

use super::{LINK, NatError, NatSpec, TABLE};
use crate::nft;

/// Our hooks run just before those of the usual firewalls, so that a drop here is final and an accept leaves
/// the decision to them.
pub(super) const PRIORITY: &str = "filter - 10";

/// The table of `spec`; replaces an earlier one. The lease only needs masquerade; the other rules isolate it
/// even if the mapping in its own namespace fails.
pub(super) fn ruleset(spec: &NatSpec, lease: Ipv4Addr) -> String {
    let (table, link) = (spec.table(), spec.link());
    format!(
        "table ip {table}
delete table ip {table}
table ip {table} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {lease} oifname != \"{link}\" masquerade
  }}
  chain forward {{
    type filter hook forward priority {PRIORITY}; policy accept;
    iifname \"{link}\" ip saddr != {lease} drop
    iifname \"{link}\" oifname \"{LINK}*\" drop
    oifname \"{link}\" ct state established,related accept
    oifname \"{link}\" drop
  }}
  chain input {{
    type filter hook input priority {PRIORITY}; policy accept;
    iifname \"{link}\" ct state established,related accept
    iifname \"{link}\" drop
  }}
}}
"
    )
}

/// The table that closes the host to the guest of a CNI lease at `address`; replaces an earlier one. An
/// `input` hook sees packets for addresses of this host, as the kernel decides at that moment, so addresses
/// that the host gets later are covered too.
pub(super) fn closed_host(table: &str, address: Ipv4Addr) -> String {
    format!(
        "table ip {table}
delete table ip {table}
table ip {table} {{
  chain input {{
    type filter hook input priority {PRIORITY}; policy accept;
    iifname != \"lo\" ip saddr {address} ct state != {{ established, related }} drop
  }}
}}
"
    )
}

/// Removes one of our tables. It succeeds for a missing table, because the same transaction creates it first.
pub(super) fn drop_table(table: &str) -> Result<(), NatError> {
    nft::apply(
        "drop the NAT rules of the lease",
        &format!("table ip {table}\ndelete table ip {table}\n"),
    )
    .map_err(|source| NatError::Filter {
        table: table.to_owned(),
        source,
    })
}

/// The tags of existing tables.
pub(super) fn tags() -> Result<Vec<String>, NatError> {
    let tables = listing(&["-j", "list", "tables"])?;
    let is_tag = |tag: &&str| !tag.is_empty() && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
    Ok(objects(&tables, "table")
        .filter(|table| table["family"] == "ip")
        .filter_map(|table| table["name"].as_str()?.strip_prefix(TABLE).filter(is_tag))
        .map(str::to_owned)
        .collect())
}

/// The output of `nft list` as JSON.
pub(super) fn listing(args: &[&str]) -> Result<Value, NatError> {
    let output = nft::ask("list the rules of the host", args).map_err(|source| NatError::Filter {
        table: format!("{TABLE}*"),
        source,
    })?;
    serde_json::from_slice(&output.stdout).map_err(|source| NatError::Listing { source })
}

/// The objects of one kind in a listing.
pub(super) fn objects<'a>(listing: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    listing["nftables"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(move |object| object.get(kind))
}
