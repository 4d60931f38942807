//! The identity of a process, in the one form that journal, record, supervisor and tools share.
//!
//! Pids are reused; together with the start time and the boot id they identify one process permanently. This
//! module must never look at a process: liveness and handles are in `process` of `crabbox-host`.

use serde::{Deserialize, Serialize};

/// The identity of one process, unique on this host across reboots. The fields and their order are those of
/// the journal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// The pid. 0, and numbers outside the kernel's signed range, identify no process; a journal may contain
    /// such a number, and it is preserved.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: start time in clock ticks since boot, as printed by the kernel.
    pub started: String,
    /// The kernel's random id of the boot during which the process was started.
    pub boot_id: String,
}

impl ProcessId {
    /// The pid for system calls; `None` for a number that identifies no process, or that would mean a group
    /// or all processes.
    pub fn raw(&self) -> Option<i32> {
        i32::try_from(self.pid).ok().filter(|pid| *pid > 0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_that_is_no_process_is_kept_and_never_reaches_the_kernel() {
        for (pid, raw) in [
            (0, None),
            (1, Some(1)),
            (i32::MAX.unsigned_abs(), Some(i32::MAX)),
            (i32::MAX.unsigned_abs() + 1, None),
            (u32::MAX, None),
        ] {
            let text = format!(r#"{{"pid":{pid},"started":"","boot_id":"b"}}"#);
            let id: ProcessId = serde_json::from_str(&text).unwrap();
            assert_eq!(id.raw(), raw, "{pid}");
            assert_eq!(serde_json::to_string(&id).unwrap(), text);
        }
    }

    #[test]
    fn what_is_no_pid_or_is_not_whole_is_refused() {
        for text in [
            r#"{"pid":-1,"started":"1","boot_id":"b"}"#,
            r#"{"pid":4294967296,"started":"1","boot_id":"b"}"#,
            r#"{"pid":"1","started":"1","boot_id":"b"}"#,
            r#"{"pid":1,"started":1,"boot_id":"b"}"#,
            r#"{"pid":1,"started":"1"}"#,
        ] {
            assert!(serde_json::from_str::<ProcessId>(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_what_is_read(pid: u32, started in ".{0,20}", boot_id in ".{0,40}") {
            let id = ProcessId { pid, started, boot_id };
            let text = serde_json::to_string(&id).unwrap();
            prop_assert!(text.starts_with(&format!(r#"{{"pid":{pid},"started":"#)), "{}", text);
            prop_assert_eq!(serde_json::from_str::<ProcessId>(&text).unwrap(), id);
        }
    }
}
