//! Hands process 1 over to the image's own init: over a root file system that is entirely the image's, or
//! over crabbox's layers.
//!
//! ```text
//! crabbox.init=/sbin/init   on the kernel's command line: nothing is set up here but modules and the root, /dev/vda, writable
//! /usr/lib/crabbox/init     in the base: everything is set up as for an ordinary lease, but the image's init starts sshd
//! ```
//! In the second case a process of this program stays behind to report to the host when sshd listens. It must
//! never stay longer.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crabbox_guest_protocol::image::INIT;

use crate::clock;
use crate::console::Console;
use crate::failure::Failure;
use crate::{root, sshd};

/// The argument on the kernel's command line, before the path of the init.
const WORD: &str = "crabbox.init=";

/// The name under which this program waits for sshd.
pub(crate) const WAITER: &str = "crabbox-wait";

/// How long the image's init may take until sshd listens.
const LISTEN_WAIT: Duration = Duration::from_mins(5);

/// How often to check for it.
const LISTEN_PAUSE: Duration = Duration::from_millis(20);

/// The init of a root file system that is entirely the image's, if the host asks for it.
pub(crate) fn asked() -> Option<String> {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    from_command_line(&line).map(str::to_owned)
}

fn from_command_line(line: &str) -> Option<&str> {
    line.split_ascii_whitespace()
        .find_map(|word| word.strip_prefix(WORD))
        .filter(|path| path.starts_with('/'))
}

/// The init that the image wants above the layers, if any; read after the switch of the root.
pub(crate) fn wanted() -> Result<Option<String>, Failure> {
    match std::fs::read_to_string(INIT) {
        Ok(text) if text.trim().starts_with('/') => Ok(Some(text.trim().to_owned())),
        Ok(_) => Err(Failure::Content {
            path: INIT.into(),
            why: "it is not the path of a program",
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::path("read", Path::new(INIT))(error)),
    }
}

/// Mounts the image's root and executes its init; returns only if that fails.
pub(crate) fn to_image(console: &mut Console, init: &str) -> Failure {
    console.begin("root");
    if let Err(failure) = root::switch_to_image() {
        return failure;
    }
    console.end();
    become_init(console, init)
}

/// Leaves a process behind that reports to the host when sshd listens, and executes `init`; returns only if
/// that fails.
#[expect(
    clippy::disallowed_methods,
    reason = "process 1 of a guest has no crabbox_host; the process is its own program"
)]
pub(crate) fn with_waiter(console: &mut Console, init: &str) -> Failure {
    let program = Path::new(root::PROGRAM);
    let waiter = Command::new(program).arg0(WAITER).arg(console.stages()).spawn();
    match waiter {
        Ok(_) => become_init(console, init),
        Err(error) => Failure::path("start", program)(error),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "process 1 of a guest has no crabbox_host; nothing is spawned, it becomes the image's init"
)]
fn become_init(console: &mut Console, init: &str) -> Failure {
    console.say(&format!("handing over to {init}"));
    // `exec` restores the signals that this process blocks. The variables are those that the kernel passes to
    // an init.
    let error = Command::new(init)
        .env_clear()
        .envs([("HOME", "/"), ("TERM", "linux")])
        .exec();
    Failure::path("become", Path::new(init))(error)
}

/// The process left behind: waits for sshd, reports the stages to the host, and ends.
pub(crate) fn wait_and_tell(stages: &str) {
    let mut console = Console::open();
    let listening = clock::poll_until(LISTEN_WAIT, LISTEN_PAUSE, || sshd::is_listening().then_some(()));
    if listening.is_some() {
        console.resume(stages);
        console.begin("init");
        console.end();
        crate::tell_host(&mut console);
    } else {
        console.say("FAILED at init: sshd did not listen on port 22 within 5 min");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_absolute_path_is_an_init() {
        assert_eq!(
            from_command_line("root=/dev/vda crabbox.init=/sbin/init quiet\n"),
            Some("/sbin/init")
        );
        for line in [
            "",
            "init=/sbin/init",
            "crabbox.init=init",
            "xcrabbox.init=/sbin/init",
        ] {
            assert_eq!(from_command_line(line), None, "{line}");
        }
    }
}
