//! A `crabbox` command line, shown for the user to paste into a shell.
//!
//! Every command line printed for the user comes from here, so that it is quoted, names the provider, and
//! repeats the configuration flags that the user gave. It must never contain a flag that its command does not
//! have.

use std::ffi::OsString;

use crabbox_core::config::FlagValue;
use crabbox_core::config::key::{Group, Kind, Name};
use crabbox_engine::provider::lease::Lease;
use crabbox_workspace::quote;

use crate::args;

/// The words of a command line, without the program's name.
#[derive(Debug, Clone, Default)]
pub(crate) struct CommandLine(Vec<OsString>);

impl CommandLine {
    /// The command.
    pub(crate) fn new(command: &str) -> Self {
        Self(vec![command.into()])
    }

    /// `command` for a lease of `provider`. The `given` configuration flags are repeated, because the lease
    /// may be unreachable without them.
    pub(crate) fn for_lease(command: &str, provider: &str, given: &[FlagValue]) -> Self {
        Self::new(command)
            .option("provider", provider)
            .repeated(given, args::LEASE_GROUPS)
    }

    /// The command line that gives `lease` back.
    pub(crate) fn stop(lease: &Lease, given: &[FlagValue]) -> Self {
        let given: Vec<FlagValue> = given
            .iter()
            .filter(|flag| flag.key != Name::TargetOs)
            .cloned()
            .collect();
        Self::new("stop")
            .option("provider", lease.provider)
            .option("target", "linux")
            .repeated(&given, args::LEASE_GROUPS)
            .option("id", &lease.slug)
    }

    /// A flag and its value, as two words.
    pub(crate) fn option(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.0.push(format!("--{name}").into());
        self.0.push(value.into());
        self
    }

    /// The same for each of `values`.
    pub(crate) fn options<V: Into<OsString>>(self, name: &str, values: impl IntoIterator<Item = V>) -> Self {
        values
            .into_iter()
            .fold(self, |line, value| line.option(name, value))
    }

    /// Those `given` flags that a command with these groups has, the provider aside.
    pub(crate) fn repeated(self, given: &[FlagValue], groups: &[Group]) -> Self {
        given.iter().fold(self, |line, value| {
            let key = value.key.key();
            match key.flag {
                Some(flag) if value.key != Name::ProviderName && groups.contains(&flag.group) => {
                    // A boolean's value must be attached with `=`.
                    if key.kind == Kind::Bool {
                        value
                            .values
                            .iter()
                            .fold(line, |line, value| line.flag(flag.name, value))
                    } else {
                        line.options(flag.name, &value.values)
                    }
                }
                _ => line,
            }
        })
    }

    /// A flag with its value, as one word.
    pub(crate) fn flag(mut self, name: &str, value: &str) -> Self {
        self.0.push(format!("--{name}={value}").into());
        self
    }

    /// The same if there is a value.
    pub(crate) fn maybe(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.flag(name, value),
            None => self,
        }
    }

    /// The same as two words, if there is a value.
    pub(crate) fn maybe_option(self, name: &str, value: Option<&str>) -> Self {
        self.options(name, value)
    }

    /// A switch if it is on.
    pub(crate) fn switch(mut self, name: &str, on: bool) -> Self {
        if on {
            self.0.push(format!("--{name}").into());
        }
        self
    }

    /// Flags that set configuration keys, as they were given.
    pub(crate) fn keys<'a>(mut self, values: impl IntoIterator<Item = &'a FlagValue>) -> Self {
        for FlagValue { key, values } in values {
            if let Some(flag) = key.key().flag {
                self = values
                    .iter()
                    .fold(self, |words, value| words.flag(flag.name, value));
            }
        }
        self
    }

    /// A positional argument, such as a lease's name.
    pub(crate) fn word(mut self, word: &str) -> Self {
        self.0.push(word.into());
        self
    }

    /// The words after `--`.
    pub(crate) fn rest(mut self, words: impl IntoIterator<Item = OsString>) -> Self {
        self.0.push("--".into());
        self.0.extend(words);
        self
    }

    /// The line a user would type.
    pub(crate) fn shown(&self) -> String {
        let words = self.0.iter().map(|word| word.to_string_lossy());
        quote::line(std::iter::once("crabbox".into()).chain(words))
    }
}

#[cfg(test)]
impl CommandLine {
    /// Parses the line as this program's own arguments.
    pub(crate) fn parse(&self) -> Result<args::Command, crate::goflags::Stop> {
        let argv: Vec<OsString> = std::iter::once("crabbox".into())
            .chain(self.0.iter().cloned())
            .collect();
        args::parse(&argv)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Command;

    #[test]
    fn what_is_shown_can_be_typed() {
        let words = CommandLine::new("run")
            .flag("id", "jade-krill")
            .switch("shell", true)
            .switch("no-sync", false)
            .rest(["echo it's".into(), String::new().into()]);
        assert_eq!(
            words.shown(),
            r"crabbox run --id=jade-krill --shell -- 'echo it'\''s' ''"
        );
        let Command::Run(args) = words.parse().unwrap() else {
            panic!("it begins with run");
        };
        assert!(args.command.shell && !args.sync.no_sync);
        assert_eq!(args.command.words, ["echo it's", ""]);
    }
}
