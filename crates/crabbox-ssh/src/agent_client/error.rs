//! Why a request to the agent failed, how an agent ended, and what the user can do about it. Only what the
//! remote side said, shortened, may be in it, never what it was sent.

use std::fmt;
use std::time::Duration;

use super::agent;
use crate::exec::ExecError;
use crate::master::ConnectError;

/// Why a request to the agent failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The remote side was not reached, or the agent did not start.
    #[error(transparent)]
    Exec(ExecError),
    /// The conversation had broken off before this request.
    #[error("the connection to the agent in the lease was lost")]
    Over,
    /// There is no agent for the lease's architecture.
    #[error(
        "the machine of the lease is {machine}, and this crabbox has an agent for {} only",
        agent::machines()
    )]
    Machine {
        /// The architecture that the lease reports.
        machine: String,
    },
    /// The agent could not be uploaded.
    #[error("cannot install crabbox's agent in ~/.cache/crabbox of the lease: {said}")]
    Unplaced {
        /// What the lease said.
        said: String,
    },
    /// No answer in time.
    #[error("timed out after {}s", limit.as_secs())]
    TimedOut {
        /// The limit.
        limit: Duration,
    },
    /// The caller cancelled it.
    #[error("interrupted")]
    Cancelled,
    /// The connection failed.
    #[error("the connection to the lease failed: {said}")]
    Connection {
        /// The end of what ssh said.
        said: String,
    },
    /// The agent ended.
    #[error("the agent in the lease {end}: {said}")]
    Broke {
        /// How.
        end: End,
        /// Whether it had sent its greeting.
        greeted: bool,
        /// The last line of its standard error.
        said: String,
    },
    /// Another program writes into the conversation.
    #[error("another program in the lease wrote to the agent's output: {printed:?}")]
    Mixed {
        /// The beginning of its output, if known.
        printed: String,
    },
    /// The reply makes no sense.
    #[error("the agent in the lease answered {text:?}")]
    Nonsense {
        /// The beginning of the reply.
        text: String,
    },
    /// The agent could not do what was asked.
    #[error("{why}")]
    Failed {
        /// The path and the reason.
        why: String,
    },
}

impl From<ExecError> for AgentError {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::Connect {
                source: ConnectError::Cancelled { .. },
            } => Self::Cancelled,
            error => Self::Exec(error),
        }
    }
}

impl AgentError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unplaced { .. } => Some(
                "a small agent of crabbox's is installed in ~/.cache/crabbox: the user of the lease needs a home directory with 2 MiB free, \
                 on a file system that is not mounted noexec",
            ),
            Self::Broke { end, greeted, said } => end.hint(*greeted, said),
            Self::Mixed { .. } => Some(
                "a start-up file of the login shell there (.bashrc, .profile, .zshenv, config.fish) starts something in the background that prints: \
                 give that `>/dev/null 2>&1`",
            ),
            _ => None,
        }
    }
}

/// How an agent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With this exit code.
    Exited(u8),
    /// By a signal.
    Killed,
    /// It has not ended, though its output has.
    Lingers,
}

impl fmt::Display for End {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(out, "ended with exit code {code}"),
            Self::Killed => out.write_str("was killed"),
            Self::Lingers => out.write_str("closed its output but still runs"),
        }
    }
}

impl End {
    /// The usual cause of such an end. Shells differ in their messages and exit codes for a program that the
    /// system cannot run.
    fn hint(self, greeted: bool, said: &str) -> Option<&'static str> {
        let is_said = |words: &[&str]| words.iter().any(|word| said.contains(word));
        match self {
            // 128 and the number of a signal.
            Self::Killed | Self::Exited(129..=192) => Some(
                "it was killed by a signal, probably because memory ran out (see dmesg there); use a lease with more memory \
                 (--firecracker-memory-mib), or raise the limits of the user there (ulimit -a, the control group)",
            ),
            Self::Exited(2 | 126 | 127)
                if !greeted
                    && is_said(&[
                        "xec format error",
                        "cannot execute binary",
                        "yntax error",
                        "not found",
                    ]) =>
            {
                Some(
                    "the kernel and the programs of the lease are for different machines (a 32-bit system on a 64-bit kernel?): use a host or an image with one architecture",
                )
            }
            Self::Exited(126 | 127) if !greeted => Some(
                "the system there does not let it run: the home directory must not be mounted with noexec, nor a security policy (SELinux, \
                 AppArmor, fapolicyd) forbid programs in ~/.cache/crabbox",
            ),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_does_not_begin_is_told_with_what_helps() {
        for (end, said, helps) in [
            (End::Killed, "", "memory"),
            (End::Exited(137), "", "memory"),
            (End::Exited(126), "agent: Permission denied", "noexec"),
            (
                End::Exited(2),
                "sh: 1: Syntax error: word unexpected",
                "different machines",
            ),
            (
                End::Exited(126),
                "cannot execute binary file: Exec format error",
                "different machines",
            ),
            (End::Exited(127), "agent: not found", "different machines"),
        ] {
            let hint = end.hint(false, said).unwrap_or_default();
            assert!(hint.contains(helps), "{end} {said}: {hint}");
        }
        assert_eq!(End::Exited(1).hint(false, ""), None);
        assert_eq!(End::Exited(126).hint(true, ""), None);
    }
}
