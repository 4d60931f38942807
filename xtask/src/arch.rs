//! `arch`: the edges between our crates, held against the picture of the house in ARCHITECTURE.md.
//!
//! Reads `cargo metadata`; an edge that is not drawn here fails. It must never be loosened to let a build pass without the
//! picture being changed first.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use crabbox_host::command::Cmd;
use serde::Deserialize;

use crate::workspace;

/// The edges that may exist, without the `crabbox-` prefix. Dev-dependencies may add `testkit`.
const PICTURE: &[(&str, &[&str])] = &[
    ("crabbox", &["engine", "core", "host"]),
    (
        "engine",
        &[
            "store", "net", "image", "ssh", "sync", "fc", "cni", "host", "core",
        ],
    ),
    ("store", &["host", "core"]),
    ("image", &["host", "core"]),
    ("ssh", &["host", "core"]),
    ("sync", &["ssh", "host", "core"]),
    ("net", &["cni", "host", "core"]),
    ("cni", &["host"]),
    ("fc", &["core"]),
    ("host", &["core"]),
    ("core", &[]),
    ("guest", &[]),
];

/// Crates that may use everything, and that nothing which ships may use.
const TOOLS: &[&str] = &["e2e", "testkit", "xtask"];

/// The part of `cargo metadata` that is read.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    path: Option<String>,
}

/// Checks the workspace; one line for each edge that is not in the picture.
pub(crate) fn main() -> Result<ExitCode> {
    let out = Cmd::new("cargo")
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .cwd(workspace::root())
        .run()?;
    let metadata: Metadata = serde_json::from_slice(&out.stdout).context("cannot read cargo metadata")?;
    let wrong = violations(&metadata);
    if !wrong.is_empty() {
        bail!(
            "the house has edges that are not in its picture:\n  {}",
            wrong.join("\n  ")
        );
    }
    println!(
        "arch: {} crates, every edge is in the picture",
        metadata.packages.len()
    );
    Ok(ExitCode::SUCCESS)
}

fn short(name: &str) -> &str {
    name.strip_prefix("crabbox-").unwrap_or(name)
}

fn violations(metadata: &Metadata) -> Vec<String> {
    let members: BTreeSet<&str> = metadata
        .packages
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let from = short(&package.name);
        if TOOLS.contains(&from) {
            continue;
        }
        let Some((_, allowed)) = PICTURE.iter().find(|(name, _)| *name == from) else {
            wrong.push(format!(
                "{} is not in the picture: draw it in ARCHITECTURE.md and xtask/src/arch.rs",
                package.name
            ));
            continue;
        };
        for dependency in &package.dependencies {
            if dependency.path.is_none() && !members.contains(dependency.name.as_str()) {
                continue;
            }
            let to = short(&dependency.name);
            let dev = dependency.kind.as_deref() == Some("dev");
            if !(allowed.contains(&to) || (dev && to == "testkit")) {
                let kind = dependency.kind.as_deref().unwrap_or("normal");
                wrong.push(format!("{} -> {} ({kind})", package.name, dependency.name));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(from: &str, to: &str, kind: Option<&str>) -> Vec<String> {
        let dependency = Dependency {
            name: to.into(),
            kind: kind.map(Into::into),
            path: Some("/x".into()),
        };
        violations(&Metadata {
            packages: vec![Package {
                name: from.into(),
                dependencies: vec![dependency],
            }],
        })
    }

    #[test]
    fn an_edge_of_the_picture_passes() {
        assert!(check("crabbox-engine", "crabbox-fc", None).is_empty());
        assert!(check("crabbox-core", "crabbox-testkit", Some("dev")).is_empty());
        assert!(check("xtask", "crabbox-guest", None).is_empty());
    }

    #[test]
    fn an_edge_outside_the_picture_fails() {
        assert_eq!(
            check("crabbox-core", "crabbox-host", None),
            ["crabbox-core -> crabbox-host (normal)"]
        );
        assert_eq!(check("crabbox", "crabbox-fc", None).len(), 1);
        assert_eq!(
            check("crabbox-net", "crabbox-testkit", None).len(),
            1,
            "testkit must not ship"
        );
        assert_eq!(
            check("crabbox-core", "crabbox-host", Some("dev")).len(),
            1,
            "nor may tests cross the house"
        );
    }

    #[test]
    fn a_crate_that_nobody_drew_fails() {
        assert!(check("crabbox-attic", "crabbox-core", None)[0].contains("not in the picture"));
    }

    #[test]
    fn a_crate_of_the_registry_is_none_of_our_business() {
        let dependency = Dependency {
            name: "serde".into(),
            kind: None,
            path: None,
        };
        let package = Package {
            name: "crabbox-core".into(),
            dependencies: vec![dependency],
        };
        assert!(
            violations(&Metadata {
                packages: vec![package]
            })
            .is_empty()
        );
    }
}
