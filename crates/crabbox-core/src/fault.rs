//! The kinds of failure, and the process exit code of each.
//!
//! The codes are the Go program's, because scripts depend on them. Libraries name the kind; only the binary
//! turns it into an exit code and a message, and no other place may choose a number.

use std::error::Error;

/// The kinds of failure that a caller of the program can distinguish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Any other failure.
    General,
    /// A check completed and found problems (`doctor`), or test results failed their policy.
    Problems,
    /// Wrong usage, flag or configuration, an operation that the provider does not support, or local state
    /// that cannot be read or written.
    Usage,
    /// The provider's doctor was not given a static host to check.
    MissingHost,
    /// No such lease, an ambiguous slug, or a lease whose identity does not match its record.
    NotFound,
    /// A timeout, a provider or SSH failure, or a lease that does not run.
    Unavailable,
    /// The working tree could not be synced to the lease.
    Sync,
    /// An auxiliary operation on the lease failed (directories, artifacts, owner, cleanup).
    Remote,
    /// The remote command's own exit code, passed through.
    Passthrough(u8),
}

impl Kind {
    /// The process exit code, from the Go program's table.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::General | Self::Problems => 1,
            Self::Usage => 2,
            Self::MissingHost => 3,
            Self::NotFound => 4,
            Self::Unavailable => 5,
            Self::Sync => 6,
            Self::Remote => 7,
            Self::Passthrough(code) => code,
        }
    }
}

/// What an error says about the connection to a lease, for deciding about a retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Connectivity {
    /// SSH did not come up in time.
    TimedOut,
    /// Nothing answers by SSH, or the connection is closed before the login; a retry may succeed.
    Unreached,
    /// A retry is pointless: there is no such host, it refuses our key or has a different host key, or ssh
    /// refuses to connect.
    Hopeless,
    /// The connection, or the machine behind it, was lost while a command ran.
    Lost,
}

/// An error with a kind and hints.
pub trait Fault: Error + Send + Sync {
    /// The kind of failure.
    fn kind(&self) -> Kind;

    /// What the error says about the connection; `None` if it is about something else.
    fn connectivity(&self) -> Option<Connectivity> {
        None
    }

    /// What the user can do about it: whole sentences or commands, the best one first. They are printed as
    /// `hint:` lines.
    fn hints(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The causes of `error`, the nearest first, without `error` itself.
pub fn causes<'a>(error: &'a (dyn Error + 'a)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = error.source();
    std::iter::from_fn(move || {
        let cause = next?;
        next = cause.source();
        Some(cause)
    })
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn Error) -> String {
    causes(error).fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// The message of an error, followed by those of its causes that add information: many messages already quote
/// their cause.
pub fn messages(error: &dyn Error) -> Vec<String> {
    let mut messages = vec![error.to_string()];
    for cause in causes(error) {
        let message = cause.to_string();
        if !messages.iter().any(|said| said.contains(&message)) {
            messages.push(message);
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        source: Option<Box<Link>>,
    }

    fn linked(texts: &[&'static str]) -> Link {
        let (text, rest) = texts.split_first().unwrap();
        let source = (!rest.is_empty()).then(|| Box::new(linked(rest)));
        Link { text, source }
    }

    #[test]
    fn causes_are_walked_from_the_nearest_to_the_root() {
        for texts in [&["a"][..], &["a", "b"], &["a", "b", "", "b", "c"]] {
            let error = linked(texts);
            let walked: Vec<_> = causes(&error).map(ToString::to_string).collect();
            assert_eq!(walked, &texts[1..]);
            assert!(causes(&error).all(|cause| cause.is::<Box<Link>>() || cause.is::<Link>()));
            assert_eq!(chain(&error), texts.join(": "));
        }
    }

    #[test]
    fn what_a_message_quotes_is_not_said_again() {
        let error = linked(&[
            "cannot read /x: denied",
            "denied",
            "",
            "root",
            "cannot read",
            "root",
        ]);
        assert_eq!(messages(&error), ["cannot read /x: denied", "root"]);
    }

    #[test]
    fn the_codes_are_the_documented_ones() {
        let table = [
            (Kind::General, 1),
            (Kind::Problems, 1),
            (Kind::Usage, 2),
            (Kind::MissingHost, 3),
            (Kind::NotFound, 4),
            (Kind::Unavailable, 5),
            (Kind::Sync, 6),
            (Kind::Remote, 7),
            (Kind::Passthrough(127), 127),
        ];
        for (kind, code) in table {
            assert_eq!(kind.exit_code(), code, "{kind:?}");
        }
    }
}
