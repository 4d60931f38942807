//! Forwards one query to the host's resolvers, one after the other until one has an answer.
//!
//! Every query gets its own socket and random transaction id; a forger would have to guess both. An answer
//! that does not match the query must never reach the guest.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::message::{self, Kind, NOTIMP, SERVFAIL};
use super::{LONGEST, Resolvers, left, read_framed, write_framed};

/// Total time for a query of a guest; the guest's own resolver retries after five seconds.
const PATIENCE: Duration = Duration::from_secs(4);

/// One way to query one resolver: address, query, time limit.
pub(super) type Transport = fn(SocketAddr, &[u8], Duration) -> io::Result<Vec<u8>>;

/// The reply for the guest; `None` if its message was not a query.
pub(super) fn answer(question: &[u8], resolvers: &Resolvers, way: Transport) -> Option<Vec<u8>> {
    match message::kind(question) {
        Kind::Noise => None,
        Kind::Other => message::refusal(question, NOTIMP),
        Kind::Question(_) => {
            let id = message::id(question)?;
            let found = ask_all(question, resolvers, way).map(|answer| message::with_id(answer, id));
            found.or_else(|| message::refusal(question, SERVFAIL))
        }
    }
}

fn ask_all(question: &[u8], resolvers: &Resolvers, way: Transport) -> Option<Vec<u8>> {
    let list = resolvers.now();
    let share = PATIENCE / u32::try_from(list.len()).unwrap_or(u32::MAX).max(1);
    let mut setback = None;
    for resolver in list {
        let id = crabbox_host::random::bytes().ok()?;
        // If a resolver fails or does not answer in time, try the next one.
        match way(resolver, &message::with_id(question.to_vec(), id), share) {
            Ok(answer) if !message::is_setback(&answer) => return Some(answer),
            Ok(answer) => setback = Some(answer),
            Err(_) => {}
        }
    }
    setback
}

/// Queries over UDP.
pub(super) fn over_udp(resolver: SocketAddr, question: &[u8], limit: Duration) -> io::Result<Vec<u8>> {
    let any = match resolver.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let deadline = Instant::now() + limit;
    let socket = UdpSocket::bind((any, 0))?;
    // A connected socket accepts packets from this resolver only, and reports an error if nothing listens
    // there.
    socket.connect(resolver)?;
    socket.send(question)?;
    let mut buffer = vec![0; LONGEST];
    loop {
        socket.set_read_timeout(Some(left(deadline)?))?;
        let length = socket.recv(&mut buffer)?;
        if message::answers(&buffer[..length], question) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

/// Queries over TCP.
pub(super) fn over_tcp(resolver: SocketAddr, question: &[u8], limit: Duration) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + limit;
    let mut stream = TcpStream::connect_timeout(&resolver, limit)?;
    write_framed(&mut stream, question, deadline)?;
    let answer = read_framed(&mut stream, deadline)?;
    if message::answers(&answer, question) {
        Ok(answer)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}
