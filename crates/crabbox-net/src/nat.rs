//! The built-in `nat` mode: a veth pair, a /30 from our own range, masquerade. It needs only `nft`.
//!
//! ```text
//!   cbx<tag> 10.213.0.1/30, alias crabbox:<lease>   <- veth ->   veth0 10.213.0.2/30 in the namespace of the lease
//!   table ip crabbox_<tag>: masquerade; only the host may connect to the guest; the guest may not reach other leases or the host
//!   table ip crabbox_host:  set forwarding = the interfaces whose forwarding we enabled; packets that arrive there and are not for
//!                           one of our links are dropped
//! ```
//! [`attach_nat`] and [`detach_nat`] change what leases share and so must run under the engine's allocation
//! lock. A link without our label must never be deleted, whatever its name is. An `accept` in our table does
//! not override a `drop` in another program's (Docker's, firewalld's): [`passage()`] detects such drops,
//! [`filters`] lists the chains, and we never edit them.

mod blocks;
mod forwarding;
mod passage;
mod rules;
mod subnet;

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use crabbox_host::netlink::{Netlink, NetlinkError, valid_name};
use crabbox_host::netns::{self, NetnsError};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::nft::{self, NftError};
use crate::outer::Outer;

pub use blocks::{FilterChain, Filters, filters};
pub use passage::{Hook, Passage, PassageError, passage};
pub use subnet::{DEFAULT_RANGE, SubnetError, choose_subnet};

/// Prefix of the label of each of our links, followed by the lease.
const LABEL: &str = "crabbox:";

/// Prefix of the name of each of our links, followed by the tag.
const LINK: &str = "cbx";

/// Prefix of the name of each of our tables on the host, followed by the tag.
const TABLE: &str = "crabbox_";

/// The default MTU of a veth, in bytes.
const VETH_MTU: u32 = 1500;

/// The values of the nat mode for one lease, for setup and teardown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatSpec {
    /// The lease, as on the link's label.
    pub lease: String,
    /// 1 to 8 lower-case hexadecimal digits, unique to one lease on this host.
    pub tag: String,
    /// The file of the namespace.
    pub netns: PathBuf,
    /// The interface in the namespace, `veth0`.
    pub ifname: String,
    /// The /30 of this lease ([`choose_subnet`]).
    pub subnet: Ipv4Net,
}

impl NatSpec {
    /// The link on the host.
    pub fn link(&self) -> String {
        format!("{LINK}{}", self.tag)
    }

    /// The table on the host.
    pub fn table(&self) -> String {
        format!("{TABLE}{}", self.tag)
    }

    fn label(&self) -> String {
        format!("{LABEL}{}", self.lease)
    }

    /// The host's end and the lease's end.
    fn ends(&self) -> Result<(Ipv4Addr, Ipv4Addr), NatError> {
        let tag_fits = is_tag(&self.tag);
        let mut hosts = self.subnet.hosts();
        match (hosts.next(), hosts.next(), self.subnet.prefix_len()) {
            (Some(host), Some(lease), 30) if tag_fits && valid_name(&self.ifname) => Ok((host, lease)),
            _ => Err(NatError::Spec {
                tag: self.tag.clone(),
                ifname: self.ifname.clone(),
                subnet: self.subnet,
            }),
        }
    }
}

/// Why the nat mode could not be set up or removed.
#[derive(Debug, thiserror::Error)]
pub enum NatError {
    /// The saved values cannot come from this module.
    #[error("cannot use tag {tag:?}, interface {ifname:?} and subnet {subnet} for a NAT network")]
    Spec {
        /// The tag.
        tag: String,
        /// The interface.
        ifname: String,
        /// The subnet.
        subnet: Ipv4Net,
    },
    /// The namespace cannot be entered.
    #[error("cannot set up NAT for {}", netns.display())]
    Namespace {
        /// The file of the namespace.
        netns: PathBuf,
        /// The underlying error.
        #[source]
        source: NetnsError,
    },
    /// The host's own namespace cannot be opened.
    #[error("cannot open the network namespace of the host")]
    HostNamespace {
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A link, an address or a route could not be configured or removed.
    #[error("cannot change the NAT link {link}")]
    Link {
        /// The link on the host.
        link: String,
        /// The underlying error.
        #[source]
        source: NetlinkError,
    },
    /// A link of that name exists but is not ours.
    #[error("the link {link} is not the one of lease {lease} (its label is {label:?}); it is left alone")]
    NotOurs {
        /// The link.
        link: String,
        /// The lease that it should belong to.
        lease: String,
        /// Its label.
        label: String,
    },
    /// The packet filter could not be changed or read.
    #[error("cannot change the NAT rules of {table}")]
    Filter {
        /// The table.
        table: String,
        /// The underlying error.
        #[source]
        source: NftError,
    },
    /// The output of `nft` is not a valid listing.
    #[error("cannot read what nft lists")]
    Listing {
        /// The invalid part.
        #[source]
        source: serde_json::Error,
    },
    /// Forwarding could not be switched on or off.
    #[error("cannot set {} to {value}", setting.display())]
    Setting {
        /// The kernel setting.
        setting: PathBuf,
        /// The intended value.
        value: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// Sets up the veth pair, the rules and forwarding. If a step fails, earlier steps are undone.
pub fn attach_nat(spec: &NatSpec) -> Result<Outer, NatError> {
    let (host, lease) = spec.ends()?;
    let made = build(spec, host, lease);
    if made.is_err() {
        // Report the first error; leftovers are found later by their label.
        detach_nat(spec).ok();
    }
    made
}

fn build(spec: &NatSpec, host: Ipv4Addr, lease: Ipv4Addr) -> Result<Outer, NatError> {
    let (name, prefix) = (spec.link(), spec.subnet.prefix_len());
    let link = |source| NatError::Link {
        link: name.clone(),
        source,
    };
    let mut netlink = Netlink::open().map_err(link)?;
    let uplinks = forwarding::uplinks(&mut netlink).map_err(link)?;
    let mtu = uplinks
        .iter()
        .map(|uplink| uplink.mtu)
        .min()
        .unwrap_or(VETH_MTU)
        .min(VETH_MTU);
    let here = netns::current().map_err(|source| NatError::HostNamespace { source })?;
    inside(spec, |netlink| {
        // Create both ends in the namespace: if we die now, they disappear with it, and the host's end never
        // exists without its label.
        netlink.add_veth(&name, &spec.ifname)?;
        netlink.set_alias(&name, &spec.label())?;
        netlink.set_mtu(&name, mtu)?;
        netlink.set_mtu(&spec.ifname, mtu)?;
        netlink.add_address(&spec.ifname, net(lease, prefix))?;
        netlink.set_up(&spec.ifname)?;
        netlink.move_to(&name, here.as_fd())
    })?;
    let switched_off = forwarding::switched_off(&uplinks);
    let ruleset = rules::ruleset(spec, lease) + &forwarding::note(&switched_off)?;
    nft::apply("load the NAT rules of the lease", &ruleset).map_err(|source| NatError::Filter {
        table: spec.table(),
        source,
    })?;
    netlink.add_address(&name, net(host, prefix)).map_err(link)?;
    forwarding::of_own_link(&name)?;
    forwarding::switch_on(&switched_off)?;
    netlink.set_up(&name).map_err(link)?;
    inside(spec, |netlink| netlink.add_route(Ipv4Net::default(), host))?;
    Ok(Outer {
        ifname: spec.ifname.clone(),
        address: lease,
        prefix,
        gateway: host,
        dns: Vec::new(),
        mtu,
        guest_tap: None,
    })
}

fn inside(
    spec: &NatSpec,
    work: impl FnOnce(&mut Netlink) -> Result<(), NetlinkError> + Send,
) -> Result<(), NatError> {
    netns::within(&spec.netns, || {
        Netlink::open().and_then(|mut netlink| work(&mut netlink))
    })
    .map_err(|source| NatError::Namespace {
        netns: spec.netns.clone(),
        source,
    })?
    .map_err(|source| NatError::Link {
        link: spec.link(),
        source,
    })
}

fn net(address: Ipv4Addr, prefix: u8) -> Ipv4Net {
    // The prefix length was checked to be 30, so this cannot fail.
    Ipv4Net::new(address, prefix).unwrap_or_else(|_| Ipv4Net::from(address))
}

/// Removes the link and the table; after the last lease also disables forwarding. Succeeds for what is
/// already gone.
pub fn detach_nat(spec: &NatSpec) -> Result<(), NatError> {
    spec.ends()?;
    remove(&spec.lease, &spec.tag)
}

/// Removes leftovers of a lease without a record, as found by [`owned_links`] or [`owned_tables`]. A tag
/// without a link needs no lease: pass an empty one.
pub fn remove(lease: &str, tag: &str) -> Result<(), NatError> {
    let name = format!("{LINK}{tag}");
    let link = |source| NatError::Link {
        link: name.clone(),
        source,
    };
    let mut netlink = Netlink::open().map_err(link)?;
    if let Some(found) = netlink.link(&name).map_err(link)? {
        let label = found.alias.unwrap_or_default();
        if label != format!("{LABEL}{lease}") {
            return Err(NatError::NotOurs {
                link: name,
                lease: lease.to_owned(),
                label,
            });
        }
        netlink.delete_link(&name).map_err(link)?;
    }
    if lease.is_empty() {
        passage::remove_at_uplinks(&format!("{TABLE}{tag}"))?;
    }
    rules::drop_table(&format!("{TABLE}{tag}"))?;
    if owned_links()?.is_empty() {
        forwarding::switch_back()
    } else {
        Ok(())
    }
}

/// Closes the host's own addresses, current and future, to the guest of a lease whose outer network CNI made.
pub(crate) fn close_host(tag: &str, address: Ipv4Addr) -> Result<(), NftError> {
    let table = format!("{TABLE}{tag}");
    nft::apply(
        "close the host to the lease",
        &rules::closed_host(&table, address),
    )
}

/// Undoes [`close_host`]. Succeeds if the table is gone; without `nft` there is no table.
pub(crate) fn open_host(tag: &str) -> Result<(), NatError> {
    match rules::drop_table(&format!("{TABLE}{tag}")) {
        Err(NatError::Filter {
            source: NftError::Missing,
            ..
        }) => Ok(()),
        other => other,
    }
}

/// Whether `tag` has our format: 1 to 8 lower-case hexadecimal digits.
pub(crate) fn is_tag(tag: &str) -> bool {
    (1..=8).contains(&tag.len()) && tag.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A link on the host with our label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedLink {
    /// The lease on its label.
    pub lease: String,
    /// Its tag.
    pub tag: String,
}

/// The links of the host with our name prefix.
fn named_links() -> Result<impl Iterator<Item = crabbox_host::netlink::Link>, NatError> {
    let links = Netlink::open()
        .and_then(|mut netlink| netlink.links())
        .map_err(|source| NatError::Link {
            link: format!("{LINK}*"),
            source,
        })?;
    Ok(links.into_iter().filter(|link| link.name.starts_with(LINK)))
}

/// All of our links on the host, of all state directories.
pub fn owned_links() -> Result<Vec<OwnedLink>, NatError> {
    Ok(named_links()?
        .filter_map(|link| {
            let lease = link.alias.as_deref()?.strip_prefix(LABEL)?.to_owned();
            Some(OwnedLink {
                lease,
                tag: link.name.strip_prefix(LINK)?.to_owned(),
            })
        })
        .collect())
}

/// The tags of our tables on the host, except those of a forwarding test that is running
/// ([`passage`](passage())): its links have no label and disappear with its process, and a table that
/// outlives it counts as ours.
pub fn owned_tables() -> Result<Vec<String>, NatError> {
    // Check before and after, so that a test that starts or ends meanwhile is noticed.
    let mut on_trial = unlabelled_tags()?;
    let mut tags = rules::tags()?;
    on_trial.extend(unlabelled_tags()?);
    tags.retain(|tag| !on_trial.contains(tag));
    Ok(tags)
}

/// The tags of links with our name prefix and without a label.
fn unlabelled_tags() -> Result<Vec<String>, NatError> {
    let labelled = |alias: Option<&str>| alias.is_some_and(|alias| alias.starts_with(LABEL));
    Ok(named_links()?
        .filter(|link| !labelled(link.alias.as_deref()))
        .filter_map(|link| link.name.strip_prefix(LINK).map(str::to_owned))
        .collect())
}
