//! Redirects packets that arrive at one link, as if they had arrived at another one (`tc-mirred(8)`).
//!
//! The change belongs to the first link and disappears with it; it must never change the second link.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType,
    TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption,
    TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use super::{Netlink, NetlinkError};

/// The queueing discipline for incoming packets.
const INGRESS: &str = "ingress";
/// `ETH_P_ALL` of `linux/if_ether.h`.
const EVERY_PROTOCOL: u16 = 3;

impl Netlink {
    /// Redirects every frame that arrives at `from` to `to`. `from` must be a link of the caller.
    pub fn redirect_arrivals(&mut self, from: &str, to: &str) -> Result<(), NetlinkError> {
        let (source, target) = (self.existing(from)?.index, self.existing(to)?.index);
        let action = || format!("redirect to the link {to} what arrives at {from}");
        let mut message = TcMessage::with_index(source.cast_signed());
        message.header.handle = queue();
        message.header.parent = TcHandle::INGRESS;
        message.attributes.push(TcAttribute::Kind(INGRESS.to_owned()));
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.change(action(), RouteNetlinkMessage::NewQueueDiscipline(message), flags)?;

        let mut message = TcMessage::with_index(source.cast_signed());
        message.header.parent = queue();
        // The upper half is the filter's priority, the lower half the protocol in network byte order.
        message.header.info = (1 << 16) | u32::from(EVERY_PROTOCOL.to_be());
        message
            .attributes
            .push(TcAttribute::Kind(TcFilterU32::KIND.to_owned()));
        message.attributes.push(TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(everything())),
            TcOption::U32(TcFilterU32Option::Action(vec![arrive_at(target)])),
        ]));
        self.change(action(), RouteNetlinkMessage::NewTrafficFilter(message), flags)
    }
}

/// The fixed handle `ffff:` of the ingress discipline.
fn queue() -> TcHandle {
    TcHandle::from(0xffff_0000)
}

/// A selector that matches every packet: one key with an empty mask.
fn everything() -> TcU32Selector {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    selector
}

fn arrive_at(link: u32) -> TcAction {
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::IngressRedir;
    mirror.ifindex = link;
    let mut action = TcAction::default();
    // Actions are numbered from one.
    action.tab = 1;
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    action
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use super::*;
    use crate::clock::poll_until;
    use crate::netns::Scratch;
    use crate::tap;

    /// Number of frames that the link has received, as counted by the kernel.
    fn arrived(link: &str) -> u64 {
        let shown = crate::command::Cmd::new("ip")
            .args(["-s", "-o", "link", "show", link])
            .run()
            .unwrap()
            .stdout_text();
        let counts = shown.split("RX:").nth(1).unwrap().split('\\').nth(1).unwrap();
        counts.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn what_arrives_at_one_link_is_taken_for_an_arrival_at_the_other() {
        let work = || {
            let mut netlink = Netlink::open().unwrap();
            let mut frames = tap::open("upl0").unwrap();
            netlink.add_veth("real", "peer").unwrap();
            netlink
                .add_address("real", "192.0.2.1/24".parse().unwrap())
                .unwrap();
            for link in ["upl0", "real", "peer"] {
                netlink.set_up(link).unwrap();
            }
            netlink.redirect_arrivals("upl0", "real").unwrap();
            let socket = std::net::UdpSocket::bind("192.0.2.1:4000").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let own = netlink.link("upl0").unwrap().unwrap();
            // A broadcast needs no hardware address; the header's checksum was computed by hand for this
            // packet.
            let mut frame = own.mac.clone();
            frame.extend([2, 0, 0, 0, 0, 1, 8, 0]);
            frame.extend([0x45, 0, 0, 30, 0, 0, 0, 0, 64, 17, 0xf6, 0xc4]);
            frame.extend([192, 0, 2, 9, 192, 0, 2, 1]);
            frame.extend([0x0f, 0xa1, 0x0f, 0xa0, 0, 10, 0, 0, b'o', b'k']);
            frames.write_all(&frame).unwrap();
            let mut word = [0; 8];
            let (length, _) = socket.recv_from(&mut word).unwrap();
            assert_eq!(&word[..length], b"ok");
            // The second link is unchanged and has no queueing discipline of ours.
            let shown = |link| {
                let arguments = ["qdisc", "show", "dev", link];
                let shown = crate::command::Cmd::new("tc").args(arguments).run();
                shown.unwrap().stdout_text()
            };
            assert!(shown("upl0").contains("ingress"), "{}", shown("upl0"));
            assert!(!shown("real").contains("ingress"), "{}", shown("real"));
            assert!(poll_until(Duration::from_secs(5), || (arrived("upl0") > 0).then_some(())).is_some());
        };
        Scratch::new().unwrap().within(work).unwrap();
    }
}
