//! Forwarding, enabled on as few interfaces as possible, and disabled again with the last lease.
//!
//! The kernel checks the forwarding setting of the incoming interface: our link for packets from the guest,
//! the uplink for the replies. So `net.ipv4.ip_forward`, which would make every interface of the host a
//! router, must never be changed. An nft set on the host records the uplinks that we enabled: it lasts
//! exactly as long as the settings themselves, and outlives our processes. Such an uplink would forward for
//! every neighbour, for example into another uplink (a VPN); therefore the chain next to the set drops
//! packets that arrive there and are not for one of our links. An interface that forwarded before is not in
//! the set, and keeps forwarding for everybody.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use crabbox_host::netlink::{Link, Netlink, NetlinkError, valid_name};

use super::rules::{PRIORITY, drop_table, listing, objects};
use super::{LINK, NatError};

/// The table that contains the set. Its name cannot be that of a lease's table, because `host` is not a
/// hexadecimal number.
const TABLE: &str = "crabbox_host";

/// The set of interfaces on which we enabled forwarding.
const SET: &str = "forwarding";

fn setting(link: &str) -> PathBuf {
    // Use a path below /proc/sys: in a dotted setting name the dot of a VLAN's name would be taken for a
    // separator.
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

/// The interfaces through which traffic leaves this host: those of routes with a next hop, except our own.
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

/// Enables forwarding on the lease's own link; the setting disappears with the link.
pub(super) fn of_own_link(link: &str) -> Result<(), NatError> {
    write(link, "1")
}

/// Whether packets that arrive at `link` are forwarded; false if the setting cannot be read.
pub(super) fn is_on(link: &str) -> bool {
    std::fs::read_to_string(setting(link)).is_ok_and(|value| value.trim() != "0")
}

/// Those of `uplinks` that do not forward yet. A setting that cannot be read counts as off: writing it then
/// reports the error.
pub(super) fn switched_off(uplinks: &[Link]) -> Vec<&str> {
    uplinks
        .iter()
        .map(|link| link.name.as_str())
        .filter(|name| !is_on(name))
        .collect()
}

/// The rules that record the change of `links` and restrict it to our packets, to be loaded before
/// [`switch_on`]. If nothing changes, nothing is recorded, unless an earlier lease has changed something:
/// then the rules are loaded again, because somebody may have flushed the chain.
pub(super) fn note(links: &[&str]) -> Result<String, NatError> {
    if links.is_empty() && !is_noted()? {
        return Ok(String::new());
    }
    // Established connections pass, as they would without us, for example replies to a container bridge that
    // was added later. No new connection can begin at one of these links, so every established one was opened
    // from inside.
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

/// Whether a lease has enabled forwarding on an interface.
fn is_noted() -> Result<bool, NatError> {
    let tables = listing(&["-j", "list", "tables"])?;
    Ok(objects(&tables, "table").any(|table| table["family"] == "ip" && table["name"] == TABLE))
}

/// Enables forwarding.
pub(super) fn switch_on(links: &[&str]) -> Result<(), NatError> {
    links.iter().try_for_each(|link| write(link, "1"))
}

/// Disables forwarding on the interfaces where we enabled it. Interfaces that no longer exist are skipped.
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
