//! Decides which variables of this host are forwarded to the command in the lease.
//!
//! A repository may request what its tests need. It must never obtain a secret: the author of its file also
//! wrote what runs in the lease, and the lease reaches the internet.

use super::layer::Sourced;
use crate::comma_list;

/// Words that make a name look like a secret's, the same as in the Go program.
const SECRETS: [&str; 7] = ["KEY", "TOKEN", "SECRET", "PASSWORD", "PASS", "CREDENTIAL", "AUTH"];
/// Variables that every lease gets, independent of the settings.
const OURS: [&str; 3] = ["CRABBOX_LEASE_ID", "CRABBOX_RUN_ID", "CRABBOX_SLUG"];

/// The allowed names: exact ones, and prefixes followed by `*`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allow {
    /// By the user of this host.
    trusted: Vec<String>,
    /// By a file of the repository.
    repository: Vec<String>,
}

/// The decision about a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is forwarded.
    Passes,
    /// Only the repository allows it, and its name looks like a secret's.
    Withheld,
    /// It is not allowed.
    Stays,
}

impl Allow {
    /// Adds the names that a layer allows.
    pub fn new(names: &Sourced<Vec<String>>) -> Self {
        let mut allow = Self::default();
        if names.layer().is_trusted() {
            allow.trusted.clone_from(&names.value);
        } else {
            allow.repository.clone_from(&names.value);
        }
        allow
    }

    /// Adds names that the user allows, from comma-separated lists.
    pub fn trust<'a>(&mut self, lists: impl IntoIterator<Item = &'a str>) {
        let names = lists.into_iter().flat_map(comma_list::items);
        self.trusted.extend(names.map(str::to_owned));
    }

    /// The entries that no variable can match, for a warning. Text after a `=` is left out, because it may be
    /// a secret.
    pub fn unmatchable(&self) -> impl Iterator<Item = String> {
        let never = |entry: &&str| !entry.is_empty() && !is_name(entry.strip_suffix('*').unwrap_or(entry));
        self.names()
            .filter(never)
            .map(|entry| match entry.split_once('=') {
                Some((name, _)) => format!("{name}=\u{2026}"),
                None => entry.to_owned(),
            })
    }

    /// Every name, as one line.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.trusted.iter().chain(&self.repository).map(String::as_str)
    }

    /// The decision about the variable `name`.
    pub fn judge(&self, name: &str) -> Verdict {
        if !is_name(name) || OURS.contains(&name) {
            Verdict::Stays
        } else if matches(&self.trusted, name) {
            Verdict::Passes
        } else if !matches(&self.repository, name) {
            Verdict::Stays
        } else if is_secret(name) {
            Verdict::Withheld
        } else {
            Verdict::Passes
        }
    }
}

fn matches(entries: &[String], name: &str) -> bool {
    entries.iter().any(|entry| match entry.strip_suffix('*') {
        Some(prefix) => !prefix.is_empty() && is_name(prefix) && name.starts_with(prefix),
        None => entry == name,
    })
}

/// Whether `name` can be the name of a variable: `[A-Za-z_][A-Za-z0-9_]*`.
pub fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Whether the name looks like a secret's.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    SECRETS.iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::layer::{Origin, Place};

    fn from_repository(names: &[&str]) -> Allow {
        let place = Place {
            path: "/r/.crabbox.yaml".into(),
            line: 1,
            column: 1,
        };
        Allow::new(&Sourced {
            value: names.iter().map(ToString::to_string).collect(),
            origin: Origin::RepoFile(place),
        })
    }

    #[test]
    fn a_repository_carries_off_no_secret_unless_the_user_says_so() {
        use Verdict::{Passes, Stays, Withheld};
        let mut allow = from_repository(&["CI", "AWS_*", "npm_token", "*", "CRABBOX_SLUG", "A-B"]);
        for (name, verdict) in [
            ("CI", Passes),
            ("AWS_REGION", Passes),
            ("AWS_SECRET_ACCESS_KEY", Withheld),
            ("npm_token", Withheld),
            ("HOME", Stays),
            ("CRABBOX_SLUG", Stays),
            ("A-B", Stays),
        ] {
            assert_eq!(allow.judge(name), verdict, "{name}");
        }
        allow.trust(["npm_token"]);
        assert_eq!(allow.judge("npm_token"), Passes);
        assert_eq!(allow.judge("AWS_SECRET_ACCESS_KEY"), Withheld);
    }

    #[test]
    fn names_have_commas_and_blanks_between_them() {
        let mut allow = Allow::default();
        allow.trust(["A1, B1,", " C1 ,, D_*"]);
        assert!(allow.names().eq(["A1", "B1", "C1", "D_*"]));
        for name in ["A1", "B1", "C1", "D_x"] {
            assert_eq!(allow.judge(name), Verdict::Passes, "{name}");
        }
        assert_eq!(allow.unmatchable().count(), 0);
    }

    #[test]
    fn what_can_match_no_variable_is_told_without_a_value() {
        let mut allow = from_repository(&["CI", "1X", "", "a.b"]);
        allow.trust(["A B, *, MY_*, TOKEN=abc=d"]);
        assert!(
            allow
                .unmatchable()
                .eq(["A B", "*", "TOKEN=\u{2026}", "1X", "a.b"])
        );
    }
}
