//! Versions of Firecracker and its jailer, as the programs print them.

use std::fmt;
use std::str::FromStr;

/// A released version of Firecracker; a development build counts as the release that it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The first number.
    pub major: u16,
    /// The second number.
    pub minor: u16,
    /// The third number.
    pub patch: u16,
}

/// The text contains no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no Firecracker version in {text:?}")]
pub struct NoVersion {
    /// The first line of the text.
    pub text: String,
}

impl Version {
    /// Version `major.minor.patch`.
    pub const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self { major, minor, patch }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for Version {
    type Err = NoVersion;

    /// Parses `1.12.1` as returned by the API, or the first line of `firecracker --version` or
    /// `jailer --version` (`Firecracker v1.12.1`); a suffix (`-dev`) is ignored.
    fn from_str(text: &str) -> Result<Self, NoVersion> {
        let line = text.trim_start().lines().next().unwrap_or_default();
        let word = line.split_whitespace().next_back().unwrap_or_default();
        parse_numbers(word.strip_prefix('v').unwrap_or(word)).ok_or_else(|| NoVersion {
            text: line.to_owned(),
        })
    }
}

fn parse_numbers(word: &str) -> Option<Version> {
    let mut parts = word.splitn(3, '.');
    let (major, minor, rest) = (parts.next()?, parts.next()?, parts.next()?);
    let end = rest
        .find(|byte: char| !byte.is_ascii_digit())
        .unwrap_or(rest.len());
    let (patch, suffix) = rest.split_at(end);
    let plain = suffix.is_empty() || suffix.starts_with(['-', '+']);
    let number = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| text.parse().ok())
            .flatten()
    };
    plain.then_some(Version::new(number(major)?, number(minor)?, number(patch)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_the_programs_print_them() {
        let expected = Ok(Version::new(1, 12, 1));
        for text in [
            "1.12.1",
            "v1.12.1",
            "Firecracker v1.12.1\n",
            // The whole output of the real binary, exit line included.
            "Firecracker v1.12.1\n\n2026-11-24T08:06:18.382043257 [anonymous-instance:main] Firecracker exiting successfully. exit_code=0\n",
            "Jailer v1.12.1\n",
            "1.12.1-dev",
            "1.12.1+abc",
        ] {
            assert_eq!(text.parse(), expected, "{text}");
        }
        for text in [
            "",
            "Firecracker",
            "1.12",
            "1.12.x",
            "1.12.1x",
            "-1.2.3",
            "+1.2.3",
            "1.2.99999",
            "1..2",
        ] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }

    #[test]
    fn versions_compare_by_number_and_not_by_letter() {
        assert!(Version::new(1, 9, 1) < Version::new(1, 12, 0));
        assert!(Version::new(1, 11, 9) < Version::new(1, 12, 0));
    }
}
