//! The promises of SECURITY.md: each row of its table must name the tests that verify it.
//!
//! A name is `<path>::<name of the test>`. A row without one, or with one that is no longer a test, is a
//! problem; whether the test really verifies the row is for readers to judge.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// The section with the table.
const HEADING: &str = "## What is promised";

/// The problems of the table of promises in `text`, with paths below `root`.
pub(super) fn problems(text: &str, root: &Path) -> Vec<String> {
    let section = text.split(HEADING).nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    // The first two lines of a table are its header.
    let rows: Vec<&str> = section
        .lines()
        .filter(|line| line.starts_with('|'))
        .skip(2)
        .collect();
    if rows.is_empty() {
        return vec![format!("no table of promises below `{HEADING}`")];
    }
    rows.into_iter().flat_map(|row| of_row(row, root)).collect()
}

/// Reads the table of promises in the file `name` below `root`.
pub(super) fn check(root: &Path, name: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(root.join(name)).with_context(|| format!("cannot read {name}"))?;
    let problems = problems(&text, root).into_iter();
    Ok(problems.map(|problem| format!("{name}: {problem}")).collect())
}

fn of_row(row: &str, root: &Path) -> Vec<String> {
    let shown = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
    let tests: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
    if tests.is_empty() {
        return vec![format!("no test shows this row: {row}")];
    }
    tests
        .into_iter()
        .filter(|test| !is_test(test, root))
        .map(|test| format!("there is no test {test}"))
        .collect()
}

/// Whether `path::name` is a function of that file with a test attribute directly above it.
fn is_test(reference: &str, root: &Path) -> bool {
    let Some((path, name)) = reference.split_once("::") else {
        return false;
    };
    let source = fs::read_to_string(root.join(path)).unwrap_or_default();
    let before = source.split(&format!("fn {name}(")).next();
    before
        .filter(|before| before.len() < source.len())
        .and_then(|before| {
            before
                .rsplit("#[test]")
                .next()
                .filter(|gap| gap.len() < before.len())
        })
        .is_some_and(|gap| !gap.contains("fn ") && !gap.contains("#[ignore"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The problems of a table with these last cells, if its file has one test and one other function.
    fn with(cells: &[&str]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let source = "#[test]\nfn shown() {}\n\nfn helper() {}\n\n#[test]\n#[ignore]\nfn skipped() {}\n";
        fs::write(dir.path().join("t.rs"), source).unwrap();
        let rows: Vec<String> = cells.iter().map(|cell| format!("| a | b | {cell} |\n")).collect();
        let text = format!(
            "{HEADING}\n\n| A | B | C |\n|---|---|---|\n{}\n## Else\n| x | y |\n",
            rows.concat()
        );
        problems(&text, dir.path())
    }

    #[test]
    fn a_row_with_a_test_is_right() {
        assert_eq!(with(&["`t.rs::shown`"]), Vec::<String>::new());
    }

    #[test]
    fn a_row_without_a_test_that_runs_is_named() {
        for cell in [
            "",
            "by reading",
            "`t.rs`",
            "`t.rs::helper`",
            "`t.rs::skipped`",
            "`t.rs::gone`",
            "`gone.rs::shown`",
            "`t.rs::shown`; `t.rs::show`",
        ] {
            assert_eq!(with(&["`t.rs::shown`", cell]).len(), 1, "{cell}");
        }
        assert_eq!(with(&[]).len(), 1, "a table without rows promises nothing");
    }
}
