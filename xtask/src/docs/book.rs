//! The book (`cargo xtask book`, docs/SUMMARY.md): checks that it includes every page, and that the program
//! prints every message quoted in `docs/troubleshooting.md`.
//!
//! It only reads files. A message that only occurs in tests must never pass.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::links;

/// The order of the chapters.
const SUMMARY: &str = "docs/SUMMARY.md";

/// The page that quotes messages as headings.
const SYMPTOMS: &str = "docs/troubleshooting.md";

/// The placeholder for the variable part of a message.
const GAP: char = '…';

/// The minimum length of a part that identifies a message.
const SHORTEST: usize = 4;

/// The problems of the book below `root` with the pages `pages`.
pub(super) fn check(root: &Path, pages: &[std::path::PathBuf]) -> Result<Vec<String>> {
    let summary = fs::read_to_string(root.join(SUMMARY)).with_context(|| format!("cannot read {SUMMARY}"))?;
    let mut texts = BTreeMap::new();
    for page in pages {
        let name = page.strip_prefix(root).unwrap_or(page).display().to_string();
        texts.insert(name, fs::read_to_string(page)?);
    }
    let mut problems = places(&summary, &texts);
    let text = fs::read_to_string(root.join(SYMPTOMS)).with_context(|| format!("cannot read {SYMPTOMS}"))?;
    let sources = sources(&root.join("crates"))?;
    let unknown = quoted(&text)
        .into_iter()
        .filter(|message| !sources.iter().any(|source| prints(source, message)));
    problems.extend(unknown.map(|message| format!("{SYMPTOMS}: no message of ours is `{message}`")));
    Ok(problems)
}

/// Pages of `texts`, by path from the root, that are missing from the book or listed more than once, and
/// links from chapters to files that are not in it.
fn places(summary: &str, texts: &BTreeMap<String, String>) -> Vec<String> {
    let chapters: Vec<String> = links::all(summary)
        .filter_map(|link| links::from_root(SUMMARY, link))
        .collect();
    let of = |page: &String| chapters.iter().filter(|chapter| *chapter == page).count();
    let mut problems = Vec::new();
    for (page, text) in texts {
        // Files outside of `docs` are in the book only if listed as a chapter.
        let (is_docs, times) = (page.starts_with("docs/"), of(page));
        if page != SUMMARY && (times > 1 || (is_docs && times == 0)) {
            problems.push(format!("{SUMMARY} names {page} {times} times, not once"));
        }
        if times == 0 {
            continue;
        }
        for link in links::all(text) {
            let target = links::from_root(page, link).unwrap_or_else(|| link.to_owned());
            if Path::new(&target)
                .extension()
                .is_some_and(|ending| ending == "md")
                && of(&target) == 0
            {
                problems.push(format!(
                    "{page}: {link} is no page of the book, for {SUMMARY} names no {target}"
                ));
            }
        }
    }
    problems
}

/// The messages quoted in headings.
fn quoted(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'))
        .collect()
}

/// The Rust sources below `dir` without tests, with continued literals joined.
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

/// Joins literals that continue after a `\` at the end of a line.
fn joined(code: &str) -> String {
    let mut parts = code.split("\\\n");
    let mut out = parts.next().unwrap_or_default().to_owned();
    parts.for_each(|part| out.push_str(part.trim_start()));
    out
}

/// Whether a line of `source` has all parts of `message` in order.
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
        let texts = [
            ("docs/SUMMARY.md", ""),
            (
                "docs/a.md",
                "[b](b/b.md#there) [of code](../src/x.rs) [far](scheme://y.md)",
            ),
            ("docs/b/b.md", "[licence](../../LICENCE.md) [out](../../../z.md)"),
            ("docs/c.md", "[nothing](nothing.md)"),
            ("LICENCE.md", "[nothing](nothing.md)"),
        ]
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .into();
        assert_eq!(
            places(summary, &texts),
            [
                "docs/SUMMARY.md names docs/a.md 2 times, not once",
                "docs/b/b.md: ../../LICENCE.md is no page of the book, for docs/SUMMARY.md names no LICENCE.md",
                "docs/b/b.md: ../../../z.md is no page of the book, for docs/SUMMARY.md names no ../../../z.md",
                "docs/SUMMARY.md names docs/c.md 0 times, not once"
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
