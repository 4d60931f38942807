//! Command lines in hints: completed with the configuration flags that the user gave, so that they can be
//! pasted.
//!
//! A hint has a command between backquotes, or is nothing but a command. It must name only commands and flags
//! that exist; a test here checks all texts of this program for that.

use clap::Command;
use crabbox_core::config::FlagValue;
use crabbox_core::config::key::{Kind, Name};
use crabbox_workspace::quote;

/// How a command line of this program begins.
const PROGRAM: &str = "crabbox ";
/// Commands that concern one provider, whichever was chosen.
const OF_ONE_PROVIDER: [&str; 2] = ["setup ", "image "];

/// `text` with its command lines completed by those `given` flags that they accept and do not have yet.
pub(crate) fn complete(text: &str, given: &[FlagValue]) -> String {
    if given.is_empty() || !text.contains(PROGRAM) {
        return text.to_owned();
    }
    let root = crate::args::command();
    if !text.contains('`') {
        return completed(text, &root, given);
    }
    let parts = text.split('`').enumerate().map(|(index, part)| {
        if index % 2 == 1 {
            completed(part, &root, given)
        } else {
            part.to_owned()
        }
    });
    parts.collect::<Vec<_>>().join("`")
}

fn completed(line: &str, root: &Command, given: &[FlagValue]) -> String {
    let Some(rest) = line.strip_prefix(PROGRAM) else {
        return line.to_owned();
    };
    // Flags must precede the first positional, so insert them right after the command's names.
    let (mut command, mut at) = (root, PROGRAM.len());
    for word in rest.split(' ') {
        let Some(next) = command.find_subcommand(word) else {
            break;
        };
        command = next;
        at += word.len() + 1;
    }
    let end = at.saturating_sub(1).min(line.len());
    let takes = |name: &str| command.get_arguments().any(|arg| arg.get_long() == Some(name));
    let has = |name: &str| {
        let flag = format!("--{name}");
        line.split(' ').any(|word| word.split('=').next() == Some(&flag))
    };
    let is_of_one = OF_ONE_PROVIDER.iter().any(|group| rest.starts_with(group));
    let mut words = Vec::new();
    for FlagValue { key, values } in given {
        if is_of_one && *key == Name::ProviderName {
            continue;
        }
        let key = key.key();
        let Some(flag) = key.flag.filter(|flag| takes(flag.name) && !has(flag.name)) else {
            continue;
        };
        for value in values {
            if key.kind == Kind::Bool {
                words.push(format!("--{}={value}", flag.name));
            } else {
                words.extend([format!("--{}", flag.name), value.clone()]);
            }
        }
    }
    if words.is_empty() {
        return line.to_owned();
    }
    format!("{} {}{}", &line[..end], quote::line(words), &line[end..])
}

#[cfg(test)]
mod tests;
