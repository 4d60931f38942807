//! Finds crates that the developers' tasks use with other features than the tests: cargo compiles them, and
//! all their users, twice.
//!
//! It compares cargo's resolution for both; it never judges which features there should be.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use crate::workspace;

/// The crates, each with its features, whose features differ.
pub(super) fn compiled_twice() -> Result<Vec<String>> {
    let mut tasks = resolved(&["--package", "xtask", "--edges", "normal,build"])?;
    // Also the program with which the demo leases.
    let program = crate::payload::quick_packages();
    tasks.extend(resolved(&[&program[..], &["--edges", "normal,build"]].concat())?);
    let tests = resolved(&["--workspace", "--edges", "normal,build,dev"])?;
    Ok(apart(&tasks, &tests))
}

/// The lines of `tasks` that are not in `tests`.
fn apart(tasks: &BTreeSet<String>, tests: &BTreeSet<String>) -> Vec<String> {
    tasks.difference(tests).cloned().collect()
}

/// A line for each crate with its features.
fn resolved(of: &[&str]) -> Result<BTreeSet<String>> {
    let out = workspace::cargo()
        .args(["tree", "--offline", "--prefix", "none", "--format", "{p} [{f}]"])
        .args(of)
        .run()?;
    let text = out.stdout_text();
    let lines: BTreeSet<String> = text
        .lines()
        .map(|line| line.trim_end_matches(" (*)").to_owned())
        .filter(|line| !line.is_empty())
        .collect();
    ensure!(!lines.is_empty(), "cargo tree shows no crates");
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_with_other_features_is_found_and_one_that_only_the_tests_have_is_not() {
        let of = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        let tasks = of(&["a v1 []", "b v1 [std]"]);
        let tests = of(&["a v1 [fuzzing]", "b v1 [std]", "c v1 []"]);
        assert_eq!(apart(&tasks, &tests), ["a v1 []"]);
    }
}
