//! The journal of a lease: all its effects on the host, so that teardown can undo them.
//!
//! ```text
//!   begin(step) ──> effect ──> done(step)            teardown: live steps, last one first
//!        │                                                    undo(step) ──> undone(step)
//!        └── death here: the step counts as live, its undo must bear that the effect never happened
//! ```
//! This module defines the entries. The store writes the file, and other crates make the effects. A step
//! carries everything that its undo needs; an undo must never need the current configuration.

use serde::{Deserialize, Serialize};

use crate::process::ProcessId;

/// One kind of effect on the host. Paths are absolute unless stated otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Step {
    /// The lease directory, which contains the record and this journal.
    Directory {
        /// Its path.
        path: String,
    },
    /// The supervisor process.
    Supervisor {},
    /// The lease's SSH key pair and known hosts.
    Key {
        /// Their directory.
        dir: String,
    },
    /// A cache volume attached to the lease. Its undo returns it to the store, and never removes it.
    Volume {
        /// Its directory in the store of volumes.
        dir: String,
        /// The hard link to its image in the VMM's directory.
        link: String,
        /// The size of its file system in MiB.
        size_mib: u64,
    },
    /// The VMM's directory with kernel, initrd, disks; inside the lease directory.
    Disk {
        /// Its path.
        path: String,
    },
    /// A bind mount of a shared file into the VMM's directory, where a hard link is not possible.
    Mount {
        /// The mount point.
        path: String,
    },
    /// The network namespace, bind-mounted at a path.
    Namespace {
        /// The mount point.
        path: String,
    },
    /// The attachment that gives the namespace its outer address.
    Attach {
        /// The network mode and everything that its undo needs, as saved by the net crate.
        saved: serde_json::Value,
    },
    /// The guest's tap inside the namespace; it disappears with the namespace.
    Tap {
        /// The namespace's mount point.
        netns: String,
    },
    /// Address mapping and policy inside the namespace; they disappear with the namespace.
    Mapping {
        /// The namespace's mount point.
        netns: String,
    },
    /// The jailer's chroot directory.
    Jail {
        /// The jail's own directory, `<base>/<exec name>/<id>`.
        path: String,
    },
    /// The control group of the VMM.
    Cgroup {
        /// Its path.
        path: String,
    },
    /// The VMM process.
    Vmm {
        /// The machine's id, part of the VMM's command line.
        vmid: String,
        /// The VMM's working directory or chroot, by which it is found if its pid was never written.
        dir: String,
    },
    /// The shared SSH connection.
    Connection {
        /// Its control socket.
        control: String,
    },
    /// The claim file.
    Claim {},
}

impl Step {
    /// The step's name in failpoints and messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Directory { .. } => "directory",
            Self::Supervisor {} => "supervisor",
            Self::Key { .. } => "key",
            Self::Volume { .. } => "volume",
            Self::Disk { .. } => "disk",
            Self::Mount { .. } => "mount",
            Self::Namespace { .. } => "namespace",
            Self::Attach { .. } => "attach",
            Self::Tap { .. } => "tap",
            Self::Mapping { .. } => "mapping",
            Self::Jail { .. } => "jail",
            Self::Cgroup { .. } => "cgroup",
            Self::Vmm { .. } => "vmm",
            Self::Connection { .. } => "connection",
            Self::Claim {} => "claim",
        }
    }

    /// Whether its effect is on a disk outside the lease directory and so survives a power cut. Then its line
    /// must be synced to the disk before the effect.
    pub fn outlives_boot(&self) -> bool {
        match self {
            Self::Key { .. }
            | Self::Volume { .. }
            | Self::Attach { .. }
            | Self::Jail { .. }
            | Self::Claim {} => true,
            Self::Directory { .. }
            | Self::Supervisor {}
            | Self::Disk { .. }
            | Self::Mount { .. }
            | Self::Namespace { .. }
            | Self::Tap { .. }
            | Self::Mapping { .. }
            | Self::Cgroup { .. }
            | Self::Vmm { .. }
            | Self::Connection { .. } => false,
        }
    }
}

/// One line of the journal file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub enum Entry {
    /// First line: format version and lease.
    Open {
        /// Format version, [`VERSION`].
        version: u32,
        /// The lease id.
        lease: String,
        /// Unix time in seconds.
        at: i64,
        /// uid and gid of the VMM if it is jailed; reserved until the lease is gone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uid: Option<u32>,
        /// The /30 of built-in NAT; reserved until the lease is gone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subnet: Option<String>,
        /// The lease's memory limit in MiB, VMM included.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        memory_mib: Option<u64>,
    },
    /// An intent: an effect is about to happen.
    Begin {
        /// Number of the step in this journal, from 0.
        seq: u32,
        /// The step.
        step: Step,
    },
    /// A mark: the effect has happened.
    Done {
        /// Number of the step.
        seq: u32,
        /// The process that it started, if any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        process: Option<ProcessId>,
    },
    /// The effect was undone.
    Undone {
        /// Number of the step.
        seq: u32,
    },
    /// A fact for later use (how a disk was created, which image was used).
    Note {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
}

/// The version of the journal format that this program writes.
pub const VERSION: u32 = 1;

/// The note with the number of the scheduler's job that a lease was created for.
pub const JOB: &str = "job";

/// A live step: it may have left something on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// Its number.
    pub seq: u32,
    /// The step.
    pub step: Step,
    /// Whether its effect is known to have happened; otherwise its writer died in between, or is still
    /// working on it.
    pub done: bool,
    /// The process that it started.
    pub process: Option<ProcessId>,
}

/// The state that a journal describes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Journal {
    /// The lease it belongs to.
    pub lease: String,
    /// uid and gid reserved for the VMM.
    pub uid: Option<u32>,
    /// The /30 reserved for built-in NAT.
    pub subnet: Option<String>,
    /// The lease's memory limit in MiB, VMM included.
    pub memory_mib: Option<u64>,
    /// Live steps, in the order in which they began.
    pub live: Vec<Live>,
    /// Recorded facts, in order.
    pub notes: Vec<(String, String)>,
    /// The number of the next step.
    pub next_seq: u32,
}

/// Why a journal is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// A line in the middle is not an entry.
    #[error("line {line} is not a journal entry: {text:?}")]
    BadLine {
        /// Line number from 1.
        line: usize,
        /// The line, truncated.
        text: String,
    },
    /// It was written by a newer version of the program.
    #[error("format version {version} is newer than this program's {VERSION}")]
    TooNew {
        /// The version found.
        version: u32,
    },
}

impl Journal {
    /// Parses the text of a journal file. A last line without its newline is an incomplete write of a dead
    /// process and is dropped: its effect had not begun, because effects start after their line is written.
    pub fn parse(text: &str) -> Result<Self, JournalError> {
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        let mut journal = Self::default();
        for (index, line) in whole
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
        {
            let entry = serde_json::from_str(line).map_err(|_| JournalError::BadLine {
                line: index + 1,
                text: line.chars().take(120).collect(),
            })?;
            journal.apply(entry)?;
        }
        Ok(journal)
    }

    /// Applies one entry.
    pub fn apply(&mut self, entry: Entry) -> Result<(), JournalError> {
        match entry {
            Entry::Open { version, .. } if version > VERSION => return Err(JournalError::TooNew { version }),
            Entry::Open {
                lease,
                uid,
                subnet,
                memory_mib,
                ..
            } => {
                (self.lease, self.uid, self.subnet, self.memory_mib) = (lease, uid, subnet, memory_mib);
            }
            Entry::Begin { seq, step } => {
                self.next_seq = self.next_seq.max(seq.saturating_add(1));
                self.live.push(Live {
                    seq,
                    step,
                    done: false,
                    process: None,
                });
            }
            Entry::Done { seq, process } => {
                if let Some(live) = self.live.iter_mut().find(|live| live.seq == seq) {
                    live.done = true;
                    live.process = process;
                }
            }
            Entry::Undone { seq } => self.live.retain(|live| live.seq != seq),
            Entry::Note { name, value } => self.notes.push((name, value)),
        }
        Ok(())
    }

    /// The live steps in the order of their undo: last begun, first undone.
    pub fn teardown(&self) -> impl Iterator<Item = &Live> {
        self.live.iter().rev()
    }

    /// The process of the live step called `name`.
    pub fn process(&self, name: &str) -> Option<&ProcessId> {
        self.live
            .iter()
            .rev()
            .find(|live| live.step.name() == name)
            .and_then(|live| live.process.as_ref())
    }

    /// Whether the command line that requested the lease has entered and claimed it.
    pub fn is_claimed(&self) -> bool {
        self.live
            .iter()
            .any(|live| live.done && matches!(live.step, Step::Claim {}))
    }

    /// The total size in MiB of the volumes attached to the lease.
    pub fn volumes_mib(&self) -> u64 {
        let sizes = self.live.iter().map(|live| match live.step {
            Step::Volume { size_mib, .. } => size_mib,
            _ => 0,
        });
        sizes.fold(0, u64::saturating_add)
    }

    /// Whether the volume with the directory `dir` may be attached to the lease.
    pub fn has_volume(&self, dir: &str) -> bool {
        self.live
            .iter()
            .any(|live| matches!(&live.step, Step::Volume { dir: held, .. } if held == dir))
    }

    /// The last value recorded under `name`.
    pub fn note(&self, name: &str) -> Option<&str> {
        self.notes
            .iter()
            .rev()
            .find(|(noted, _)| noted == name)
            .map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(entry: &Entry) -> String {
        serde_json::to_string(entry).unwrap() + "\n"
    }

    fn sample() -> Vec<Entry> {
        let open = Entry::Open {
            version: VERSION,
            lease: "cbx_0123456789ab".into(),
            at: 1,
            uid: Some(9),
            subnet: None,
            memory_mib: None,
        };
        let begin = |seq, step| Entry::Begin { seq, step };
        let process = ProcessId {
            pid: 7,
            started: "1".into(),
            boot_id: "b".into(),
        };
        vec![
            open,
            begin(0, Step::Directory { path: "/l".into() }),
            Entry::Done {
                seq: 0,
                process: None,
            },
            begin(
                1,
                Step::Namespace {
                    path: "/l/netns".into(),
                },
            ),
            Entry::Done {
                seq: 1,
                process: None,
            },
            begin(
                2,
                Step::Vmm {
                    vmid: "v".into(),
                    dir: "/l/vm".into(),
                },
            ),
            Entry::Done {
                seq: 2,
                process: Some(process),
            },
            Entry::Undone { seq: 2 },
            Entry::Undone { seq: 1 },
            Entry::Undone { seq: 0 },
        ]
    }

    #[test]
    fn every_crash_point_leaves_exactly_the_begun_steps_live_in_reverse() {
        let text: String = sample().iter().map(line).collect();
        let live_after = |entries: usize| {
            let cut: String = sample()[..entries].iter().map(line).collect();
            let journal = Journal::parse(&cut).unwrap();
            journal
                .teardown()
                .map(|live| live.step.name())
                .collect::<Vec<_>>()
        };
        let expect: [&[&str]; 11] = [
            &[],
            &[],
            &["directory"],
            &["directory"],
            &["namespace", "directory"],
            &["namespace", "directory"],
            &["vmm", "namespace", "directory"],
            &["vmm", "namespace", "directory"],
            &["namespace", "directory"],
            &["directory"],
            &[],
        ];
        for (entries, expected) in expect.iter().enumerate() {
            assert_eq!(&live_after(entries), expected, "after {entries} entries");
        }
        // A file truncated anywhere is read up to its last complete line.
        for cut in 0..text.len() {
            Journal::parse(&text[..cut]).unwrap();
        }
    }

    #[test]
    fn the_pid_of_the_vmm_is_found() {
        let text: String = sample()[..7].iter().map(line).collect();
        assert_eq!(
            Journal::parse(&text)
                .unwrap()
                .process("vmm")
                .map(|process| process.pid),
            Some(7)
        );
    }

    #[test]
    fn a_lease_is_handed_over_when_its_claim_is_written_and_not_before() {
        let mut journal = Journal::parse(&line(&sample()[0])).unwrap();
        assert!(!journal.is_claimed());
        let claim = Entry::Begin {
            seq: 0,
            step: Step::Claim {},
        };
        journal.apply(claim).unwrap();
        assert!(!journal.is_claimed(), "an intent is no claim");
        let done = Entry::Done {
            seq: 0,
            process: None,
        };
        journal.apply(done).unwrap();
        assert!(journal.is_claimed());
    }

    #[test]
    fn garbage_in_the_middle_is_told_with_its_line() {
        let text = line(&sample()[0]) + "garbage\n" + &line(&sample()[1]);
        let error = Journal::parse(&text).unwrap_err();
        assert_eq!(
            error,
            JournalError::BadLine {
                line: 2,
                text: "garbage".into()
            }
        );
    }

    #[test]
    fn a_newer_format_is_refused() {
        let open = Entry::Open {
            version: 2,
            lease: "x".into(),
            at: 0,
            uid: None,
            subnet: None,
            memory_mib: None,
        };
        assert_eq!(
            Journal::parse(&line(&open)),
            Err(JournalError::TooNew { version: 2 })
        );
    }
}
