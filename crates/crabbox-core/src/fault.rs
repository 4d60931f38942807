//! What kind of failure an error is, and the process exit code that stands for it.
//!
//! The codes are the Go program's, because scripts branch on them. Libraries name the kind; only the binary turns it into
//! an exit code and words, and no other place may choose a number.

use std::error::Error;

/// The kinds of failure that a caller of the program can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A failure of no kind that callers tell apart.
    General,
    /// A check ran to its end and found problems (`doctor`), or test results failed their policy.
    Problems,
    /// Wrong usage, flag or configuration, something the provider cannot do, or local state that cannot be read or written.
    Usage,
    /// The provider's doctor lacks the static host it should look at.
    MissingHost,
    /// No such lease, an ambiguous slug, or a lease whose identity does not match its record.
    NotFound,
    /// A time-out, a provider or SSH failure, or a lease that does not run.
    Unavailable,
    /// The working tree could not be brought to the lease.
    Sync,
    /// A helper operation on the lease failed (directories, artifacts, owner, clean-up).
    Remote,
    /// The remote command's own exit code, handed through.
    Passthrough(u8),
}

impl Kind {
    /// The process exit code, as the Go program's table has it.
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

/// An error that knows its kind and how it can be mended.
pub trait Fault: Error + Send + Sync {
    /// What kind of failure this is.
    fn kind(&self) -> Kind;

    /// What the user can do about it: whole sentences or commands, the best one first. They are printed as `hint:` lines.
    fn hints(&self) -> Vec<String> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::Kind;

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
