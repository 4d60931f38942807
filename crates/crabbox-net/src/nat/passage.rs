//! Tests whether this host forwards the packets of a lease, with packets of a test connection that do not
//! leave the host.
//!
//! ```text
//!   lease side (scratch)             host                                            far side (this process)
//!   veth0 10.213.x.2 -- cbx<tag> --- every filter of the host --- a real uplink ~~~~ upl<tag><n>, a tap that answers
//! ```
//! The packets have interface names and addresses like a lease's. They pass every filter up to the point
//! where they would leave through the uplink, and are redirected to one of our taps there; its reply arrives
//! at the uplink as if it came from outside. No packet may leave the host: packets that are not redirected
//! are dropped after all other filters. Links and tables are removed before the result is returned. If this
//! process dies first, the links disappear with it, and `cleanup` finds the tables by their name.

mod guard;
mod peer;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use crabbox_host::netlink::{Netlink, NetlinkError};
use crabbox_host::netns::{self, NetnsError, Scratch};
use crabbox_host::tap::{self, TapError};
use crabbox_host::{clock, random};
use ipnet::{IpNet, Ipv4Net};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::{DEFAULT_RANGE, LINK, NatError, NatSpec, forwarding, net};
use crate::inner::overlaps;
use guard::{Counted, Guard};
use peer::Peer;

pub(super) use guard::remove_at_uplinks;

/// Name prefix of the links to the far side. Rules for lease interfaces must not match them.
const UPLINK: &str = "upl";
/// The address range of the far side: a documentation range, which is not routed (RFC 5737).
const FAR: &str = "198.51.100.0/24";
/// The destination port, to which firewalls usually permit connections.
const PORT: u16 = 443;
/// Time limit of a connection. It takes less than a millisecond; the kernel resends a lost first packet after
/// a second.
const PATIENCE: Duration = Duration::from_millis(1300);
/// Time of the first check of how far a connection has come.
const GLANCE: Duration = Duration::from_millis(50);
/// How long the kernel resolves the hardware address of a next hop (three requests, one per second). Until
/// then the packet is queued.
const NEIGHBOUR: Duration = Duration::from_millis(3300);
/// Maximum number of links that are tried without a default route, and the time after which no further link
/// is tried.
const MOST_NEIGHBOURS: usize = 4;
const LONG: Duration = Duration::from_secs(4);

/// The netfilter hook at which a packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Where it enters the host.
    Prerouting,
    /// Where it is forwarded between two links; the routing decision comes just before.
    Forward,
    /// Where it leaves the host.
    Postrouting,
    /// At the link itself, after connection tracking.
    Egress,
}

/// The result for a packet of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// A connection was established, so packets pass in both directions.
    Open,
    /// Outgoing packets pass to a real uplink of this host; replies could not be tested, and some rules name
    /// the uplink.
    OpenByUplink,
    /// Outgoing packets are dropped or rejected.
    Outward(Hook),
    /// Outgoing packets pass, the reply does not.
    Reply(Hook),
}

/// Why the test could not be run.
#[derive(Debug, thiserror::Error)]
pub enum PassageError {
    /// The namespaces could not be made or entered: this needs root.
    #[error("cannot send a packet through a network namespace")]
    Namespace {
        /// The underlying error.
        #[from]
        source: NetnsError,
    },
    /// A link or an address could not be configured.
    #[error("cannot set up the links of the forwarding test")]
    Link {
        /// The underlying error.
        #[from]
        source: NetlinkError,
    },
    /// The tap device could not be made.
    #[error("cannot set up the far side of the forwarding test")]
    Tap {
        /// The underlying error.
        #[from]
        source: TapError,
    },
    /// Forwarding or the table could not be configured.
    #[error("cannot set up the rules of the forwarding test")]
    Rules {
        /// The underlying error.
        #[from]
        source: NatError,
    },
    /// There is no free subnet.
    #[error("the host has routes to every subnet of {range}")]
    Addresses {
        /// The range.
        range: Ipv4Net,
    },
    /// A socket, or random bytes from the kernel, could not be obtained.
    #[error("cannot prepare a connection")]
    System {
        /// The system's error.
        #[from]
        source: io::Error,
    },
}

/// Tests whether a lease would reach the internet. Needs root, and some seconds if packets are dropped.
pub fn passage() -> Result<Passage, PassageError> {
    let way = Way::build()?;
    let began = Instant::now();
    let (mut dropped, mut unseen) = (None, false);
    for target in outside()? {
        match way.through_an_uplink(target)? {
            Seen::Connected => return way.remove().map(|()| Passage::Open),
            Seen::Dropped(verdict) => dropped = dropped.or(Some(verdict)),
            Seen::Sent => unseen = true,
        }
        if began.elapsed() > LONG {
            break;
        }
    }
    let verdict = match dropped {
        Some(dropped) => dropped,
        // The reply could not be tested through any uplink, so use one of our links instead. A rule that
        // names the uplink drops packets to ours.
        None => match way.to_a_link_of_ours()? {
            Seen::Connected => Passage::Open,
            Seen::Dropped(Passage::Outward(_)) if unseen => Passage::OpenByUplink,
            Seen::Dropped(verdict) => verdict,
            Seen::Sent => Passage::Reply(Hook::Prerouting),
        },
    };
    way.remove()?;
    Ok(verdict)
}

/// The result of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Connected,
    /// The outgoing packet has passed every filter; the reply could not be tested, or not on its whole path.
    Sent,
    Dropped(Passage),
}

/// The lease side of the path: a namespace, and a link to it with the rules of a lease.
#[derive(Debug)]
struct Way {
    spec: NatSpec,
    space: Scratch,
    host: Ipv4Addr,
    lease: Ipv4Addr,
}

impl Way {
    fn build() -> Result<Self, PassageError> {
        // It is also the mark of our packets, and zero is none.
        let drawn = u32::from_le_bytes(random::bytes()?) | 1;
        let subnet = free(range(DEFAULT_RANGE), &routes()?, drawn as usize)?;
        let spec = NatSpec {
            lease: String::new(),
            tag: format!("{drawn:08x}"),
            netns: std::path::PathBuf::new(),
            ifname: "veth0".to_owned(),
            subnet,
        };
        let (host, lease) = spec.ends()?;
        let (name, target) = (spec.link(), netns::current()?);
        let space = Scratch::new()?;
        space.within(|| -> Result<(), NetlinkError> {
            let mut netlink = Netlink::open()?;
            netlink.add_veth(&name, &spec.ifname)?;
            netlink.add_address(&spec.ifname, net(lease, subnet.prefix_len()))?;
            netlink.set_up(&spec.ifname)?;
            netlink.move_to(&name, target.as_fd())
        })??;
        let way = Self {
            spec,
            space,
            host,
            lease,
        };
        // From here on, dropping `way` on an error removes everything. Nothing may be forwarded before the
        // rules are loaded.
        Guard::closed(&way.spec, way.lease).load()?;
        way.set_up()?;
        Ok(way)
    }

    /// Sets the host's end up. The namespace's own route comes last: it needs a link that is up on both ends.
    fn set_up(&self) -> Result<(), PassageError> {
        let (mut netlink, name) = (Netlink::open()?, self.spec.link());
        netlink.add_address(&name, net(self.host, self.spec.subnet.prefix_len()))?;
        forwarding::of_own_link(&name)?;
        netlink.set_up(&name)?;
        self.space
            .within(|| Netlink::open()?.add_route(Ipv4Net::default(), self.host))??;
        Ok(())
    }

    /// Tests a connection to `target` through the uplink that the host's routes select.
    fn through_an_uplink(&self, target: Ipv4Addr) -> Result<Seen, PassageError> {
        let mut far = Vec::new();
        for (number, uplink) in uplinks()?.into_iter().enumerate() {
            let link = format!("{UPLINK}{}{number}", self.spec.tag);
            // If the link cannot be made (a kernel without `act_mirred`), packets to it are dropped, and no
            // reply comes.
            far.extend(Far::at(link, Some(uplink)).ok());
        }
        let attempt = Attempt::new(self, target)?;
        let guard = Guard::closed(&self.spec, self.lease).but(target, attempt.port);
        let mut held = guard.clone().handing_on(&far);
        if held.load().is_err() {
            // This nft or kernel does not know the egress hook: nothing is redirected, and no reply comes.
            held = guard;
            held.load()?;
            far.clear();
        }
        let met = |far: &[Far]| far.iter().find(|far| far.peer.was_met()).map(|far| far.forwards);
        let mut connected = attempt.connect(GLANCE)?;
        let mut counted = held.counted()?;
        // A reply that has arrived but is not forwarded will not get any further.
        let is_over = met(&far) == Some(false) && counted.back_prerouting > 0;
        if !connected && !is_over {
            connected = attempt.wait(PATIENCE)?;
            counted = held.counted()?;
        }
        let waits = counted.out_postrouting > 0 && counted.out_egress == 0 && !far.is_empty();
        if !connected && waits {
            // The packet waits for the hardware address of a next hop, which may never be found. If the guard
            // were removed now, the packet might leave the host.
            connected = attempt.wait(NEIGHBOUR)?;
            counted = held.counted()?;
        }
        drop(attempt);
        let seen = match (connected, counted.outward(), met(&far)) {
            (true, ..) => Seen::Connected,
            (_, Some(hook), _) => Seen::Dropped(Passage::Outward(hook)),
            (_, None, None) if counted.out_egress > 0 => Seen::Dropped(Passage::Outward(Hook::Egress)),
            (_, None, None) => Seen::Sent,
            // The kernel does not forward a reply that arrives at an uplink with forwarding off. A lease
            // enables it while it exists; this test does not.
            (_, None, Some(false)) if counted.back_prerouting > 0 => Seen::Sent,
            (_, None, Some(_)) => Seen::Dropped(Passage::Reply(counted.back())),
        };
        // Close the guard before the uplinks' links are removed, so that no packet gets past.
        Guard::closed(&self.spec, self.lease).load()?;
        if !far.is_empty() {
            remove_at_uplinks(&self.spec.table())?;
        }
        Ok(seen)
    }

    /// Tests a connection to an address that is only reachable through one of our links.
    fn to_a_link_of_ours(&self) -> Result<Seen, PassageError> {
        let subnet = free(range(FAR), &routes()?, usize::from(self.lease.octets()[3]))?;
        let mut hosts = subnet.hosts();
        let (Some(here), Some(target)) = (hosts.next(), hosts.next()) else {
            return Err(PassageError::Addresses { range: subnet });
        };
        let far = Far::at(format!("{UPLINK}{}", self.spec.tag), None)?;
        Netlink::open()?.add_address(&far.link, net(here, subnet.prefix_len()))?;
        forwarding::of_own_link(&far.link)?;
        let attempt = Attempt::new(self, target)?;
        let guard = Guard::closed(&self.spec, self.lease)
            .but(target, attempt.port)
            .letting_out(&far.link);
        guard.load()?;
        let connected = attempt.connect(PATIENCE)?;
        let counted: Counted = guard.counted()?;
        drop(attempt);
        Ok(match (connected, counted.outward()) {
            (true, _) => Seen::Connected,
            (_, Some(hook)) => Seen::Dropped(Passage::Outward(hook)),
            (_, None) => Seen::Dropped(Passage::Reply(counted.back())),
        })
    }

    /// Removes the link and the tables.
    fn remove(&self) -> Result<(), PassageError> {
        // The kernel removes a namespace with a delay after its last descriptor is closed; until then its
        // link would be visible here. Packets in flight come from that link, so remove it before the rules.
        Netlink::open()?.delete_link(&self.spec.link())?;
        guard::remove(&self.spec)?;
        Ok(())
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        // This matters only after an error, which is the one to report; a second removal finds nothing.
        self.remove().ok();
    }
}

/// A connection from the lease side, whose port is known before its first packet.
#[derive(Debug)]
struct Attempt<'a> {
    way: &'a Way,
    socket: OwnedFd,
    target: Ipv4Addr,
    port: u16,
}

impl<'a> Attempt<'a> {
    fn new(way: &'a Way, target: Ipv4Addr) -> Result<Self, PassageError> {
        let own = SocketAddr::from((way.lease, 0));
        let made = way.space.within(|| -> io::Result<_> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
            rustix::net::bind(&socket, &own)?;
            // Close with a reset, so that no connection remains here or in the host's connection tracking.
            sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
            let bound = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
            Ok((socket, bound.port()))
        })?;
        let (socket, port) = made?;
        Ok(Self {
            way,
            socket,
            target,
            port,
        })
    }

    /// Starts it, and returns whether the connection was established in time.
    fn connect(&self, patience: Duration) -> Result<bool, PassageError> {
        let target = SocketAddr::from((self.target, PORT));
        let begun = self
            .way
            .space
            .within(|| rustix::net::connect(&self.socket, &target))?;
        match begun {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::INPROGRESS) => self.wait(patience),
            Err(_) => Ok(false),
        }
    }

    /// Waits longer. A refused connection counts as not established.
    fn wait(&self, patience: Duration) -> Result<bool, PassageError> {
        let ended = clock::poll_until(patience, || {
            let refused = match sockopt::socket_error(&self.socket) {
                Ok(Ok(())) => None,
                Ok(Err(refusal)) => Some(refusal),
                Err(error) => return Some(Err(io::Error::from(error))),
            };
            if refused.is_some() {
                return Some(Ok(false));
            }
            rustix::net::getpeername(&self.socket).is_ok().then_some(Ok(true))
        });
        Ok(ended.transpose()?.unwrap_or(false))
    }
}

/// One of our links with an answering peer: in place of a real uplink's far side, or standalone.
#[derive(Debug)]
struct Far {
    link: String,
    /// The real uplink.
    uplink: Option<String>,
    /// Whether replies that arrive there are forwarded.
    forwards: bool,
    peer: Peer,
}

impl Far {
    fn at(link: String, uplink: Option<String>) -> Result<Self, PassageError> {
        let tap = tap::open(&link)?;
        let mut netlink = Netlink::open()?;
        netlink.set_up(&link)?;
        if let Some(uplink) = &uplink {
            netlink.redirect_arrivals(&link, uplink)?;
        }
        let own = netlink.link(&link)?.map(|link| link.mac).unwrap_or_default();
        let own = own.try_into().unwrap_or_default();
        Ok(Self {
            forwards: uplink.as_deref().is_none_or(forwarding::is_on),
            peer: Peer::behind(tap, own)?,
            link,
            uplink,
        })
    }
}

fn routes() -> Result<Vec<Ipv4Net>, PassageError> {
    let routes = Netlink::open()?.routes()?.into_iter();
    let nets = routes.map(|route| route.destination);
    Ok(nets.filter(|route| route.prefix_len() > 0).collect())
}

/// The links with an address that is not the host's and not made by us, by index.
fn outer_links(netlink: &mut Netlink) -> Result<Vec<(u32, String)>, NetlinkError> {
    Ok(netlink
        .links()?
        .into_iter()
        // Only Ethernet links: the peer can only handle Ethernet frames.
        .filter(|link| link.up && link.mac.len() == 6 && link.name != "lo")
        .filter(|link| !link.name.starts_with(LINK) && !link.name.starts_with(UPLINK))
        .filter(|link| crabbox_host::netlink::valid_name(&link.name))
        .map(|link| (link.index, link.name))
        .collect())
}

/// The links through which packets may leave this host: those of the default routes, or else those with
/// neighbours.
fn uplinks() -> Result<Vec<String>, PassageError> {
    let mut netlink = Netlink::open()?;
    let links = outer_links(&mut netlink)?;
    let through: Vec<u32> = netlink
        .routes()?
        .into_iter()
        .filter(|route| route.destination.prefix_len() == 0)
        .filter_map(|route| route.link)
        .collect();
    let is_one = |index: u32| through.is_empty() || through.contains(&index);
    let links = links.into_iter().filter(|(index, _)| is_one(*index));
    Ok(links.take(MOST_NEIGHBOURS).map(|(_, name)| name).collect())
}

/// Reachable addresses: one through the default route, or else a neighbour on each link.
fn outside() -> Result<Vec<Ipv4Addr>, PassageError> {
    let mut netlink = Netlink::open()?;
    let routes = netlink.routes()?;
    if routes.iter().any(|route| route.destination.prefix_len() == 0) {
        // Choose an address in the far side's range that no route to a specific subnet covers.
        let far = range(FAR);
        let near = |host: &Ipv4Addr| {
            let mut others = routes.iter().filter(|route| route.destination.prefix_len() > 0);
            others.any(|route| route.destination.contains(host))
        };
        return Ok(far.hosts().find(|host| !near(host)).into_iter().collect());
    }
    let links: Vec<u32> = outer_links(&mut netlink)?
        .into_iter()
        .map(|(index, _)| index)
        .take(MOST_NEIGHBOURS)
        .collect();
    let addresses = netlink.addresses()?.into_iter();
    let outer = addresses.filter(|own| links.contains(&own.link));
    Ok(outer
        .filter_map(|own| match own.address {
            IpNet::V4(net) => net.hosts().find(|host| *host != net.addr()),
            IpNet::V6(_) => None,
        })
        .take(MOST_NEIGHBOURS)
        .collect())
}

/// A constant range; a test checks that each of them parses.
fn range(text: &'static str) -> Ipv4Net {
    text.parse().unwrap_or_default()
}

/// A /30 of `range` that no route covers, searched from its end, because leases search from its beginning.
/// `start` separates two concurrent tests.
fn free(range: Ipv4Net, routes: &[Ipv4Net], start: usize) -> Result<Ipv4Net, PassageError> {
    let blocks: Vec<Ipv4Net> = range.trunc().subnets(30).into_iter().flatten().collect();
    let last = &blocks[blocks.len().saturating_sub(64)..];
    let shift = start.checked_rem(last.len()).unwrap_or(0);
    last.iter()
        .cycle()
        .skip(shift)
        .take(last.len())
        .find(|subnet| !routes.iter().any(|route| overlaps(*route, **subnet)))
        .copied()
        .ok_or(PassageError::Addresses { range })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_is_free_of_routes_and_none_is_invented() {
        assert_eq!(range(DEFAULT_RANGE).to_string(), DEFAULT_RANGE);
        let range = range(FAR);
        assert_eq!(range.to_string(), FAR);
        let first = free(range, &[], 0).unwrap();
        assert_eq!(first.to_string(), "198.51.100.0/30");
        let other = free(range, &[first], 0).unwrap();
        assert_eq!(other.to_string(), "198.51.100.4/30");
        assert_eq!(free(range, &[], 63).unwrap().to_string(), "198.51.100.252/30");
        assert_eq!(free(range, &[], 64).unwrap(), first);
        assert!(matches!(
            free(range, &[range], 5),
            Err(PassageError::Addresses { .. })
        ));
        let small = "10.0.0.0/31".parse().unwrap();
        assert!(matches!(free(small, &[], 5), Err(PassageError::Addresses { .. })));
    }
}
