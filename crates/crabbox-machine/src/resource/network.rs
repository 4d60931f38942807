//! The lease's network as the engine sees it: one saved attachment for every mode, and its undo.
//!
//! The saved attachment is journaled before the attachment is made, and the undo must need nothing else. The
//! mode `auto` is resolved here, once, before the request is written.

use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::Path;

use crabbox_cni::{Attachment, LoadError};
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::network::NetworkMode;
use crabbox_core::record::LeaseRecord;
use crabbox_host::netlink::{Netlink, NetlinkError};
use crabbox_host::netns::{self, NetnsError};
use crabbox_image::seed::SeedNetwork;
use crabbox_net::dns::{self, Resolvers};
use crabbox_net::{
    AttachCniError, CniSpec, Inner, MapError, NatError, NatSpec, Policy, attach_cni, attach_nat, detach_cni,
    detach_nat, map_outer, plan_cni,
};
use crabbox_store::places::{LeaseDir, Places};
use crabbox_store::registry::{self, RegistryError};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use crabbox_net::Outer;
use crabbox_net::nat;

use crate::lease::allocated::Allocated;
use crate::request::NetworkRequest;

/// Plugin directory of Debian's `containernetworking-plugins`; searched after the configured directory.
pub const DEBIAN_CNI: &str = "/usr/lib/cni";
/// The interface that the network mode makes in the lease's namespace.
const OUTER_INTERFACE: &str = "veth0";

/// The guest's tap in the lease's namespace.
pub(crate) const TAP: &str = "tap0";
/// The host's resolver configuration.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// An attachment as stored in the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "mode", content = "attachment", rename_all = "snake_case")]
pub enum SavedAttach {
    /// Through CNI plugins.
    Cni(Attachment),
    /// Built in.
    Nat(NatSpec),
}

impl SavedAttach {
    /// The attachment as JSON for the journal.
    pub fn to_value(&self) -> Value {
        // Serialisation of plain data with text keys cannot fail.
        serde_json::to_value(self).unwrap_or_default()
    }

    /// Reads the JSON of [`SavedAttach::to_value`].
    pub fn from_value(value: &Value) -> Result<Self, DetachError> {
        serde_json::from_value(value.clone()).map_err(DetachError::Saved)
    }
}

/// Why a lease's network could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The namespace could not be made.
    #[error(transparent)]
    Namespace(#[from] NetnsError),
    /// The CNI network could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The CNI plugins did not attach the namespace.
    #[error(transparent)]
    Cni(#[from] AttachCniError),
    /// Built-in networking could not attach the namespace.
    #[error(transparent)]
    Nat(#[from] NatError),
    /// Tap or mapping could not be made.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The host's own addresses cannot be read.
    #[error(transparent)]
    Addresses(#[from] NetlinkError),
    /// The DNS forwarder cannot listen.
    #[error(transparent)]
    Names(#[from] dns::DnsError),
    /// The stop signal for the DNS forwarder cannot be made.
    #[error("cannot create a pipe")]
    Pipe(#[source] std::io::Error),
    /// Another crabbox holds the host network lock, or the lock cannot be taken.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// NAT was requested without a subnet.
    #[error("built-in networking has no subnet")]
    NoSubnet,
}

impl Fault for NetworkError {
    fn kind(&self) -> Kind {
        match self {
            Self::Load(_) | Self::Namespace(_) | Self::NoSubnet | Self::Pipe(_) | Self::Registry(_) => {
                Kind::Usage
            }
            Self::Cni(_) | Self::Nat(_) | Self::Map(_) | Self::Addresses(_) | Self::Names(_) => {
                Kind::Unavailable
            }
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Load(_) => vec![
                "name a network that exists with --firecracker-cni-network and --firecracker-cni-conf-dir, \
                 or use built-in networking with --firecracker-network nat"
                    .to_owned(),
            ],
            Self::Cni(_) => vec![
                "`crabbox doctor --provider firecracker` checks the plugins; --firecracker-network nat does not need them"
                    .to_owned(),
            ],
            Self::Namespace(_) | Self::Nat(_) | Self::Map(_) => {
                vec!["making a network needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN)".to_owned()]
            }
            Self::Registry(error) => error.hints(),
            Self::NoSubnet | Self::Pipe(_) | Self::Addresses(_) | Self::Names(_) => Vec::new(),
        }
    }
}

/// Why a lease's network could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// The journal's attachment cannot be read.
    #[error("the saved network attachment cannot be read")]
    Saved(#[source] serde_json::Error),
    /// The CNI plugins failed.
    #[error(transparent)]
    Cni(#[from] crabbox_net::DetachCniError),
    /// Built-in networking failed.
    #[error(transparent)]
    Nat(#[from] NatError),
    /// Another crabbox holds the host network lock, or the lock cannot be taken.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// Makes the lease's namespace.
pub fn create(path: &Path) -> Result<(), NetworkError> {
    Ok(netns::create(path)?)
}

/// Plans the attachment of an allocated lease.
pub fn plan(request: &NetworkRequest, made: &Allocated) -> Result<SavedAttach, NetworkError> {
    let dir = made.lease.dir();
    Ok(match request.mode {
        NetworkMode::Cni => SavedAttach::Cni(plan_cni(&CniSpec {
            conf_dir: request.cni_conf_dir.clone(),
            bin_dirs: request.cni_bin_dirs.clone(),
            network: request.cni_network.clone(),
            container_id: made.stored.record.vmid.clone(),
            netns: dir.netns(),
            ifname: OUTER_INTERFACE.to_owned(),
            cache_dir: dir.cni_cache(),
        })?),
        NetworkMode::Nat => SavedAttach::Nat(NatSpec {
            lease: made.lease.id().to_string(),
            tag: made.lease.id().tag(),
            netns: dir.netns(),
            ifname: OUTER_INTERFACE.to_owned(),
            subnet: made.subnet.ok_or(NetworkError::NoSubnet)?,
        }),
    })
}

/// Attaches the namespace.
pub fn attach(places: &Places, saved: &SavedAttach) -> Result<Outer, NetworkError> {
    Ok(match saved {
        SavedAttach::Cni(attachment) => attach_cni(attachment)?,
        SavedAttach::Nat(spec) => {
            let _host = registry::host_network(places)?;
            attach_nat(spec)?
        }
    })
}

/// Detaches the namespace; succeeds if nothing is attached.
pub fn detach(places: &Places, saved: &SavedAttach) -> Result<(), DetachError> {
    match saved {
        SavedAttach::Cni(attachment) => Ok(detach_cni(attachment)?),
        SavedAttach::Nat(spec) => {
            // Forwarding on the host's uplinks is shared by all leases of all state directories, so only one
            // process at a time may inspect and change it.
            let _host = registry::host_network(places)?;
            Ok(detach_nat(spec)?)
        }
    }
}

/// The mapping of the outer address onto the guest. It is computed when the outer side exists, because the
/// outer gateway is also an address of the host, and the guest may reach none of those.
pub fn mapping(netns: &Path, outer: &Outer, owner: Option<(u32, u32)>) -> Result<Inner, NetworkError> {
    let own = crabbox_host::netlink::own_addresses()?;
    let host_addresses = own.into_iter().filter_map(|address| match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    });
    Ok(Inner {
        netns: netns.to_owned(),
        tap: TAP.to_owned(),
        owner,
        outer: outer.clone(),
        policy: Policy {
            host_addresses: host_addresses.collect(),
            ..Policy::default()
        },
    })
}

/// The DNS forwarder of a guest; it ends when this is dropped.
#[derive(Debug)]
pub struct NameServer {
    stop: Option<std::io::PipeWriter>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for NameServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A forwarder that panicked has ended too, which is all that we want.
            thread.join().ok();
        }
    }
}

/// Serves DNS at the tap's address in the lease's namespace; queries go from this namespace to the host's
/// resolvers.
pub(crate) fn serve_names(netns: &Path) -> Result<NameServer, NetworkError> {
    let listeners = dns::listen(netns, dns::LISTEN)?;
    let (ended, stop) = std::io::pipe().map_err(NetworkError::Pipe)?;
    let thread = std::thread::spawn(move || {
        // The guest still runs without DNS; it notices when it sends a query.
        dns::serve(&listeners, &Resolvers::from_file(RESOLV_CONF), ended.as_fd()).ok();
    });
    Ok(NameServer {
        stop: Some(stop),
        thread: Some(thread),
    })
}

/// Makes the guest's tap in the namespace.
pub fn make_tap(netns: &Path, owner: Option<(u32, u32)>) -> Result<(), NetworkError> {
    Ok(crabbox_net::make_tap(netns, TAP, owner)?)
}

/// Maps the outer address onto the guest, and installs its policy. If the chain made a tap for the guest,
/// there is nothing to map.
pub fn map(inner: &Inner) -> Result<(), NetworkError> {
    if inner.outer.guest_tap.is_none() {
        map_outer(inner)?;
    }
    Ok(())
}

/// The guest's own side of its network.
#[derive(Debug, Clone)]
pub struct GuestSide {
    /// The tap that the VMM opens.
    pub tap: String,
    /// The guest's network configuration.
    pub seed: SeedNetwork,
}

impl GuestSide {
    /// The fixed inner network, the same for every guest.
    pub fn inner() -> Self {
        let address = Ipv4Net::new_assert(crabbox_net::GUEST_ADDRESS, crabbox_net::INNER_PREFIX);
        let gateway = crabbox_net::TAP_ADDRESS;
        let mac = crabbox_net::GUEST_MAC.to_owned();
        // The guest sends its DNS queries to the lease's forwarder, which asks the host's resolvers.
        Self {
            tap: TAP.to_owned(),
            seed: SeedNetwork {
                mac,
                address,
                gateway,
                dns: vec![gateway],
            },
        }
    }

    /// The guest's network: the inner network, or the outer address itself if the chain made a tap.
    pub fn of(outer: &Outer) -> Self {
        let inner = Self::inner();
        let Some(partner) = &outer.guest_tap else {
            return inner;
        };
        let dns = outer.dns.iter().filter_map(|dns| match dns {
            IpAddr::V4(dns) => Some(*dns),
            IpAddr::V6(_) => None,
        });
        let mac = if partner.mac.is_empty() {
            inner.seed.mac
        } else {
            partner.mac.clone()
        };
        // The kernel reports no prefix above 32.
        let address = Ipv4Net::new_assert(outer.address, outer.prefix.min(32));
        let seed = SeedNetwork {
            mac,
            address,
            gateway: outer.gateway,
            dns: dns.collect(),
        };
        Self {
            tap: partner.tap.clone(),
            seed,
        }
    }
}

impl SavedAttach {
    /// Whether the chain makes the guest's tap, so that it must run before the machine starts.
    pub(crate) fn gives_tap(&self) -> bool {
        match self {
            Self::Cni(attachment) => has_tap(&attachment.conf.plugins),
            Self::Nat(_) => false,
        }
    }
}

/// Whether the network of `request` makes the guest's tap, as far as this is known before planning.
pub fn gives_tap(request: &NetworkRequest) -> bool {
    request.mode == NetworkMode::Cni
        && crabbox_cni::load(&request.cni_conf_dir, &request.cni_network)
            .is_ok_and(|conf| has_tap(&conf.plugins))
}

fn has_tap(plugins: &[serde_json::Map<String, Value>]) -> bool {
    plugins.iter().any(|plugin| {
        plugin
            .get("type")
            .and_then(Value::as_str)
            .is_some_and(|name| name.contains("tap"))
    })
}

/// Why no /30 was found.
#[derive(Debug, thiserror::Error)]
pub enum SubnetError {
    /// The range is used up.
    #[error(transparent)]
    Full(#[from] nat::SubnetError),
    /// The host's routes cannot be read.
    #[error(transparent)]
    Routes(#[from] NetlinkError),
}

/// A free /30 of `range`: not in `taken`, and not covered by a route of the host.
pub fn choose_subnet(range: Ipv4Net, taken: &[Ipv4Net]) -> Result<Ipv4Net, SubnetError> {
    let routes = Netlink::open()?.routes()?;
    let routes: Vec<Ipv4Net> = routes.into_iter().map(|route| route.destination).collect();
    Ok(nat::choose_subnet(range, taken, &routes)?)
}

/// The attachment of a lease made by the Go program: from its CNI library's cache in the lease, or else from
/// the current configuration.
pub(crate) fn saved_of_record(record: &LeaseRecord, dir: &LeaseDir) -> Option<SavedAttach> {
    let bin_dirs = vec![record.cni_bin_dir.clone().into(), DEBIAN_CNI.into()];
    let cached = crabbox_cni::cached(&dir.cni_cache(), &record.vmid, &dir.netns(), &bin_dirs);
    if let Some(attachment) = cached.into_iter().next() {
        return Some(SavedAttach::Cni(attachment));
    }
    if record.cni_network.is_empty() {
        return None;
    }
    plan_cni(&CniSpec {
        conf_dir: record.cni_conf_dir.clone().into(),
        bin_dirs,
        network: record.cni_network.clone(),
        container_id: record.vmid.clone(),
        netns: dir.netns(),
        ifname: OUTER_INTERFACE.to_owned(),
        cache_dir: dir.cni_cache(),
    })
    .ok()
    .map(SavedAttach::Cni)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_networking_waits_for_nobody_who_allocates() {
        let root = tempfile::tempdir().unwrap();
        let places = Places::below(root.path());
        std::fs::create_dir_all(places.leases()).unwrap();
        // A process that detaches holds a lease's lock, and one that allocates may be waiting for that lock.
        let _allocating = crabbox_store::locks::allocation(&places).unwrap();
        let host = root.path().join("host");
        netns::create(&host).unwrap();
        let saved = SavedAttach::Nat(NatSpec {
            lease: "cbx_000000000001".to_owned(),
            tag: "00000001".to_owned(),
            netns: root.path().join("netns"),
            ifname: OUTER_INTERFACE.to_owned(),
            subnet: "10.100.0.0/30".parse().unwrap(),
        });
        let detached = netns::within(&host, || detach(&places, &saved));
        netns::remove(&host).unwrap();
        detached.unwrap().unwrap();
    }
}
