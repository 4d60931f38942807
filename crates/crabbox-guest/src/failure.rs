//! Why a boot step failed: one enum for the whole program, because every failure ends the same way (a line on
//! the console and a reset).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// A failed boot step.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A system call on a path failed.
    Path {
        /// What was tried, as a verb.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// A system call on a network interface failed.
    Interface {
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// The interface.
        name: String,
        /// The error.
        source: io::Error,
    },
    /// A file has contents that this program cannot use.
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Something did not appear in time.
    Missing {
        /// The path that was waited for.
        what: PathBuf,
        /// For how long, in seconds.
        seconds: u64,
    },
    /// sshd ended or did not listen.
    Sshd {
        /// What it did.
        why: &'static str,
        /// The end of its log.
        log: String,
    },
}

impl Failure {
    /// For `map_err`: `action` was tried on `path`.
    pub(crate) fn path<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::Path {
            action,
            path: path.to_owned(),
            source: source.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path { action, path, source } => {
                write!(out, "cannot {action} {}: {source}", path.display())
            }
            Self::Interface { action, name, source } => write!(out, "cannot {action} {name}: {source}"),
            Self::Content { path, why } => write!(out, "{} is unusable: {why}", path.display()),
            Self::Missing { what, seconds } => {
                write!(out, "{} did not appear within {seconds} s", what.display())
            }
            Self::Sshd { why, log } if log.is_empty() => write!(out, "sshd {why} and logged nothing"),
            Self::Sshd { why, log } => write!(out, "sshd {why}; the end of its log:\n{log}"),
        }
    }
}
