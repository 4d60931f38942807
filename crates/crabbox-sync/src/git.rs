//! Every call of git on this machine: without the caller's redirecting environment, without locks, and
//! without any repository configuration that would run a program or use the network.
//!
//! A repository is untrusted input: running crabbox in it must be as safe as reading it. It must never let
//! git start a program that the repository names, read another repository of the user, or write to this one.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use crabbox_host::command::{Cmd, CommandError};
use crabbox_host::environment::{self, Environment};
use sha2::{Digest as _, Sha256};

/// Settings of the caller's environment (`GIT_CONFIG_COUNT`) that git still gets: trust in a directory of
/// another owner.
const CALLERS: [&str; 1] = ["safe.directory"];

/// Settings that name a program, or make git take a directory for a repository although the user never made
/// it one. Each is given on the command line, which wins over every file. The names are those of
/// git-config(1); settings that none of our commands uses today are included because a later command may.
const HARMLESS: [&str; 16] = [
    "core.fsmonitor=false",
    "core.hooksPath=/dev/null",
    "core.pager=cat",
    "core.askPass=",
    "core.sshCommand=false",
    "core.gitProxy=",
    "core.alternateRefsCommand=",
    "core.editor=false",
    "credential.helper=",
    "diff.external=",
    "gpg.program=false",
    "log.showSignature=false",
    "interactive.diffFilter=",
    "submodule.recurse=false",
    // A bare repository committed into the tree is data, even if the current directory is inside it (git
    // 2.38).
    "safe.bareRepository=explicit",
    // A promisor remote may name any helper (`ext::`), which git would run to fetch a missing object.
    "protocol.allow=never",
];

/// The settings of a filter driver (gitattributes(5)) to override: two programs, a third that replaces both,
/// and whether git fails without them.
const FILTER: [(&str, &str); 4] = [
    ("clean", ""),
    ("smudge", ""),
    ("process", ""),
    ("required", "false"),
];

/// A probe setting passed in the environment, to see whether git reads settings there (git 2.31 and newer
/// do).
const BY_ENVIRONMENT: &str = "crabbox.environment";

/// The setting that names the user's file of ignore rules, as git lists it.
pub(crate) const EXCLUDES_FILE: &str = "core.excludesfile";

/// The most filters that we switch off; no real configuration has so many, and more would not fit into an
/// argument vector.
const MOST_FILTERS: usize = 256;

/// Whether a command reads files of the working tree, which `filter.*` programs would do for it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Contents<'a> {
    /// It reads names, objects or configuration only.
    Unread,
    /// It compares files with the index, with these filters switched off. A filtered file whose times have
    /// changed then counts as changed, which costs a comparison but never hides a change.
    Compared(&'a Filters),
}

/// Settings that decide whether git finds a file unchanged, or whether `git status` shows it, with the values
/// that every git knows. They are copied to the lease's repository. The names are those of git-config(1), in
/// lower case as git lists them. None of them names a program, a file or an address. A value that only a
/// newer git knows would make git fail in the lease.
const DECIDING: [(&str, &[&str]); 11] = [
    ("core.autocrlf", &["true", "false", "input"]),
    ("core.eol", &["lf", "crlf", "native"]),
    ("core.filemode", BOOLEAN),
    ("core.ignorecase", BOOLEAN),
    ("core.precomposeunicode", BOOLEAN),
    ("core.quotepath", BOOLEAN),
    ("core.symlinks", BOOLEAN),
    ("diff.ignoresubmodules", &["all", "dirty", "untracked", "none"]),
    ("diff.renames", &["true", "false", "copies", "copy"]),
    ("status.renames", &["true", "false", "copies", "copy"]),
    ("status.showuntrackedfiles", &["no", "normal", "all"]),
];

/// The boolean values of git.
const BOOLEAN: &[&str] = &["true", "false", "yes", "no", "on", "off", "1", "0"];

/// The names of the filters that a configuration defines.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Filters(Vec<Vec<u8>>);

/// git's configuration in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Configuration {
    /// A hash of all settings, with the files that they come from.
    pub(crate) hash: [u8; 32],
    /// Its filters.
    pub(crate) filters: Filters,
    /// The settings that decide whether a file counts as unchanged, as a configuration file for another
    /// repository.
    pub(crate) deciding: Vec<u8>,
    /// Whether it names a file of ignore rules (`core.excludesFile`).
    pub(crate) names_excludes: bool,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// git could not be run.
    #[error(transparent)]
    Git(#[from] CommandError),
    /// git refused.
    #[error("{said}")]
    Refused {
        /// What it said.
        said: String,
    },
    /// It defines more filters than can be switched off.
    #[error("its git configuration defines {count} filters; crabbox switches off at most {MOST_FILTERS}")]
    TooManyFilters {
        /// How many.
        count: usize,
    },
    /// A filter has a name that this git cannot be told to switch off.
    #[error(
        "its git configuration defines the filter {name:?}, which only git 2.31 or newer can switch off because of the equals sign in its name"
    )]
    FilterName {
        /// Its name.
        name: String,
    },
}

impl Configuration {
    /// Asks git in `root`, which takes one process.
    pub(crate) fn read(root: &Path) -> Result<Self, ConfigurationError> {
        let asked = git(root, Contents::Unread)
            .args(["config", "--list", "--show-origin", "-z"])
            .capture()?;
        if !asked.status.success() {
            return Err(ConfigurationError::Refused {
                said: whole_message(&asked.stderr_text()),
            });
        }
        Ok(Self {
            hash: Sha256::digest(&asked.stdout).into(),
            filters: Filters::of(&asked.stdout)?,
            deciding: deciding(&asked.stdout),
            names_excludes: has_setting(&asked.stdout, EXCLUDES_FILE),
        })
    }
}

impl Filters {
    /// Parses the output of `git config --list --show-origin -z`: an origin, then `key LF value`, NUL after
    /// each.
    fn of(list: &[u8]) -> Result<Self, ConfigurationError> {
        let mut names: Vec<Vec<u8>> = list
            .split(|byte| *byte == 0)
            .skip(1)
            .step_by(2)
            .filter_map(|setting| {
                let key = setting.split(|byte| *byte == b'\n').next()?;
                let name = key.strip_prefix(b"filter.")?;
                // The filter's name may contain dots, the variable after it has none.
                let end = name.iter().rposition(|byte| *byte == b'.')?;
                Some(name[..end].to_vec())
            })
            .collect();
        names.sort_unstable();
        names.dedup();
        if names.len() > MOST_FILTERS {
            return Err(ConfigurationError::TooManyFilters { count: names.len() });
        }
        let unnamed = names.iter().find(|name| name.contains(&b'='));
        match unnamed.filter(|_| !has_setting(list, BY_ENVIRONMENT)) {
            Some(name) => Err(ConfigurationError::FilterName {
                name: String::from_utf8_lossy(name).into_owned(),
            }),
            None => Ok(Self(names)),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The settings that switch each filter off, as keys and values.
    fn off(&self) -> impl Iterator<Item = (OsString, &'static str)> {
        self.0.iter().flat_map(|name| {
            FILTER.map(|(variable, value)| {
                let key = [b"filter.", name.as_slice(), b".", variable.as_bytes()].concat();
                (OsString::from_vec(key), value)
            })
        })
    }
}

/// The settings of [`DECIDING`] in `list`, the last value of each, in the format of a configuration file.
fn deciding(list: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    for (name, values) in DECIDING {
        let settings = list.split(|byte| *byte == 0).skip(1).step_by(2);
        let last = settings
            .filter_map(|setting| setting.strip_prefix(name.as_bytes()))
            .filter_map(|rest| {
                match rest.split_first() {
                    // A name without a value means true.
                    None => Some(&b"true"[..]),
                    Some((b'\n', value)) => Some(value),
                    Some(_) => None,
                }
            });
        let Some(value) = last.last() else { continue };
        if values
            .iter()
            .any(|known| value.eq_ignore_ascii_case(known.as_bytes()))
        {
            let (section, key) = name.split_once('.').unwrap_or((name, ""));
            file.extend_from_slice(format!("[{section}]\n\t{key} = ").as_bytes());
            file.extend_from_slice(value);
            file.push(b'\n');
        }
    }
    file
}

/// Whether `list` has a setting of this name.
fn has_setting(list: &[u8], name: &str) -> bool {
    list.split(|byte| *byte == 0).any(|setting| {
        let key = setting.split(|byte| *byte == b'\n').next();
        key == Some(name.as_bytes())
    })
}

/// `git -C <dir>`, safe whatever `dir` contains. This is the only place that starts git on this machine.
pub(crate) fn git(dir: &Path, contents: Contents<'_>) -> Cmd {
    let mut cmd = Cmd::new("git")
        .environment(Environment::Git)
        .args(["--no-optional-locks", "--no-pager"]);
    for setting in HARMLESS {
        cmd = cmd.arg("-c").arg(setting);
    }
    let mut settings = environment::git_settings(&CALLERS);
    settings.push((BY_ENVIRONMENT.into(), "true".into()));
    if let Contents::Compared(filters) = contents {
        for (key, value) in filters.off() {
            if key.as_bytes().contains(&b'=') {
                // `-c` ends the key at the first equals sign.
                settings.push((key, value.into()));
            } else {
                let mut setting = key;
                setting.push("=");
                setting.push(value);
                cmd = cmd.arg("-c").arg(setting);
            }
        }
    }
    cmd = cmd.env("GIT_CONFIG_COUNT", settings.len().to_string());
    for (number, (key, value)) in settings.into_iter().enumerate() {
        cmd = cmd
            .env(format!("GIT_CONFIG_KEY_{number}"), key)
            .env(format!("GIT_CONFIG_VALUE_{number}"), value);
    }
    cmd = cmd.arg("-C").arg(dir);
    cmd.env("LC_ALL", "C")
        .env("GIT_TERMINAL_PROMPT", "0")
        // Empty means no protocol at all, whatever `protocol.<name>.allow` the repository sets (git(1)).
        .env("GIT_ALLOW_PROTOCOL", "")
        .env("GIT_NO_LAZY_FETCH", "1")
}

/// The same for objects as they are. A replacement (git-replace(1)) stands for another object only where its
/// ref is, and the lease has none.
pub(crate) fn unreplaced_git(dir: &Path) -> Cmd {
    unreplaced(git(dir, Contents::Unread))
}

/// Compares with objects as they are: the lease gets those.
pub(crate) fn comparing_git(dir: &Path, filters: &Filters) -> Cmd {
    unreplaced(git(dir, Contents::Compared(filters)))
}

fn unreplaced(cmd: Cmd) -> Cmd {
    cmd.env("GIT_NO_REPLACE_OBJECTS", "1")
}

/// How many lines of a message are kept; git's longest advice has fewer.
const MOST_LINES: usize = 20;

/// git's message on standard error, including its advice: for a tree of another user, for example, the
/// command that allows it.
pub(crate) fn whole_message(stderr: &str) -> String {
    let lines = stderr.lines().map(str::trim_end).filter(|line| !line.is_empty());
    let kept: Vec<&str> = lines.take(MOST_LINES).collect();
    if kept.is_empty() {
        "no message".to_owned()
    } else {
        kept.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_found_whatever_their_names_are() {
        let list =
            b"file:.git/config\0filter.lfs.clean\ngit-lfs clean\0file:.git/config\0filter.a.b.required\0\
                     file:.git/config\0filter.\xff.process\nx\0file:.git/config\0user.name\nfilter.no.clean\0\
                     file:.git/config\0filter.lfs.smudge\ny\0";
        let filters = Filters::of(list).unwrap();
        assert_eq!(filters.0, [b"a.b".to_vec(), b"lfs".to_vec(), b"\xff".to_vec()]);
        assert_eq!(filters.off().count(), 3 * FILTER.len());
        let name = b"file:x\0filter.a=b.clean\nx\0";
        assert!(matches!(
            Filters::of(name),
            Err(ConfigurationError::FilterName { name }) if name == "a=b"
        ));
        let newer = [name.as_slice(), b"command line:\0crabbox.environment\ntrue\0"].concat();
        assert_eq!(Filters::of(&newer).unwrap().0, [b"a=b".to_vec()]);
    }

    #[test]
    fn settings_that_decide_what_is_unchanged_are_kept_and_no_others() {
        let list = b"file:a\0core.autocrlf\ninput\0file:a\0core.filemode\0file:a\0core.sshcommand\nx\0file:a\0core.eol\nx\n[alias]\0\
                     file:a\0core.eolx\nlf\0file:b\0core.autocrlf\nfalse\0file:b\0filter.u.clean\ntr\0file:b\0status.renames\n\0";
        let file = String::from_utf8(deciding(list)).unwrap();
        assert_eq!(file, "[core]\n\tautocrlf = false\n[core]\n\tfilemode = true\n");
    }

    #[test]
    fn the_message_is_whole_and_bounded() {
        assert_eq!(
            whole_message("fatal: no\n\n\thint: yes\n"),
            "fatal: no\n\thint: yes"
        );
        assert_eq!(whole_message(" \n"), "no message");
        assert_eq!(whole_message(&"x\n".repeat(99)).lines().count(), MOST_LINES);
    }
}
