use std::io::Read;

use proptest::prelude::*;

use super::*;

/// Gives its bytes in pieces of at most `step`.
struct Pieces<'a> {
    bytes: &'a [u8],
    step: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.step.min(buffer.len()).min(self.bytes.len());
        buffer[..count].copy_from_slice(&self.bytes[..count]);
        self.bytes = &self.bytes[count..];
        Ok(count)
    }
}

fn read_all(bytes: &[u8], step: usize) -> Result<(Response, Vec<u8>), ReadFailure> {
    let mut buffer = Vec::new();
    read(&mut Pieces { bytes, step }, &mut buffer).map(|response| (response, buffer))
}

/// As the real Firecracker 1.12.1 sends it: no reason phrase, a space before the line end.
const WITH_BODY: &[u8] =
    b"HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: \
    application/json\r\nContent-Length: 32\r\n\r\n{\"firecracker_version\":\"1.12.1\"}";
const WITHOUT_BODY: &[u8] = b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";

#[test]
fn an_answer_is_the_same_however_its_bytes_are_split() {
    for step in 1..=WITH_BODY.len() {
        let (response, rest) = read_all(WITH_BODY, step).unwrap();
        assert_eq!((response.status, rest.len()), (200, 0));
        assert_eq!(response.body, b"{\"firecracker_version\":\"1.12.1\"}");
        let (response, rest) = read_all(WITHOUT_BODY, step).unwrap();
        assert_eq!((response.status, response.body.len(), rest.len()), (204, 0, 0));
    }
}

#[test]
fn bytes_behind_an_answer_are_left_for_the_next() {
    let two = [WITHOUT_BODY, WITH_BODY].concat();
    let mut stream = Pieces {
        bytes: &two,
        step: 4096,
    };
    let mut buffer = Vec::new();
    assert_eq!(read(&mut stream, &mut buffer).unwrap().status, 204);
    assert_eq!(buffer, WITH_BODY);
    assert_eq!(read(&mut stream, &mut buffer).unwrap().status, 200);
    assert!(buffer.is_empty());
}

#[test]
fn an_answer_that_ends_early_is_closed_and_never_short() {
    for end in 0..WITH_BODY.len() {
        let failure = read_all(&WITH_BODY[..end], 7).unwrap_err();
        assert!(matches!(failure, ReadFailure::Closed), "{end}: {failure:?}");
    }
}

#[test]
fn lengths_that_lie_are_refused() {
    let answer = |length: &str| format!("HTTP/1.1 200 OK\r\n{length}\r\n").into_bytes();
    for huge in [
        "Content-Length: 99999999999999999999999999\r\n",
        "content-length: 1048577\r\n",
    ] {
        let failure = read_all(&answer(huge), 4096).unwrap_err();
        assert!(
            matches!(failure, ReadFailure::TooLarge(BODY_LIMIT)),
            "{huge}: {failure:?}"
        );
    }
    for bad in [
        "Content-Length: -1\r\n",
        "Content-Length: +1\r\n",
        "Content-Length: 1 2\r\n",
        "Content-Length:\r\n",
        "Content-Length: 1\r\nContent-Length: 2\r\n",
        "Transfer-Encoding: chunked\r\n",
    ] {
        let failure = read_all(&answer(bad), 4096).unwrap_err();
        assert!(matches!(failure, ReadFailure::Malformed(_)), "{bad}: {failure:?}");
    }
}

#[test]
fn a_head_without_end_and_other_protocols_are_refused() {
    let endless = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &vec![b'a'; 2 * HEAD_LIMIT]].concat();
    assert!(matches!(
        read_all(&endless, 4096),
        Err(ReadFailure::TooLarge(HEAD_LIMIT))
    ));
    assert!(matches!(
        read_all(b"SSH-2.0-OpenSSH_9.2\r\n", 4096),
        Err(ReadFailure::Malformed(_))
    ));
    assert!(matches!(
        read_all(b"HTTP/1.1 100 Continue\r\n\r\n", 4096),
        Err(ReadFailure::Malformed(_))
    ));
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic_or_invent(bytes in prop::collection::vec(any::<u8>(), 0..600), step in 1_usize..64) {
        if let Ok((response, rest)) = read_all(&bytes, step) {
            prop_assert!(response.body.len() + rest.len() < bytes.len());
        }
    }

    #[test]
    fn a_damaged_answer_does_not_panic(at in 0..WITH_BODY.len(), byte in any::<u8>(), cut in 0..WITH_BODY.len()) {
        let mut bytes = WITH_BODY.to_vec();
        bytes[at] = byte;
        bytes.truncate(cut);
        if let Ok((response, _)) = read_all(&bytes, 16) {
            prop_assert!(response.body.len() <= bytes.len());
        }
    }
}
