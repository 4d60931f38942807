use std::collections::VecDeque;

use super::*;
use crate::plan::{BootPlan, boot};
use crate::types::{BootSource, MachineConfig};

/// Responds to each request with the next of its texts; after the last one it fails as `end` says.
struct Script {
    sent: Vec<u8>,
    answers: VecDeque<Vec<u8>>,
    end: Option<ErrorKind>,
}

impl Read for Script {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let Some(answer) = self.answers.pop_front() else {
            return self.end.map_or(Ok(0), |kind| Err(kind.into()));
        };
        buffer[..answer.len()].copy_from_slice(&answer);
        Ok(answer.len())
    }
}

impl Write for Script {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.sent.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn client(answers: &[&str], end: Option<ErrorKind>) -> Client<Script> {
    let answers = answers.iter().map(|text| text.as_bytes().to_vec()).collect();
    Client::new(Script {
        sent: Vec::new(),
        answers,
        end,
    })
}

const DONE: &str = "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";

fn answer(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} \r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn config() -> MachineConfig {
    MachineConfig {
        vcpu_count: 2,
        mem_size_mib: 256,
        smt: false,
        track_dirty_pages: false,
        huge_pages: None,
    }
}

#[test]
fn a_request_is_written_as_http_and_options_that_are_absent_are_not_sent() {
    let mut client = client(&[DONE], None);
    client.send(&Request::machine_config(&config())).unwrap();
    let expected = "PUT /machine-config HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\
        Content-Type: application/json\r\nContent-Length: 73\r\n\r\n\
        {\"vcpu_count\":2,\"mem_size_mib\":256,\"smt\":false,\"track_dirty_pages\":false}";
    assert_eq!(String::from_utf8_lossy(&client.stream().sent), expected);
}

#[test]
fn a_refusal_carries_endpoint_status_and_words_and_the_connection_lives_on() {
    let refusal = answer(
        400,
        r#"{"fault_message":"The requested operation is not supported."}"#,
    );
    let mut client = client(&[&refusal, DONE], None);
    let error = client.send(&Request::machine_config(&config())).unwrap_err();
    let expected =
        "Firecracker refused PUT /machine-config (status 400): The requested operation is not supported.";
    assert_eq!(error.to_string(), expected);
    client.send(&Request::machine_config(&config())).unwrap();
}

#[test]
fn a_refusal_that_is_not_json_is_quoted_and_cut() {
    let mut client = client(&[&answer(500, &"x".repeat(1000))], None);
    let error = client.send(&Request::get("/")).unwrap_err();
    assert!(matches!(error, ClientError::Fault { status: 500, message, .. } if message == "x".repeat(400)));
}

#[test]
fn silence_is_a_timeout_and_the_connection_is_given_up() {
    for kind in [ErrorKind::TimedOut, ErrorKind::WouldBlock] {
        let mut client = client(&["HTTP/1.1 204 "], Some(kind));
        let error = client.send(&Request::get("/")).unwrap_err();
        assert!(matches!(error, ClientError::TimedOut { .. }), "{error:?}");
        // A late response to the first request must not be read as the response to the second.
        client.stream.answers.push_back(DONE.into());
        let error = client.send(&Request::get("/version")).unwrap_err();
        assert!(matches!(error, ClientError::Unusable { .. }), "{error:?}");
    }
}

#[test]
fn a_closed_socket_is_told_from_garbage() {
    let closed = client(&[], None).send(&Request::get("/")).unwrap_err();
    assert!(matches!(closed, ClientError::Closed { .. }), "{closed:?}");
    let garbage = client(&["\u{0}\u{1}garbage\r\n\r\n"], None)
        .send(&Request::get("/"))
        .unwrap_err();
    assert!(
        matches!(garbage, ClientError::MalformedResponse { .. }),
        "{garbage:?}"
    );
    let extra = format!("{DONE}HTTP/1.1 200");
    let extra = client(&[&extra], None).send(&Request::get("/")).unwrap_err();
    assert!(
        matches!(extra, ClientError::MalformedResponse { .. }),
        "{extra:?}"
    );
    let failed = client(&[], Some(ErrorKind::PermissionDenied))
        .send(&Request::get("/"))
        .unwrap_err();
    assert!(matches!(failed, ClientError::Io { .. }), "{failed:?}");
}

#[test]
fn a_boot_stops_at_the_first_refusal_and_the_start_comes_last() {
    let boot_source = BootSource {
        kernel_image_path: "vmlinux".into(),
        initrd_path: None,
        boot_args: None,
    };
    let plan = BootPlan::new(config(), boot_source);
    let mut willing = client(&[DONE, DONE, DONE], None);
    boot(&mut willing, &plan).unwrap();
    let sent = String::from_utf8_lossy(&willing.stream().sent).into_owned();
    let order: Vec<&str> = sent
        .split(" HTTP/1.1\r\n")
        .filter_map(|part| part.find("PUT /").map(|at| &part[at..]))
        .collect();
    assert_eq!(order, ["PUT /machine-config", "PUT /boot-source", "PUT /actions"]);
    let refusal = answer(400, r#"{"fault_message":"no"}"#);
    let mut unwilling = client(&[DONE, &refusal, DONE], None);
    let error = boot(&mut unwilling, &plan).unwrap_err();
    assert!(
        matches!(&error, ClientError::Fault { endpoint, .. } if endpoint.path == "/boot-source"),
        "{error:?}"
    );
    assert!(!String::from_utf8_lossy(&unwilling.stream().sent).contains("InstanceStart"));
}
