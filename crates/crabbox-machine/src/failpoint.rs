//! Crash points for tests: they make a process die, as by `kill -9`, or stop, exactly at one journal entry.
//!
//! A point is written `<process>:<step>:<phase>`, for example `supervisor:attach:begun`; phases are `begun`
//! (the intent is written, the effect has not happened) and `done` (the effect has happened and is marked).
//! The creation of a template has its own points in the command line: `cli:seal:begun` and `cli:publish`,
//! that of a lease on another machine `cli:keys:begun` and `cli:keys:done`. With the suffix `:wait` the
//! process stops there until it gets SIGCONT. Only tests may arm a failpoint, and an unarmed one must cost no
//! more than a comparison.

use std::fmt;

/// The process that reaches a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The command line.
    Cli,
    /// The per-lease supervisor.
    Supervisor,
}

/// The position of a point within a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The intent is in the journal, the effect has not begun.
    Begun,
    /// The effect has happened, but the journal does not say so yet.
    Made,
    /// The journal says that the effect has happened.
    Done,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Begun => "begun",
            Self::Made => "made",
            Self::Done => "done",
        })
    }
}

/// Dies or stops here if `armed` names this point.
pub fn hit(armed: &str, who: Who, step: &str, phase: Phase) {
    if armed.is_empty() {
        return;
    }
    let who = match who {
        Who::Cli => "cli",
        Who::Supervisor => "supervisor",
    };
    match armed.strip_prefix(&format!("{who}:{step}:{phase}")) {
        Some("") => crabbox_host::process::kill_self(),
        Some(":wait") => crabbox_host::process::stop_self(),
        _ => {}
    }
}
