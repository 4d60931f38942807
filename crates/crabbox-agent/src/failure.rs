//! Why a step could not be done.
//!
//! A failure is reported to the client as a path and a reason. It must never end the conversation unless the
//! client has gone.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Why a step could not be done.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The client has gone.
    Gone,
    /// A reason of the agent itself.
    Refused(String),
    /// A system call on this path failed. There is deliberately no conversion from an error alone: where
    /// there is no path, [`At::trying`] says what was tried.
    System { path: PathBuf, source: io::Error },
}

impl Failure {
    /// The message for the client.
    pub(crate) fn why(&self) -> String {
        match self {
            Self::Gone => "the client has gone".to_owned(),
            Self::Refused(why) => why.clone(),
            Self::System { path, source } => {
                let mut why = said(source);
                if [Errno::NOSPC, Errno::DQUOT]
                    .iter()
                    .any(|full| source.raw_os_error() == Some(full.raw_os_error()))
                {
                    why.push_str(
                        " (in the lease: remove something there, or take a lease with a larger disk)",
                    );
                }
                format!("{}: {why}", path.display())
            }
        }
    }

    /// Writes the message to standard error, for when there is no conversation.
    pub(crate) fn tell(&self) {
        use std::io::Write as _;
        // There is nowhere else to report that this write failed.
        writeln!(io::stderr(), "crabbox-agent: {}", self.why()).ok();
    }

    /// The same failure, with a path at or below `made` replaced by its final path at or below `to`.
    pub(crate) fn elsewhere(self, made: &Path, to: &Path) -> Self {
        match self {
            Self::System { path, source } => Self::System {
                path: match path.strip_prefix(made) {
                    Ok(below) if below.as_os_str().is_empty() => to.to_owned(),
                    Ok(below) => to.join(below),
                    Err(_) => path,
                },
                source,
            },
            other => other,
        }
    }

    /// Whether a system call failed.
    pub(crate) fn is_of_the_disk(&self) -> bool {
        matches!(self, Self::System { .. })
    }

    /// Whether it is this system error.
    pub(crate) fn is(&self, errno: Errno) -> bool {
        matches!(self, Self::System { source, .. } if source.raw_os_error() == Some(errno.raw_os_error()))
    }
}

/// The text of a system error without the "(os error N)" part.
pub(crate) fn said(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error ").next().unwrap_or_default().to_owned()
}

/// Adds context to an error.
pub(crate) trait At<T> {
    /// The path that the error is about.
    fn at(self, path: &Path) -> Result<T, Failure>;

    /// What was tried, where there is no path; it follows "cannot" in the message.
    fn trying(self, what: &str) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, path: &Path) -> Result<T, Failure> {
        self.map_err(|error| Failure::System {
            path: path.to_owned(),
            source: error.into(),
        })
    }

    fn trying(self, what: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure::Refused(format!("cannot {what}: {}", said(&error.into()))))
    }
}
