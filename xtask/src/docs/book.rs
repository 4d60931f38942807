//! The book (`book.toml`, docs/SUMMARY.md): every page has its place in it, and what `docs/troubleshooting.md` quotes is what the program prints.
//!
//! It reads files only. It must never take a message for ours that stands in a test alone.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Where messages are quoted, as headings.
const SYMPTOMS: &str = "docs/troubleshooting.md";

/// What stands for the part of a message that differs.
const GAP: char = '…';

/// The shortest part of a message that says which one it is.
const SHORTEST: usize = 4;

/// What is wrong with the book below `root`, whose pages are `pages`.
pub(super) fn check(root: &Path, pages: &[std::path::PathBuf]) -> Result<Vec<String>> {
    let docs = root.join("docs");
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).context("cannot read docs/SUMMARY.md")?;
    let names = pages.iter().filter_map(|page| page.strip_prefix(&docs).ok());
    let names: Vec<String> = names.map(|page| page.display().to_string()).collect();
    let mut problems = places(&summary, &names);
    let text = fs::read_to_string(root.join(SYMPTOMS)).with_context(|| format!("cannot read {SYMPTOMS}"))?;
    let sources = sources(&root.join("crates"))?;
    let unknown = quoted(&text)
        .into_iter()
        .filter(|message| !sources.iter().any(|source| prints(source, message)));
    problems.extend(unknown.map(|message| format!("{SYMPTOMS}: no message of ours is `{message}`")));
    Ok(problems)
}

/// Pages without a place, and with more than one.
fn places(summary: &str, pages: &[String]) -> Vec<String> {
    let links: Vec<&str> = summary
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .collect();
    let pages: BTreeSet<&str> = pages.iter().map(String::as_str).collect();
    let of = |page: &&str| links.iter().filter(|link| *link == page).count();
    let wrong = pages
        .into_iter()
        .filter(|page| *page != "SUMMARY.md" && of(page) != 1);
    wrong
        .map(|page| format!("docs/SUMMARY.md names {page} {} times, not once", of(&page)))
        .collect()
}

/// The messages that headings quote.
fn quoted(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'))
        .collect()
}

/// The Rust sources below `dir` without tests, their broken literals put together.
fn sources(dir: &Path) -> Result<Vec<String>> {
    let (mut found, mut todo) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
            let path = entry?.path();
            let is_test = path.file_stem().is_some_and(|name| name == "tests");
            if is_test {
                continue;
            }
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = fs::read_to_string(&path)?;
                let code = text.split("#[cfg(test)]").next().unwrap_or_default();
                found.push(joined(code));
            }
        }
    }
    Ok(found)
}

/// A literal that goes on behind a `\` at the end of a line is one.
fn joined(code: &str) -> String {
    let mut parts = code.split("\\\n");
    let mut out = parts.next().unwrap_or_default().to_owned();
    parts.for_each(|part| out.push_str(part.trim_start()));
    out
}

/// Whether a line of `source` has all parts of `message`, in their order.
fn prints(source: &str, message: &str) -> bool {
    let parts: Vec<&str> = message
        .split(GAP)
        .map(str::trim)
        .filter(|part| part.len() >= SHORTEST)
        .collect();
    !parts.is_empty()
        && source.lines().any(|line| {
            let mut rest = line;
            parts.iter().all(|part| match rest.split_once(part) {
                Some((_, after)) => {
                    rest = after;
                    true
                }
                None => false,
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_one_place() {
        let summary = "- [A](a.md)\n- [B](b/b.md)\n- [A again](a.md)\n";
        let pages = ["SUMMARY.md", "a.md", "b/b.md", "c.md"].map(str::to_owned);
        assert_eq!(
            places(summary, &pages),
            [
                "docs/SUMMARY.md names a.md 2 times, not once",
                "docs/SUMMARY.md names c.md 0 times, not once"
            ]
        );
    }

    #[test]
    fn a_quoted_message_is_one_that_is_printed() {
        let source = joined(
            "#[error(\"lease {id} is gone, \\\n         and {other} too\")]\nlet x = \"too early\";\n",
        );
        assert!(prints(&source, "lease … is gone, and … too"));
        assert!(prints(&source, "is gone, and"));
        assert!(!prints(&source, "other … is gone"), "in its order");
        assert!(!prints(&source, "lease … too early"), "of one message");
        assert!(!prints(&source, "…"), "nothing is no message");
        assert_eq!(quoted("# a\n### `b … c`\ntext `d`\n### e\n"), ["b … c"]);
    }
}
