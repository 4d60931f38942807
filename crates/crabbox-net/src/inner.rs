//! The inner network of a lease: the tap, the fixed addresses, and the mapping of the outer address onto the
//! guest.
//!
//! It is the same in every lease, so that a snapshot of a guest fits all of them. Everything here belongs to
//! the namespace and disappears with it, so there is no undo; nothing here may touch the host's own
//! namespace.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crabbox_host::netlink::{Netlink, NetlinkError, valid_name};
use crabbox_host::netns::{self, NetnsError};
use crabbox_host::tap::{self, TapError};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::nft::{self, NftError};
use crate::outer::Outer;
use crate::policy::{Policy, ruleset};

/// The guest's gateway: our end of the tap.
pub const TAP_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);

/// The guest's own address, in every lease.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);

/// The prefix length of the inner network.
pub const INNER_PREFIX: u8 = 30;

/// The guest's hardware address, in every lease: locally administered, its last four bytes are the address.
pub const GUEST_MAC: &str = "06:00:ac:10:00:02";

/// The inputs of the inner network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inner {
    /// The file of the namespace.
    pub netns: PathBuf,
    /// The name of the tap, `tap0`.
    pub tap: String,
    /// The user and group that may open the tap without privileges: those of a jailed VMM.
    pub owner: Option<(u32, u32)>,
    /// The outer side.
    pub outer: Outer,
    /// The access policy.
    pub policy: Policy,
}

/// Why the inner network could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The namespace cannot be entered.
    #[error("cannot set up the inner network of {}", netns.display())]
    Namespace {
        /// The file of the namespace.
        netns: PathBuf,
        /// The underlying error.
        #[source]
        source: NetnsError,
    },
    /// The kernel does not accept this interface name.
    #[error("{name:?} is not a name for a network link")]
    Name {
        /// The name.
        name: String,
    },
    /// The outer subnet overlaps the inner one, so that the namespace could not distinguish the guest from a
    /// neighbour.
    #[error(
        "the outer network {outer} overlaps {TAP_ADDRESS}/{INNER_PREFIX}, which every guest uses; choose another subnet for it"
    )]
    Overlap {
        /// The outer subnet.
        outer: Ipv4Net,
    },
    /// A link or address could not be configured.
    #[error("cannot set up the links of {}", netns.display())]
    Link {
        /// The file of the namespace.
        netns: PathBuf,
        /// The underlying error.
        #[source]
        source: NetlinkError,
    },
    /// The tap could not be made.
    #[error("cannot set up the tap of {}", netns.display())]
    Tap {
        /// The file of the namespace.
        netns: PathBuf,
        /// The underlying error.
        #[source]
        source: TapError,
    },
    /// A kernel setting of the namespace could not be written.
    #[error("cannot set {} to {value} in the network namespace {}", setting.display(), netns.display())]
    Setting {
        /// The file of the namespace.
        netns: PathBuf,
        /// The setting.
        setting: PathBuf,
        /// The intended value.
        value: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The mapping and the policy could not be loaded.
    #[error("cannot set up the address mapping of {}", netns.display())]
    Filter {
        /// The file of the namespace.
        netns: PathBuf,
        /// The underlying error.
        #[source]
        source: NftError,
    },
}

/// Makes the tap and maps the outer address onto the guest. If the chain made the tap (`outer.guest_tap`),
/// there is nothing to do.
pub fn map_inner(inner: &Inner) -> Result<(), MapError> {
    if inner.outer.guest_tap.is_some() {
        return Ok(());
    }
    check(inner)?;
    make_tap(&inner.netns, &inner.tap, inner.owner)?;
    map_outer(inner)
}

/// Makes the tap with our end's address and nothing else: the namespace does not forward yet. A machine can
/// be started on it while the outer side is still being made.
pub fn make_tap(netns: &Path, tap: &str, owner: Option<(u32, u32)>) -> Result<(), MapError> {
    if !valid_name(tap) {
        return Err(MapError::Name { name: tap.to_owned() });
    }
    enter(netns, || build_tap(netns, tap, owner))
}

/// Maps the outer address onto the guest behind a tap of [`make_tap`].
pub fn map_outer(inner: &Inner) -> Result<(), MapError> {
    check(inner)?;
    enter(&inner.netns, || {
        // Load the rules before the first packet can pass.
        nft::apply("load the rules of the lease", &ruleset(inner)).map_err(|source| MapError::Filter {
            netns: inner.netns.clone(),
            source,
        })?;
        settings(&inner.netns, &["ipv4/ip_forward"], "1")
    })
}

/// Refuses a configuration that cannot be mapped, before anything is made.
fn check(inner: &Inner) -> Result<(), MapError> {
    for name in [&inner.tap, &inner.outer.ifname] {
        if !valid_name(name) {
            return Err(MapError::Name { name: name.clone() });
        }
    }
    let outer = inner.outer.subnet();
    if overlaps(outer, inner_net()) {
        return Err(MapError::Overlap { outer });
    }
    Ok(())
}

fn enter(netns: &Path, work: impl FnOnce() -> Result<(), MapError> + Send) -> Result<(), MapError> {
    netns::within(netns, work).map_err(|source| MapError::Namespace {
        netns: netns.to_owned(),
        source,
    })?
}

/// The inner network, with our end's address.
pub(crate) fn inner_net() -> Ipv4Net {
    // The prefix length is a constant below 33, so this cannot fail.
    Ipv4Net::new(TAP_ADDRESS, INNER_PREFIX).unwrap_or_else(|_| Ipv4Net::from(TAP_ADDRESS))
}

pub(crate) fn overlaps(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

fn build_tap(netns: &Path, tap: &str, owner: Option<(u32, u32)>) -> Result<(), MapError> {
    let link = |source| MapError::Link {
        netns: netns.to_owned(),
        source,
    };
    let mut netlink = Netlink::open().map_err(link)?;
    netlink.set_up("lo").map_err(link)?;
    settings(
        netns,
        &["ipv6/conf/all/disable_ipv6", "ipv6/conf/default/disable_ipv6"],
        "1",
    )?;
    tap::create(tap, owner).map_err(|source| MapError::Tap {
        netns: netns.to_owned(),
        source,
    })?;
    netlink.add_address(tap, inner_net()).map_err(link)?;
    // The guest must not forge source addresses or change our routes.
    settings(netns, &[&format!("ipv4/conf/{tap}/rp_filter")], "1")?;
    let redirects = [
        format!("ipv4/conf/{tap}/accept_redirects"),
        format!("ipv4/conf/{tap}/send_redirects"),
    ];
    settings(
        netns,
        &[&redirects[0], &redirects[1], "ipv4/conf/all/accept_redirects"],
        "0",
    )?;
    netlink.set_up(tap).map_err(link)
}

/// Writes kernel settings of the namespace. On a kernel without IPv6 its settings do not exist and are
/// skipped.
fn settings(netns: &Path, names: &[&str], value: &'static str) -> Result<(), MapError> {
    for name in names {
        let setting = Path::new("/proc/sys/net").join(name);
        match std::fs::write(&setting, value) {
            Err(source) if source.kind() == io::ErrorKind::NotFound && name.starts_with("ipv6/") => {}
            Err(source) => {
                return Err(MapError::Setting {
                    netns: netns.to_owned(),
                    setting,
                    value,
                    source,
                });
            }
            Ok(()) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outer_network_over_the_inner_one_is_refused_before_anything_is_made() {
        for (address, prefix, refused) in [
            ([172, 16, 0, 9], 24, true),
            ([172, 16, 1, 9], 24, false),
            ([10, 1, 2, 3], 24, false),
        ] {
            let address = Ipv4Addr::from(address);
            let outer = Outer {
                ifname: "veth0".to_owned(),
                address,
                prefix,
                gateway: address,
                dns: Vec::new(),
                mtu: 1500,
                guest_tap: None,
            };
            let netns = PathBuf::from("/nowhere/netns");
            let inner = Inner {
                netns,
                tap: "tap0".to_owned(),
                owner: None,
                outer,
                policy: Policy::default(),
            };
            let error = map_inner(&inner).unwrap_err();
            assert_eq!(matches!(error, MapError::Overlap { .. }), refused, "{error}");
        }
    }
}
