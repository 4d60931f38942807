//! QEMU's monitor: for requests to the emulator when the guest no longer responds. A responsive lab must
//! never need it.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// What the monitor prints when it waits for a command.
const PROMPT: &str = "(qemu) ";
/// How long one reply may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Sends one command and returns its reply.
pub(super) fn ask(socket: &Path, command: &str) -> Result<String> {
    let asked = || -> Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        read_to_prompt(&mut stream)?;
        stream.write_all(format!("{command}\n").as_bytes())?;
        read_to_prompt(&mut stream)
    };
    asked().with_context(|| format!("ask QEMU at {}: {command}", socket.display()))
}

/// Everything up to the next prompt.
fn read_to_prompt(stream: &mut UnixStream) -> Result<String> {
    let deadline = Instant::now() + LIMIT;
    let (mut said, mut block) = (Vec::new(), [0; 4096]);
    while !said.ends_with(PROMPT.as_bytes()) {
        let count = stream.read(&mut block)?;
        ensure!(count > 0 && Instant::now() < deadline, "the monitor ended");
        said.extend_from_slice(&block[..count]);
    }
    said.truncate(said.len() - PROMPT.len());
    Ok(String::from_utf8_lossy(&said).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn an_answer_is_what_stands_between_two_prompts() {
        let home = tempfile::tempdir().unwrap();
        let socket = home.path().join("monitor");
        let listener = UnixListener::bind(&socket).unwrap();
        let qemu = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"QEMU 7.2\r\n(qemu) ").unwrap();
            let mut asked = [0; 12];
            stream.read_exact(&mut asked).unwrap();
            stream.write_all(b"VM status: running\r\n(qemu) ").unwrap();
            asked
        });
        assert_eq!(ask(&socket, "info status").unwrap(), "VM status: running\r\n");
        assert_eq!(&qemu.join().unwrap(), b"info status\n");
    }

    #[test]
    fn a_monitor_that_hangs_up_is_an_error() {
        let home = tempfile::tempdir().unwrap();
        let socket = home.path().join("monitor");
        assert!(ask(&socket, "info status").is_err());
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || listener.accept().map(drop));
        assert!(ask(&socket, "info status").is_err());
    }
}
