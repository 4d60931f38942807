//! The fake's guest that parks before it has an identity, and its continuation after it was frozen.
//!
//! It implements the handshake literally, like the real one, and has no memory to freeze: the fake stores the
//! token instead. It must never share code with the implementation whose bytes it checks.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crabbox_guest_protocol::IDENTITY_PORT;
use crabbox_host::digest::hex;
use crabbox_host::{clock, random, unix};

use super::guest;

/// Whether the seed behind the initrd `seed` is a template's.
pub(super) fn is_template(seed: &[u8]) -> bool {
    let mark = b"crabbox-seed/template";
    seed.windows(mark.len()).any(|window| window == mark)
}

fn connect(vsock: &Path) -> io::Result<UnixStream> {
    let mut port = vsock.to_path_buf().into_os_string();
    port.push(format!("_{IDENTITY_PORT}"));
    unix::connect(Path::new(&port)).map_err(io::Error::other)
}

fn line(host: &mut BufReader<UnixStream>) -> io::Result<String> {
    let mut line = String::new();
    host.read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

/// Parks; returns the token, and the connection, which must stay open as long as the machine lives.
pub(super) fn park(vsock: &Path) -> io::Result<(String, UnixStream)> {
    let mut stream = connect(vsock)?;
    stream.write_all(b"park 1\n")?;
    let mut host = BufReader::new(stream);
    let said = line(&mut host)?;
    let token = said
        .strip_prefix("hold ")
        .ok_or_else(|| io::Error::other(said.clone()))?
        .to_owned();
    host.get_mut().write_all(b"parked\n")?;
    Ok((token, host.into_inner()))
}

/// How a thawed machine behaves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Habits {
    /// Whether an sshd answers.
    pub(super) sshd: bool,
    /// Whether it reports the same random numbers, boot id and machine id as the other clones.
    pub(super) alike: bool,
}

/// Wakes with `token`, takes the identity from the host, and reports that it is ready.
pub(super) fn wake(vsock: &Path, token: &str, habits: Habits) -> io::Result<()> {
    let mut stream = connect(vsock)?;
    stream.write_all(format!("hello 1 {token}\n").as_bytes())?;
    let mut host = BufReader::new(stream);
    let become_ = line(&mut host)?;
    let nonce = become_.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut seed = Vec::new();
    loop {
        let said = line(&mut host)?;
        let words: Vec<&str> = said.split(' ').collect();
        match words.as_slice() {
            ["file", _, length] => {
                let mut bytes = vec![0; length.parse().map_err(io::Error::other)?];
                host.read_exact(&mut bytes)?;
                seed.extend(bytes);
            }
            ["end", _] => break,
            _ => return Err(io::Error::other(said.clone())),
        }
    }
    if habits.sshd {
        guest::start(&seed)?;
    }
    let own = if habits.alike {
        "same".to_owned()
    } else {
        hex(&random::bytes::<16>()?)
    };
    let (seconds, nanoseconds) = clock::unix_now();
    let words = format!(
        "stage wake 0.01\nstage sshd 0.10\nidentity boot-{own} machine-{own} {own} {seconds}{nanoseconds:09}\nready {nonce} 0.20\n"
    );
    host.get_mut().write_all(words.as_bytes())
}
