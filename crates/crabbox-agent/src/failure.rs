//! Why a step could not be done.
//!
//! A failure is told to the client as the path and the reason; it must never end the conversation but where the client has gone.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Why a step could not be done.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The client has gone.
    Gone,
    /// A reason of our own.
    Refused(String),
    /// The system said no, of this path. There is no way to make one of an error alone: what has no path is [`At::trying`] something.
    System { path: PathBuf, source: io::Error },
}

impl Failure {
    /// What the client is told.
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

    /// Says it on standard error, when there is no conversation to say it in.
    pub(crate) fn tell(&self) {
        use std::io::Write as _;
        // There is nobody else to be told that this failed.
        writeln!(io::stderr(), "crabbox-agent: {}", self.why()).ok();
    }

    /// The same of what will be at or below `to`, and is made at or below `made`.
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

    /// Whether the system could not write or read something.
    pub(crate) fn is_of_the_disk(&self) -> bool {
        matches!(self, Self::System { .. })
    }

    /// Whether it is the system that said this.
    pub(crate) fn is(&self, errno: Errno) -> bool {
        matches!(self, Self::System { source, .. } if source.raw_os_error() == Some(errno.raw_os_error()))
    }
}

/// What the system says, without the number that nobody reads.
pub(crate) fn said(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error ").next().unwrap_or_default().to_owned()
}

/// Names what an error is about.
pub(crate) trait At<T> {
    /// This path.
    fn at(self, path: &Path) -> Result<T, Failure>;

    /// No path, but what was tried: behind "cannot".
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
