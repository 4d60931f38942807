//! `licences`: checks every dependency's licence against the allow list of `deny.toml`, without cargo-deny.
//!
//! Reads `cargo metadata` for the one platform we build for. It must never accept a dependency without a
//! licence, nor keep an allowed licence that no dependency uses any more.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::workspace;

const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// Checks them; a line for each that is not allowed, and for each unused permission.
pub(crate) fn main() -> Result<ExitCode> {
    let deny =
        std::fs::read_to_string(workspace::root().join("deny.toml")).context("cannot read deny.toml")?;
    let allowed = allow_list(&deny);
    ensure!(!allowed.is_empty(), "deny.toml allows no licence at all");
    let out = workspace::cargo()
        .args(["metadata", "--format-version", "1", "--filter-platform", PLATFORM])
        .run()?;
    let metadata: Value = serde_json::from_slice(&out.stdout).context("cannot read cargo metadata")?;
    // A package without a source is ours.
    let packages: Vec<(&str, &str)> = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?
        .iter()
        .filter(|package| !package["source"].is_null())
        .map(|package| {
            (
                package["name"].as_str().unwrap_or("?"),
                package["license"].as_str().unwrap_or("none"),
            )
        })
        .collect();
    let wrong = violations(&packages, &allowed);
    if !wrong.is_empty() {
        bail!("deny.toml and the dependencies differ:\n  {}", wrong.join("\n  "));
    }
    println!("licences: {} dependencies, each allowed", packages.len());
    Ok(ExitCode::SUCCESS)
}

/// The strings of `allow = [...]` in the section `[licenses]`.
fn allow_list(deny: &str) -> Vec<&str> {
    deny.lines()
        .skip_while(|line| line.trim() != "[licenses]")
        .skip_while(|line| line.trim() != "allow = [")
        .take_while(|line| line.trim() != "]")
        .filter_map(|line| line.trim().strip_prefix('"')?.split('"').next())
        .collect()
}

fn violations(packages: &[(&str, &str)], allowed: &[&str]) -> Vec<String> {
    let refused = packages
        .iter()
        .filter(|(_, licence)| !is_met(licence, allowed))
        .map(|(name, licence)| format!("{name}: {licence} is not allowed"));
    let names =
        |(_, licence): &(&str, &str), id| licence.split(" AND ").flat_map(ids).any(|named| named == id);
    let unused = allowed
        .iter()
        .filter(|id| !packages.iter().any(|package| names(package, **id)))
        .map(|id| format!("{id} is allowed, and no dependency names it"));
    refused.chain(unused).collect()
}

/// Whether an SPDX expression can be met by the allowed licences. AND is read as binding weaker than OR: an
/// expression that means it the other way round is judged more strictly, never less.
fn is_met(expression: &str, allowed: &[&str]) -> bool {
    expression
        .split(" AND ")
        .all(|part| ids(part).any(|id| allowed.contains(&id)))
}

/// The licences named by a part without AND; `/` is the deprecated form of OR.
fn ids(part: &str) -> impl Iterator<Item = &str> {
    part.split(" OR ")
        .flat_map(|part| part.split('/'))
        .map(|id| id.trim_matches(['(', ')', ' ']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_met_as_spdx_says() {
        let allowed = ["MIT", "BSD-3-Clause", "Apache-2.0 WITH LLVM-exception"];
        for good in [
            "MIT",
            "GPL-3.0-only OR MIT",
            "GPL-3.0-only/MIT",
            "(GPL-3.0-only OR MIT) AND BSD-3-Clause",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0",
        ] {
            assert!(is_met(good, &allowed), "{good}");
        }
        // "MIT OR X AND Y" could be met by MIT alone, but is read in the stricter way.
        for bad in [
            "none",
            "GPL-3.0-only",
            "MIT AND GPL-3.0-only",
            "Apache-2.0",
            "(MIT OR X) AND Y",
        ] {
            assert!(!is_met(bad, &allowed), "{bad}");
        }
    }

    #[test]
    fn a_foreign_licence_and_an_idle_permission_are_told() {
        let packages = [("good", "MIT/X"), ("bad", "AGPL-3.0-only")];
        assert_eq!(
            violations(&packages, &["MIT", "ISC"]),
            [
                "bad: AGPL-3.0-only is not allowed",
                "ISC is allowed, and no dependency names it"
            ]
        );
    }

    #[test]
    fn only_the_licences_of_deny_toml_are_read() {
        let deny = "[bans]\nallow = [\n \"x\",\n]\n[licenses]\nversion = 2\nallow = [\n    \"MIT\", # why\n    \"ISC\",\n]\n\"no\"\n";
        assert_eq!(allow_list(deny), ["MIT", "ISC"]);
    }
}
