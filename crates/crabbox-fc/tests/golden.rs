//! Every body that this crate sends, with the response of a real Firecracker 1.12.1 (recorded by
//! `examples/record.rs`; its head comment has the command). If a body changes, this fails until it has been
//! recorded again.

use std::io::{Read, Write};

use crabbox_fc::types::{HugePages, MachineConfig};
use crabbox_fc::{Client, ClientError, Request, Version, log};
use serde::Deserialize;
use serde::de::DeserializeOwned;

mod catalogue;

#[derive(Deserialize)]
struct Exchange {
    endpoint: String,
    body: Option<String>,
    answer: String,
}

/// The version that was recorded.
const RECORDED: Version = Version::new(1, 12, 1);

/// Refusals that come only after Firecracker has parsed the body.
const UNDERSTOOD: [&str; 2] = [
    "The requested operation is not supported before starting the microVM.",
    "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources.",
];

/// What only bodies have that are newer than the recorded version.
const NEWER: [&str; 4] = [
    "serial_out_path",
    r#"},"track_dirty_pages""#,
    "vsock_override",
    "clock_realtime",
];

fn trace() -> Vec<Exchange> {
    let text = include_str!("../testdata/api-1.12.1.jsonl");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("the recorder wrote the line"))
        .collect()
}

/// A stream that returns the recorded response.
struct Recorded(std::io::Cursor<Vec<u8>>);

impl Read for Recorded {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Recorded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn replay(exchange: &Exchange) -> Client<Recorded> {
    Client::new(Recorded(std::io::Cursor::new(
        exchange.answer.clone().into_bytes(),
    )))
}

/// The JSON of the recorded response to a GET request.
fn read<T: DeserializeOwned>(exchange: &Exchange) -> T {
    let path = exchange.endpoint.strip_prefix("GET ").expect("a GET request");
    let response = replay(exchange)
        .send(&Request::get(path))
        .expect("an accepted request");
    serde_json::from_slice(&response.body).expect("a response of this form")
}

/// The message of the recorded refusal; `None` if the request was accepted.
fn refusal(request: &Request, exchange: &Exchange) -> Result<Option<String>, ClientError> {
    match replay(exchange).send(request) {
        Ok(_) => Ok(None),
        Err(ClientError::Fault { message, .. }) => Ok(Some(message)),
        Err(error) => Err(error),
    }
}

#[test]
fn what_is_sent_is_what_was_recorded() {
    let (requests, trace) = (catalogue::requests(), trace());
    assert_eq!(requests.len(), trace.len());
    for (request, exchange) in requests.iter().zip(&trace) {
        assert_eq!(request.endpoint.to_string(), exchange.endpoint);
        assert_eq!(
            request.body.as_deref(),
            exchange.body.as_deref().map(str::as_bytes),
            "{}",
            exchange.endpoint
        );
    }
}

#[test]
fn the_real_one_understood_every_body_that_its_version_should_know() {
    for (request, exchange) in catalogue::requests().iter().zip(&trace()) {
        let body = exchange.body.as_deref().unwrap_or_default();
        let known = !NEWER.iter().any(|field| body.contains(field));
        let refused = refusal(request, exchange).unwrap();
        let expected = match request.endpoint.path.as_str() {
            "/drives/absent" => Some("No such file or directory (os error 2) absent.ext4"),
            "/actions"
                if exchange
                    .body
                    .as_deref()
                    .is_some_and(|body| body.contains("InstanceStart")) =>
            {
                Some("failed to load ELF kernel image")
            }
            _ => None,
        };
        match (refused, expected) {
            (None, None) => assert!(
                known,
                "{} was accepted, so the list of newer fields is wrong",
                exchange.endpoint
            ),
            (Some(words), Some(expected)) => assert!(words.contains(expected), "{words}"),
            (Some(words), None) if known => assert!(
                UNDERSTOOD.contains(&words.as_str()),
                "{exchange}: {words}",
                exchange = exchange.endpoint
            ),
            (Some(words), None) => {
                let unknown =
                    words.contains("unknown field") || words.contains("Invalid request method and/or path");
                assert!(unknown, "{}: {words}", exchange.endpoint);
            }
            (None, Some(expected)) => panic!("{} was not refused with {expected}", exchange.endpoint),
        }
    }
}

#[test]
fn the_real_answers_are_read_into_their_types() {
    let trace = trace();
    let [_, version, machine] = &trace[..3] else {
        panic!("the trace begins with three questions")
    };
    let version: serde_json::Value = read(version);
    assert_eq!(
        version["firecracker_version"].as_str().unwrap().parse(),
        Ok(RECORDED)
    );
    let machine: MachineConfig = read(machine);
    assert_eq!(
        (machine.vcpu_count, machine.mem_size_mib, machine.huge_pages),
        (1, 128, Some(HugePages::None))
    );
    let [.., machine, start, _] = &trace[..] else {
        panic!("the trace ends with three more")
    };
    let machine: MachineConfig = read(machine);
    assert_eq!(
        (
            machine.vcpu_count,
            machine.mem_size_mib,
            machine.track_dirty_pages
        ),
        (2, 256, true)
    );
    assert_eq!(log::cause(&start.answer), Some(log::LogCause::BadKernel));
}
