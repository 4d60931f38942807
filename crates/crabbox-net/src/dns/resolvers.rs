//! The resolvers to which queries are forwarded. They are read again for each query, because a laptop may
//! change its network; reading must never fail.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// The C library uses at most three (`MAXNS` of `resolv.h`).
const MOST: usize = 3;

/// The port of resolvers.
const PORT: u16 = 53;

/// The resolvers to query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolvers {
    source: Source,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Fixed(Vec<SocketAddr>),
    File(PathBuf),
}

impl Resolvers {
    /// A fixed list.
    pub fn fixed(addresses: Vec<SocketAddr>) -> Self {
        Self {
            source: Source::Fixed(addresses),
        }
    }

    /// The resolvers in the host's `resolv.conf` at the time of the query.
    pub fn from_file(resolv_conf: impl Into<PathBuf>) -> Self {
        Self {
            source: Source::File(resolv_conf.into()),
        }
    }

    /// The resolvers as they are now.
    pub(super) fn now(&self) -> Vec<SocketAddr> {
        match &self.source {
            Source::Fixed(addresses) => addresses.clone(),
            // Like the C library: if the file is missing or names none, use a resolver on this host.
            Source::File(path) => parse(&std::fs::read_to_string(path).unwrap_or_default()),
        }
    }
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let mut found: Vec<SocketAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            // A link-local IPv6 address with a zone (after `%`) is not supported and is left out.
            let address: IpAddr = words
                .next()
                .filter(|word| *word == "nameserver")
                .and(words.next())?
                .parse()
                .ok()?;
            Some(SocketAddr::new(address, PORT))
        })
        .take(MOST)
        .collect();
    if found.is_empty() {
        found.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolv_conf_is_read_as_the_c_library_does() {
        let text = "# a comment\nsearch lan\nnameserver 127.0.0.53\n nameserver\t2001:db8::1 # trailing\n;nameserver 1.1.1.1\n\
                    nameserver fe80::1%eth0\noptions edns0\nnameserver 9.9.9.9\nnameserver 8.8.8.8\n";
        let found: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["127.0.0.53:53", "[2001:db8::1]:53", "9.9.9.9:53"]);
        assert_eq!(parse("search lan\n")[0].to_string(), "127.0.0.1:53");
        assert_eq!(
            Resolvers::from_file("/nowhere").now()[0].to_string(),
            "127.0.0.1:53"
        );
    }
}
