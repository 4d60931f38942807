//! Links, addresses and routes, spoken to the kernel over a blocking netlink socket.
//!
//! A [`Netlink`] sees the network namespace of the thread that opened it and keeps seeing it wherever it is used. It must never
//! guess: a request names one link, and a refusal carries the kernel's own answer.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// A dump that changed while it was read is read again, at most this often.
const DUMP_TRIES: usize = 5;

/// Why the kernel's network configuration could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No netlink socket.
    #[error("cannot open a netlink socket")]
    Open {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused, or the request could not be sent.
    #[error("cannot {action}")]
    Refused {
        /// What was asked, as in "create the veth pair a and b".
        action: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel's answer could not be understood.
    #[error("cannot read the kernel's answer to: {action}")]
    Answer {
        /// What was asked.
        action: String,
        /// Where the answer was strange.
        #[source]
        source: netlink_packet_core::DecodeError,
    },
    /// There is no link of that name in this namespace.
    #[error("there is no network link {name}")]
    NoSuchLink {
        /// The name.
        name: String,
    },
}

/// One network link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index in its namespace.
    pub index: u32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// The label that its owner gave it.
    pub alias: Option<String>,
    /// The kernel's word for what it is: `veth`, `bridge`, `tun` …; none for a real device.
    pub kind: Option<String>,
    /// Whether it is administratively up.
    pub up: bool,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// Its hardware address.
    pub mac: Vec<u8>,
}

/// One address on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The index of its link.
    pub link: u32,
    /// The address with its prefix.
    pub address: IpNet,
}

/// One IPv4 route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where it leads; `0.0.0.0/0` is the default route.
    pub destination: Ipv4Net,
    /// Its next hop, when it has one.
    pub gateway: Option<Ipv4Addr>,
    /// The index of the link that it leaves by.
    pub link: Option<u32>,
}

/// Whether the kernel takes `name` for a link: 1 to 15 bytes, no slash, no white space, not `.` or `..`. Quotes and control
/// characters are refused as well, which keeps a name harmless inside an nft rule.
pub fn valid_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'"' | b'\\'))
}

/// Every address of this namespace but loopback and link-local ones, each once.
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

/// A netlink socket.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket onto the network namespace of the calling thread.
    pub fn open() -> Result<Self, NetlinkError> {
        let opened = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        Ok(Self {
            socket: opened().map_err(|source| NetlinkError::Open { source })?,
            sequence: 0,
        })
    }

    /// Every link.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let answers = self.dump(
            "list the network links",
            &RouteNetlinkMessage::GetLink(LinkMessage::default()),
        )?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(link_of(message)),
                _ => None,
            })
            .collect())
    }

    /// The link called `name`.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        Ok(self.links()?.into_iter().find(|link| link.name == name))
    }

    /// Makes a veth pair with both ends in this namespace, down.
    pub fn add_veth(&mut self, name: &str, peer: &str) -> Result<(), NetlinkError> {
        let mut other = LinkMessage::default();
        other.attributes.push(LinkAttribute::IfName(peer.to_owned()));
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]));
        let action = format!("create the veth pair {name} and {peer}");
        self.change(
            action,
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Brings a link up.
    pub fn set_up(&mut self, name: &str) -> Result<(), NetlinkError> {
        let mut message = self.named(name)?;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.change(
            format!("bring up the link {name}"),
            RouteNetlinkMessage::SetLink(message),
            0,
        )
    }

    /// Takes a link down.
    pub fn set_down(&mut self, name: &str) -> Result<(), NetlinkError> {
        let mut message = self.named(name)?;
        message.header.change_mask = LinkFlags::Up;
        self.change(
            format!("take down the link {name}"),
            RouteNetlinkMessage::SetLink(message),
            0,
        )
    }

    /// Gives a link, which must be down, another name.
    pub fn rename(&mut self, name: &str, new: &str) -> Result<(), NetlinkError> {
        let mut message = self.named(name)?;
        message.attributes.push(LinkAttribute::IfName(new.to_owned()));
        self.change(
            format!("rename the link {name} to {new}"),
            RouteNetlinkMessage::SetLink(message),
            0,
        )
    }

    /// Labels a link; the label outlives a move to another namespace. At most 255 bytes.
    pub fn set_alias(&mut self, name: &str, alias: &str) -> Result<(), NetlinkError> {
        let mut message = self.named(name)?;
        message.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
        self.change(
            format!("label the link {name} as {alias}"),
            RouteNetlinkMessage::SetLink(message),
            0,
        )
    }

    /// Moves a link into another namespace. It arrives down and without addresses, with its name and label.
    pub fn move_to(&mut self, name: &str, namespace: BorrowedFd<'_>) -> Result<(), NetlinkError> {
        let mut message = self.named(name)?;
        message
            .attributes
            .push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
        let action = format!("move the link {name} to another network namespace");
        self.change(action, RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Deletes a link. `false` when there was none.
    pub fn delete_link(&mut self, name: &str) -> Result<bool, NetlinkError> {
        let message = match self.named(name) {
            Ok(message) => message,
            Err(NetlinkError::NoSuchLink { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        match self.change(
            format!("delete the link {name}"),
            RouteNetlinkMessage::DelLink(message),
            0,
        ) {
            Ok(()) => Ok(true),
            // It went between the look and the deletion.
            Err(NetlinkError::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

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

    /// The IPv4 unicast routes of every table but the kernel's own `local` one.
    pub fn routes(&mut self) -> Result<Vec<Route>, NetlinkError> {
        let mut asked = RouteMessage::default();
        asked.header.address_family = AddressFamily::Inet;
        let answers = self.dump("list the routes", &RouteNetlinkMessage::GetRoute(asked))?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) => route_of(&message),
                _ => None,
            })
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

    fn existing(&mut self, name: &str) -> Result<Link, NetlinkError> {
        self.link(name)?.ok_or_else(|| NetlinkError::NoSuchLink {
            name: name.to_owned(),
        })
    }

    /// A request about the link that is called `name` now.
    fn named(&mut self, name: &str) -> Result<LinkMessage, NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = self.existing(name)?.index;
        Ok(message)
    }

    /// Asks for a change and waits for the kernel's word on it.
    fn change(&mut self, action: String, body: RouteNetlinkMessage, flags: u16) -> Result<(), NetlinkError> {
        let sequence = match self.send(body, NLM_F_REQUEST | NLM_F_ACK | flags) {
            Ok(sequence) => sequence,
            Err(source) => return Err(NetlinkError::Refused { action, source }),
        };
        loop {
            for message in self.receive(&action)? {
                if message.header.sequence_number != sequence {
                    continue;
                }
                if let NetlinkPayload::Error(error) = message.payload {
                    return match error.code {
                        None => Ok(()),
                        Some(_) => Err(NetlinkError::Refused {
                            action,
                            source: error.to_io(),
                        }),
                    };
                }
            }
        }
    }

    /// Asks for a list. One that changed while it was read is asked for again.
    fn dump(
        &mut self,
        action: &str,
        body: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        for _ in 1..DUMP_TRIES {
            if let Some(list) = self.dump_once(action, body)? {
                return Ok(list);
            }
        }
        let source = io::Error::from(io::ErrorKind::ResourceBusy);
        self.dump_once(action, body)?
            .ok_or_else(|| NetlinkError::Refused {
                action: action.to_owned(),
                source,
            })
    }

    fn dump_once(
        &mut self,
        action: &str,
        body: &RouteNetlinkMessage,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, NetlinkError> {
        let refused = |source| NetlinkError::Refused {
            action: action.to_owned(),
            source,
        };
        let sequence = self
            .send(body.clone(), NLM_F_REQUEST | NLM_F_DUMP)
            .map_err(refused)?;
        let (mut list, mut steady) = (Vec::new(), true);
        loop {
            for message in self.receive(action)? {
                if message.header.sequence_number != sequence {
                    continue;
                }
                steady &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => list.push(inner),
                    NetlinkPayload::Done(_) => return Ok(steady.then_some(list)),
                    NetlinkPayload::Error(error) => return Err(refused(error.to_io())),
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, body: RouteNetlinkMessage, flags: u16) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(body);
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        Ok(self.sequence)
    }

    /// The messages of one datagram.
    fn receive(&mut self, action: &str) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, NetlinkError> {
        let (datagram, _) = self
            .socket
            .recv_from_full()
            .map_err(|source| NetlinkError::Refused {
                action: action.to_owned(),
                source,
            })?;
        let (mut messages, mut rest) = (Vec::new(), datagram.as_slice());
        while !rest.is_empty() {
            let message = NetlinkMessage::deserialize(rest).map_err(|source| NetlinkError::Answer {
                action: action.to_owned(),
                source,
            })?;
            // Messages are padded to four bytes; a length below the header's 16 would make no headway.
            let length = usize::try_from(message.header.length)
                .unwrap_or(usize::MAX)
                .max(16);
            rest = rest.get(length.saturating_add(3) / 4 * 4..).unwrap_or_default();
            messages.push(message);
        }
        Ok(messages)
    }
}

fn link_of(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        alias: None,
        kind: None,
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
        mac: Vec::new(),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(mac) => link.mac = mac,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = Some(kind.to_string());
                    }
                }
            }
            _ => {}
        }
    }
    link
}

fn address_of(message: &AddressMessage) -> Option<Address> {
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link `Address` is the peer's; `Local`, when it is there, is always ours.
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

fn route_of(message: &RouteMessage) -> Option<Route> {
    let mut table = u32::from(message.header.table);
    let (mut destination, mut gateway, mut link) = (Ipv4Addr::UNSPECIFIED, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Table(number) => table = *number,
            _ => {}
        }
    }
    if table == TABLE_LOCAL || message.header.address_family != AddressFamily::Inet {
        return None;
    }
    let destination = Ipv4Net::new(destination, message.header.destination_prefix_length).ok()?;
    Some(Route {
        destination,
        gateway,
        link,
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::netns;

    /// Two fresh namespaces: `work` runs inside the first and gets the second.
    fn in_namespaces<T: Send>(work: impl FnOnce(&std::path::Path) -> T + Send) -> T {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        netns::create(&one).unwrap();
        netns::create(&two).unwrap();
        let result = netns::within(&one, || work(&two));
        netns::remove(&one).unwrap();
        netns::remove(&two).unwrap();
        result.unwrap()
    }

    #[test]
    fn a_veth_pair_is_labelled_moved_addressed_routed_and_deleted() {
        in_namespaces(|two| {
            let mut netlink = Netlink::open().unwrap();
            netlink.add_veth("left", "right").unwrap();
            netlink.set_alias("right", "crabbox:test").unwrap();
            netlink.rename("right", "far").unwrap();
            netlink
                .move_to("far", std::fs::File::open(two).unwrap().as_fd())
                .unwrap();
            assert!(netlink.link("far").unwrap().is_none());
            let far = netns::within(two, || Netlink::open().unwrap().link("far").unwrap().unwrap()).unwrap();
            assert_eq!(
                (far.alias.as_deref(), far.kind.as_deref()),
                (Some("crabbox:test"), Some("veth"))
            );
            assert!(!far.up);

            netlink.set_up("left").unwrap();
            netlink
                .add_address("left", "10.9.0.1/24".parse().unwrap())
                .unwrap();
            netlink
                .add_route("192.0.2.0/24".parse().unwrap(), Ipv4Addr::new(10, 9, 0, 2))
                .unwrap();
            let left = netlink.link("left").unwrap().unwrap();
            assert!(left.up && left.mtu == 1500 && left.mac.len() == 6, "{left:?}");
            let v4: Vec<String> = netlink
                .addresses()
                .unwrap()
                .into_iter()
                .filter(|entry| entry.link == left.index && entry.address.addr().is_ipv4())
                .map(|entry| entry.address.to_string())
                .collect();
            assert_eq!(v4, ["10.9.0.1/24"]);
            let routes = netlink.routes().unwrap();
            let expected = Route {
                destination: "192.0.2.0/24".parse().unwrap(),
                gateway: Some(Ipv4Addr::new(10, 9, 0, 2)),
                link: Some(left.index),
            };
            assert!(routes.contains(&expected), "{routes:?}");
            assert!(own_addresses().unwrap().contains(&"10.9.0.1".parse().unwrap()));

            netlink.set_down("left").unwrap();
            assert!(!netlink.link("left").unwrap().unwrap().up);
            assert!(netlink.delete_link("left").unwrap());
            assert!(!netlink.delete_link("left").unwrap());
            assert!(
                netns::within(two, || Netlink::open().unwrap().link("far").unwrap())
                    .unwrap()
                    .is_none()
            );
        });
    }

    #[test]
    fn a_refusal_says_what_was_tried_and_carries_the_kernel_s_word() {
        in_namespaces(|_| {
            let mut netlink = Netlink::open().unwrap();
            netlink.add_veth("a0", "b0").unwrap();
            let error = netlink.add_veth("a0", "c0").unwrap_err();
            assert_eq!(error.to_string(), "cannot create the veth pair a0 and c0");
            let NetlinkError::Refused { source, .. } = error else {
                panic!("{error:?}")
            };
            assert_eq!(source.raw_os_error(), Some(libc::EEXIST));
            assert!(matches!(
                netlink.set_up("none").unwrap_err(),
                NetlinkError::NoSuchLink { .. }
            ));
        });
    }

    #[test]
    fn names_that_would_be_cut_or_break_a_rule_are_refused() {
        for (name, fine) in [
            ("cbx12345678", true),
            ("fifteen-bytes-x", true),
            ("sixteen-bytes-xx", false),
            ("", false),
            ("a/b", false),
            ("a b", false),
            ("a\"b", false),
            ("..", false),
        ] {
            assert_eq!(valid_name(name), fine, "{name:?}");
        }
    }
}
