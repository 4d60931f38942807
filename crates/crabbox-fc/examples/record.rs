//! Sends the catalogue of requests to a real Firecracker and records what went over the wire, for
//! `tests/golden.rs`.
//!
//! ```sh
//! mkdir vm && cd vm && truncate -s 4K vmlinux initrd.img && truncate -s 1M base.ext4 disk.ext4 && touch vmm.log metrics
//! unshare -n sh -c 'ip tuntap add tap0 mode tap; firecracker --api-sock api.sock --id golden & sleep 1
//!   cargo run -p crabbox-fc --example record -- api.sock /path/to/crates/crabbox-fc/testdata/api-1.12.1.jsonl; kill %1'
//! ```
//!
//! No KVM is needed: the machine is configured, and its start is refused because its kernel is a file of
//! zeros.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crabbox_fc::{Client, ClientError};

#[path = "../tests/catalogue/mod.rs"]
mod catalogue;

/// A stream that keeps what was read from it.
struct Recorder {
    stream: UnixStream,
    heard: std::sync::mpsc::Sender<Vec<u8>>,
}

impl Read for Recorder {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.heard.send(buffer[..count].to_vec()).ok();
        Ok(count)
    }
}

impl Write for Recorder {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let (Some(socket), Some(output)) = (args.next(), args.next()) else {
        return Err("usage: record <api socket> <output file>".into());
    };
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let (heard, words) = std::sync::mpsc::channel();
    let mut client = Client::new(Recorder { stream, heard });
    let mut trace = String::new();
    for request in catalogue::requests() {
        match client.send(&request) {
            Ok(_) | Err(ClientError::Fault { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let answer: Vec<u8> = words.try_iter().flatten().collect();
        let line = serde_json::json!({
            "endpoint": request.endpoint.to_string(),
            "body": request.body.map(String::from_utf8).transpose()?,
            "answer": String::from_utf8(answer)?,
        });
        writeln!(trace, "{line}")?;
    }
    std::fs::write(output, trace)?;
    Ok(())
}
