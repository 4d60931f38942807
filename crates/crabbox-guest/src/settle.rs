//! Settles a machine with volumes before its end: writes them out, and freezes them until the machine ends.
//!
//! A separate process serves this, because an image's init may replace process 1. Only the host is listened
//! to. A volume must never stay frozen if the host goes away or takes too long: then the machine lives on.
//! (Root in the guest can kill this process at that moment, and thaw the volume itself.)

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crabbox_guest_protocol::SETTLE_PORT;
use crabbox_guest_protocol::settle::{LINE_LIMIT, NO, SETTLE, SETTLED};
use rustix::fs::{Mode, OFlags};

use crate::clock;
use crate::failure::Failure;
use crate::freeze::Freezer;
use crate::root;
use crate::seed::Volume;
use crate::sys;

/// The name under which this program serves the request.
pub(crate) const SERVER: &str = "crabbox-settle";

/// How long the host may take to send its request.
const SPEAK_LIMIT: Duration = Duration::from_secs(5);

/// Starts the process that serves the mounted `volumes`.
#[expect(
    clippy::disallowed_methods,
    reason = "process 1 of a guest has no crabbox_host; the process is its own program"
)]
pub(crate) fn start(volumes: &[&Volume]) -> Result<(), Failure> {
    let program = Path::new(root::PROGRAM);
    Command::new(program)
        .arg0(SERVER)
        .args(volumes.iter().map(|volume| &volume.path))
        .spawn()
        .map(drop)
        .map_err(Failure::path("start", program))
}

/// Serves the volumes mounted at `paths` for the rest of the machine's life, or until this process is killed.
pub(crate) fn serve_paths(paths: impl Iterator<Item = OsString>) {
    let Ok(listener) = sys::listen_vsock(SETTLE_PORT) else {
        return;
    };
    // Opened per request only: an open directory would keep the user from unmounting a volume.
    let paths: Vec<OsString> = paths.collect();
    loop {
        match sys::accept_vsock(&listener) {
            Ok((stream, true)) => serve(UnixStream::from(stream), || freezers(&paths)),
            // Only the host may send requests.
            Ok((_, false)) => {}
            // Out of descriptors or memory: retry later.
            Err(_) => {
                clock::poll_until(Duration::from_secs(1), Duration::from_millis(50), || None::<()>);
            }
        }
    }
}

/// One per path. Opening may fail, for example for a volume that its user has unmounted and removed; the
/// others are still settled.
fn freezers(paths: &[OsString]) -> Vec<io::Result<Freezer>> {
    let open = |path: &OsString| -> io::Result<Freezer> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let inside: OwnedFd = rustix::fs::open(Path::new(path), flags, Mode::empty())?;
        Freezer::new(inside)
    };
    paths.iter().map(open).collect()
}

/// Serves one connection of the host.
fn serve(mut host: UnixStream, freezers: impl FnOnce() -> Vec<io::Result<Freezer>>) {
    let limits = host
        .set_read_timeout(Some(SPEAK_LIMIT))
        .and_then(|()| host.set_write_timeout(Some(SPEAK_LIMIT)));
    if limits.is_err() || read_line(&mut host).is_none_or(|line| line != SETTLE) {
        return;
    }
    let freezers = freezers();
    let tried = freezers.iter().map(|freezer| match freezer {
        Ok(freezer) => freezer.freeze().map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    });
    // Try all, even if one fails: data written out before a freeze stays written.
    let (frozen, refused): (Vec<_>, Vec<_>) = tried.partition(Result::is_ok);
    let refused = refused.into_iter().find_map(Result::err);
    let answer = match &refused {
        None => format!("{SETTLED} {}\n", frozen.len()),
        Some(error) => format!("{NO} {error}\n"),
    };
    // A host that hangs up or sends more has changed its mind. Each file system thaws by itself after its
    // limit, whatever happens here.
    if host.write_all(answer.as_bytes()).is_ok() && refused.is_none() {
        host.set_read_timeout(Some(crate::freeze::LIMIT)).ok();
        read_line(&mut host);
    }
}

/// Reads a line of at most [`LINE_LIMIT`] bytes, without its end; `None` if there is none in time.
fn read_line(stream: &mut UnixStream) -> Option<String> {
    let mut text = Vec::new();
    while text.last() != Some(&b'\n') {
        let mut byte = [0];
        if text.len() >= LINE_LIMIT || stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        text.extend(byte);
    }
    Some(String::from_utf8_lossy(&text).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::freeze::Turn;

    type Turns = Arc<Mutex<Vec<Turn>>>;

    fn noted(turns: &Turns, refuses: bool) -> Freezer {
        let noted = Arc::clone(turns);
        let switch = move |turn| {
            if refuses {
                return Err(io::Error::from_raw_os_error(libc::EROFS));
            }
            noted.lock().unwrap().push(turn);
            Ok(())
        };
        Freezer::with(switch, Duration::from_mins(1)).unwrap()
    }

    /// The host's answer after sending `said`, and what had been done by then.
    fn ask(said: &str, refuses: bool) -> (String, Vec<Turn>, Turns) {
        let (ours, mut host) = UnixStream::pair().unwrap();
        let turns = Turns::default();
        let freezers = vec![Ok(noted(&turns, refuses)), Ok(noted(&turns, false))];
        let server = std::thread::spawn(move || serve(ours, || freezers));
        host.write_all(said.as_bytes()).unwrap();
        let heard = read_line(&mut host).unwrap_or_default();
        let by_then = turns.lock().unwrap().clone();
        drop(host);
        server.join().unwrap();
        (heard, by_then, turns)
    }

    #[test]
    fn volumes_are_frozen_until_the_host_hangs_up() {
        let (heard, by_then, turns) = ask("settle\n", false);
        assert_eq!(heard, "settled 2");
        assert_eq!(by_then, [Turn::Freeze, Turn::Freeze]);
        assert_eq!(
            *turns.lock().unwrap(),
            [Turn::Freeze, Turn::Freeze, Turn::Thaw, Turn::Thaw]
        );
    }

    #[test]
    fn one_that_cannot_be_frozen_keeps_no_other_from_being_written_out_and_leaves_none_frozen() {
        let (heard, _, turns) = ask("settle\n", true);
        assert!(heard.starts_with("no Read-only file system"), "{heard}");
        assert_eq!(*turns.lock().unwrap(), [Turn::Freeze, Turn::Thaw]);
    }

    #[test]
    fn anything_else_freezes_nothing() {
        for said in ["settled\n", "\n", &"x".repeat(LINE_LIMIT + 1)] {
            let (heard, _, turns) = ask(said, false);
            assert_eq!((heard.as_str(), turns.lock().unwrap().len()), ("", 0), "{said}");
        }
    }
}
