//! The end of the machine. With `reboot=k` a reset goes through the keyboard controller, which is what makes Firecracker
//! exit; its guests have no power switch, so a power-off is a reset too.

use std::time::Duration;

use rustix::mount::{MountFlags, mount_remount};
use rustix::system::{RebootCommand, reboot};

use crate::clock;
use crate::console::Console;
use crate::failure::Failure;
use crate::identity::POWER_COMMANDS;
use crate::sys;

/// How long processes may take to end after SIGTERM, and after SIGKILL.
const TERM_WAIT: Duration = Duration::from_secs(2);
const KILL_WAIT: Duration = Duration::from_secs(2);

/// What a signal asks process 1 to do; the numbers are those of the small inits that images know (busybox).
pub(crate) fn means_end(signal: libc::c_int) -> bool {
    matches!(
        signal,
        libc::SIGTERM | libc::SIGINT | libc::SIGUSR1 | libc::SIGUSR2
    )
}

/// Ends every process, writes everything out and resets the machine.
pub(crate) fn end(console: &mut Console) -> ! {
    console.say("ending: SIGTERM to all");
    sys::signal_all(libc::SIGTERM);
    if !all_gone(TERM_WAIT) {
        sys::signal_all(libc::SIGKILL);
        all_gone(KILL_WAIT);
    }
    reset(console)
}

/// Ends every other process now; fails when one stays.
pub(crate) fn end_all() -> Result<(), Failure> {
    sys::signal_all(libc::SIGKILL);
    if all_gone(KILL_WAIT) {
        return Ok(());
    }
    Err(Failure::Missing {
        what: "the end of every other process".into(),
        seconds: KILL_WAIT.as_secs(),
    })
}

/// Writes everything out and resets the machine, processes or not.
pub(crate) fn reset(console: &mut Console) -> ! {
    rustix::fs::sync();
    // Best effort: the disk is private to this machine and goes with it.
    for mounted in ["/tmp", "/"] {
        mount_remount(mounted, MountFlags::RDONLY, c"").ok();
    }
    console.say("reset");
    console.drain();
    loop {
        if let Err(error) = reboot(RebootCommand::Restart) {
            console.say(&format!("FAILED at end: cannot reset: {error}"));
        }
        clock::poll_until(Duration::from_secs(1), Duration::from_millis(50), || None::<()>);
    }
}

fn all_gone(limit: Duration) -> bool {
    clock::poll_until(limit, Duration::from_millis(2), || {
        loop {
            match sys::reap() {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                // No children left; everybody else is a child of process 1 or of the kernel.
                Err(_) => return Some(()),
            }
        }
    })
    .is_some()
}

/// What the program does when it is called as `poweroff` and the like: asks process 1. Returns the exit code.
pub(crate) fn ask(name: &str) -> u8 {
    use std::io::Write as _;
    let complain = |text: String| {
        std::io::stderr().write_all(text.as_bytes()).ok();
        1
    };
    if !POWER_COMMANDS.contains(&name) {
        return complain(format!(
            "{name}: this is the first process of a crabbox guest; it has no use elsewhere\n"
        ));
    }
    match sys::signal_init(libc::SIGUSR2) {
        Ok(()) => 0,
        Err(error) => complain(format!(
            "{name}: cannot signal process 1: {error}; try: sudo {name}\n"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signals_of_small_inits_end_the_machine_and_others_do_not() {
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1, libc::SIGUSR2] {
            assert!(means_end(signal));
        }
        assert!(!means_end(libc::SIGCHLD) && !means_end(libc::SIGHUP));
    }
}
