//! The fake's guest when the host asks it to write out its volumes before its end.
//!
//! It implements the protocol literally, like the real one, and has nothing to write. It must never share
//! code with the implementation whose bytes it checks.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Whether the seed behind the initrd `seed` names volumes.
pub(super) fn has_volumes(seed: &[u8]) -> bool {
    let mark = b"crabbox-seed/volumes";
    seed.windows(mark.len()).any(|window| window == mark)
}

/// Serves one connection until the host hangs up, or hangs up at once if the guest is not to settle.
pub(super) fn serve(stream: UnixStream, settles: bool, trace: Option<&Path>) {
    let mut host = BufReader::new(stream);
    let line = |host: &mut BufReader<UnixStream>| {
        let mut line = String::new();
        host.read_line(&mut line).ok();
        line
    };
    if !settles || line(&mut host) != "CONNECT 1027\n" || host.get_mut().write_all(b"OK 5\n").is_err() {
        return;
    }
    if line(&mut host) != "settle\n" {
        return;
    }
    if let Some(path) = trace {
        let file = std::fs::File::options().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(b"SETTLE\n")).ok();
    }
    if host.get_mut().write_all(b"settled 1\n").is_ok() {
        line(&mut host);
    }
}
