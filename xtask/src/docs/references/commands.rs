//! Checks commands in comments and documents: `crabbox ...` against the program's help, `cargo xtask ...`
//! against the tasks' command line, `cargo test ...` against the packages and suites.
//!
//! A command is read up to its first placeholder. It is never run: the program is asked for help, or given a
//! provider that does not exist.

use std::collections::BTreeMap;

use anyhow::Result;

use super::super::program::{Answer, Program};
use super::prose::Block;
use super::{Found, Tree};

/// The known commands, cached because the program is slow to ask.
pub(super) struct Commands<'a> {
    task: clap::Command,
    program: &'a Program,
    /// The subcommands and the help of each requested path.
    known: BTreeMap<String, Option<(Vec<String>, String)>>,
    flags: BTreeMap<(String, String), bool>,
}

impl<'a> Commands<'a> {
    pub(super) fn new(mut task: clap::Command, program: &'a Program) -> Self {
        task.build();
        Self {
            task,
            program,
            known: BTreeMap::new(),
            flags: BTreeMap::new(),
        }
    }

    /// The parts of a block's commands that do not exist.
    pub(super) fn of_block(&mut self, block: &Block, tree: &Tree) -> Result<Vec<Found>> {
        let lines: Vec<(usize, String)> = if block.example {
            let text = &block.text;
            text.lines()
                .map(|line| (line.as_ptr() as usize - text.as_ptr() as usize, example(line)))
                .collect()
        } else {
            block.spans()
        };
        let mut found = Vec::new();
        for (at, line) in lines {
            found.extend(self.of_line(&line, tree)?.map(|problem| (at, problem)));
        }
        Ok(found)
    }

    fn of_line(&mut self, line: &str, tree: &Tree) -> Result<Option<String>> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["cargo", "xtask", rest @ ..] => Ok(of_task(&self.task, rest)),
            ["cargo", "test" | "build" | "check", rest @ ..] => Ok(of_cargo(rest, tree)),
            ["crabbox", rest @ ..] => self.of_program(rest),
            _ => Ok(None),
        }
    }

    fn of_program(&mut self, words: &[&str]) -> Result<Option<String>> {
        let mut path = String::new();
        let mut descends = true;
        for word in words.iter().take_while(|word| is_literal(word)) {
            if let Some(flag) = word.strip_prefix("--") {
                let flag = flag.split('=').next().unwrap_or(flag);
                if !self.takes(&path, flag)? {
                    return Ok(Some(format!("crabbox {path} has no flag --{flag}")));
                }
            } else if descends && !word.starts_with('-') {
                let next = format!("{path} {word}").trim().to_owned();
                let known = self.known(&path)?.is_some_and(|(inner, _)| !inner.is_empty());
                match self.known(&next)? {
                    Some(_) if known => path = next,
                    _ if known => return Ok(Some(format!("there is no command crabbox {next}"))),
                    // A lease, a key or another argument of this command.
                    _ => descends = false,
                }
            }
        }
        Ok(None)
    }

    fn known(&mut self, path: &str) -> Result<Option<(Vec<String>, String)>> {
        if let Some(known) = self.known.get(path) {
            return Ok(known.clone());
        }
        let known = if path.is_empty() || self.program.has_command(path)? {
            let inner = self.program.commands(path)?;
            let names = inner.into_iter().map(|(name, _)| name).collect();
            Some((names, self.program.help(path)?))
        } else {
            None
        };
        self.known.insert(path.to_owned(), known.clone());
        Ok(known)
    }

    fn takes(&mut self, path: &str, flag: &str) -> Result<bool> {
        if path.is_empty() || flag == "help" {
            return Ok(true);
        }
        let place = (path.to_owned(), flag.to_owned());
        if let Some(takes) = self.flags.get(&place) {
            return Ok(*takes);
        }
        let help = self.known(path)?.map(|(_, help)| help).unwrap_or_default();
        let takes = self.program.answer(path, flag, &help)? != Answer::Unknown;
        self.flags.insert(place, takes);
        Ok(takes)
    }
}

/// The command of a line in an example, without its prompt.
fn example(line: &str) -> String {
    let line = line.trim();
    let line = line.strip_prefix("$ ").unwrap_or(line);
    line.strip_prefix("sudo ").unwrap_or(line).to_owned()
}

/// Whether a word of a command is literal; `--` ends the checked part, and so does any sign of shell syntax
/// or prose.
fn is_literal(word: &str) -> bool {
    let mut chars = word.chars();
    let start = chars.next().is_some_and(|c| c.is_ascii_lowercase() || c == '-');
    start
        && word != "--"
        && !word.contains("://")
        && chars.all(|c| c.is_ascii_alphanumeric() || "-_=./:+".contains(c))
}

/// The part of `words` that the tasks' command line does not have.
fn of_task(task: &clap::Command, words: &[&str]) -> Option<String> {
    let mut at = task;
    for word in words.iter().take_while(|word| is_literal(word)) {
        let flags = || at.get_arguments().filter_map(clap::Arg::get_long);
        if let Some(flag) = word.strip_prefix("--") {
            let flag = flag.split('=').next().unwrap_or(flag);
            if flag != "help" && !flags().any(|known| known == flag) {
                return Some(format!("cargo xtask {} has no flag --{flag}", at.get_name()));
            }
        } else if let Some(inner) = at.find_subcommand(word) {
            at = inner;
        } else if at.has_subcommands() && !flags().any(|flag| takes_value(at, flag, word, words)) {
            return Some(format!("there is no task {word} in cargo xtask"));
        }
    }
    None
}

/// Whether `word` is the value of the flag before it.
fn takes_value(at: &clap::Command, flag: &str, word: &str, words: &[&str]) -> bool {
    let valued = at
        .get_arguments()
        .any(|argument| argument.get_long() == Some(flag) && argument.get_action().takes_values());
    let named = format!("--{flag}");
    valued && words.windows(2).any(|pair| pair[0] == named && pair[1] == word)
}

/// A package or suite named to `cargo test` and the like that does not exist.
fn of_cargo(words: &[&str], tree: &Tree) -> Option<String> {
    words
        .windows(2)
        .filter(|pair| is_literal(pair[1]))
        .find_map(|pair| match pair[0] {
            "-p" if !tree.has_package(pair[1]) => Some(format!("there is no package {}", pair[1])),
            "--test" if !tree.has_suite(pair[1]) => Some(format!("there is no suite {}", pair[1])),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_a_flag_and_a_value_are_told_from_what_is_none() {
        let task = crate::command();
        let of = |line: &str| of_task(&task, &line.split(' ').collect::<Vec<_>>());
        for right in [
            "test local",
            "lab --name main ssh",
            "bench boot --kernel-args",
            "docs --check",
            "fuzz [TARGET] --x",
        ] {
            assert_eq!(of(right), None, "{right}");
        }
        for wrong in [
            "tests",
            "lab --named main ssh",
            "bench boots",
            "docs --checks",
            "lab gone",
        ] {
            assert!(of(wrong).is_some(), "{wrong}");
        }
    }
}
