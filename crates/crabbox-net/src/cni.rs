//! The `cni` mode: an outer address from any chain of the host's CNI plugins.
//!
//! The plan is made once, from the configuration, and saved; attach and detach work from the plan. A chain
//! with any other result than one IPv4 address for the interface is undone at once, and must never stay half
//! attached. The plugins own what they make on the host; we add one table, which closes the host itself to
//! the guest.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use crabbox_cni::{AddError, Attachment, CniResult, DelError, Interface, LoadError};
use crabbox_host::netlink::{Netlink, NetlinkError};
use crabbox_host::netns::{self, NetnsError};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::nat::{self, NatError};
use crate::nft::NftError;
use crate::outer::{Outer, TapPartner};

/// The CNI settings of one lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniSpec {
    /// Where networks are configured, `/etc/cni/net.d`.
    pub conf_dir: PathBuf,
    /// Plugin directories in search order: `/opt/cni/bin`, `/usr/lib/cni`.
    pub bin_dirs: Vec<PathBuf>,
    /// The name of the network.
    pub network: String,
    /// The container id for the plugins, one per lease; it ends in `-` and the lease's tag.
    pub container_id: String,
    /// The file of the namespace.
    pub netns: PathBuf,
    /// The interface to make there, `veth0`.
    pub ifname: String,
    /// The result cache, in the lease's own directory.
    pub cache_dir: PathBuf,
}

/// Why a CNI network yielded no outer address. The attachment was undone; `undo` lists what was not.
#[derive(Debug, thiserror::Error)]
pub enum AttachCniError {
    /// The chain failed.
    #[error("the CNI network {network} gave no address")]
    Add {
        /// The network.
        network: String,
        /// The failure, including what could not be undone.
        #[source]
        source: AddError,
    },
    /// The chain ran, but a lease cannot use its result.
    #[error("the CNI network {network} cannot carry a lease: {why}{}", undone(.undo.as_deref()))]
    Unfit {
        /// The network.
        network: String,
        /// What is wrong with the result.
        why: Misfit,
        /// What went wrong while the chain was undone.
        undo: Option<Box<DetachCniError>>,
    },
    /// The chain ran, but the host could not be closed to the guest.
    #[error("cannot block access from a lease of the CNI network {network} to the host{}", undone(.undo.as_deref()))]
    Close {
        /// The network.
        network: String,
        /// What went wrong while the chain was undone.
        undo: Option<Box<DetachCniError>>,
        /// The underlying error.
        #[source]
        source: NftError,
    },
    /// The chain ran, but the interface could not be inspected.
    #[error("cannot inspect the interface {ifname} that the CNI network {network} made{}", undone(.undo.as_deref()))]
    Look {
        /// The network.
        network: String,
        /// The interface.
        ifname: String,
        /// What went wrong while the chain was undone.
        undo: Option<Box<DetachCniError>>,
        /// The underlying error.
        #[source]
        source: LookError,
    },
}

/// What is wrong with the result of a chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// Exactly one IPv4 address is required; there are none or several.
    #[error("it has to yield one IPv4 address for {ifname}, and yields {}", counted(.addresses))]
    Addresses {
        /// The interface.
        ifname: String,
        /// The IPv4 addresses of that interface.
        addresses: Vec<IpNet>,
    },
    /// Neither the result nor the routes in the namespace name a gateway.
    #[error("it names no gateway, and {ifname} has no default route")]
    NoGateway {
        /// The interface.
        ifname: String,
    },
    /// The container id does not end in a tag, from which the name of its table on the host is made.
    #[error("its container {container} does not end in the tag of a lease")]
    NoTag {
        /// The container.
        container: String,
    },
    /// The result has several interfaces for one guest.
    #[error("it yields {count} guest interfaces (sandbox {container}); a lease has one")]
    GuestInterfaces {
        /// The container.
        container: String,
        /// The number of interfaces.
        count: usize,
    },
    /// A guest interface needs a tap of the same name.
    #[error("it yields the guest interface {name} without a tap of that name, as tc-redirect-tap makes it")]
    NoTap {
        /// The interface.
        name: String,
    },
}

/// Why a CNI network could not be detached.
#[derive(Debug, thiserror::Error)]
pub enum DetachCniError {
    /// The chain failed. The host stays closed to the guest, which may still be attached.
    #[error(transparent)]
    Del(#[from] DelError),
    /// The table that closes the host could not be removed.
    #[error(transparent)]
    Filter(#[from] NatError),
}

/// Why an interface could not be inspected.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Namespace(#[from] NetnsError),
    /// The kernel could not be queried.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The chain reports the interface as made, but it does not exist.
    #[error("there is no such interface in the namespace")]
    Absent,
}

fn undone(undo: Option<&DetachCniError>) -> String {
    undo.map(|error| format!("; undoing it failed as well: {error}"))
        .unwrap_or_default()
}

fn counted(addresses: &[IpNet]) -> String {
    if addresses.is_empty() {
        return "none".to_owned();
    }
    addresses
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" and ")
}

/// Reads the network's configuration into an attachment, which the caller saves before [`attach_cni`].
pub fn plan_cni(spec: &CniSpec) -> Result<Attachment, LoadError> {
    let conf = crabbox_cni::load(&spec.conf_dir, &spec.network)?;
    Ok(Attachment::new(
        conf,
        spec.bin_dirs.clone(),
        &spec.container_id,
        &spec.netns,
        &spec.ifname,
        &spec.cache_dir,
    ))
}

/// Attaches the namespace to its network.
pub fn attach_cni(attachment: &Attachment) -> Result<Outer, AttachCniError> {
    let network = attachment.conf.name.clone();
    let result = crabbox_cni::add(attachment).map_err(|source| AttachCniError::Add {
        network: network.clone(),
        source,
    })?;
    let undo = || detach_cni(attachment).err().map(Box::new);
    let seen = match netns::within(&attachment.netns, || look(&attachment.ifname)) {
        Ok(Ok(seen)) => seen,
        Ok(Err(source)) => {
            return Err(AttachCniError::Look {
                network,
                ifname: attachment.ifname.clone(),
                undo: undo(),
                source,
            });
        }
        Err(source) => {
            let source = source.into();
            return Err(AttachCniError::Look {
                network,
                ifname: attachment.ifname.clone(),
                undo: undo(),
                source,
            });
        }
    };
    let unfit = |why| AttachCniError::Unfit {
        network: network.clone(),
        why,
        undo: undo(),
    };
    let outer = outer_of(attachment, &result, seen).map_err(unfit)?;
    // A guest with an address of its own can use any source address, so only the network's own rules can
    // restrict it.
    if outer.guest_tap.is_none() {
        let tag = tag_of(attachment).ok_or_else(|| {
            unfit(Misfit::NoTag {
                container: attachment.container_id.clone(),
            })
        })?;
        nat::close_host(tag, outer.address).map_err(|source| AttachCniError::Close {
            network: network.clone(),
            undo: undo(),
            source,
        })?;
    }
    Ok(outer)
}

/// The lease's tag at the end of its container id.
fn tag_of(attachment: &Attachment) -> Option<&str> {
    let (_, tag) = attachment.container_id.rsplit_once('-')?;
    nat::is_tag(tag).then_some(tag)
}

/// Detaches the namespace from its network. Succeeds if the attachment is already gone.
pub fn detach_cni(attachment: &Attachment) -> Result<(), DetachCniError> {
    crabbox_cni::del(attachment)?;
    // A container of the Go program may have a name without a tag, and never has a table.
    tag_of(attachment).map_or(Ok(()), |tag| Ok(nat::open_host(tag)?))
}

/// The kernel's state of the interface.
#[derive(Debug, Clone, Copy)]
struct Seen {
    mtu: u32,
    gateway: Option<Ipv4Addr>,
}

fn look(ifname: &str) -> Result<Seen, LookError> {
    let mut netlink = Netlink::open()?;
    let link = netlink.link(ifname)?.ok_or(LookError::Absent)?;
    let default = netlink
        .routes()?
        .into_iter()
        .find(|route| route.destination.prefix_len() == 0 && route.link == Some(link.index));
    Ok(Seen {
        mtu: link.mtu,
        gateway: default.and_then(|route| route.gateway),
    })
}

fn outer_of(attachment: &Attachment, result: &CniResult, seen: Seen) -> Result<Outer, Misfit> {
    let guest_tap = guest_tap(result, &attachment.container_id)?;
    let ifname = &attachment.ifname;
    let ours = |interface: Option<&Interface>| match (interface, &guest_tap) {
        (Some(interface), Some(_)) => interface.sandbox == attachment.container_id,
        // An interface on the host may have an address of its own, for example a bridge.
        (Some(interface), None) => interface.name == *ifname && !interface.sandbox.is_empty(),
        // An address that names no interface belongs to the container.
        (None, _) => true,
    };
    let found: Vec<_> = result
        .ips
        .iter()
        .filter(|ip| ip.address.addr().is_ipv4() && ours(result.interface_of(ip)))
        .collect();
    let misfit = || Misfit::Addresses {
        ifname: ifname.clone(),
        addresses: found.iter().map(|ip| ip.address).collect(),
    };
    let [ip] = found.as_slice() else {
        return Err(misfit());
    };
    let IpNet::V4(address) = ip.address else {
        return Err(misfit());
    };
    let named = match ip.gateway {
        Some(IpAddr::V4(gateway)) => Some(gateway),
        _ => None,
    };
    let gateway = named.or(seen.gateway).ok_or_else(|| Misfit::NoGateway {
        ifname: ifname.clone(),
    })?;
    Ok(Outer {
        ifname: ifname.clone(),
        address: address.addr(),
        prefix: address.prefix_len(),
        gateway,
        // Entries that are not IP addresses are left out.
        dns: result
            .dns
            .nameservers
            .iter()
            .filter_map(|server| server.parse().ok())
            .collect(),
        mtu: seen.mtu,
        guest_tap,
    })
}

/// The tap of a chain that ends in `tc-redirect-tap`: the result has the guest's interface, whose sandbox is
/// the container id, and the tap of the same name.
fn guest_tap(result: &CniResult, container: &str) -> Result<Option<TapPartner>, Misfit> {
    let guests: Vec<_> = result
        .interfaces
        .iter()
        .filter(|interface| interface.sandbox == container)
        .collect();
    let guest = match guests.as_slice() {
        [] => return Ok(None),
        [guest] => guest,
        _ => {
            return Err(Misfit::GuestInterfaces {
                container: container.to_owned(),
                count: guests.len(),
            });
        }
    };
    let tap = result
        .interfaces
        .iter()
        .find(|interface| {
            interface.name == guest.name && interface.sandbox != container && !interface.sandbox.is_empty()
        })
        .ok_or_else(|| Misfit::NoTap {
            name: guest.name.clone(),
        })?;
    Ok(Some(TapPartner {
        tap: tap.name.clone(),
        mac: guest.mac.clone(),
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONTAINER: &str = "cbx-1";

    fn attachment() -> Attachment {
        let conf = crabbox_cni::ConfList {
            name: "net".to_owned(),
            version: crabbox_cni::Version::V1_0_0,
            disable_check: false,
            plugins: Vec::new(),
            file: "/n.conflist".into(),
        };
        Attachment::new(
            conf,
            Vec::new(),
            CONTAINER,
            "/ns".as_ref(),
            "eth0",
            "/cache".as_ref(),
        )
    }

    fn results() -> Vec<Vec<u8>> {
        let plain = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"veth0","mac":"aa:bb:cc:dd:ee:ff"},{"name":"eth0","sandbox":"/ns"}],
            "ips":[{"interface":1,"address":"10.1.2.3/24","gateway":"10.1.2.1"}],"dns":{"nameservers":["9.9.9.9","x"]}}"#;
        let tap = r#"{"cniVersion":"0.4.0","interfaces":[{"name":"eth0","sandbox":"/ns"},{"name":"eth0","mac":"aa:bb:cc:dd:ee:ff",
            "sandbox":"cbx-1"}],"ips":[{"version":"4","interface":1,"address":"10.1.2.3/32"},{"version":"6","address":"fd00::2/64"}]}"#;
        [plain, tap].map(|text| text.as_bytes().to_vec()).into()
    }

    #[test]
    fn the_samples_are_good_ones() {
        for text in results() {
            let result = serde_json::from_slice(&text).unwrap();
            let seen = Seen {
                mtu: 1500,
                gateway: Some(Ipv4Addr::new(10, 1, 2, 1)),
            };
            let outer = outer_of(&attachment(), &result, seen).unwrap();
            assert_eq!(outer.address, Ipv4Addr::new(10, 1, 2, 3));
        }
    }

    proptest! {
        #[test]
        fn whatever_a_plugin_answers_is_an_address_or_a_reason(bytes in crabbox_testkit::mutate::damaged(results())) {
            let Ok(result) = serde_json::from_slice::<CniResult>(&bytes) else {
                return Ok(());
            };
            match outer_of(&attachment(), &result, Seen { mtu: 1500, gateway: None }) {
                Ok(outer) => prop_assert!(outer.prefix <= 32 && outer.ifname == "eth0"),
                Err(misfit) => prop_assert!(misfit.to_string().len() > 20),
            }
        }
    }
}
