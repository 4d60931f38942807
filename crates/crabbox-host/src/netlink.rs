//! Links, addresses and routes over a blocking netlink socket.
//!
//! A [`Netlink`] belongs to the network namespace of the thread that opened it, whichever thread uses it. It
//! must never guess: a request names one link, and an error carries the kernel's own answer.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

mod addresses;
mod links;
mod redirect;

pub use addresses::{Address, Route, own_addresses};
pub use links::Link;

/// A list that changes while it is read is read again, at most this many times.
const DUMP_TRIES: usize = 5;

/// Why the kernel's network configuration could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The netlink socket could not be opened.
    #[error("cannot open a netlink socket")]
    Open {
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The kernel refused, or the request could not be sent.
    #[error("cannot {action}")]
    Refused {
        /// The operation, as in "create the veth pair a and b".
        action: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The kernel's answer could not be understood.
    #[error("cannot read the kernel's answer to: {action}")]
    Answer {
        /// The operation.
        action: String,
        /// The invalid part of the answer.
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

/// Whether the kernel accepts `name` for a link: 1 to 15 bytes, no slash, no white space, not `.` or `..`.
/// Quotes and control characters are refused as well, so that a name is safe inside an nft rule.
pub fn valid_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'"' | b'\\'))
}

/// A netlink socket.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
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

    /// Sends a change and waits for the kernel's reply.
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

    /// Requests a list. A list that changed while it was read is requested again.
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
            // Messages are padded to four bytes. A length below the header's 16 would make no progress.
            let length = usize::try_from(message.header.length)
                .unwrap_or(usize::MAX)
                .max(16);
            rest = rest.get(length.saturating_add(3) / 4 * 4..).unwrap_or_default();
            messages.push(message);
        }
        Ok(messages)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::netns;

    /// Runs `work` in the first of two new namespaces and passes it the second.
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

            netlink.set_mtu("left", 1400).unwrap();
            assert_eq!(netlink.link("left").unwrap().unwrap().mtu, 1400);

            let several = "route add 198.51.100.0/24 nexthop via 10.9.0.3 nexthop via 10.9.0.4";
            crate::command::Cmd::new("ip")
                .args(several.split(' '))
                .run()
                .unwrap();
            let routes = netlink.routes().unwrap();
            let mut hops = routes
                .iter()
                .filter(|route| route.destination.to_string() == "198.51.100.0/24");
            assert_eq!(hops.next().unwrap().gateway, Some(Ipv4Addr::new(10, 9, 0, 3)));
            assert_eq!(hops.next().unwrap().gateway, Some(Ipv4Addr::new(10, 9, 0, 4)));

            crate::command::Cmd::new("ip")
                .args(["link", "set", "left", "down"])
                .run()
                .unwrap();
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
