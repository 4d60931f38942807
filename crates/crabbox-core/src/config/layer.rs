//! The origin of a configuration value.
//!
//! Every value carries its layer and its exact origin, from which trust is decided and `config explain` names
//! the line. A value must never be separated from its origin before that.

use std::fmt;
use std::ops::Deref;
use std::path::PathBuf;

/// The layers of configuration, weakest first: a later one takes precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer {
    /// Compiled in.
    Default,
    /// The user's own file, or a file outside the repository that `CRABBOX_CONFIG` names.
    UserFile,
    /// A file that may come from the repository.
    RepoFile,
    /// An environment variable.
    Environment,
    /// The lease that the command names; it knows its own provider.
    Lease,
    /// A command-line flag.
    Flag,
}

impl Layer {
    /// Whether the user of this host chose the value, and not a repository.
    pub const fn is_trusted(self) -> bool {
        !matches!(self, Self::RepoFile)
    }

    /// The name that `config show` and `doctor` print, as in the Go program.
    pub const fn source_name(self) -> &'static str {
        match self {
            Self::Default => "compiled_default",
            Self::UserFile => "user_config",
            Self::RepoFile => "repo_config",
            Self::Environment => "environment",
            Self::Lease => "lease_context",
            Self::Flag => "flag",
        }
    }
}

/// A place in a configuration file; lines and columns count from 1, columns in characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The path as it was given.
    pub path: PathBuf,
    /// Its line.
    pub line: u64,
    /// The column in that line.
    pub column: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.path.display(), self.line, self.column)
    }
}

/// The exact origin of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Compiled in.
    Default,
    /// A line of a trusted file.
    UserFile(Place),
    /// A line of a file that may come from the repository.
    RepoFile(Place),
    /// The environment variable of this name.
    Environment(&'static str),
    /// The named lease.
    Lease,
    /// The flag of this name, without dashes.
    Flag(&'static str),
}

impl Origin {
    /// The layer of this origin.
    pub const fn layer(&self) -> Layer {
        match self {
            Self::Default => Layer::Default,
            Self::UserFile(_) => Layer::UserFile,
            Self::RepoFile(_) => Layer::RepoFile,
            Self::Environment(_) => Layer::Environment,
            Self::Lease => Layer::Lease,
            Self::Flag(_) => Layer::Flag,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the compiled-in default"),
            Self::UserFile(place) | Self::RepoFile(place) => place.fmt(f),
            Self::Environment(variable) => write!(f, "environment variable {variable}"),
            Self::Lease => f.write_str("the named lease"),
            Self::Flag(flag) => write!(f, "flag --{flag}"),
        }
    }
}

/// A value that no repository file set. [`Trusted::new`] is the only way to make one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trusted<T>(Sourced<T>);

impl<T> Trusted<T> {
    /// The value, or `None` when its layer is not trusted.
    pub fn new(value: Sourced<T>) -> Option<Self> {
        value.layer().is_trusted().then_some(Self(value))
    }
}

impl<T> Deref for Trusted<T> {
    type Target = Sourced<T>;

    fn deref(&self) -> &Sourced<T> {
        &self.0
    }
}

/// A value with its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sourced<T> {
    /// The value itself.
    pub value: T,
    /// Where it came from.
    pub origin: Origin,
}

impl<T> Sourced<T> {
    /// The layer the value came from.
    pub const fn layer(&self) -> Layer {
        self.origin.layer()
    }

    /// Whether the value is the compiled-in default.
    pub fn is_default(&self) -> bool {
        self.layer() == Layer::Default
    }

    /// The same origin with another value, for a value derived from this one.
    pub fn with<U>(&self, value: U) -> Sourced<U> {
        Sourced {
            value,
            origin: self.origin.clone(),
        }
    }
}
