//! Forwarding, switched on for as few interfaces as will do, and off again with the last lease.
//!
//! The kernel asks the interface that a packet came in by whether it may be forwarded: our link for what the guest sends, the uplink
//! for the replies. So `net.ipv4.ip_forward`, which would make every interface of the host a router, is never touched. Which uplinks we
//! switched on stands in an nft set on the host: it lives and dies with the settings themselves, and outlives any of our processes.
//! Such an uplink would forward for whoever sends to it, into another uplink (a VPN) for one: the chain beside the set drops what comes
//! in there and is not for a link of ours. An interface that forwarded before is not in the set, and forwards for everybody as it did.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use crabbox_host::netlink::{Link, Netlink, NetlinkError, valid_name};

use super::rules::{PRIORITY, drop_table, listing, objects};
use super::{LINK, NatError};

/// The table that holds the set. Its name is no table of a lease: `host` is no hexadecimal number.
const TABLE: &str = "crabbox_host";

/// The set of interfaces whose forwarding we switched on.
const SET: &str = "forwarding";

fn setting(link: &str) -> PathBuf {
    // A VLAN has a dot in its name, which is no separator for a path below /proc/sys.
    Path::new("/proc/sys/net/ipv4/conf").join(link).join("forwarding")
}

fn write(link: &str, value: &'static str) -> Result<(), NatError> {
    let setting = setting(link);
    std::fs::write(&setting, value).map_err(|source| NatError::Setting {
        setting,
        value,
        source,
    })
}

/// The interfaces that traffic leaves this host by: those of routes with a next hop, but our own.
pub(super) fn uplinks(netlink: &mut Netlink) -> Result<Vec<Link>, NetlinkError> {
    let through: Vec<u32> = netlink
        .routes()?
        .into_iter()
        .filter(|route| route.gateway.is_some() || route.destination.prefix_len() == 0)
        .filter_map(|route| route.link)
        .collect();
    let mut links = netlink.links()?;
    links.retain(|link| {
        through.contains(&link.index) && !link.name.starts_with(LINK) && valid_name(&link.name)
    });
    Ok(links)
}

/// Lets the lease's own link forward; the setting goes with the link.
pub(super) fn of_own_link(link: &str) -> Result<(), NatError> {
    write(link, "1")
}

/// Whether what arrives at `link` is forwarded. What cannot be read is not.
pub(super) fn is_on(link: &str) -> bool {
    std::fs::read_to_string(setting(link)).is_ok_and(|value| value.trim() != "0")
}

/// Those of `uplinks` that do not forward yet. What cannot be read counts: writing it then says why.
pub(super) fn switched_off(uplinks: &[Link]) -> Vec<&str> {
    uplinks
        .iter()
        .map(|link| link.name.as_str())
        .filter(|name| !is_on(name))
        .collect()
}

/// The rules that note the change of `links` and keep it to ourselves, to be loaded before [`switch_on`]. Nothing is noted where nothing
/// changes, unless an earlier lease has: then the rules are loaded anew, for it may have been another version's, which had no chain.
pub(super) fn note(links: &[&str]) -> Result<String, NatError> {
    if links.is_empty() && !is_noted()? {
        return Ok(String::new());
    }
    // Replies to what another interface of the host may send out (a container bridge that came later) pass, as they would without us:
    // no new connection begins by one of these links, so that none is established but from the inside.
    let mut rules = format!(
        "table ip {TABLE} {{
  set {SET} {{
    type ifname
  }}
  chain forward {{
    type filter hook forward priority {PRIORITY}; policy accept;
  }}
}}
flush chain ip {TABLE} forward
add rule ip {TABLE} forward iifname @{SET} oifname != \"{LINK}*\" ct state != {{ established, related }} drop
"
    );
    for link in links {
        // The names were checked by `valid_name`. Writing to a string cannot fail.
        writeln!(rules, "add element ip {TABLE} {SET} {{ \"{link}\" }}").ok();
    }
    Ok(rules)
}

/// Whether a lease has switched something on.
fn is_noted() -> Result<bool, NatError> {
    let tables = listing(&["-j", "list", "tables"])?;
    Ok(objects(&tables, "table").any(|table| table["family"] == "ip" && table["name"] == TABLE))
}

/// Switches forwarding on.
pub(super) fn switch_on(links: &[&str]) -> Result<(), NatError> {
    links.iter().try_for_each(|link| write(link, "1"))
}

/// Switches forwarding off again where we switched it on. An interface that is gone needs nothing.
pub(super) fn switch_back() -> Result<(), NatError> {
    if !is_noted()? {
        return Ok(());
    }
    let sets = listing(&["-j", "list", "table", "ip", TABLE])?;
    for link in objects(&sets, "set").flat_map(|set| set["elem"].as_array().into_iter().flatten()) {
        let Some(link) = link.as_str().filter(|name| valid_name(name)) else {
            continue;
        };
        match write(link, "0") {
            Err(NatError::Setting { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    drop_table(TABLE)
}
