//! Warnings about a usable configuration, and errors about an unusable one.
//!
//! If the Go program ignores a value silently, a warning here says which one, where and why. These types only
//! describe; they must never decide whether a value is used.

use std::fmt;
use std::path::PathBuf;

use super::choice::Choice;
use super::key::{Key, Name, Trust};
use super::layer::{Origin, Place};
use crate::fault::{Fault, Kind};

/// An ignored part of the configuration, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// A repository file tried to set a host-only key.
    Restricted {
        /// Where.
        place: Place,
        /// The key.
        key: Name,
    },
    /// A repository file names another provider than the user of this host chose.
    ProviderKept {
        /// Where.
        place: Place,
        /// The provider that it names.
        found: String,
        /// The provider that is used.
        chosen: String,
        /// Where that provider was chosen.
        origin: Origin,
    },
    /// An unknown key.
    UnknownKey {
        /// Where.
        place: Place,
        /// Its path.
        path: String,
        /// The most similar known key.
        suggestion: Option<&'static str>,
    },
    /// Sections of the Go program without a counterpart here.
    ForeignSections {
        /// The file.
        file: PathBuf,
        /// Their names, in file order.
        sections: Vec<String>,
    },
    /// A well-formed but unusable value: a duration or limit that is not positive, an unreadable variable.
    Unusable {
        /// Where it came from.
        origin: Origin,
        /// The key.
        key: Name,
        /// Its spelling.
        value: String,
        /// The expected value.
        expected: &'static str,
    },
    /// Volumes are configured for leases that cannot have any.
    VolumesLeftOut {
        /// Where they are configured.
        origin: Origin,
        /// What there is instead.
        lacking: &'static str,
    },
    /// A file contains more than one YAML document; only the first is used.
    MoreDocuments {
        /// The file.
        file: PathBuf,
    },
}

impl Warning {
    /// Where a repository file tried to name the host of provider `ssh`.
    pub(super) fn of_static_host(&self) -> Option<&Place> {
        match self {
            Self::Restricted {
                place,
                key: Name::StaticHost,
            } => Some(place),
            _ => None,
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restricted { place, key } => {
                let key = key.key();
                let reason = match key.trust {
                    _ if key.name == Name::CacheVolumes => "what leases leave to each other",
                    Trust::Destination | Trust::DestinationOfHost => {
                        "where your files, secrets and logins go"
                    }
                    Trust::HostOnly | Trust::Open => "what runs on this host",
                };
                write!(
                    f,
                    "{place}: {} is ignored: a repository file must not choose {reason}; {}",
                    key.path,
                    how_to_set(key)
                )
            }
            Self::ProviderKept {
                place,
                found,
                chosen,
                origin,
            } => write!(
                f,
                "{place}: provider {found:?} is ignored: you chose {chosen} ({origin}); --provider {found} takes it for once"
            ),
            Self::UnknownKey {
                place,
                path,
                suggestion,
            } => {
                write!(f, "{place}: unknown key {path} is ignored")?;
                suggestion.map_or(Ok(()), |known| write!(f, "; did you mean {known}?"))
            }
            Self::ForeignSections { file, sections } => write!(
                f,
                "{}: not supported by this program and ignored: {}",
                file.display(),
                sections.join(", ")
            ),
            Self::Unusable {
                origin,
                key,
                value,
                expected,
            } => {
                write!(
                    f,
                    "{origin}: {} is ignored: expected {expected}, found {value:?}",
                    key.key().path
                )
            }
            Self::VolumesLeftOut { origin, lacking } => {
                write!(f, "{origin}: cache.volumes is ignored: {lacking}")
            }
            Self::MoreDocuments { file } => {
                write!(f, "{}: only the first YAML document is read", file.display())
            }
        }
    }
}

/// How the user of this host can set a key that a repository may not.
fn how_to_set(key: &Key) -> String {
    let mut ways = vec!["your own configuration file (crabbox config path)".to_owned()];
    ways.extend(key.variables.first().map(|variable| (*variable).to_owned()));
    ways.extend(key.flag.map(|flag| format!("--{}", flag.name)));
    format!("set it in {}", ways.join(", or with "))
}

/// Why the configuration is unusable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A file is not YAML.
    #[error("parse config {}: {message}{}", .at.place, .at.excerpt())]
    Syntax {
        /// The position at which the library stopped.
        at: Box<Spot>,
        /// The library's message.
        message: String,
    },
    /// A value of a file has the wrong type.
    #[error("parse config {}: {key} must be {expected}, found {found}{}", .at.place, .at.excerpt())]
    WrongType {
        /// Where.
        at: Box<Spot>,
        /// The key's path.
        key: String,
        /// The expected type.
        expected: &'static str,
        /// The actual value.
        found: String,
        /// Whether that is a tag without a value.
        is_tag: bool,
    },
    /// A value outside the fixed set.
    #[error("{} ({origin})", .choice.refusal(.value))]
    NoChoice {
        /// The key.
        choice: Choice,
        /// The value as given.
        value: String,
        /// Where it came from.
        origin: Origin,
    },
    /// A flag's value has the wrong type.
    #[error("invalid value {value:?} for flag -{flag}: expected {expected}")]
    WrongFlag {
        /// The flag without dashes.
        flag: &'static str,
        /// The value as given.
        value: String,
        /// The expected type.
        expected: &'static str,
    },
    /// A repository names the host for the login while the credentials are the user's own.
    #[error(
        "provider=ssh refuses repository-configured static.host with inherited credentials; set CRABBOX_STATIC_HOST or --static-host to explicitly approve the credential destination"
    )]
    InheritedCredentials {
        /// Where the host is configured.
        place: Place,
        /// The file in which the user can approve it, if there is a home directory.
        user_file: Option<PathBuf>,
    },
}

impl Fault for ConfigError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::InheritedCredentials { place, user_file } => {
                let own = user_file.as_ref().map_or_else(
                    || "your own configuration file".to_owned(),
                    |file| file.display().to_string(),
                );
                vec![
                    format!("static.host is set in {place}"),
                    format!(
                        "if you trust that host, put static.host, and what belongs to it (static.user, static.port, static.workRoot, \
                         ssh.key), into {own}"
                    ),
                ]
            }
            Self::WrongType { is_tag: true, .. } => {
                vec!["a text that begins with ! needs quotes, as in '!keep.txt'".to_owned()]
            }
            Self::Syntax { .. } | Self::WrongType { .. } | Self::NoChoice { .. } | Self::WrongFlag { .. } => {
                Vec::new()
            }
        }
    }
}

/// Maximum length of a line in an excerpt, in characters.
const EXCERPT_WIDTH: usize = 120;

/// A position in a file together with its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spot {
    /// Where.
    pub place: Place,
    /// The line itself.
    pub line: String,
}

impl Spot {
    /// The line with a caret under the column, or nothing if the caret would not help.
    fn excerpt(&self) -> String {
        let column = usize::try_from(self.place.column).unwrap_or(1).saturating_sub(1);
        if self.line.trim().is_empty() || column >= EXCERPT_WIDTH {
            return String::new();
        }
        // Control characters could repaint the terminal; a tab would move the caret.
        let shown: String = self
            .line
            .chars()
            .take(EXCERPT_WIDTH)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        format!("\n  | {}\n  | {}^", shown.trim_end(), " ".repeat(column))
    }
}
