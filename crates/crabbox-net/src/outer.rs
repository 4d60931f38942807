//! The outer side of a lease's network: the result that every network mode must yield. It holds values only
//! and must never look at the host.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// The source of a lease's outer address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The CNI plugins of the host.
    Cni,
    /// Our own veth pair and masquerade.
    Nat,
    /// CNI if its network loads, otherwise our own.
    #[default]
    Auto,
}

/// The outer side as it was set up, inside the namespace of the lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outer {
    /// The interface in the namespace.
    pub ifname: String,
    /// The address at which the host reaches the guest.
    pub address: Ipv4Addr,
    /// The prefix length of its subnet.
    pub prefix: u8,
    /// The next hop; with the usual chains, the host itself.
    pub gateway: Ipv4Addr,
    /// Name servers that the network suggests; often none.
    pub dns: Vec<IpAddr>,
    /// The MTU of the interface, in bytes.
    pub mtu: u32,
    /// Set if the chain ended in `tc-redirect-tap` or similar: the guest itself has `address`, on this tap.
    /// Then there is no inner network, [`crate::map_inner`] has nothing to do, and our policy does not apply.
    pub guest_tap: Option<TapPartner>,
}

impl Outer {
    /// The subnet of the outer address.
    pub fn subnet(&self) -> Ipv4Net {
        Ipv4Net::new(self.address, self.prefix)
            .unwrap_or_else(|_| Ipv4Net::from(self.address))
            .trunc()
    }
}

/// A tap that the chain made for the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapPartner {
    /// Its name in the namespace: the host device of the VMM.
    pub tap: String,
    /// The hardware address that the guest must use; empty if the chain does not set one.
    pub mac: String,
}
