//! Commands that are made of others, as the words that a user would type for the same.
//!
//! What is shown and what is run are the same words, so that `--dry-run` cannot lie.

use std::ffi::OsString;

use crabbox_core::config::FlagValue;

use crate::args::{self, Command, RunArgs, WarmupArgs};
use crate::goflags::Stop;
use crate::ui::CommandError;

/// The words of a command line, without the program's name.
#[derive(Debug, Clone, Default)]
pub(super) struct Words(Vec<OsString>);

impl Words {
    /// The command.
    pub(super) fn new(command: &str) -> Self {
        Self(vec![command.into()])
    }

    /// A flag with its value.
    pub(super) fn flag(mut self, name: &str, value: &str) -> Self {
        self.0.push(format!("--{name}={value}").into());
        self
    }

    /// The same if there is a value.
    pub(super) fn maybe(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.flag(name, value),
            None => self,
        }
    }

    /// A switch if it is on.
    pub(super) fn switch(mut self, name: &str, on: bool) -> Self {
        if on {
            self.0.push(format!("--{name}").into());
        }
        self
    }

    /// Flags that set configuration keys, as they were given.
    pub(super) fn keys(mut self, values: &[FlagValue]) -> Self {
        for FlagValue { key, values } in values {
            if let Some(flag) = key.key().flag {
                self = values
                    .iter()
                    .fold(self, |words, value| words.flag(flag.name, value));
            }
        }
        self
    }

    /// What stands behind the two dashes.
    pub(super) fn rest(mut self, words: impl IntoIterator<Item = OsString>) -> Self {
        self.0.push("--".into());
        self.0.extend(words);
        self
    }

    /// The line a user would type.
    pub(super) fn shown(&self) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
        let words = self.0.iter().map(|word| {
            let word = word.to_string_lossy();
            if !word.is_empty() && word.chars().all(plain) {
                word.into_owned()
            } else {
                format!("'{}'", word.replace('\'', r"'\''"))
            }
        });
        let line: Vec<String> = std::iter::once("crabbox".to_owned()).chain(words).collect();
        line.join(" ")
    }

    fn parse(&self) -> Result<Command, CommandError> {
        let argv: Vec<OsString> = std::iter::once("crabbox".into())
            .chain(self.0.iter().cloned())
            .collect();
        args::parse(&argv).map_err(|stop| match stop {
            Stop::Usage(error) => error.into(),
            Stop::Help(_) => unreachable!("no command is made with a request for help"),
        })
    }

    /// The arguments of this `run`.
    pub(super) fn run(&self) -> Result<Box<RunArgs>, CommandError> {
        match self.parse()? {
            Command::Run(args) => Ok(args),
            _ => unreachable!("it begins with run"),
        }
    }

    /// The arguments of this `warmup`.
    pub(super) fn warmup(&self) -> Result<WarmupArgs, CommandError> {
        match self.parse()? {
            Command::Warmup(args) => Ok(args),
            _ => unreachable!("it begins with warmup"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_typed() {
        let words = Words::new("run")
            .flag("id", "jade-krill")
            .switch("shell", true)
            .switch("no-sync", false)
            .rest(["echo it's".into(), String::new().into()]);
        assert_eq!(
            words.shown(),
            r"crabbox run --id=jade-krill --shell -- 'echo it'\''s' ''"
        );
        let args = words.run().unwrap();
        assert!(args.command.shell && !args.sync.no_sync);
        assert_eq!(args.command.words, ["echo it's", ""]);
    }
}
