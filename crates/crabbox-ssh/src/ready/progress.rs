//! The progress of a wait, in the words of the Go program.
//!
//! It holds facts and one line of text. It must never decide how long to wait.

use std::fmt;
use std::time::Duration;

use crabbox_core::duration::GoDuration;

/// When the first line is due: a normal wait is over before it.
pub(super) const FIRST_LINE: Duration = Duration::from_secs(3);

/// Time between two lines.
pub(super) const NEXT_LINE: Duration = Duration::from_secs(10);

/// How far a wait has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// No SSH greeting on the port yet.
    Port,
    /// The port is open; no login yet.
    Auth,
    /// Logged in; the ready command fails.
    ReadyCheck,
}

impl Stage {
    /// The suffix that the Go program appends to the phase.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Port => "",
            Self::Auth => " ssh-auth",
            Self::ReadyCheck => " ready-check",
        }
    }

    /// How the Go program describes the port.
    pub(super) fn port(self) -> &'static str {
        match self {
            Self::Port => "closed",
            Self::Auth => "tcp",
            Self::ReadyCheck => "auth",
        }
    }
}

/// The contents of a progress line. The text is that of the Go program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What the wait is for: `bootstrap`, `before sync` and so on.
    pub phase: String,
    /// How far the wait has come.
    pub stage: Stage,
    /// Time since the start.
    pub elapsed: Duration,
    /// Time to the deadline.
    pub remaining: Duration,
}

impl fmt::Display for Progress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |span: Duration| {
            let rounded = span + Duration::from_millis(500);
            GoDuration::from(Duration::from_secs(rounded.as_secs()))
        };
        write!(
            out,
            "waiting for {host}:{port} {phase}{suffix}... elapsed={elapsed} remaining={remaining} ports={port}:{state}",
            host = self.host,
            port = self.port,
            phase = self.phase,
            suffix = self.stage.suffix(),
            elapsed = whole(self.elapsed),
            remaining = whole(self.remaining),
            state = self.stage.port(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_the_go_programs() {
        let mut progress = Progress {
            host: "10.0.0.2".to_owned(),
            port: 22,
            phase: "bootstrap".to_owned(),
            stage: Stage::Port,
            elapsed: Duration::from_millis(10_012),
            remaining: Duration::from_millis(109_988),
        };
        assert_eq!(
            progress.to_string(),
            "waiting for 10.0.0.2:22 bootstrap... elapsed=10s remaining=1m50s ports=22:closed"
        );
        progress.stage = Stage::Auth;
        assert_eq!(
            progress.to_string(),
            "waiting for 10.0.0.2:22 bootstrap ssh-auth... elapsed=10s remaining=1m50s ports=22:tcp"
        );
        progress.stage = Stage::ReadyCheck;
        assert_eq!(
            progress.to_string(),
            "waiting for 10.0.0.2:22 bootstrap ready-check... elapsed=10s remaining=1m50s ports=22:auth"
        );
    }
}
