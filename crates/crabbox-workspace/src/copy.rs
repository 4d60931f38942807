//! Copies files and directories into and out of a lease: `crabbox cp`.
//!
//! In both directions, the files go through the lease's agent into a fresh staging directory beside the
//! destination, and are put in place only when complete. Data from a guest is never trusted: only files and
//! directories are accepted, and no name can lead out of the staging directory.

mod download;
mod upload;

use std::io;
use std::path::PathBuf;

use crabbox_core::fault::{self, Fault, Kind};
use crabbox_host::beneath::BeneathError;
use crabbox_host::budget::OverBudget;
use crabbox_host::files::FileError;
use crabbox_host::place::PlaceError;
use crabbox_ssh::agent_client::AgentError;
use crabbox_ssh::exec::ExecError;

pub use download::download;
pub use upload::upload;

use crate::owner::far_hints;

/// The name of the copy in the staging directory, on either side.
const COPY: &str = "c";

/// Describes a link in a lease, which is refused unless links are followed.
const LINK: &str = "a symbolic link";

/// Why nothing was copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A local file or directory cannot be read or written.
    #[error("cannot {attempt} {}", path.display())]
    Local {
        /// What was tried.
        attempt: &'static str,
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something that cannot be copied.
    #[error("{} is {what}, which cannot be copied", path.display())]
    Special {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A link to one of its own parents, with links followed.
    #[error("{} leads back to a directory that it is in", path.display())]
    Loop {
        /// The link.
        path: PathBuf,
    },
    /// A file where a directory would go, or the other way round.
    #[error("{} is there already and is {what}", path.display())]
    InTheWay {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The source's name cannot name the copy.
    #[error(
        "cannot tell what to call the copy of {source_path:?}; name the file or directory itself, not . or .."
    )]
    Nameless {
        /// The source as it was given.
        source_path: String,
    },
    /// A home directory of a named user (`~user`).
    #[error(
        "{path:?} begins with the home directory of a user, which crabbox does not resolve; write the absolute path, or ./ before a name with a tilde"
    )]
    Home {
        /// The path as it was given.
        path: String,
    },
    /// The lease sent something that a copy may not contain.
    #[error("the lease sent {name:?}, which is {what}; nothing was copied")]
    Refused {
        /// The name it sent.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// It sent more than may be kept here.
    #[error("the lease sent {name:?}, which cannot be kept; nothing was copied")]
    Over {
        /// The name it sent.
        name: String,
        /// The limit.
        #[source]
        over: OverBudget,
    },
    /// The copy has no valid local place, or could not be put there.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The lease could not do its part.
    #[error("cannot copy {attempt} {path:?} in the lease: {said}")]
    Remote {
        /// `to` or `from`.
        attempt: &'static str,
        /// The remote path.
        path: String,
        /// What it said.
        said: String,
    },
    /// The connection could not be opened.
    #[error(transparent)]
    Exec(ExecError),
    /// Talking to the lease failed.
    #[error("cannot communicate with the lease")]
    Agent(#[source] AgentError),
    /// The staging directory could not be removed.
    #[error("{} could not be removed: {why}{}", path.display(), outcome(error.as_deref()))]
    Leftover {
        /// The directory.
        path: PathBuf,
        /// Why.
        why: FileError,
        /// Why nothing was copied; `None` if the copy succeeded.
        error: Option<Box<CopyError>>,
    },
    /// The user interrupted.
    #[error("interrupted; nothing was copied")]
    Interrupted,
}

/// The result of a copy whose staging directory stays.
fn outcome(error: Option<&CopyError>) -> String {
    error.map_or_else(
        || "; the copy is in its place".to_owned(),
        |error| format!("; nothing was copied: {}", fault::chain(error)),
    )
}

impl From<BeneathError> for CopyError {
    fn from(error: BeneathError) -> Self {
        Self::Place(error.into())
    }
}

impl Fault for CopyError {
    fn kind(&self) -> Kind {
        match self {
            Self::Interrupted => Kind::Passthrough(130),
            Self::Leftover {
                error: Some(error), ..
            } => error.kind(),
            Self::Refused { .. }
            | Self::Over { .. }
            | Self::Remote { .. }
            | Self::Exec(_)
            | Self::Agent(_) => Kind::Remote,
            _ => Kind::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Refused { what, .. } if what == LINK => {
                vec!["-L copies the targets of links".to_owned()]
            }
            Self::Leftover { .. } => vec!["it is a temporary file of crabbox; remove it".to_owned()],
            _ => far_hints(self),
        }
    }
}

/// Converts an error of the remote side of a copy.
fn failed(error: AgentError, attempt: &'static str, path: &str) -> CopyError {
    let remote = |said| CopyError::Remote {
        attempt,
        path: path.to_owned(),
        said,
    };
    match error {
        AgentError::Cancelled => CopyError::Interrupted,
        AgentError::Failed { why } => remote(why),
        AgentError::Connection { .. } => remote("the connection was lost".to_owned()),
        AgentError::Exec(error) => CopyError::Exec(error),
        error => CopyError::Agent(error),
    }
}

/// A path in the lease in the form that the agent expects: without trailing slashes, and starting with `./`
/// if relative. A leading tilde is the lease user's home directory, as users expect.
fn remote_path(path: &str) -> String {
    let trimmed = path.trim_end_matches('/');
    match trimmed {
        "" if path.starts_with('/') => "/".to_owned(),
        "~" => "~".to_owned(),
        path if path.starts_with('/') || path.starts_with("~/") => path.to_owned(),
        path => format!("./{path}"),
    }
}

/// Splits a path of [`remote_path`] into its directory and name.
fn split(path: &str) -> (&str, &str) {
    match path.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some(parts) => parts,
        None => (".", path),
    }
}

/// Refuses a path that a shell would interpret differently.
fn checked(path: &str) -> Result<&str, CopyError> {
    let first = path.split('/').next().unwrap_or_default();
    if first.starts_with('~') && first != "~" {
        return Err(CopyError::Home {
            path: path.to_owned(),
        });
    }
    Ok(path)
}

/// The last component of a path, if it is a name.
fn name_of(path: &str) -> Result<&str, CopyError> {
    match path.trim_end_matches('/').rsplit('/').next() {
        None | Some("" | "." | ".." | "~") => Err(CopyError::Nameless {
            source_path: path.to_owned(),
        }),
        Some(name) => Ok(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remote_paths_have_one_spelling_and_a_tilde_that_is_somebody_s_is_refused() {
        for (given, path, parts) in [
            ("-rf", "./-rf", (".", "-rf")),
            ("a b/[1]//", "./a b/[1]", ("./a b", "[1]")),
            ("/x", "/x", ("/", "x")),
            ("//x/", "//x", ("/", "x")),
            ("~/a b/", "~/a b", ("~", "a b")),
            ("a/~", "./a/~", ("./a", "~")),
        ] {
            let path_of = remote_path(given);
            assert_eq!((path_of.as_str(), split(&path_of)), (path, parts), "{given}");
        }
        assert_eq!(remote_path("/"), "/");
        assert_eq!(remote_path("~"), "~");
        assert_eq!(name_of("/a/b/").unwrap(), "b");
        for good in ["~", "~/x", "./~x", "a/~x", "/~x"] {
            assert!(checked(good).is_ok(), "{good}");
        }
        for bad in ["~root", "~root/x", "~+/x"] {
            assert!(matches!(checked(bad), Err(CopyError::Home { .. })), "{bad}");
        }
        for bad in ["/", ".", "a/..", "", "~"] {
            assert!(name_of(bad).is_err(), "{bad}");
        }
    }
}
