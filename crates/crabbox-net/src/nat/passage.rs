//! Whether the packets of a lease would be forwarded on this host, found out by a connection between two throw-away namespaces.
//!
//! ```text
//!   lease side (scratch)             host                        far side (scratch)
//!   veth0 10.213.x.2 -- cbx<tag> --- every filter of the host --- upl<tag> -- veth0 198.51.100.x, listens
//! ```
//! The link on the host has a name as a lease's has, since rules match names. No packet may leave the host: a table of ours drops what goes
//! to another link than the far side's, behind all other filters, and counts it. Links and table are removed before the verdict; should we die
//! first, the namespaces end and take the links along, and `cleanup` finds the table by its name.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Duration;

use crabbox_host::netlink::{Netlink, NetlinkError};
use crabbox_host::netns::{self, NetnsError, Scratch};
use crabbox_host::random;
use ipnet::{IpNet, Ipv4Net};
use serde_json::Value;

use super::rules::{drop_table, listing, objects};
use super::{DEFAULT_RANGE, LINK, NatError, TABLE, forwarding, net};
use crate::inner::overlaps;
use crate::nft;

/// How the host's link to the far side begins. Rules for our interfaces must not match it.
const UPLINK: &str = "upl";
/// Where the addresses of the far side come from: a range for documentation, which nobody routes (RFC 5737).
const FAR: &str = "198.51.100.0/24";
/// The port that is connected to: what firewalls let out if they let anything out.
const PORT: u16 = 443;
/// How long a connection may take. It takes less than a millisecond; the kernel repeats a lost first packet after a second.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a connection is tried that cannot come about, because its packet is dropped by us.
const GLANCE: Duration = Duration::from_millis(700);
/// So many links of the host are tried where there is no default route.
const MOST_NEIGHBOURS: usize = 4;

/// What became of a packet of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// A connection came about, so packets pass in both directions.
    Open,
    /// Towards the far side nothing passed, but towards a real uplink of this host it did: rules name the uplink. Replies were not seen.
    OpenByUplink,
    /// What a lease sends is dropped or refused.
    Outward,
    /// What a lease sends passes, the reply does not.
    Reply,
}

/// Why passage could not be tried.
#[derive(Debug, thiserror::Error)]
pub enum PassageError {
    /// The namespaces could not be made or entered: this takes root.
    #[error("cannot send a packet through a network namespace")]
    Namespace {
        /// The underlying error.
        #[from]
        source: NetnsError,
    },
    /// A link or an address could not be set.
    #[error("cannot set up the links of a packet's way")]
    Link {
        /// The underlying error.
        #[from]
        source: NetlinkError,
    },
    /// Forwarding or the table could not be set.
    #[error("cannot set up the rules of a packet's way")]
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
    /// A socket or the kernel's random bytes could not be had.
    #[error("cannot prepare a connection")]
    System {
        /// The system's error.
        #[from]
        source: io::Error,
    },
}

/// Tries whether a lease would reach the internet. Takes root, and some seconds where packets are dropped.
pub fn passage() -> Result<Passage, PassageError> {
    let way = Way::build()?;
    let reached = way.connect(way.far.host, PATIENCE)?;
    let verdict = if reached {
        Passage::Open
    } else if way.counted()?.far > 0 {
        Passage::Reply
    } else if way.passes_by_uplink()? {
        Passage::OpenByUplink
    } else {
        Passage::Outward
    };
    way.remove()?;
    Ok(verdict)
}

/// One end of the way: a namespace, the link to it, and the addresses on both ends of that.
#[derive(Debug)]
struct End {
    space: Scratch,
    link: String,
    here: Ipv4Addr,
    host: Ipv4Addr,
}

impl End {
    fn build(link: String, subnet: Ipv4Net) -> Result<Self, PassageError> {
        let mut hosts = subnet.hosts();
        let (Some(here), Some(host)) = (hosts.next(), hosts.next()) else {
            return Err(PassageError::Addresses { range: subnet });
        };
        let (space, target) = (Scratch::new()?, netns::current()?);
        space.within(|| -> Result<(), NetlinkError> {
            let mut netlink = Netlink::open()?;
            netlink.add_veth(&link, "veth0")?;
            netlink.add_address("veth0", net(host, subnet.prefix_len()))?;
            netlink.set_up("veth0")?;
            netlink.move_to(&link, target.as_fd())
        })??;
        Ok(Self {
            space,
            link,
            here,
            host,
        })
    }

    /// Sets the host's end up. The namespace's own route comes last: it needs a link that is up on both ends.
    fn set_up(&self, prefix: u8) -> Result<(), PassageError> {
        let mut netlink = Netlink::open()?;
        netlink.add_address(&self.link, net(self.here, prefix))?;
        forwarding::of_own_link(&self.link)?;
        netlink.set_up(&self.link)?;
        self.space
            .within(|| Netlink::open()?.add_route(Ipv4Net::default(), self.here))??;
        Ok(())
    }
}

/// What our table has counted.
#[derive(Debug, Clone, Copy)]
struct Counted {
    /// Packets towards the far side.
    far: u64,
    /// Packets towards any other link.
    elsewhere: u64,
}

#[derive(Debug)]
struct Way {
    tag: String,
    lease: End,
    far: End,
    // The far side's socket keeps listening as long as the way is there.
    _listener: TcpListener,
}

impl Way {
    fn build() -> Result<Self, PassageError> {
        let drawn = u32::from_le_bytes(random::bytes()?);
        let (tag, start) = (format!("{drawn:08x}"), drawn as usize);
        let routes: Vec<Ipv4Net> = Netlink::open()?
            .routes()?
            .into_iter()
            .map(|route| route.destination)
            .filter(|route| route.prefix_len() > 0)
            .collect();
        let far = free(range(FAR), &routes, start)?;
        let near = free(range(DEFAULT_RANGE), &routes, start)?;
        let lease = End::build(format!("{LINK}{tag}"), near)?;
        let far = End::build(format!("{UPLINK}{tag}"), far)?;
        let listener = far
            .space
            .within(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))??;
        let way = Self {
            tag,
            lease,
            far,
            _listener: listener,
        };
        // From here on whatever fails removes what there is.
        way.guard()?;
        way.lease.set_up(near.prefix_len())?;
        way.far.set_up(near.prefix_len())?;
        Ok(way)
    }

    fn table(&self) -> String {
        format!("{TABLE}{}", self.tag)
    }

    /// Loads our table, whose chain is the last that a forwarded packet meets.
    fn guard(&self) -> Result<(), NatError> {
        let (table, lease, far) = (self.table(), &self.lease.link, &self.far.link);
        let rules = format!(
            "table ip {table} {{
  chain forward {{
    type filter hook forward priority 2147483646; policy accept;
    iifname \"{lease}\" oifname \"{far}\" counter accept
    iifname \"{lease}\" counter drop
  }}
}}
"
        );
        nft::apply("load the rules that keep a packet on this host", &rules)
            .map_err(|source| NatError::Filter { table, source })
    }

    fn counted(&self) -> Result<Counted, NatError> {
        let listed = listing(&["-j", "list", "table", "ip", &self.table()])?;
        let packets = |rule: &Value| {
            let mut parts = rule["expr"].as_array().into_iter().flatten();
            parts.find_map(|part| part["counter"]["packets"].as_u64())
        };
        let mut counts = objects(&listed, "rule").map(|rule| packets(rule).unwrap_or(0));
        Ok(Counted {
            far: counts.next().unwrap_or(0),
            elsewhere: counts.next().unwrap_or(0),
        })
    }

    /// Whether the lease's side gets a connection to `address`.
    fn connect(&self, address: Ipv4Addr, patience: Duration) -> Result<bool, PassageError> {
        let target = SocketAddr::from((address, PORT));
        Ok(self
            .lease
            .space
            .within(|| TcpStream::connect_timeout(&target, patience).is_ok())?)
    }

    /// Whether a packet gets as far as a real uplink, where our table drops it.
    fn passes_by_uplink(&self) -> Result<bool, PassageError> {
        for target in self.outside()? {
            let before = self.counted()?.elsewhere;
            self.connect(target, GLANCE)?;
            if self.counted()?.elsewhere > before {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Addresses that the host has a way to: one that the default route leads to, else a neighbour on each link.
    fn outside(&self) -> Result<Vec<Ipv4Addr>, PassageError> {
        let mut netlink = Netlink::open()?;
        let routes = netlink.routes()?;
        if routes.iter().any(|route| route.destination.prefix_len() == 0) {
            // Its range is the far side's, but no subnet of a link's.
            let far = range(FAR);
            let used = net(self.far.here, 30);
            return Ok(far
                .hosts()
                .find(|host| !used.contains(host))
                .into_iter()
                .collect());
        }
        let ours: Vec<u32> = netlink
            .links()?
            .into_iter()
            .filter(|link| link.name.starts_with(LINK) || link.name == self.far.link || link.name == "lo")
            .map(|link| link.index)
            .collect();
        let others = netlink
            .addresses()?
            .into_iter()
            .filter(|own| !ours.contains(&own.link));
        Ok(others
            .filter_map(|own| match own.address {
                IpNet::V4(net) => net.hosts().find(|host| *host != net.addr()),
                IpNet::V6(_) => None,
            })
            .take(MOST_NEIGHBOURS)
            .collect())
    }

    /// Removes links and table and reports what could not be.
    fn remove(&self) -> Result<(), PassageError> {
        let mut netlink = Netlink::open()?;
        // The kernel ends a namespace some time after its last descriptor; until then its links would be seen here.
        netlink.delete_link(&self.lease.link)?;
        netlink.delete_link(&self.far.link)?;
        drop_table(&self.table())?;
        Ok(())
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        // After an error; that error is the one to report, and a second removal finds nothing.
        self.remove().ok();
    }
}

/// A range of ours. The texts are constants, and a test reads each.
fn range(text: &'static str) -> Ipv4Net {
    text.parse().unwrap_or_default()
}

/// A /30 of `range` that no route leads into, beginning at its end: leases take from its beginning. `start` keeps two of us apart.
fn free(range: Ipv4Net, routes: &[Ipv4Net], start: usize) -> Result<Ipv4Net, PassageError> {
    let all: Vec<Ipv4Net> = range.trunc().subnets(30).into_iter().flatten().collect();
    let last = &all[all.len().saturating_sub(64)..];
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
