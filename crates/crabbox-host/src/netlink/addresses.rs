//! Addresses and IPv4 routes: reading and adding. Nothing is removed here; addresses and routes disappear
//! with their link.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Netlink, NetlinkError};

/// One address on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The index of its link.
    pub link: u32,
    /// The address with its prefix.
    pub address: IpNet,
}

/// One IPv4 route; a route with several next hops counts as several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Its destination; `0.0.0.0/0` is the default route.
    pub destination: Ipv4Net,
    /// Its next hop, if it has one.
    pub gateway: Option<Ipv4Addr>,
    /// The index of its outgoing link.
    pub link: Option<u32>,
}

/// Every address of this namespace except loopback and link-local ones, without duplicates.
pub fn own_addresses() -> Result<Vec<IpAddr>, NetlinkError> {
    let mut own: Vec<IpAddr> = Netlink::open()?
        .addresses()?
        .into_iter()
        .map(|entry| entry.address.addr())
        .filter(|address| match address {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        })
        .collect();
    own.sort_unstable();
    own.dedup();
    Ok(own)
}

impl Netlink {
    /// Every IPv4 and IPv6 address.
    pub fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        let asked = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.dump("list the network addresses", &asked)?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(message) => address_of(&message),
                _ => None,
            })
            .collect())
    }

    /// Gives a link an IPv4 address.
    pub fn add_address(&mut self, name: &str, address: Ipv4Net) -> Result<(), NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = address.prefix_len();
        message.header.scope = AddressScope::Universe;
        message.header.index = self.existing(name)?.index;
        message
            .attributes
            .push(AddressAttribute::Local(address.addr().into()));
        message
            .attributes
            .push(AddressAttribute::Address(address.addr().into()));
        let action = format!("give the link {name} the address {address}");
        self.change(
            action,
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// The IPv4 unicast routes of every table except the kernel's own `local` table.
    pub fn routes(&mut self) -> Result<Vec<Route>, NetlinkError> {
        let mut asked = RouteMessage::default();
        asked.header.address_family = AddressFamily::Inet;
        let answers = self.dump("list the routes", &RouteNetlinkMessage::GetRoute(asked))?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) => Some(routes_of(&message)),
                _ => None,
            })
            .flatten()
            .collect())
    }

    /// Adds a route through `gateway`, which a link of this namespace must reach.
    pub fn add_route(&mut self, destination: Ipv4Net, gateway: Ipv4Addr) -> Result<(), NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = destination.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message
            .attributes
            .push(RouteAttribute::Destination(RouteAddress::Inet(
                destination.network(),
            )));
        message
            .attributes
            .push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
        let action = format!("add the route to {destination} through {gateway}");
        self.change(
            action,
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }
}

fn address_of(message: &AddressMessage) -> Option<Address> {
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link `Address` is the peer's; `Local`, if present, is always ours.
            AddressAttribute::Local(own) => found = Some(*own),
            AddressAttribute::Address(address) if found.is_none() => found = Some(*address),
            _ => {}
        }
    }
    let address = IpNet::new(found?, message.header.prefix_len).ok()?;
    Some(Address {
        link: message.header.index,
        address,
    })
}

/// `RT_TABLE_LOCAL` of `linux/rtnetlink.h`.
const TABLE_LOCAL: u32 = 255;

/// One route for each next hop.
fn routes_of(message: &RouteMessage) -> Vec<Route> {
    let mut table = u32::from(message.header.table);
    let (mut destination, mut hops) = (Ipv4Addr::UNSPECIFIED, Vec::new());
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::MultiPath(several) => {
                hops.extend(
                    several
                        .iter()
                        .map(|hop| (gateway_of(&hop.attributes), Some(hop.interface_index))),
                );
            }
            _ => {}
        }
    }
    if table == TABLE_LOCAL || message.header.address_family != AddressFamily::Inet {
        return Vec::new();
    }
    if hops.is_empty() {
        let link = message.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        hops.push((gateway_of(&message.attributes), link));
    }
    let Ok(destination) = Ipv4Net::new(destination, message.header.destination_prefix_length) else {
        return Vec::new();
    };
    hops.into_iter()
        .map(|(gateway, link)| Route {
            destination,
            gateway,
            link,
        })
        .collect()
}

fn gateway_of(attributes: &[RouteAttribute]) -> Option<Ipv4Addr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })
}
