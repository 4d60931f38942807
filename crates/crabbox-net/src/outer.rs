//! The outer side of a lease's network: what a network mode has to yield, whichever it is.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Where a lease gets its outer address from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The CNI plugins of the host.
    Cni,
    /// Our own veth pair and masquerade.
    Nat,
    /// CNI when its network loads, else our own.
    #[default]
    Auto,
}

/// The outer side as it was set up, inside the namespace of the lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outer {
    /// The interface in the namespace.
    pub ifname: String,
    /// The address that the host reaches the guest at.
    pub address: Ipv4Addr,
    /// The prefix length of its subnet.
    pub prefix: u8,
    /// The next hop, which with the usual chains is the host itself.
    pub gateway: Ipv4Addr,
    /// Name servers that the network asks to use; often none.
    pub dns: Vec<IpAddr>,
    /// The MTU of the interface, in bytes.
    pub mtu: u32,
    /// Set when the chain ended in `tc-redirect-tap` or its like: the guest itself has `address`, on this tap. There is no inner
    /// network then, [`crate::map_inner`] has nothing to do, and no policy of ours applies.
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

/// A tap that a chain has made for the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapPartner {
    /// Its name in the namespace: the host device of the VMM.
    pub tap: String,
    /// The hardware address that the guest must use; empty when the chain leaves it open.
    pub mac: String,
}
