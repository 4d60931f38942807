//! The program from outside: its help, and how it responds to a flag.
//!
//! Every call either asks for help or names a provider that does not exist, so that no command ever acts.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use crabbox_host::command::{Captured, Cmd};

use crate::workspace;

/// There is no provider of this name, so a command that accepts the flag fails there. Some commands need an
/// argument after it, a lease or a command; others take none.
const GOES_NOWHERE: [&[&str]; 2] = [
    &["--provider=none-of-ours", "nothing"],
    &["--provider=none-of-ours"],
];
/// The error of a command that accepted the flag: there is no such provider, or nothing here to sync.
const WENT_ON: [&str; 2] = ["unknown provider", "is not a Git repository"];

/// A built `crabbox`.
#[derive(Debug)]
pub(super) struct Program {
    path: PathBuf,
    home: PathBuf,
}

/// How the program responds to a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is in the help.
    Shown,
    /// It is accepted, but not in the help.
    Accepted,
    /// It is known by name and refused.
    Refused,
    /// It is not known.
    Unknown,
}

impl Program {
    /// The program at `path`, with an empty home below `target/`.
    pub(super) fn new(path: PathBuf) -> Result<Self> {
        let home = workspace::target_dir().join("docs-home");
        std::fs::create_dir_all(&home)?;
        Ok(Self { path, home })
    }

    fn call(&self, words: &[&str]) -> Result<Captured> {
        let mut cmd = Cmd::inheriting(&self.path)
            .args(words)
            .cwd(&self.home)
            .env("HOME", &self.home);
        // The width of help is the terminal's, or else set by this variable.
        cmd = cmd.env("COLUMNS", "100");
        for name in [
            "XDG_CONFIG_HOME",
            "XDG_STATE_HOME",
            "XDG_CACHE_HOME",
            "CRABBOX_CONFIG",
            "CRABBOX_PROVIDER",
        ] {
            cmd = cmd.env_remove(name);
        }
        Ok(cmd.capture()?)
    }

    /// The help of the command at `path` (words separated by blanks; empty for the program), without trailing
    /// blanks.
    pub(super) fn help(&self, path: &str) -> Result<String> {
        let words: Vec<&str> = path.split_whitespace().chain(["--help"]).collect();
        let done = self.call(&words)?;
        ensure!(
            done.status.success(),
            "`crabbox {path} --help` failed: {}",
            done.stderr_text()
        );
        let text = done.stdout_text();
        Ok(text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n"))
    }

    /// Makes the program write its man pages and schemas below `dir`.
    pub(super) fn write_reference(&self, dir: &Path) -> Result<()> {
        let done = self.call(&["__reference", &dir.display().to_string()])?;
        ensure!(
            done.status.success(),
            "`crabbox __reference` failed: {}",
            done.stderr_text()
        );
        Ok(())
    }

    /// Whether the program has this command, hidden ones included.
    pub(super) fn has_command(&self, path: &str) -> Result<bool> {
        let words: Vec<&str> = path.split_whitespace().chain(["--help"]).collect();
        Ok(self.call(&words)?.status.success())
    }

    /// The commands listed in the help of `path`, each with its description.
    pub(super) fn commands(&self, path: &str) -> Result<Vec<(String, String)>> {
        Ok(section(&self.help(path)?, "Commands:")
            .filter_map(|line| {
                let (name, about) = line.trim().split_once("  ")?;
                Some((name.to_owned(), about.trim().to_owned()))
            })
            .collect())
    }

    /// The flags in the help of `path`, without dashes and without those that set configuration keys.
    pub(super) fn own_flags(&self, path: &str) -> Result<Vec<String>> {
        let help = self.help(path)?;
        Ok(section(&help, "Options:")
            .filter_map(flag_of)
            .filter(|flag| flag != "help")
            .collect())
    }

    /// How the command at `path` responds to a flag. `help` is its help.
    pub(super) fn answer(&self, path: &str, flag: &str, help: &str) -> Result<Answer> {
        if help.lines().filter_map(flag_of).any(|shown| shown == flag) {
            return Ok(Answer::Shown);
        }
        for (value, end) in ["true", "1"]
            .into_iter()
            .flat_map(|value| GOES_NOWHERE.map(|end| (value, end)))
        {
            let given = format!("--{flag}={value}");
            let words = path
                .split_whitespace()
                .chain([given.as_str()])
                .chain(end.iter().copied());
            let said = self.call(&words.collect::<Vec<_>>())?.stderr_text();
            if said
                .lines()
                .any(|line| line.ends_with(&format!("not defined: -{flag}")))
            {
                return Ok(Answer::Unknown);
            }
            if WENT_ON.iter().any(|words| said.contains(words)) {
                return Ok(Answer::Accepted);
            }
        }
        Ok(Answer::Refused)
    }
}

/// The lines of a section of help.
fn section<'a>(help: &'a str, heading: &'a str) -> impl Iterator<Item = &'a str> {
    help.lines()
        .skip_while(move |line| *line != heading)
        .skip(1)
        .take_while(|line| line.is_empty() || line.starts_with(' '))
}

/// The long name of the flag described by a line of help.
fn flag_of(line: &str) -> Option<String> {
    let line = line.trim_start();
    let at = if line.starts_with("--") {
        0
    } else {
        line.strip_prefix('-')?.find("--")? + 1
    };
    let name: String = line[at + 2..]
        .chars()
        .take_while(|c| c.is_ascii_alphanumeric() || *c == '-')
        .collect();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELP: &str = "About\n\nOptions:\n      --id <LEASE>  Lease --or slug\n      --keep[=<BOOL>]\n          Keep\n  -h, --help        Print\n\nConfiguration:\n      --ttl <D>\n";

    #[test]
    fn flags_are_read_from_help() {
        let own: Vec<String> = section(HELP, "Options:").filter_map(flag_of).collect();
        assert_eq!(own, ["id", "keep", "help"]);
        let all: Vec<String> = HELP.lines().filter_map(flag_of).collect();
        assert_eq!(all, ["id", "keep", "help", "ttl"]);
    }
}
