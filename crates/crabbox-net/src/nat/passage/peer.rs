//! The far side of the test path: a tap whose frames this process answers like a machine on the internet.
//!
//! It answers what one connection needs: an ARP request, and the first packet of a TCP connection. It must
//! never answer anything else, or anything malformed.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The hardware address of the simulated machine: a locally administered one.
const OWN: [u8; 6] = [0x02, 0xcb, 0, 0, 0, 1];
/// The initial TCP sequence number of our side. Nothing depends on its value.
const SEQUENCE: [u8; 4] = [0, 0, 0x10, 0];
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
/// Maximum frame length: longer frames cannot start a connection.
const LONGEST: usize = 2048;
/// Interval at which the stop request is checked.
const BEAT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};

/// A simulated far side that answers until it is dropped. Its link disappears with it.
#[derive(Debug)]
pub(super) struct Peer {
    met: Arc<AtomicBool>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    /// Answers the frames of `tap`, whose own link on the host has the hardware address `host`.
    pub(super) fn behind(tap: File, host: [u8; 6]) -> io::Result<Self> {
        let (met, end) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (seen, over) = (Arc::clone(&met), Arc::clone(&end));
        let thread = std::thread::Builder::new()
            .name("far-side".to_owned())
            .spawn(move || answer(tap, host, &seen, &over))?;
        Ok(Self {
            met,
            end,
            thread: Some(thread),
        })
    }

    /// Whether the first packet of a connection has come this far.
    pub(super) fn was_met(&self) -> bool {
        self.met.load(Ordering::Acquire)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has answered nothing, so the test reports that no reply came.
            thread.join().ok();
        }
    }
}

fn answer(mut tap: File, host: [u8; 6], met: &AtomicBool, end: &AtomicBool) {
    let mut frame = vec![0; LONGEST];
    while !end.load(Ordering::Acquire) {
        match poll(&mut [PollFd::new(&tap, PollFlags::IN)], Some(&BEAT)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(_) => return,
        }
        // Reading fails once the link is down.
        let Ok(length) = tap.read(&mut frame) else { return };
        let received = &frame[..length];
        let Some(reply) = reply(received, host) else {
            continue;
        };
        if received.get(12..14) == Some(&[8, 0]) {
            met.store(true, Ordering::Release);
        }
        if tap.write_all(&reply).is_err() {
            return;
        }
    }
}

/// The reply to `frame`, if any.
fn reply(frame: &[u8], host: [u8; 6]) -> Option<Vec<u8>> {
    match frame.get(12..14)? {
        [8, 6] => who_has(frame.get(14..)?, host),
        [8, 0] => greeting(frame.get(14..)?, host),
        _ => None,
    }
}

fn header(host: [u8; 6], kind: [u8; 2]) -> Vec<u8> {
    [&host[..], &OWN, &kind].concat()
}

/// The reply to an ARP request for an IPv4 address: our hardware address, whatever the address is.
fn who_has(question: &[u8], host: [u8; 6]) -> Option<Vec<u8>> {
    let question = question.get(..28)?;
    // Ethernet, IPv4, and a request (RFC 826).
    if question[..8] != [0, 1, 8, 0, 6, 4, 0, 1] {
        return None;
    }
    let (asking, asked) = (&question[8..18], &question[24..28]);
    let mut frame = header(host, [8, 6]);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 2]);
    frame.extend([&OWN[..], asked, asking].concat());
    Some(frame)
}

/// The reply to the first packet of a TCP connection: a SYN-ACK, as if a server listened.
fn greeting(packet: &[u8], host: [u8; 6]) -> Option<Vec<u8>> {
    let first = *packet.first()?;
    let length = usize::from(first & 0x0f) * 4;
    let (head, segment) = (packet.get(..length)?, packet.get(length..)?);
    // A fragment has an offset or the "more fragments" bit set (RFC 791).
    let is_part = u16::from_be_bytes([*head.get(6)?, *head.get(7)?]).trailing_zeros() < 14;
    let is_whole = first >> 4 == 4 && length >= 20 && !is_part;
    if !is_whole || head[9] != 6 || segment.len() < 20 || segment[13] & SYN_ACK != SYN {
        return None;
    }
    let (source, target) = (&head[12..16], &head[16..20]);
    let next = u32::from_be_bytes(segment[4..8].try_into().ok()?).wrapping_add(1);

    let mut answer = [&segment[2..4], &segment[..2], &SEQUENCE, &next.to_be_bytes()].concat();
    answer.extend([0x50, SYN_ACK, 0xff, 0xff, 0, 0, 0, 0]);
    // A TCP checksum also covers the addresses, the protocol and the length (RFC 9293).
    let covered = [target, source, &[0, 6, 0, 20], &answer].concat();
    answer[16..18].copy_from_slice(&sum(&covered));

    let mut head = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
    head.extend([target, source].concat());
    let checked = sum(&head);
    head[10..12].copy_from_slice(&checked);
    Some([header(host, [8, 0]), head, answer].concat())
}

/// The checksum of IP and TCP (RFC 1071), over an even number of bytes.
fn sum(bytes: &[u8]) -> [u8; 2] {
    let pairs = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let mut total: u32 = pairs.sum();
    while let carry @ 1.. = total >> 16 {
        total = (total & 0xffff) + carry;
    }
    let [_, _, high, low] = (!total).to_be_bytes();
    [high, low]
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: [u8; 6] = [2, 1, 1, 1, 1, 1];

    /// The first packet of a connection from 10.213.0.2:40000 to 198.51.100.1:443.
    fn first() -> Vec<u8> {
        let mut frame = [&[0xff; 6][..], &HOST, &[8, 0]].concat();
        frame.extend([0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0]);
        frame.extend([10, 213, 0, 2, 198, 51, 100, 1]);
        frame.extend([0x9c, 0x40, 1, 0xbb, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
        frame.extend([0x50, SYN, 0xff, 0xff, 0, 0, 0, 0]);
        frame
    }

    #[test]
    fn the_second_packet_goes_back_and_its_sums_are_right() {
        let reply = reply(&first(), HOST).unwrap();
        assert_eq!(reply[..14], header(HOST, [8, 0]));
        let (head, segment) = reply[14..].split_at(20);
        assert_eq!(head[12..], [198, 51, 100, 1, 10, 213, 0, 2]);
        assert_eq!(segment[..4], [1, 0xbb, 0x9c, 0x40]);
        assert_eq!(segment[8..12], [0; 4], "one more than the last number is zero");
        assert_eq!(segment[13], SYN_ACK);
        // Data with a correct checksum sums to zero.
        assert_eq!(sum(head), [0, 0]);
        let covered = [&head[12..], &[0, 6, 0, 20], segment].concat();
        assert_eq!(sum(&covered), [0, 0]);
        // RFC 1071's own example.
        assert_eq!(
            sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            [0x22, 0x0d]
        );
    }

    #[test]
    fn who_asks_for_an_address_is_told_ours() {
        let mut question = [&[0xff; 6][..], &HOST, &[8, 6], &[0, 1, 8, 0, 6, 4, 0, 1]].concat();
        question.extend(HOST);
        question.extend([198, 51, 100, 2, 0, 0, 0, 0, 0, 0, 198, 51, 100, 1]);
        let told = reply(&question, HOST).unwrap();
        assert_eq!(told[20..32], [0, 2, 2, 0xcb, 0, 0, 0, 1, 198, 51, 100, 1]);
        assert_eq!(told[32..], [2, 1, 1, 1, 1, 1, 198, 51, 100, 2]);
        question[21] = 2;
        assert_eq!(reply(&question, HOST), None, "an answer is not answered");
    }

    #[test]
    fn nothing_else_is_answered_and_nothing_short_or_odd_is_read() {
        for (at, value) in [
            (13, 6),
            (14, 0x65),
            (14, 0x41),
            (14, 0x4f),
            (20, 0x20),
            (21, 8),
            (23, 17),
            (47, SYN_ACK),
            (47, 0x10),
        ] {
            let mut frame = first();
            frame[at] = value;
            assert_eq!(reply(&frame, HOST), None, "{at} {value:#x}");
        }
        for length in 0..first().len() {
            assert_eq!(reply(&first()[..length], HOST), None, "{length}");
        }
    }
}
