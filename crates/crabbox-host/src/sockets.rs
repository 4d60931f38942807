//! Socket connections according to the kernel's socket tables, used to detect whether a machine is in use.
//!
//! It only reads: it must never open a connection itself, and a table that cannot be read is an error, never
//! an empty one.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};

/// A socket table could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", table.display())]
pub struct SocketTableError {
    /// The table.
    pub table: PathBuf,
    /// The system's error.
    #[source]
    pub source: std::io::Error,
}

/// A Unix socket with a listening server, and its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UnixUse {
    /// Whether a process listens there.
    pub listening: bool,
    /// The number of connected clients.
    pub connected: usize,
}

/// The number of established TCP connections from this network namespace to `peer`.
pub fn established_to(peer: SocketAddrV4) -> Result<usize, SocketTableError> {
    let mut count = count_tcp(&read("/proc/net/tcp")?, peer);
    // A kernel without IPv6 has no such table. Include IPv6, because a program may use an IPv6 socket for an
    // IPv4 address.
    match read("/proc/net/tcp6") {
        Ok(text) => count += count_tcp(&text, peer),
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(count)
}

/// The state of the Unix socket `path`. OpenSSH binds its control socket as `<path>.<16 letters>` and renames
/// it; the table keeps showing the first name.
pub fn unix_use(path: &Path) -> Result<UnixUse, SocketTableError> {
    Ok(parse_unix(&read("/proc/net/unix")?, &path.to_string_lossy()))
}

fn read(table: &str) -> Result<String, SocketTableError> {
    match std::fs::read(table) {
        // The path of a bound socket may contain any bytes.
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(source) => Err(SocketTableError {
            table: table.into(),
            source,
        }),
    }
}

/// Parses lines of `/proc/net/tcp` (proc(5)): the third word is the peer, the fourth the state, 01 is
/// ESTABLISHED.
fn count_tcp(text: &str, peer: SocketAddrV4) -> usize {
    let is_peer = |word: &str| {
        let Some((address, port)) = word.split_once(':') else {
            return false;
        };
        let mapped = address
            .strip_prefix("0000000000000000FFFF0000")
            .unwrap_or(address);
        mapped.len() == 8
            && u32::from_str_radix(mapped, 16)
                .is_ok_and(|number| Ipv4Addr::from(number.to_ne_bytes()) == *peer.ip())
            && u16::from_str_radix(port, 16) == Ok(peer.port())
    };
    text.lines()
        .skip(1)
        .filter(|line| {
            let mut words = line.split_ascii_whitespace().skip(2);
            words.next().is_some_and(is_peer) && words.next() == Some("01")
        })
        .count()
}

/// Parses lines of `/proc/net/unix`: number, references, protocol, flags, type, state, inode, path. A
/// listening socket has the flag 00010000; an accepted connection has the same path, in state 03.
fn parse_unix(text: &str, path: &str) -> UnixUse {
    let mut found = UnixUse::default();
    for line in text.lines().skip(1) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, _, _, flags, _, state, _, name] = words.as_slice() else {
            continue;
        };
        let is_it = *name == path
            || name
                .strip_prefix(path)
                .and_then(|rest| rest.strip_prefix('.'))
                .is_some_and(|rest| {
                    rest.len() == 16 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
                });
        if is_it {
            found.listening |= *flags == "00010000";
            found.connected += usize::from(*flags != "00010000" && *state == "03");
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::Duration;

    #[test]
    fn connections_to_a_peer_are_counted_while_they_stand() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(peer) = listener.local_addr().unwrap() else {
            panic!("an IPv4 listener");
        };
        assert_eq!(established_to(peer).unwrap(), 0);
        let first = TcpStream::connect(peer).unwrap();
        // Through an IPv6 socket: the mapped address.
        let mapped = (peer.ip().to_ipv6_mapped(), peer.port());
        let second = TcpStream::connect(mapped).ok();
        assert_eq!(established_to(peer).unwrap(), 1 + usize::from(second.is_some()));
        // Shut down, because closing is not enough: a process that another test is just starting may have
        // copies of the descriptors.
        for stream in std::iter::once(first).chain(second) {
            stream.shutdown(std::net::Shutdown::Both).unwrap();
        }
        assert_eq!(established_to(peer).unwrap(), 0);
    }

    #[test]
    fn a_listening_socket_is_told_from_its_connections() {
        let dir = tempfile::tempdir().unwrap();
        let (bound, path) = (
            dir.path().join("control.0123456789abcdef"),
            dir.path().join("control"),
        );
        assert_eq!(unix_use(&path).unwrap(), UnixUse::default());
        let listener = UnixListener::bind(&bound).unwrap();
        std::fs::rename(&bound, &path).unwrap();
        let quiet = UnixUse {
            listening: true,
            connected: 0,
        };
        assert_eq!(unix_use(&path).unwrap(), quiet);
        let client = UnixStream::connect(&path).unwrap();
        let server = listener.accept().unwrap();
        assert_eq!(
            unix_use(&path).unwrap(),
            UnixUse {
                connected: 1,
                ..quiet
            }
        );
        drop((client, server));
        // A process that another test is just starting has copies of the descriptors until its exec.
        let gone = || (unix_use(&path).unwrap() == quiet).then_some(());
        clock::poll_until(Duration::from_secs(10), gone).unwrap();
        assert_eq!(unix_use(&dir.path().join("contro")).unwrap(), UnixUse::default());
    }

    #[test]
    fn only_established_connections_to_that_port_count() {
        let table = "  sl  local_address rem_address   st tx_queue\n\
             0: 0100007F:0016 057FA8C0:0016 01 00000000:00000000\n\
             1: 0100007F:0017 057FA8C0:0016 06 00000000:00000000\n\
             2: 057FA8C0:0016 0100007F:9999 01 00000000:00000000\n\
             3: 0100007F:0018 057FA8C0:0017 01 00000000:00000000\n";
        let peer = SocketAddrV4::new(Ipv4Addr::new(192, 168, 127, 5), 22);
        // The table uses the machine's byte order; the sample is from a little-endian machine.
        assert_eq!(
            count_tcp(table, peer),
            usize::from(cfg!(target_endian = "little"))
        );
    }
}
