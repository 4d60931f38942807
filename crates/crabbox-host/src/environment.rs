//! The environment of child processes: the variables of a named policy, never all of them by accident.
//!
//! A caller's shell contains tokens, and no parser, VMM or git needs them. A policy passes variables on by
//! name; it must never decide by a variable's value.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

/// The policies for the variables of a child. Variables that a command sets itself are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Environment {
    /// The variables that any program needs to find its files and the user's language.
    #[default]
    Plain,
    /// Also those that an SSH client needs to log in as the user: the agent, and programs that ask for
    /// passwords.
    Login,
    /// Also those that a program needs for downloads on behalf of the user: proxies and certificates, and the
    /// settings of pip and apt.
    Fetch,
    /// Also the location of the user's git configuration; nothing that redirects git, and nothing that it
    /// would start ([`git_settings`]).
    Git,
    /// Also those for this program's own child processes only: the filter of its log, the failpoint of a
    /// test.
    Own,
    /// Only the six that name the user and the program paths, and nothing about this session or this
    /// machine's files: for a program that sends its environment to another machine.
    Bare,
    /// All variables: for a program that starts others of the user's choice, as an SSH client does by the
    /// user's `ssh_config`.
    Whole,
}

/// Exact names; with a final `*` all names with that prefix.
const PLAIN: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "LC_*",
    "LOCALE_ARCHIVE",
    "TERM",
    "TZ",
    "TZDIR",
    "TMPDIR",
    "XDG_*",
    // Where libraries are not in fixed places (Nix, Conda), programs start only with it; it is not a secret.
    "LD_LIBRARY_PATH",
];

const BARE: &[&str] = &["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG"];

const LOGIN: &[&str] = &[
    "SSH_AUTH_SOCK",
    "SSH_ASKPASS",
    "SSH_ASKPASS_REQUIRE",
    "SSH_SK_PROVIDER",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "KRB5CCNAME",
    "KRB5_CONFIG",
];

const FETCH: &[&str] = &[
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_*",
    "PYENV_*",
    "PYTHONHOME",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "APT_CONFIG",
    "GNUPGHOME",
];

const GIT: &[&str] = &[
    "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_SYSTEM",
    "GIT_CONFIG_NOSYSTEM",
    "GIT_ATTR_NOSYSTEM",
    "GIT_CEILING_DIRECTORIES",
    "GIT_DISCOVERY_ACROSS_FILESYSTEM",
    "GIT_EXEC_PATH",
    // The user whose repositories root may read under sudo: git-config(1), safe.directory.
    "SUDO_UID",
];

/// The variables that a supervisor reads in addition to its request; the binary's env module defines them.
const OWN: &[&str] = &["CRABBOX_LOG", "CRABBOX_TEST_FAILPOINT"];

impl Environment {
    /// Whether a child under this policy gets the variable `name`.
    pub fn lets(self, name: &OsStr) -> bool {
        let (least, more): (&[&str], &[&str]) = match self {
            Self::Whole => return true,
            Self::Bare => (BARE, &[]),
            Self::Plain => (PLAIN, &[]),
            Self::Login => (PLAIN, LOGIN),
            Self::Fetch => (PLAIN, FETCH),
            Self::Git => (PLAIN, GIT),
            Self::Own => (PLAIN, OWN),
        };
        let name = name.as_encoded_bytes();
        least
            .iter()
            .chain(more)
            .any(|known| match known.strip_suffix('*') {
                Some(start) => name.starts_with(start.as_bytes()),
                None => name == known.as_bytes(),
            })
    }

    /// The variables of this process that a child does not get.
    pub(crate) fn withheld(self) -> impl Iterator<Item = OsString> {
        std::env::vars_os()
            .map(|(name, _)| name)
            .filter(move |name| !self.lets(name))
    }
}

/// Maximum accepted `GIT_CONFIG_COUNT`.
const MOST_SETTINGS: usize = 1024;

/// The settings that the caller passed to git in `GIT_CONFIG_COUNT` (git-config(1)) and as `git -c`, if their
/// key is in `harmless`, a lower-case list. All others may name a program.
#[expect(
    clippy::disallowed_methods,
    reason = "like the rest of a child's environment it is read where the child is made, whatever the caller knows"
)]
pub fn git_settings(harmless: &[&str]) -> Vec<(OsString, OsString)> {
    settings_of(harmless, |name| std::env::var_os(name))
}

fn settings_of(harmless: &[&str], variable: impl Fn(&str) -> Option<OsString>) -> Vec<(OsString, OsString)> {
    let count = variable("GIT_CONFIG_COUNT").and_then(|count| count.to_str()?.parse().ok());
    let counted = (0..count.unwrap_or(0).min(MOST_SETTINGS)).filter_map(|number| {
        let key = variable(&format!("GIT_CONFIG_KEY_{number}"))?;
        Some((key, variable(&format!("GIT_CONFIG_VALUE_{number}"))?))
    });
    // Git reads these after the others, and a later setting takes precedence.
    let parameters = variable("GIT_CONFIG_PARAMETERS").and_then(|text| parameters(text.as_bytes()));
    counted
        .chain(parameters.unwrap_or_default())
        .filter(|(key, _)| harmless.iter().any(|known| key.eq_ignore_ascii_case(known)))
        .collect()
}

/// The settings with a value in `GIT_CONFIG_PARAMETERS`, in which git passes on its `-c`: `'key'='value'`,
/// separated by blanks, or `'key=value'` before git 2.31. Returns nothing if any part has another form,
/// because then git did not write it.
fn parameters(text: &[u8]) -> Option<Vec<(OsString, OsString)>> {
    let (mut rest, mut found) = (text.trim_ascii_start(), Vec::new());
    while !rest.is_empty() && found.len() < MOST_SETTINGS {
        let (first, behind) = unquoted(rest)?;
        let (key, value, behind) = match behind.strip_prefix(b"=") {
            Some(behind) if behind.starts_with(b"'") => {
                let (value, behind) = unquoted(behind)?;
                (first, Some(value), behind)
            }
            Some(behind) => (first, None, behind),
            None => match first.iter().position(|byte| *byte == b'=') {
                Some(at) => (first[..at].to_vec(), Some(first[at + 1..].to_vec()), behind),
                None => (first, None, behind),
            },
        };
        if !behind.is_empty() && !behind[0].is_ascii_whitespace() {
            return None;
        }
        found.extend(value.map(|value| (OsString::from_vec(key), OsString::from_vec(value))));
        rest = behind.trim_ascii_start();
    }
    Some(found)
}

/// Splits off the single-quoted text at the beginning. As in git's quoting, a quote or a `!` in it is written
/// as `'\''` or `'\!'`.
fn unquoted(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (mut rest, mut out) = (text.strip_prefix(b"'")?, Vec::new());
    loop {
        let end = rest.iter().position(|byte| *byte == b'\'')?;
        out.extend_from_slice(&rest[..end]);
        rest = &rest[end + 1..];
        match rest {
            [b'\\', letter @ (b'\'' | b'!'), b'\'', behind @ ..] => {
                out.push(*letter);
                rest = behind;
            }
            _ => return Some((out, rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Environment; 4] = [
        Environment::Plain,
        Environment::Login,
        Environment::Fetch,
        Environment::Git,
    ];

    #[test]
    fn no_policy_but_the_whole_hands_a_secret_on() {
        for name in [
            "GITHUB_TOKEN",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_PROFILE",
            "DATABASE_URL",
            "NPM_TOKEN",
            "PATHS",
            "HOMEBREW_GITHUB_API_TOKEN",
            "LD_PRELOAD",
            "GIT_DIR",
            "GIT_SSH_COMMAND",
            "GIT_CONFIG_COUNT",
            "GIT_CONFIG_VALUE_0",
            "CRABBOX_ANYTHING",
        ] {
            for policy in ALL {
                assert!(!policy.lets(OsStr::new(name)), "{policy:?}: {name}");
            }
            assert!(Environment::Whole.lets(OsStr::new(name)));
        }
        for name in ["PATH", "HOME", "LC_ALL", "XDG_RUNTIME_DIR", "TMPDIR"] {
            for policy in ALL {
                assert!(policy.lets(OsStr::new(name)), "{policy:?}: {name}");
            }
        }
        assert!(Environment::Login.lets(OsStr::new("SSH_AUTH_SOCK")));
        assert!(!Environment::Git.lets(OsStr::new("SSH_AUTH_SOCK")));
    }

    #[test]
    fn what_goes_to_another_machine_is_of_the_user_alone() {
        for name in ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG"] {
            assert!(Environment::Bare.lets(OsStr::new(name)), "{name}");
        }
        for name in [
            "XDG_RUNTIME_DIR",
            "XDG_STATE_HOME",
            "LD_LIBRARY_PATH",
            "TMPDIR",
            "LC_ALL",
            "SSH_AUTH_SOCK",
            "CRABBOX_LOG",
            "SLURM_CONF",
        ] {
            assert!(!Environment::Bare.lets(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn of_a_caller_s_git_settings_the_harmless_remain() {
        let given = [
            ("GIT_CONFIG_COUNT", "4"),
            ("GIT_CONFIG_KEY_0", "safe.directory"),
            ("GIT_CONFIG_VALUE_0", "/srv/x"),
            ("GIT_CONFIG_KEY_1", "core.fsmonitor"),
            ("GIT_CONFIG_VALUE_1", "evil"),
            ("GIT_CONFIG_KEY_2", "Safe.Directory"),
            ("GIT_CONFIG_VALUE_2", "*"),
            ("GIT_CONFIG_KEY_3", "safe.directory"),
        ];
        let of = |count: Option<&str>| {
            settings_of(&["safe.directory"], |name| {
                let value = given.iter().find(|(given, _)| *given == name)?.1;
                if name == "GIT_CONFIG_COUNT" {
                    count
                } else {
                    Some(value)
                }
                .map(OsString::from)
            })
        };
        let values = |kept: Vec<(OsString, OsString)>| -> Vec<OsString> {
            kept.into_iter().map(|(_, value)| value).collect()
        };
        assert_eq!(values(of(Some("4"))), ["/srv/x", "*"]);
        assert_eq!(values(of(Some("1"))), ["/srv/x"]);
        // A huge count is limited, so only the existing settings are read.
        assert_eq!(values(of(Some("18446744073709551615"))), ["/srv/x", "*"]);
        for none in [None, Some(""), Some("-1"), Some("many")] {
            assert!(of(none).is_empty(), "{none:?}");
        }
    }

    #[test]
    fn of_what_was_given_to_git_as_a_flag_the_harmless_remains() {
        let of = |text: &str| {
            let variable = |name: &str| (name == "GIT_CONFIG_PARAMETERS").then(|| text.into());
            let kept = settings_of(&["safe.directory"], variable).into_iter();
            kept.map(|(_, value)| value.into_string().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(of("'safe.directory'='/srv/x'"), ["/srv/x"]);
        assert_eq!(
            of(
                " 'core.fsmonitor'='evil' 'Safe.Directory'='*'  'safe.directory=/old style' 'core.bare' 'safe.directory'="
            ),
            ["*", "/old style"]
        );
        assert_eq!(of(r"'safe.directory'='/it'\''s/a'\!'b'"), ["/it's/a!b"]);
        assert_eq!(of("'safe.directory'=''"), [""], "it empties the list");
        for none in [
            "",
            "safe.directory=/x",
            "'safe.directory'='/x",
            "'safe.directory'='/x''/y'",
            "'safe.directory'=/x",
            "'safe.directory'='/x' evil",
            r"'safe.directory'='/x'\'y'",
        ] {
            assert!(of(none).is_empty(), "{none}");
        }
    }
}
