//! One check as displayed and as read by scripts: an element of `checks` in the output of `doctor --json`, in the Go program's
//! format.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Serialize;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All well.
    Ok,
    /// Something that is needed is not there.
    Missing,
    /// Something that is needed does not work.
    Failed,
    /// Leases work; something is slower, weaker or scarcer than it should be.
    Warning,
    /// Not looked at.
    Skip,
}

impl Status {
    /// Whether it prevents leases from being made.
    pub(crate) const fn is_problem(self) -> bool {
        matches!(self, Self::Missing | Self::Failed)
    }

    /// The printed name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Missing => "missing",
            Self::Failed => "failed",
            Self::Warning => "warning",
            Self::Skip => "skip",
        }
    }
}

/// The class of a problem. The first two are the Go program's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The host lacks something.
    EnvironmentBlocked,
    /// The configuration has an impossible value.
    ConfigurationIncomplete,
    /// It works, but slower or with less than wanted.
    Degraded,
    /// It works, but is less well protected than it could be.
    Hardening,
    /// Something was left behind.
    Residue,
}

impl Class {
    /// The name in the details.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EnvironmentBlocked => "environment_blocked",
            Self::ConfigurationIncomplete => "configuration_incomplete",
            Self::Degraded => "degraded",
            Self::Hardening => "hardening",
            Self::Residue => "residue",
        }
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Check {
    /// How it came out.
    pub status: Status,
    /// Its name.
    pub check: &'static str,
    /// The provider it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// One line.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Facts by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
}

impl Check {
    /// A check of this host that belongs to no provider.
    pub fn generic(status: Status, check: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            check,
            provider: None,
            message: message.into(),
            details: BTreeMap::new(),
        }
    }

    /// A check of the provider `firecracker`. Each key=value word of its message also becomes a detail, and `mutation=false`
    /// records that the check changed nothing.
    pub fn firecracker(status: Status, check: &'static str, message: impl Into<String>) -> Self {
        Self::of_provider("firecracker", status, check, message).with("mutation", "false")
    }

    /// A check of any provider.
    pub(crate) fn of_provider(
        provider: &str,
        status: Status,
        check: &'static str,
        message: impl Into<String>,
    ) -> Self {
        let message = message.into();
        let details = words(&message);
        Self {
            status,
            check,
            provider: Some(provider.to_owned()),
            message,
            details,
        }
        .with("provider", provider)
    }

    /// Adds a detail, or replaces it.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.details.insert(key.to_owned(), value.to_string());
        self
    }

    /// Adds the class of the problem, and the command that fixes it.
    #[must_use]
    pub fn trouble(self, class: Class, fix: impl fmt::Display) -> Self {
        self.with("class", class.name()).with("fix", fix)
    }
}

impl fmt::Display for Check {
    /// Formats it as a line of text.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.status.name();
        if self.message.is_empty() {
            write!(out, "{status:<7} {}", self.check)
        } else {
            write!(out, "{status:<7} {:<8} {}", self.check, self.message)
        }
    }
}

/// The key=value words of a message, without the punctuation around them.
fn words(message: &str) -> BTreeMap<String, String> {
    let pairs = message.split_whitespace().filter_map(|word| word.split_once('='));
    pairs
        .filter(|(key, _)| !key.is_empty())
        .map(|(key, value)| {
            (
                key.trim_start_matches('('),
                value.trim_end_matches([',', ';', ':', ')']),
            )
        })
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// What the command line knows and the settings do not contain.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The user's configuration file, which need not exist.
    pub config_file: PathBuf,
    /// The key that `CRABBOX_SSH_KEY` names.
    pub ssh_key: Option<PathBuf>,
    /// Whether to boot a guest.
    pub probe: bool,
    /// Whether to obtain everything that a lease is made of, as making a lease would.
    pub prepare: bool,
    /// Whether to log in to a static host.
    pub probe_ssh: bool,
}
