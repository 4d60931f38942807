//! Links: created, changed, moved and deleted by name. A change must never affect another link that has got
//! the name meanwhile.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};

use super::{Netlink, NetlinkError};

/// One network link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index in its namespace.
    pub index: u32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// The label that its owner gave it.
    pub alias: Option<String>,
    /// The kernel's kind: `veth`, `bridge`, `tun` …; `None` for a hardware device.
    pub kind: Option<String>,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it has a carrier: for a tap, a program that holds it open.
    pub carrier: bool,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// Its hardware address.
    pub mac: Vec<u8>,
}

impl Netlink {
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

    /// Sets the MTU of a link, in bytes.
    pub fn set_mtu(&mut self, name: &str, mtu: u32) -> Result<(), NetlinkError> {
        let mut message = self.named(name)?;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.change(
            format!("set the MTU of the link {name} to {mtu}"),
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

    /// Deletes a link; `false` if it did not exist.
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
            // It was removed between the lookup and the deletion.
            Err(NetlinkError::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn existing(&mut self, name: &str) -> Result<Link, NetlinkError> {
        self.link(name)?.ok_or_else(|| NetlinkError::NoSuchLink {
            name: name.to_owned(),
        })
    }

    /// A request for the link that is currently called `name`.
    fn named(&mut self, name: &str) -> Result<LinkMessage, NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = self.existing(name)?.index;
        Ok(message)
    }
}

fn link_of(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        alias: None,
        kind: None,
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: false,
        mtu: 0,
        mac: Vec::new(),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Carrier(carrier) => link.carrier = carrier != 0,
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
