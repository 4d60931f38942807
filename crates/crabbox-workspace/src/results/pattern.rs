//! Patterns for artifacts and reports over paths below the working directory: of artifacts `*`, `?` and `**`,
//! interpreted like the Go program does; of reports classes like `[ab]` too, and any letters.
//!
//! A pattern must never be able to name anything outside of that directory.

use std::fmt;
use std::str::FromStr;

use crabbox_agent_protocol::{Glob, Reach};
use crabbox_core::fault::{Fault, Kind};

/// An invalid pattern.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid artifact pattern {pattern:?}: {why}")]
pub struct PatternError {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Fault for PatternError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// A pattern. It matches a file whose path, or a directory above it, it describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_./*?@+=:,-".contains(c);
        let why = if text.starts_with(['-', '/']) {
            "it must be relative and not begin with a dash"
        } else if !text.chars().all(allowed) {
            "only letters, digits and _ . / * ? @ + = : , - are allowed"
        } else {
            return Self::of_reports(text);
        };
        Err(PatternError::new(text, why))
    }
}

impl PatternError {
    fn new(pattern: &str, why: &'static str) -> Self {
        Self {
            pattern: pattern.to_owned(),
            why,
        }
    }
}

impl Pattern {
    /// A pattern of reports. It never goes through a shell, so that any letter may be in it.
    ///
    /// # Errors
    /// When it could name something outside of the working directory, or nothing that is taken from it.
    pub fn of_reports(text: &str) -> Result<Self, PatternError> {
        let mut parts = text.split('/');
        let why = if text.is_empty() {
            "it is empty"
        } else if text.starts_with('/') {
            "it must be relative"
        } else if text.contains(char::is_control) {
            "it has a control character"
        } else if parts.any(|part| part == "..") {
            "it must stay below the working directory"
        } else if text.split('/').any(|part| part == ".git" || part == ".crabbox") {
            "nothing is taken from .git and .crabbox"
        } else {
            return Ok(Self(text.to_owned()));
        };
        Err(PatternError::new(text, why))
    }
}

impl Pattern {
    /// Whether it matches the file at this path below the working directory.
    pub fn matches(&self, path: &[u8]) -> bool {
        Glob::of(self.0.as_bytes()).file(path) != Reach::No
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    #[test]
    fn stars_stay_in_their_segment_and_two_of_them_do_not() {
        for (text, path, matches) in [
            ("*.log", "a.log", true),
            ("*.log", "d/a.log", false),
            ("**/*.log", "a.log", true),
            ("**/*.log", "d/e/a.log", true),
            ("d/**/x", "d/x", true),
            ("d/**/x", "d/e/f/x", true),
            ("d/**/x", "e/x", false),
            ("d/**", "d/x", true),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("dist", "dist/js/app.js", true),
            ("./dist/", "dist/js/app.js", true),
            ("dist", "distant", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXc", false),
            ("**", "x", true),
        ] {
            assert_eq!(pattern(text).matches(path.as_bytes()), matches, "{text} {path}");
        }
    }

    #[test]
    fn a_pattern_of_reports_has_any_letters_and_classes() {
        for (text, path, matches) in [
            ("out dir/*.xml", "out dir/a.xml", true),
            ("out/[ab].xml", "out/a.xml", true),
            ("out/[ab].xml", "out/c.xml", false),
            ("out/[ab].xml", "out/[ab].xml", true),
            ("prüf(1)/*", "prüf(1)/x", true),
            ("-x/*", "-x/a", true),
        ] {
            let pattern = Pattern::of_reports(text).unwrap();
            assert_eq!(pattern.matches(path.as_bytes()), matches, "{text} {path}");
        }
        for text in ["", "/etc/*", "a/../*", ".git/*", "a/.crabbox/*", "a\n*"] {
            assert!(Pattern::of_reports(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_pattern_cannot_leave_the_directory() {
        for text in [
            "",
            "/etc/passwd",
            "-x",
            "../x",
            "a/../../x",
            "{a,b}",
            "a b",
            "$(x)",
            ".git/config",
            "a/.crabbox/x",
            "a\n",
            "ü",
        ] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
        let error = "a b".parse::<Pattern>().unwrap_err();
        assert_eq!((error.pattern.as_str(), error.kind()), ("a b", Kind::Usage));
    }
}
