//! The DNS forwarder, queried by a guest through its tap, with the test's own resolver on the host's
//! loopback.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crabbox_net::dns::{self, Resolvers};
use crabbox_net::{Policy, TAP_ADDRESS};

use crate::lab::{Guest, Lab};
use crate::nat::lease;

/// The address of a stub resolver such as systemd-resolved's.
const STUB: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);
const DEAD: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 99);

/// A query for `name` with `id`.
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.push(u8::try_from(name.len()).unwrap());
    message.extend(name.as_bytes());
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// The answer to it, with one record.
fn answer(asked: &[u8]) -> Vec<u8> {
    let mut message = asked.to_vec();
    message[2] |= 0x80;
    message[7] = 1;
    message.extend(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\x05\x06\x07\x08");
    message
}

/// A resolver at `address` in the namespace of the caller: it answers each datagram with the result of
/// `reply`, and reports the queries.
fn resolver(
    address: Ipv4Addr,
    reply: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static,
) -> mpsc::Receiver<Vec<u8>> {
    let socket = UdpSocket::bind((address, 53)).unwrap();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            for message in reply(&buffer[..length]) {
                socket.send_to(&message, from).unwrap();
            }
            sender.send(buffer[..length].to_vec()).ok();
        }
    });
    receiver
}

/// Runs `work` with a running forwarder, and checks that the forwarder stops on request.
fn forwarding(lab: &Lab, resolvers: &Resolvers, work: impl FnOnce(&Guest)) {
    let (spec, _, guest) = lease(lab, "a1", "10.213.0.0/30", Policy::default());
    let listeners = dns::listen(&spec.netns, dns::LISTEN).unwrap();
    let (stop, stopper) = std::io::pipe().unwrap();
    std::thread::scope(|scope| {
        let server = scope.spawn(|| dns::serve(&listeners, resolvers, stop.as_fd()));
        work(&guest);
        let started = Instant::now();
        drop(stopper);
        server.join().unwrap().unwrap();
        assert!(started.elapsed() < Duration::from_secs(2), "it stops at once");
    });
}

fn ask(guest: &Guest, message: &[u8]) -> std::io::Result<Vec<u8>> {
    guest.within(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.connect((TAP_ADDRESS, 53))?;
        socket.send(message)?;
        let mut buffer = vec![0; 2048];
        let length = socket.recv(&mut buffer)?;
        buffer.truncate(length);
        Ok(buffer)
    })
}

fn at(address: Ipv4Addr) -> SocketAddr {
    SocketAddr::from((address, 53))
}

#[test]
fn a_guest_s_question_is_answered_by_the_stub_on_the_host_s_loopback() {
    Lab::run(|lab| {
        let asked = resolver(STUB, |message| vec![answer(message)]);
        let conf = lab.write("resolv.conf", "nameserver 127.0.0.53\n");
        forwarding(lab, &Resolvers::from_file(conf), |guest| {
            let started = Instant::now();
            for id in 0..8 {
                let question = question(id, "example");
                assert_eq!(ask(guest, &question).unwrap(), answer(&question));
            }
            println!("8 questions: {:?}", started.elapsed());
        });
        let ids: Vec<_> = asked
            .iter()
            .take(8)
            .map(|message| [message[0], message[1]])
            .collect();
        let guests: Vec<_> = (0..8u16).map(u16::to_be_bytes).collect();
        assert_ne!(ids, guests, "the host chooses ids of its own");
    });
}

#[test]
fn answers_that_do_not_fit_are_not_passed_on() {
    Lab::run(|lab| {
        let forger = |message: &[u8]| {
            let mut wrong_id = answer(message);
            wrong_id[1] ^= 1;
            *wrong_id.last_mut().unwrap() ^= 1;
            let mut wrong_name = answer(message);
            wrong_name[13] = b'X';
            vec![wrong_id, wrong_name, b"short".to_vec(), answer(message)]
        };
        let _asked = resolver(STUB, forger);
        forwarding(lab, &Resolvers::fixed(vec![at(STUB)]), |guest| {
            let question = question(7, "example");
            assert_eq!(ask(guest, &question).unwrap(), answer(&question));
        });
    });
}

#[test]
fn a_dead_resolver_leaves_the_question_to_the_next_and_no_answer_is_said_to_be_none() {
    Lab::run(|lab| {
        let _asked = resolver(STUB, |message| vec![answer(message)]);
        let _silent = resolver(Ipv4Addr::new(127, 0, 0, 98), |_| Vec::new());
        let _refusing = resolver(Ipv4Addr::new(127, 0, 0, 97), |message| {
            let mut refusal = message.to_vec();
            refusal[2] |= 0x80;
            refusal[3] = 5;
            vec![refusal]
        });
        let others = [DEAD, Ipv4Addr::new(127, 0, 0, 98), Ipv4Addr::new(127, 0, 0, 97)];
        let mut all: Vec<_> = others.map(at).to_vec();
        all.push(at(STUB));
        forwarding(lab, &Resolvers::fixed(all), |guest| {
            let question = question(7, "example");
            assert_eq!(ask(guest, &question).unwrap(), answer(&question));
        });
    });
    Lab::run(|lab| {
        forwarding(lab, &Resolvers::fixed(vec![at(DEAD)]), |guest| {
            let reply = ask(guest, &question(7, "example")).unwrap();
            assert_eq!((&reply[..2], reply[3] & 15), ([0, 7].as_slice(), 2), "SERVFAIL");
        });
    });
}

#[test]
fn only_questions_are_passed_on() {
    Lab::run(|lab| {
        let asked = resolver(STUB, |message| vec![answer(message)]);
        forwarding(lab, &Resolvers::fixed(vec![at(STUB)]), |guest| {
            let mut update = question(7, "example");
            update[2] = 5 << 3;
            let reply = ask(guest, &update).unwrap();
            assert_eq!(reply[3] & 15, 4, "NOTIMP");
            let real = question(8, "example");
            ask(guest, &real).unwrap();
            assert_eq!(
                asked.recv().unwrap()[2..],
                real[2..],
                "the first that the resolver saw"
            );
        });
    });
}

#[test]
fn tcp_carries_several_questions() {
    Lab::run(|lab| {
        let listener = TcpListener::bind((STUB, 53)).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let message = read_framed(&mut stream);
                write_framed(&mut stream, &answer(&message));
            }
        });
        forwarding(lab, &Resolvers::fixed(vec![at(STUB)]), |guest| {
            let mut stream = guest.within(|| TcpStream::connect((TAP_ADDRESS, 53)).unwrap());
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            for id in 1..4 {
                let question = question(id, "example");
                write_framed(&mut stream, &question);
                assert_eq!(read_framed(&mut stream), answer(&question));
            }
        });
    });
}

fn read_framed(stream: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message).unwrap();
    message
}

fn write_framed(stream: &mut TcpStream, message: &[u8]) {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    stream.write_all(&[length.as_slice(), message].concat()).unwrap();
}

#[test]
fn a_flood_is_bounded() {
    Lab::run(|lab| {
        let asked = resolver(STUB, |_| Vec::new());
        forwarding(lab, &Resolvers::fixed(vec![at(STUB)]), |guest| {
            let socket = guest.within(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
            for id in 0..300 {
                socket
                    .send_to(&question(id, "example"), (TAP_ADDRESS, 53))
                    .unwrap();
            }
            let mut open = 0;
            while asked.recv_timeout(Duration::from_millis(500)).is_ok() {
                open += 1;
            }
            assert_eq!(open, 64);
        });
    });
}
