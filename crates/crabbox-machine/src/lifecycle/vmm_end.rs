//! Why the VMM of a lease ended, as far as the kernel still knows: its exit status and its control group's
//! counter of out-of-memory kills.
//!
//! It only describes; it must never decide whether a lease ends, because a status can be unknown.

use std::fmt::Write as _;
use std::path::Path;

use crabbox_core::journal::{Journal, Step};
use crabbox_host::process::{self, ExitStatus};
use crabbox_store::journal;
use crabbox_store::places::LeaseDir;

/// The beginning of the last line that a supervisor adds to the console of a lease whose VMM has ended.
pub const VMM_END_PREFIX: &str = "crabbox: the VMM ";

/// A sentence about the VMM of the lease in `dir`, for the end of its console; `None` if it still runs, or
/// was never started.
pub(super) fn describe(dir: &LeaseDir) -> Option<String> {
    describe_in(&journal::read(&dir.journal()).ok()??)
}

fn describe_in(journal: &Journal) -> Option<String> {
    let vmm = journal.process("vmm").filter(|vmm| !process::is_alive(vmm))?;
    let mut text = VMM_END_PREFIX.to_owned();
    match process::exit_status(vmm) {
        Some(ExitStatus::Exited(code)) => write!(text, "exited with code {code}").ok()?,
        Some(ExitStatus::Signaled(signal)) => write!(text, "was killed by signal {signal}").ok()?,
        // An adopted VMM is not our child.
        None => text.push_str("has ended"),
    }
    if control_group(journal).is_some_and(|group| oom_kills(&group) > 0) {
        text.push_str(
            "; the kernel killed processes in the lease's control group because its memory limit was reached",
        );
    }
    Some(text)
}

fn control_group(journal: &Journal) -> Option<String> {
    journal.teardown().find_map(|live| match &live.step {
        Step::Cgroup { path } => Some(path.clone()),
        _ => None,
    })
}

/// The `oom_kill` counter of the group at `path` (Documentation/admin-guide/cgroup-v2.rst, `memory.events`);
/// 0 if it cannot be read.
fn oom_kills(path: &str) -> u64 {
    let events = std::fs::read_to_string(Path::new(path).join("memory.events")).unwrap_or_default();
    let counter = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    counter.and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crabbox_core::journal::Live;
    use crabbox_core::process::ProcessId;
    use crabbox_host::command::Cmd;

    use super::*;

    /// The sentence about a VMM that does what `script` says, in a control group with these events.
    fn said_of(script: &str, events: &str) -> Option<String> {
        let group = tempfile::tempdir().unwrap();
        std::fs::write(group.path().join("memory.events"), events).unwrap();
        let command = Cmd::new("sh").args(["-c", script]);
        let mut vmm = command.spawn(&mut command.to_std()).unwrap();
        let id = process::identify(vmm.id()).unwrap().unwrap();
        let ends = !script.starts_with("sleep");
        if ends {
            let handle = process::open(&id).unwrap().unwrap();
            assert!(handle.wait_exit(Duration::from_secs(30)).unwrap());
        }
        let path = group.path().display().to_string();
        let said = describe_in(&journal_with(&path, id));
        if !ends {
            vmm.kill().unwrap();
        }
        vmm.wait().unwrap();
        said
    }

    fn journal_with(group: &str, vmm: ProcessId) -> Journal {
        let live = |seq, step, process| Live {
            seq,
            step,
            done: true,
            process,
        };
        let (path, vmid, dir) = (group.to_owned(), "vm".to_owned(), "/vm".to_owned());
        Journal {
            live: vec![
                live(0, Step::Cgroup { path }, None),
                live(1, Step::Vmm { vmid, dir }, Some(vmm)),
            ],
            ..Journal::default()
        }
    }

    #[test]
    fn the_status_and_the_memory_limit_are_told() {
        let calm = "low 0\nhigh 0\nmax 12\noom 0\noom_kill 0\n";
        assert_eq!(
            said_of("exit 3", calm).unwrap(),
            "crabbox: the VMM exited with code 3"
        );
        let killed = said_of("kill -9 $$", "oom 1\noom_kill 1\n").unwrap();
        assert!(
            killed.starts_with("crabbox: the VMM was killed by signal 9; the kernel killed processes"),
            "{killed}"
        );
        assert_eq!(said_of("sleep 60", calm), None);
    }

    #[test]
    fn a_vmm_that_is_not_our_child_has_ended() {
        let gone = ProcessId {
            pid: 1,
            started: u64::MAX.to_string(),
            boot_id: process::boot_id().unwrap(),
        };
        let said = describe_in(&journal_with("/nonexistent", gone));
        assert_eq!(said.unwrap(), "crabbox: the VMM has ended");
    }
}
