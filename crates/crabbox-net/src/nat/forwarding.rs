//! Forwarding, switched on for as few interfaces as will do, and off again with the last lease.
//!
//! The kernel asks the interface that a packet came in by whether it may be forwarded: our link for what the guest sends, the uplink
//! for the answers. So `net.ipv4.ip_forward`, which would make every interface of the host a router, is never touched. Which uplinks we
//! switched on stands in an nft set on the host: it lives and dies with the settings themselves, and outlives any of our processes.

use std::io;
use std::path::{Path, PathBuf};

use crabbox_host::netlink::{Link, Netlink, NetlinkError, valid_name};

use super::rules::{drop_table, listing, objects};
use super::{LINK, NatError};
use crate::nft;

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

/// Switches forwarding on where it is off, and notes it first.
pub(super) fn switch_on(uplinks: &[Link]) -> Result<(), NatError> {
    for link in uplinks {
        // What cannot be read is written all the same, which then says why it cannot.
        if std::fs::read_to_string(setting(&link.name)).is_ok_and(|value| value.trim() != "0") {
            continue;
        }
        let note = format!(
            "table ip {TABLE} {{\n  set {SET} {{\n    type ifname\n  }}\n}}\nadd element ip {TABLE} {SET} {{ \"{}\" }}\n",
            link.name
        );
        nft::apply("note the change of forwarding", &note).map_err(|source| NatError::Filter {
            table: TABLE.to_owned(),
            source,
        })?;
        write(&link.name, "1")?;
    }
    Ok(())
}

/// Switches forwarding off again where we switched it on. An interface that is gone needs nothing.
pub(super) fn switch_back() -> Result<(), NatError> {
    let tables = listing(&["-j", "list", "tables"])?;
    if !objects(&tables, "table").any(|table| table["family"] == "ip" && table["name"] == TABLE) {
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
