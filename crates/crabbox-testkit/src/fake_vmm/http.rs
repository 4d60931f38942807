//! The subset of HTTP that a client of Firecracker uses.

use std::io::Read;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) body: Vec<u8>,
}

impl Request {
    pub(super) fn endpoint(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// Reads the next request; `None` when the client has gone or does not speak HTTP.
pub(super) fn read_request(stream: &mut impl Read, unread: &mut Vec<u8>) -> Option<Request> {
    let head_end = loop {
        if let Some(at) = unread.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        fill(stream, unread)?;
    };
    let head = String::from_utf8(unread[..head_end].to_vec()).ok()?;
    let mut lines = head.lines();
    let mut words = lines.next()?.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let is_length = |line: &&str| line.to_ascii_lowercase().starts_with("content-length:");
    let length = match lines.find(is_length) {
        Some(line) => line.split_once(':')?.1.trim().parse::<usize>().ok()?,
        None => 0,
    };
    while unread.len() < head_end + length {
        fill(stream, unread)?;
    }
    let rest = unread.split_off(head_end + length);
    let mut message = std::mem::replace(unread, rest);
    Some(Request {
        method,
        path,
        body: message.split_off(head_end),
    })
}

fn fill(stream: &mut impl Read, unread: &mut Vec<u8>) -> Option<()> {
    let mut block = [0; 4096];
    let count = stream.read(&mut block).ok().filter(|count| *count > 0)?;
    unread.extend_from_slice(&block[..count]);
    Some(())
}
