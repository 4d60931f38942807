//! Copying files and directories into and out of a lease: `crabbox cp`.
//!
//! Both ways a tar stream goes over the lease's shared connection into a fresh directory beside the destination, and only a
//! complete one is put in place. What a guest sends is never trusted: nothing but files and directories is taken from it, and
//! no name of it can lead out of that fresh directory.

mod download;
mod upload;

use std::io;
use std::path::PathBuf;

use crabbox_core::fault::{Fault, Kind};
use crabbox_host::archive::{ArchiveError, MemberKind};
use crabbox_host::beneath::BeneathError;
use crabbox_host::budget::OverBudget;
use crabbox_host::place::PlaceError;
use crabbox_ssh::exec::{ExecError, RemoteStatus};
use crabbox_ssh::quote;

pub use download::download;
pub use upload::upload;

use crate::stream::Words;

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
    /// A home directory by the name of its user.
    #[error(
        "{path:?} begins with the home directory of a user, which is not looked for; write the whole path, or ./ before a name with a tilde"
    )]
    Home {
        /// The path as it was given.
        path: String,
    },
    /// The lease sent what no copy may hold.
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
    /// What the lease sent is not an archive, or not a whole one.
    #[error("cannot read what the lease sent")]
    Garbled(#[source] ArchiveError),
    /// The copy has no place here, or could not be put there.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The other side could not do its part.
    #[error("cannot copy {attempt} {path:?} in the lease: {said}")]
    Remote {
        /// `to` or `from`.
        attempt: &'static str,
        /// The remote path.
        path: String,
        /// What it said.
        said: String,
    },
    /// The lease could not be spoken to.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The user interrupted.
    #[error("interrupted; nothing was copied")]
    Interrupted,
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
            Self::Refused { .. }
            | Self::Over { .. }
            | Self::Garbled(_)
            | Self::Remote { .. }
            | Self::Exec(_) => Kind::Remote,
            _ => Kind::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Refused { what, .. } if what == MemberKind::Symlink.describe() => {
                vec!["-L copies what links lead to".to_owned()]
            }
            _ => Vec::new(),
        }
    }
}

/// How the remote side ended, as a result.
fn judge(status: RemoteStatus, attempt: &'static str, path: &str, said: &Words) -> Result<(), CopyError> {
    let failed = |why: &str| {
        let said = said.text();
        let said = if said.is_empty() { why.to_owned() } else { said };
        Err(CopyError::Remote {
            attempt,
            path: path.to_owned(),
            said,
        })
    };
    match status {
        RemoteStatus::Exited(0) => Ok(()),
        RemoteStatus::Exited(code) => failed(&format!("the remote side ended with exit code {code}")),
        RemoteStatus::Killed => failed("the remote side was killed"),
        RemoteStatus::ConnectionLost => failed("the connection was lost"),
        RemoteStatus::Cancelled { .. } | RemoteStatus::TimedOut { .. } => Err(CopyError::Interrupted),
    }
}

/// A remote path for a shell script: quoted, without slashes at its end, and never to be taken for an option. `~` is the home
/// directory there, as people expect of a path that they write.
fn remote_path(path: &str) -> String {
    if let Some(below) = path.strip_prefix("~/").or((path == "~").then_some("")) {
        return format!(
            "\"$HOME\"{}",
            quote::single(&format!("/{}", below.trim_matches('/')))
        );
    }
    let trimmed = path.trim_end_matches('/');
    let path = if trimmed.is_empty() && path.starts_with('/') {
        "/"
    } else {
        trimmed
    };
    if path.starts_with('/') {
        quote::single(path)
    } else {
        quote::single(&format!("./{path}"))
    }
}

/// Refuses a path that a shell would read as another one than we do.
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
    fn remote_paths_are_words_and_never_options() {
        assert_eq!(remote_path("-rf"), "'./-rf'");
        assert_eq!(remote_path("a b/[1]//"), "'./a b/[1]'");
        assert_eq!(
            (remote_path("/"), remote_path("//x/")),
            ("'/'".into(), "'//x'".into())
        );
        assert_eq!(remote_path(""), "'./'");
        assert_eq!(name_of("/a/b/").unwrap(), "b");
        assert_eq!(remote_path("~/a b/"), "\"$HOME\"'/a b'");
        assert_eq!(remote_path("~"), "\"$HOME\"'/'");
        assert_eq!(remote_path("a/~"), "'./a/~'");
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
