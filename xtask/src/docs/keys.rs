//! Tables of configuration keys, from the registry that the program itself reads.

use anyhow::{Result, ensure};
use crabbox_core::config::key::{KEYS, Key, Kind, Merge, Trust};

/// The keys of a section as a table; the section `general` contains those without one.
pub(super) fn table(section: &str) -> Result<String> {
    let rows: Vec<String> = KEYS
        .iter()
        .filter(|key| section_of(key) == section)
        .map(row)
        .collect();
    ensure!(
        !rows.is_empty(),
        "the registry has no key in the section {section:?}"
    );
    Ok(format!(
        "| Key | Default | Variable | Flag | What |\n|---|---|---|---|---|\n{}",
        rows.join("\n")
    ))
}

/// The part of a key's path before its last dot.
fn section_of(key: &Key) -> &'static str {
    key.path
        .rsplit_once('.')
        .map_or("general", |(section, _)| section)
}

/// The sections in registry order.
#[cfg(test)]
fn sections() -> Vec<&'static str> {
    let mut all = Vec::new();
    for section in KEYS.iter().map(section_of) {
        if !all.contains(&section) {
            all.push(section);
        }
    }
    all
}

fn row(key: &Key) -> String {
    let mut what = key.doc.to_owned();
    let mut say = |text: String| {
        what.push(' ');
        what.push_str(&text);
    };
    if let Some(kind) = kind(key.kind) {
        say(format!("{kind}."));
    }
    match key.merge {
        Merge::Replace => {}
        Merge::Append => say("Files add to it.".to_owned()),
        Merge::AppendUnique => say("Files add what is not there yet.".to_owned()),
        Merge::WhenPositive => say("Counts only when positive.".to_owned()),
    }
    if !key.aliases.is_empty() {
        say(format!("Also `{}`.", key.aliases.join("`, `")));
    }
    match key.trust {
        Trust::Open => {}
        Trust::HostOnly | Trust::Destination => say("**Not from a repository.**".to_owned()),
        Trust::DestinationOfHost => say("**Not from a repository** for provider ssh.".to_owned()),
    }
    let cell = |text: &str| {
        if text.is_empty() {
            String::new()
        } else {
            format!("`{text}`")
        }
    };
    format!(
        "| `{}` | {} | {} | {} | {} |",
        key.path,
        cell(key.default),
        key.variables
            .iter()
            .map(|name| cell(name))
            .collect::<Vec<_>>()
            .join(" "),
        key.flag
            .map_or_else(String::new, |flag| cell(&format!("--{}", flag.name))),
        what.replace('|', "\\|"),
    )
}

/// The required form of a value, where the description is not clear without it.
const fn kind(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Text | Kind::Path | Kind::Program | Kind::Bool | Kind::Integer | Kind::Choice(_) => None,
        Kind::Port => Some("A port"),
        Kind::Duration => Some("A duration"),
        Kind::List => Some("A list"),
        Kind::Ports => Some("A list of ports"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_stands_in_the_reference() {
        let page = include_str!("../../../docs/configuration.md");
        for section in sections() {
            let block = super::super::blocks::opening(&format!("keys {section}"));
            assert!(page.contains(&block), "docs/configuration.md lacks {block}");
        }
        let rows: usize = sections()
            .iter()
            .map(|section| table(section).unwrap().lines().count() - 2)
            .sum();
        assert_eq!(rows, KEYS.len());
    }

    #[test]
    fn a_key_that_a_repository_may_not_set_says_so() {
        let table = table("firecracker").unwrap();
        let row = |key: &str| {
            table
                .lines()
                .find(|line| line.starts_with(&format!("| `{key}` ")))
                .unwrap()
        };
        assert!(row("firecracker.kernel").contains("Not from a repository"));
        assert!(!row("firecracker.cpus").contains("Not from a repository"));
    }
}
