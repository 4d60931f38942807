//! Crash points for tests: a process can be told to die, as by `kill -9`, or to stand still, exactly at one journal entry.
//!
//! A point is spelled `<process>:<step>:<phase>`, for example `supervisor:attach:begun`; phases are `begun` (the intent is
//! written, the effect is not there) and `done` (the effect is there and marked). The making of a template has points of its own in the
//! command line: `cli:seal:begun` and `cli:publish`, that of a lease on another machine
//! `cli:keys:begun` and `cli:keys:done`. With `:wait` behind it the process stops
//! there until it gets SIGCONT. Nothing else may use this module, and an unarmed one must cost no more than a comparison.

use std::fmt;

/// The process that reaches a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The command line.
    Cli,
    /// The per-lease supervisor.
    Supervisor,
}

/// Where in a step the point stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The intent is in the journal, the effect has not begun.
    Begun,
    /// The effect is there, the journal does not say so yet.
    Made,
    /// The journal says that the effect is there.
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
