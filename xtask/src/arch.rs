//! `arch`: the edges between our crates, held against the list of those that may exist.
//!
//! Reads `cargo metadata` and the crates' sources; an edge between crates that is not on the list fails, and
//! so does a cycle of files in a crate, and a crate's `clippy.toml` without the lints of the workspace.
//! ARCHITECTURE.md shows the list (`cargo xtask docs` writes it there). It must never be loosened only to let
//! a build pass.

mod circles;
mod features;
mod lints;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::workspace;

/// The allowed edges, without the `crabbox-` prefix. Dev-dependencies may add `testkit`.
const PICTURE: &[(&str, &[&str])] = &[
    ("crabbox", &["engine", "machine", "workspace", "core", "host"]),
    (
        "engine",
        &[
            "machine",
            "workspace",
            "store",
            "net",
            "image",
            "ssh",
            "fc",
            "cni",
            "host",
            "core",
        ],
    ),
    (
        "machine",
        &[
            "store",
            "net",
            "image",
            "ssh",
            "fc",
            "cni",
            "host",
            "core",
            "guest-protocol",
        ],
    ),
    ("workspace", &["ssh", "sync", "agent-protocol", "host", "core"]),
    ("store", &["host", "core"]),
    ("image", &["embed", "guest-protocol", "host", "core"]),
    ("ssh", &["embed", "agent-protocol", "host", "core"]),
    ("sync", &["ssh", "agent-protocol", "host", "core"]),
    ("net", &["cni", "host", "core"]),
    ("cni", &["host", "core"]),
    ("fc", &["core"]),
    ("host", &["core"]),
    ("core", &[]),
    // Only at build time.
    ("embed", &[]),
    ("agent", &["agent-protocol"]),
    ("agent-protocol", &[]),
    ("guest", &["guest-protocol"]),
    ("guest-protocol", &[]),
];

/// The edges as a block of ARCHITECTURE.md: each crate with those that it may use.
pub(crate) fn picture() -> String {
    let width = PICTURE
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or_default();
    let line = |(name, uses): &(&str, &[&str])| format!("{name:width$} -> {}", uses.join(" "));
    let lines: Vec<_> = PICTURE
        .iter()
        .filter(|(_, uses)| !uses.is_empty())
        .map(line)
        .collect();
    format!("```\n{}\n```", lines.join("\n"))
}

/// Known cycles of modules, each with the reason. One that no longer exists must be removed here.
const CIRCLES: &[(&str, &[&str], &str)] = &[
    (
        "crabbox",
        &["args::keys", "args::refused"],
        "a set of keys carries the flags that are refused beside it, and a refused flag must be no key",
    ),
    (
        "crabbox-cni",
        &["attachment", "cache", "plugin"],
        "the attachment has its verbs on it, and plugin and cache take an attachment",
    ),
    (
        "crabbox-host",
        &["archive::pax", "archive::sparse"],
        "extended headers carry the map of a sparse file, whose numbers are written as theirs",
    ),
    (
        "crabbox-host",
        &["command", "confine", "process"],
        "a command is confined before it runs, and the confined child is a command",
    ),
    (
        "crabbox-lab",
        &["cache", "lab::images", "lab::initrd"],
        "the cache removes an entry with the function that removes half-made trees of the images, of which the initrd is one",
    ),
    (
        "crabbox-net",
        &["inner", "policy"],
        "the mapping carries its policy, whose rules are made from that mapping",
    ),
    (
        "crabbox-ssh",
        &["exec", "shared", "streams"],
        "the parts of exec speak in its sinks, inputs and error",
    ),
    (
        "crabbox-sync",
        &["entry", "manifest", "memory", "repo"],
        "a look at a tree has one error, which stands in manifest, and the memory remembers manifests",
    ),
];

/// Crates that may use all others, and that nothing that ships may use.
const TOOLS: &[&str] = &["e2e", "lab", "testbase", "testkit", "xtask", "xtask-launch"];

/// The part of `cargo metadata` that is read.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    #[serde(default)]
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    path: Option<String>,
}

/// Checks the workspace; prints a line for each edge that is not allowed.
pub(crate) fn main() -> Result<ExitCode> {
    let out = workspace::cargo()
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .run()?;
    let metadata: Metadata = serde_json::from_slice(&out.stdout).context("cannot read cargo metadata")?;
    let wrong = violations(&metadata);
    if !wrong.is_empty() {
        bail!(
            "edges between crates that are not in the picture (ARCHITECTURE.md and xtask/src/arch.rs):\n  {}",
            wrong.join("\n  ")
        );
    }
    let crates: Vec<(&str, &Path)> = metadata
        .packages
        .iter()
        .filter_map(|package| Some((package.name.as_str(), package.manifest_path.parent()?)))
        .collect();
    let missing = lints::missing(workspace::root(), &crates)?;
    if !missing.is_empty() {
        bail!(
            "clippy.toml of a crate lacks lines (clippy reads the nearest file only):\n  {}",
            missing.join("\n  ")
        );
    }
    let mut found = Vec::new();
    for package in &metadata.packages {
        let source = package.manifest_path.with_file_name("src");
        let circles = circles::of(&source)?;
        found.extend(circles.into_iter().map(|circle| (package.name.clone(), circle)));
    }
    let unknown = unknown_circles(&found);
    if !unknown.is_empty() {
        bail!(
            "circles of files that are not what xtask/src/arch.rs knows:\n  {}",
            unknown.join("\n  ")
        );
    }
    let twice = features::compiled_twice()?;
    if !twice.is_empty() {
        bail!(
            "compiled twice, because the tests have them with other features than xtask (see crates/crabbox-lab: Cargo.toml, and `AS_TESTED` in src/payload.rs):\n  {}",
            twice.join("\n  ")
        );
    }
    println!(
        "arch: {} crates, every edge is in the picture; {} circles of files are left",
        metadata.packages.len(),
        found.len()
    );
    Ok(ExitCode::SUCCESS)
}

/// A line for each unknown cycle, and for each known one that no longer exists.
fn unknown_circles(found: &[(String, Vec<String>)]) -> Vec<String> {
    let is_known = |name: &str, circle: &[String]| {
        CIRCLES
            .iter()
            .any(|(of, modules, _)| *of == name && *modules == circle)
    };
    let new = found
        .iter()
        .filter(|(name, circle)| !is_known(name, circle))
        .map(|(name, circle)| format!("{name}: {} (new)", circle.join(", ")));
    let gone = CIRCLES
        .iter()
        .filter(|(of, modules, _)| !found.iter().any(|(name, circle)| name == of && circle == modules))
        .map(|(of, modules, _)| format!("{of}: {} (gone)", modules.join(", ")));
    new.chain(gone).collect()
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
                manifest_path: PathBuf::new(),
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
            "nor may the tests of a crate have such an edge"
        );
    }

    #[test]
    fn a_crate_that_nobody_drew_fails() {
        assert!(check("crabbox-attic", "crabbox-core", None)[0].contains("not in the picture"));
    }

    #[test]
    fn a_circle_is_known_or_an_error_and_so_is_one_that_is_gone() {
        let all: Vec<(String, Vec<String>)> = CIRCLES
            .iter()
            .map(|(name, modules, _)| {
                (
                    (*name).into(),
                    modules.iter().map(|name| (*name).into()).collect(),
                )
            })
            .collect();
        assert_eq!(unknown_circles(&all), Vec::<String>::new());
        assert_eq!(unknown_circles(&all[1..]).len(), 1);
        let mut more = all;
        more.push(("crabbox-machine".into(), vec!["a".into(), "b".into()]));
        assert_eq!(unknown_circles(&more), ["crabbox-machine: a, b (new)"]);
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
            manifest_path: PathBuf::new(),
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
