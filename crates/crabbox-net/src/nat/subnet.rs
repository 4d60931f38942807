//! The choice of a free /30: a pure function of lists that the caller has read. It must never touch the host.

use ipnet::Ipv4Net;

use crate::inner::{inner_net, overlaps};

/// The default range: 16384 subnets, in a part of 10/8 that few sites use.
pub const DEFAULT_RANGE: &str = "10.213.0.0/16";

/// Why there is no subnet for one more lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// The range is smaller than one lease needs.
    #[error("the NAT range {range} is too small; it must hold at least one /30")]
    TooSmall {
        /// The range.
        range: Ipv4Net,
    },
    /// Every /30 is taken.
    #[error("there is no free /30 in the NAT range {range}: {leases} are used by leases{}", shadows(.routes))]
    Full {
        /// The range.
        range: Ipv4Net,
        /// How many are in use.
        leases: usize,
        /// Routes of the host that lead into the range.
        routes: Vec<Ipv4Net>,
    },
}

fn shadows(routes: &[Ipv4Net]) -> String {
    if routes.is_empty() {
        return String::new();
    }
    let list: Vec<_> = routes.iter().map(ToString::to_string).collect();
    format!(
        ", and the host has routes to {}; choose a range that it has none to",
        list.join(", ")
    )
}

/// The lowest /30 of `range` that overlaps neither `in_use` (the subnets of recorded leases) nor `routes`
/// (the host's routes, without the default route) nor the inner network of every lease. A route that covers
/// the whole range, such as a VPN's route to 10/8, leaves none.
pub fn choose_subnet(range: Ipv4Net, in_use: &[Ipv4Net], routes: &[Ipv4Net]) -> Result<Ipv4Net, SubnetError> {
    let routes: Vec<Ipv4Net> = routes
        .iter()
        .filter(|route| route.prefix_len() > 0 && overlaps(**route, range))
        .copied()
        .collect();
    let mut all = range
        .trunc()
        .subnets(30)
        .map_err(|_| SubnetError::TooSmall { range })?;
    all.find(|subnet| {
        !in_use
            .iter()
            .chain(&routes)
            .chain([&inner_net()])
            .any(|taken| overlaps(*taken, *subnet))
    })
    .ok_or_else(|| {
        let leases = in_use.iter().filter(|subnet| range.contains(*subnet)).count();
        let routes = routes
            .into_iter()
            .filter(|route| !in_use.contains(route))
            .collect();
        SubnetError::Full {
            range,
            leases,
            routes,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(list: &[&str]) -> Vec<Ipv4Net> {
        list.iter().map(|net| net.parse().unwrap()).collect()
    }

    fn choose(range: &str, in_use: &[&str], routes: &[&str]) -> Result<String, SubnetError> {
        choose_subnet(range.parse().unwrap(), &nets(in_use), &nets(routes)).map(|net| net.to_string())
    }

    #[test]
    fn the_lowest_free_one_is_taken_and_a_gap_is_filled() {
        assert_eq!(
            choose(DEFAULT_RANGE, &[], &["0.0.0.0/0"]).unwrap(),
            "10.213.0.0/30"
        );
        assert_eq!(
            choose(DEFAULT_RANGE, &["10.213.0.0/30", "10.213.0.8/30"], &[]).unwrap(),
            "10.213.0.4/30"
        );
    }

    #[test]
    fn a_route_into_the_range_is_stepped_over_whether_it_is_broader_or_narrower() {
        assert_eq!(
            choose(DEFAULT_RANGE, &[], &["10.213.0.0/24"]).unwrap(),
            "10.213.1.0/30"
        );
        assert_eq!(
            choose(DEFAULT_RANGE, &[], &["10.213.0.1/32"]).unwrap(),
            "10.213.0.4/30"
        );
        assert_eq!(
            choose(DEFAULT_RANGE, &[], &["192.168.0.0/16"]).unwrap(),
            "10.213.0.0/30"
        );
    }

    #[test]
    fn the_inner_network_is_never_handed_out() {
        assert_eq!(choose("172.16.0.0/16", &[], &[]).unwrap(), "172.16.0.4/30");
    }

    #[test]
    fn a_full_range_says_by_whom() {
        let full = choose("10.0.0.0/29", &["10.0.0.0/30", "10.0.0.4/30"], &["10.0.0.0/30"]).unwrap_err();
        assert_eq!(
            full,
            SubnetError::Full {
                range: "10.0.0.0/29".parse().unwrap(),
                leases: 2,
                routes: Vec::new()
            }
        );
        let shadowed = choose(DEFAULT_RANGE, &[], &["10.0.0.0/8"])
            .unwrap_err()
            .to_string();
        assert!(shadowed.contains("routes to 10.0.0.0/8"), "{shadowed}");
        assert!(matches!(
            choose("10.0.0.0/31", &[], &[]).unwrap_err(),
            SubnetError::TooSmall { .. }
        ));
    }
}
