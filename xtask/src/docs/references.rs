//! References in comments and documents: to a file, a section, a test or another name of the code, a command.
//! Each has to exist.
//!
//! Only text between backticks and bare names of documents count as references. It never guesses: a name of
//! another project, an absolute path or a placeholder (`<name>`, `NAME`) is not a reference.

mod commands;
mod prose;
mod tree;

use std::collections::BTreeMap;

use anyhow::Result;

use commands::Commands;
use prose::Block;
use tree::Tree;

use super::program::Program;

/// The extensions of our files; names with another one may be a user's files.
const ENDINGS: [&str; 4] = [".rs", ".md", ".sh", ".py"];
/// Former internal documents that readers do not have.
const NOT_HERE: [&str; 4] = [
    "behaviour reference",
    "behavior reference",
    "field notes",
    "design notes",
];
/// Words that precede a section number.
const SECTION: [&str; 4] = ["section", "sections", "reference", "chapter"];
/// Words that indicate a public document, whose sections have numbers; ours have names.
const PUBLIC: [&str; 4] = ["RFC", "PROTOCOL", "specification", "POSIX"];
/// Names with this many underscores are taken for ours (tests or functions), not for the kernel's or a key's.
const LONG_NAME: usize = 3;

/// Every broken reference below `root`, with its place. `task` is the command line of `cargo xtask`.
pub(super) fn check(root: &std::path::Path, program: &Program, task: clap::Command) -> Result<Vec<String>> {
    let tree = Tree::read(root)?;
    let mut commands = Commands::new(task, program);
    let mut problems = Vec::new();
    for (path, text) in &tree.texts {
        for block in prose::blocks(path.as_ref(), text) {
            let mut found = of_block(&block, path, &tree);
            found.extend(commands.of_block(&block, &tree)?);
            problems.extend(
                found
                    .into_iter()
                    .map(|(at, problem)| format!("{path}:{}: {problem}", block.line_at(at))),
            );
        }
    }
    Ok(problems)
}

/// A problem and its offset in the block.
type Found = (usize, String);

/// Broken references of a block, except commands.
fn of_block(block: &Block, path: &str, tree: &Tree) -> Vec<Found> {
    if block.example {
        return Vec::new();
    }
    let mut found: Vec<Found> = Vec::new();
    for (at, span) in block.spans() {
        let problem = of_name(&span, path, tree);
        found.extend(problem.map(|problem| (at, problem)));
    }
    let plain = block.plain();
    for (at, word) in words(&plain) {
        if is_document(word) {
            found.extend(of_file(word, path, tree).map(|problem| (at, problem)));
        }
    }
    found.extend(numbers(&plain, &block.text));
    found
}

/// The problem of one name between backticks.
fn of_name(span: &str, path: &str, tree: &Tree) -> Option<String> {
    let strange = |c: char| c.is_whitespace() || "<>*$…{}[]=\"'|,;&@%".contains(c);
    if span.contains(strange) || span.starts_with(['/', '~', '-']) || span.starts_with("./") {
        return None;
    }
    let test = span.split_once(".rs::");
    if let Some((file, name)) = test {
        let file = format!("{file}.rs");
        let Some(found) = tree.find(&file, path) else {
            return Some(format!("there is no file {file}"));
        };
        let defined = tree.texts.get(found).is_some_and(|text| defines(text, name));
        return (!defined).then(|| format!("{found} has no {name}"));
    }
    let file = span.split(['#', ':']).next().unwrap_or(span);
    let top = file.split_once('/').is_some_and(|(top, _)| tree.is_top(top));
    if !span.contains("::")
        && (top
            || ENDINGS
                .iter()
                .any(|ending| file.ends_with(ending) && file != *ending))
    {
        return of_file(span, path, tree);
    }
    of_item(span.trim_end_matches("()"), path, tree)
}

/// The problem of a file's name, possibly with a section `#like-this` or a line number.
fn of_file(name: &str, path: &str, tree: &Tree) -> Option<String> {
    let (file, section) = name.split_once('#').unwrap_or((name, ""));
    let file = file.split(':').next().unwrap_or(file);
    // Build products exist only after a build.
    if file.split('/').any(|part| part == "target") {
        return None;
    }
    let Some(found) = tree.find(file, path) else {
        return Some(format!("there is no file {file}"));
    };
    let text = tree.texts.get(found).map_or("", String::as_str);
    (!section.is_empty() && !has_section(text, section)).then(|| format!("{found} has no section #{section}"))
}

/// The problem of a module path, or of a name long enough to be taken for one of ours.
fn of_item(name: &str, path: &str, tree: &Tree) -> Option<String> {
    let parts: Vec<&str> = name.split("::").collect();
    let is_name = |part: &&str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let foreign = name.matches('_').count() < LONG_NAME || name.contains(|c: char| c.is_uppercase());
    if !parts.iter().all(is_name) || (parts.len() == 1 && foreign) {
        return None;
    }
    let (first, rest) = (parts[0], &parts[1..]);
    let home = match first.strip_prefix("crabbox_") {
        Some(other) if !rest.is_empty() => tree.crate_dir(other),
        _ if first == "crate" => Some(tree::home(path)),
        // Documents name our crates without the prefix.
        _ if tree::is(path, "md") && !rest.is_empty() => tree.crate_dir(first),
        _ => None,
    };
    let inner: &[&str] = if home.is_some() { rest } else { &parts };
    inner
        .iter()
        .find(|part| !["crate", "super", "self", "Self"].contains(*part) && !tree.has_word(part, home))
        .map(|part| {
            format!(
                "nothing is called {part} {}",
                home.unwrap_or("in this repository")
            )
        })
}

/// Whether the Rust source `text` defines `name`.
fn defines(text: &str, name: &str) -> bool {
    ["fn", "struct", "enum", "trait", "const", "static", "type", "mod"]
        .iter()
        .any(|kind| {
            let start = format!("{kind} {name}");
            text.match_indices(&start).any(|(at, found)| {
                let after = text[at + found.len()..].chars().next();
                !after.is_some_and(|c| c.is_alphanumeric() || c == '_')
            })
        })
}

/// Whether the document `text` has a heading with the anchor `section`, as Markdown renderers generate it.
pub(super) fn has_section(text: &str, section: &str) -> bool {
    let (mut fenced, mut known) = (false, BTreeMap::new());
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced || !line.starts_with('#') {
            continue;
        }
        // A repeated heading gets a numbered anchor.
        let anchor = anchor(line.trim_start_matches('#'));
        let times: &mut usize = known.entry(anchor.clone()).or_default();
        let this = if *times == 0 {
            anchor
        } else {
            format!("{anchor}-{times}")
        };
        *times += 1;
        if this == section {
            return true;
        }
    }
    false
}

fn anchor(heading: &str) -> String {
    heading
        .trim()
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() })
        .collect()
}

/// Whether a bare word is the name of a document.
fn is_document(word: &str) -> bool {
    let file = word.split('#').next().unwrap_or(word);
    file.len() > 3 && tree::is(file, "md") && !file.contains("://") && !file.starts_with(['/', '~', '.'])
}

/// The words of a text with their offsets, without surrounding punctuation.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mark = |c: char| c.is_whitespace() || "()[],;\"'*|<>".contains(c);
    text.split(mark).filter_map(move |word| {
        let at = word.as_ptr() as usize - text.as_ptr() as usize;
        let word = word.trim_end_matches(['.', ':']);
        (!word.is_empty()).then_some((at, word))
    })
}

/// Mentions of documents that readers do not have, and section numbers of documents without numbers.
fn numbers(plain: &str, text: &str) -> Vec<Found> {
    let mut found = Vec::new();
    let flat = plain.replace('\n', " ").to_lowercase();
    for name in NOT_HERE {
        let hits = flat.match_indices(name);
        found.extend(hits.map(|(at, _)| (at, format!("there is no {name} in this repository"))));
    }
    let is_public = PUBLIC.iter().any(|mark| text.contains(mark));
    let words: Vec<(usize, &str)> = words(plain).collect();
    for pair in words.windows(2) {
        let ((at, word), (_, number)) = (pair[0], pair[1]);
        // `reference 7` may count something, `reference 5.3` names a section.
        let numbered = number.starts_with(|c: char| c.is_ascii_digit())
            && number.chars().all(|c| c.is_ascii_digit() || c == '.')
            && (number.contains('.') || word.starts_with(['s', 'S']));
        if numbered && !is_public && SECTION.contains(&word.to_lowercase().as_str()) {
            found.push((at, format!("no document of ours has a {word} {number}")));
        }
    }
    found
}

#[cfg(test)]
mod tests;
