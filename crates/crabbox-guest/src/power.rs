//! The end of the machine. With `reboot=k` a reset goes through the keyboard controller, which makes
//! Firecracker exit; its guests have no power switch, so a power-off is a reset too.

use std::path::Path;
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

/// Whether a signal asks process 1 to end the machine; the numbers are those of the small inits in common
/// images (busybox).
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

/// Kills every other process; fails if one survives.
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

/// Fails if a program besides process 1 is alive: it would be in every clone of this machine, with the random
/// numbers that it has drawn. Kernel threads do not count, and helpers started by the kernel get time to end.
pub(crate) fn must_be_alone() -> Result<(), Failure> {
    let processes = Path::new("/proc");
    clock::poll_until(KILL_WAIT, Duration::from_millis(2), || {
        others(processes)
            .is_ok_and(|others| others.is_empty())
            .then_some(())
    });
    let others = others(processes).map_err(Failure::path("look for other processes in", processes))?;
    if others.is_empty() {
        return Ok(());
    }
    Err(Failure::Missing {
        what: format!("the end of {}", others.join(", ")).into(),
        seconds: KILL_WAIT.as_secs(),
    })
}

/// The programs besides process 1, by pid and name, from a directory like `/proc`.
fn others(processes: &Path) -> std::io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(processes)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Skip a process that has ended meanwhile.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        if number != 1 && !is_kernel_thread(&stat) {
            let name = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')'));
            found.push(format!("{number} ({})", name.map_or("?", |(name, _)| name)));
        }
    }
    Ok(found)
}

/// Whether a line in the form of `/proc/PID/stat` (proc(5)) is a kernel thread's; an unparsable one is not.
fn is_kernel_thread(stat: &str) -> bool {
    /// `PF_KTHREAD` of `linux/sched.h`.
    const KTHREAD: u64 = 0x0020_0000;
    // A name may contain blanks and brackets; the flags are the ninth field, the seventh after the name.
    let flags = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(6))
        .and_then(|flags| flags.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & KTHREAD != 0)
}

/// Writes everything out and resets the machine, even with processes running.
pub(crate) fn reset(console: &mut Console) -> ! {
    rustix::fs::sync();
    // Best effort: these are private to this machine and end with it. Volumes have been written out, and
    // their journals do the rest.
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
                // No children left; every other process is a child of process 1 or of the kernel.
                Err(_) => return Some(()),
            }
        }
    })
    .is_some()
}

/// Implements `poweroff` and the like by asking process 1. Returns the exit code.
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

    #[test]
    fn every_program_is_found_and_no_thread_of_the_kernel() {
        let processes = tempfile::tempdir().unwrap();
        for (number, stat) in [
            ("1", "1 (init) S 0 0 0 0 -1 4194560 0"),
            ("2", "2 (kthreadd) S 0 0 0 0 -1 2129984 0"),
            ("31", "31 (kworker/0:1) x) I 2 0 0 0 -1 69238880 0"),
            ("400", "400 (ssh) S (d) S 1 400 400 0 -1 4194304 0"),
            ("401", "nonsense"),
            ("self", "400 (sshd) S 1 400 400 0 -1 4194304 0"),
        ] {
            let dir = processes.path().join(number);
            std::fs::create_dir(&dir).unwrap();
            std::fs::write(dir.join("stat"), stat).unwrap();
        }
        std::fs::create_dir(processes.path().join("500")).unwrap();
        let mut found = others(processes.path()).unwrap();
        found.sort();
        assert_eq!(found, ["400 (ssh) S (d)", "401 (?)"]);
        // This test process is such a program.
        let own = format!("{} (", std::process::id());
        let real = others(Path::new("/proc")).unwrap();
        assert!(real.iter().any(|other| other.starts_with(&own)), "{real:?}");
    }
}
