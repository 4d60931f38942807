//! Processes by their number and start time, read from `/proc`.
//!
//! Pids are reused, so a process to wait for or to end is identified by both. A process that has ended counts
//! as gone even if nobody has reaped it: in a container whose init does not reap, zombies stay forever.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::local_time;

/// How long a group may take to end before it is killed.
const GRACE: Duration = Duration::from_secs(2);
/// How long a group may take to end before we give up on it.
const LIMIT: Duration = Duration::from_secs(4);

/// Clock ticks per second in `/proc`, USER_HZ of the kernel on all machines that we run on.
const TICKS: u64 = 100;

/// What `/proc/PID/stat` says, see proc_pid_stat(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) group: u32,
    /// In clock ticks since the boot.
    pub(crate) began: u64,
    is_over: bool,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The command name is in parentheses and may itself contain parentheses.
        let mut words = text.rsplit_once(") ")?.1.split(' ');
        let state = words.next()?;
        let group = words.nth(1)?.parse().ok()?;
        // The 22nd field; the third was the state, the fifth the group.
        let began = words.nth(16)?.parse().ok()?;
        Some(Self {
            group,
            began,
            is_over: matches!(state, "Z" | "X"),
        })
    }

    /// The stat of a process that has not ended.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        Self::parse(&String::from_utf8_lossy(&text)).filter(|stat| !stat.is_over)
    }
}

/// The text of [`lstart`] without a process that prints it: the second in which the process started, by the
/// kernel's time of the boot, as procps computes it.
pub(crate) fn started(stat: &Stat) -> Option<String> {
    let text = std::fs::read("/proc/stat").ok()?;
    let text = String::from_utf8_lossy(&text);
    let boot: i64 = text
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()?;
    local_time::text(boot + i64::try_from(stat.began / TICKS).ok()?)
}

/// The start time of a process as ps(1) prints it, which is what the Go program compares; `None` if there is
/// no ps.
pub(crate) fn lstart(pid: u32) -> Option<String> {
    let asked = Command::new("ps")
        .args(["-o", "lstart=", "-p", &pid.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let words = String::from_utf8_lossy(&asked.stdout);
    let words: Vec<&str> = words.split_whitespace().collect();
    (!words.is_empty()).then(|| words.join(" "))
}

/// A process group that is being ended.
#[derive(Debug)]
pub(crate) struct Ending {
    group: u32,
    pid: Option<Pid>,
    started: Instant,
    is_killed: bool,
}

impl Ending {
    /// Sends SIGTERM to the group.
    pub(crate) fn begin(group: u32) -> Self {
        let pid = i32::try_from(group)
            .ok()
            .filter(|group| *group > 1)
            .and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // The group may have ended already.
            kill_process_group(pid, Signal::TERM).ok();
        }
        Self {
            group,
            pid,
            started: Instant::now(),
            is_killed: false,
        }
    }

    /// `Some(true)` once the group is gone, `Some(false)` if it could not be ended, `None` while that is
    /// undecided. To be called again every few hundredths of a second.
    pub(crate) fn gone(&mut self) -> Option<bool> {
        let pid = self.pid?;
        if !is_alive(self.group) {
            return Some(true);
        }
        if self.started.elapsed() > LIMIT {
            return Some(false);
        }
        if self.started.elapsed() > GRACE && !self.is_killed {
            self.is_killed = true;
            kill_process_group(pid, Signal::KILL).ok();
        }
        None
    }
}

/// Ends a process group; returns whether it is known to be gone.
pub(crate) fn end_group(group: u32) -> bool {
    let mut ending = Ending::begin(group);
    if ending.pid.is_none() {
        return false;
    }
    loop {
        if let Some(gone) = ending.gone() {
            return gone;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether the group has a process that has not ended.
fn is_alive(group: u32) -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return false;
    };
    processes.flatten().any(|process| {
        let pid = process.file_name().to_string_lossy().parse().ok();
        pid.and_then(Stat::of).is_some_and(|stat| stat.group == group)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let text = "12 (a) b (c) S 1 34 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 5678 1 2\n";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.group, stat.began, stat.is_over), (34, 5678, false));
        assert!(
            Stat::parse("12 (a) Z 1 34 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 5678")
                .unwrap()
                .is_over
        );
        assert_eq!(Stat::parse("12 (a) S 1"), None);
        assert!(Stat::of(std::process::id()).is_some());
    }
}
