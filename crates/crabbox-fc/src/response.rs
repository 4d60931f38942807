//! Reading one HTTP response from a stream, exactly to its end.
//!
//! The other end is a process that a guest may have compromised: every length is bounded, a short read is
//! never taken for the end of a message, and no input can cause a panic.

use std::io::{ErrorKind, Read};

/// The longest head that is read, in bytes; Firecracker's are shorter than 200.
pub(crate) const HEAD_LIMIT: usize = 16 * 1024;

/// The longest body that is read, in bytes; the longest real one, of `GET /vm/config`, is a few KiB.
pub(crate) const BODY_LIMIT: usize = 1024 * 1024;

/// Maximum number of headers; Firecracker sends five.
const HEADER_COUNT: usize = 32;

/// One response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// The body, empty for 204.
    pub body: Vec<u8>,
}

/// Why no response could be read.
#[derive(Debug)]
pub(crate) enum ReadFailure {
    /// The stream ended before the response was complete.
    Closed,
    /// The stream's deadline passed.
    TimedOut,
    /// The bytes are not an HTTP response that Firecracker would send.
    Malformed(&'static str),
    /// Head or body is longer than this many bytes.
    TooLarge(usize),
    /// The stream failed.
    Io(std::io::Error),
}

/// Head of a response: its status, and the lengths of head and body.
struct Head {
    status: u16,
    length: usize,
    body: usize,
}

/// Reads the response that begins in `buffer` and continues in `stream`. Bytes after it stay in `buffer`.
pub(crate) fn read(stream: &mut impl Read, buffer: &mut Vec<u8>) -> Result<Response, ReadFailure> {
    let head = loop {
        if let Some(head) = parse_head(buffer)? {
            break head;
        }
        if buffer.len() >= HEAD_LIMIT {
            return Err(ReadFailure::TooLarge(HEAD_LIMIT));
        }
        fill(stream, buffer)?;
    };
    if head.body > BODY_LIMIT {
        return Err(ReadFailure::TooLarge(BODY_LIMIT));
    }
    let end = head.length + head.body;
    while buffer.len() < end {
        fill(stream, buffer)?;
    }
    let rest = buffer.split_off(end);
    let mut message = std::mem::replace(buffer, rest);
    Ok(Response {
        status: head.status,
        body: message.split_off(head.length),
    })
}

/// Adds the bytes of one read. The end of the stream is a failure, because this is called only inside a
/// message.
fn fill(stream: &mut impl Read, buffer: &mut Vec<u8>) -> Result<(), ReadFailure> {
    let mut block = [0; 4096];
    loop {
        return match stream.read(&mut block) {
            Ok(0) => Err(ReadFailure::Closed),
            Ok(count) => {
                buffer.extend_from_slice(&block[..count]);
                Ok(())
            }
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => continue,
                ErrorKind::TimedOut | ErrorKind::WouldBlock => Err(ReadFailure::TimedOut),
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Err(ReadFailure::Closed),
                _ => Err(ReadFailure::Io(error)),
            },
        };
    }
}

/// The head; `None` if it is not complete yet.
fn parse_head(bytes: &[u8]) -> Result<Option<Head>, ReadFailure> {
    let mut headers = [httparse::EMPTY_HEADER; HEADER_COUNT];
    let mut parsed = httparse::Response::new(&mut headers);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(ReadFailure::Malformed("it is not HTTP")),
    };
    let status = parsed.code.unwrap_or_default();
    if status < 200 {
        return Err(ReadFailure::Malformed(
            "it has an interim status, which was not requested",
        ));
    }
    let body = body_length(status, parsed.headers)?;
    Ok(Some(Head { status, length, body }))
}

/// The number of bytes after the head. Firecracker sends no length with 204, and one with everything else.
fn body_length(status: u16, headers: &[httparse::Header<'_>]) -> Result<usize, ReadFailure> {
    let mut found = None;
    for header in headers {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(ReadFailure::Malformed("its body comes in a transfer encoding"));
        }
        if !header.name.eq_ignore_ascii_case("content-length") {
            continue;
        }
        let digits = header.value.trim_ascii();
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return Err(ReadFailure::Malformed("its content length is not a number"));
        }
        // There are only digits, so parsing fails only for a number that is too large for any body.
        let length = std::str::from_utf8(digits)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(usize::MAX);
        if found.is_some_and(|before| before != length) {
            return Err(ReadFailure::Malformed("it has two content lengths"));
        }
        found = Some(length);
    }
    if status == 204 {
        Ok(0)
    } else {
        Ok(found.unwrap_or(0))
    }
}

#[cfg(test)]
mod tests;
