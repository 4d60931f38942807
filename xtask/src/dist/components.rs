//! The components of a release: our crates and everything compiled into them, as a bill of materials
//! (CycloneDX 1.5) and with the licences.
//!
//! Read from `cargo metadata` and `Cargo.lock`, so it lists what the workspace resolves to. It must never
//! omit a crate that is linked in; it may list extra crates that are only used by a feature of developers'
//! tools.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use crabbox_host::command::Cmd;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::workspace;

/// The programs of a release; the last two are embedded in the first.
const PROGRAMS: [&str; 3] = ["crabbox", "crabbox-agent", "crabbox-guest"];

/// The reference prefixes of the first program, and of those inside it.
const PROGRAM: &str = "pkg:cargo/crabbox@";
const INSIDE: [&str; 2] = ["pkg:cargo/crabbox-agent@", "pkg:cargo/crabbox-guest@"];

/// Name prefixes of files with licences and copyrights.
const LICENCES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE"];

/// The maximum size of such a file, in bytes.
const LONGEST: u64 = 1 << 20;

/// The part of `cargo metadata` that is read.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
    manifest_path: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Debug, Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<EdgeKind>,
}

#[derive(Debug, Deserialize)]
struct EdgeKind {
    /// `None` is an ordinary dependency.
    kind: Option<String>,
}

/// A crate that is compiled in.
#[derive(Debug)]
struct Component {
    name: String,
    version: String,
    licence: String,
    /// Whether it belongs to this workspace.
    ours: bool,
    dir: PathBuf,
    /// The digest of its archive in the registry, in hexadecimal.
    sha256: Option<String>,
    /// References of its dependencies.
    needs: BTreeSet<String>,
}

/// Everything that is compiled in.
#[derive(Debug)]
pub(super) struct Components {
    /// By reference: a package URL.
    all: BTreeMap<String, Component>,
}

/// cargo's home directory, with its downloads.
pub(super) fn cargo_home() -> Result<PathBuf> {
    // Any downloaded crate will do: <home>/registry/src/<registry>/<crate>/Cargo.toml
    let metadata = metadata(super::TARGET)?;
    let fetched = metadata.packages.iter().find(|package| package.source.is_some());
    let fetched = fetched.context("the workspace has no dependencies")?;
    let home = fetched.manifest_path.ancestors().nth(5);
    Ok(home.context("cargo's registry lies nowhere")?.to_owned())
}

fn metadata(platform: &str) -> Result<Metadata> {
    let out = Cmd::inheriting(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--filter-platform", platform])
        .cwd(workspace::root())
        .run()?;
    serde_json::from_slice(&out.stdout).context("cannot read cargo metadata")
}

/// A package URL, which is also the reference within the bill.
fn purl(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version)
}

impl Components {
    /// The components of a release for `platform`, a target of rustc.
    pub(super) fn read(platform: &str) -> Result<Self> {
        let lock =
            fs::read_to_string(workspace::root().join("Cargo.lock")).context("cannot read Cargo.lock")?;
        Self::of(&metadata(platform)?, &checksums(&lock))
    }

    fn of(metadata: &Metadata, checksums: &BTreeMap<String, String>) -> Result<Self> {
        let packages: BTreeMap<&str, &Package> = metadata
            .packages
            .iter()
            .map(|package| (package.id.as_str(), package))
            .collect();
        let nodes: BTreeMap<&str, &Node> = metadata
            .resolve
            .nodes
            .iter()
            .map(|node| (node.id.as_str(), node))
            .collect();
        let is_program =
            |package: &&Package| package.source.is_none() && PROGRAMS.contains(&package.name.as_str());
        let mut todo: Vec<&str> = metadata
            .packages
            .iter()
            .filter(is_program)
            .map(|package| package.id.as_str())
            .collect();
        ensure!(
            todo.len() == PROGRAMS.len(),
            "the workspace lacks a program of a release"
        );
        let mut all = BTreeMap::new();
        while let Some(id) = todo.pop() {
            let package = *packages.get(id).with_context(|| format!("cargo knows no {id}"))?;
            let reference = purl(package);
            if all.contains_key(&reference) {
                continue;
            }
            let node = nodes.get(id).with_context(|| format!("cargo resolved no {id}"))?;
            let ordinary = |edge: &&Edge| edge.dep_kinds.iter().any(|kind| kind.kind.is_none());
            let needs: Vec<&str> = node
                .deps
                .iter()
                .filter(ordinary)
                .map(|edge| edge.pkg.as_str())
                .collect();
            let licence = package.license.as_deref();
            let licence = licence.with_context(|| format!("{reference} names no licence"))?;
            let named = needs
                .iter()
                .filter_map(|id| packages.get(id).map(|package| purl(package)));
            let component = Component {
                name: package.name.clone(),
                version: package.version.clone(),
                // `/` is the deprecated form of OR.
                licence: licence.replace('/', " OR "),
                ours: package.source.is_none(),
                dir: package
                    .manifest_path
                    .parent()
                    .unwrap_or(Path::new("/"))
                    .to_owned(),
                sha256: checksums.get(&reference).cloned(),
                needs: named.collect(),
            };
            all.insert(reference, component);
            todo.extend(needs);
        }
        Ok(Self { all })
    }

    /// The bill of materials.
    pub(super) fn cyclonedx(&self, version: &str) -> Result<String> {
        let program = |reference: &str| reference.starts_with(PROGRAM);
        let components: Vec<Value> = self
            .all
            .iter()
            .filter(|(reference, _)| !program(reference))
            .map(|(reference, component)| {
                let mut entry = json!({
                    "type": "library", "bom-ref": reference, "name": component.name, "version": component.version,
                    "licenses": [{ "expression": component.licence }],
                });
                if !component.ours {
                    entry["purl"] = json!(reference);
                }
                if let Some(digest) = &component.sha256 {
                    entry["hashes"] = json!([{ "alg": "SHA-256", "content": digest }]);
                }
                entry
            })
            .collect();
        let needs: Vec<Value> = self
            .all
            .keys()
            .map(|reference| json!({ "ref": reference, "dependsOn": self.needs(reference) }))
            .collect();
        let root = self.all.iter().find(|(reference, _)| program(reference));
        let (reference, root) = root.context("the program is no component of itself")?;
        let bill = json!({
            "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
            "metadata": { "component": {
                "type": "application", "bom-ref": reference, "name": "crabbox", "version": version,
                "licenses": [{ "expression": root.licence }],
            } },
            "components": components, "dependencies": needs,
        });
        Ok(format!("{bill:#}\n"))
    }

    /// The dependencies of `reference`. The two embedded programs are parts of the first, although cargo
    /// knows no such edge.
    fn needs(&self, reference: &str) -> BTreeSet<String> {
        let mut needs = self
            .all
            .get(reference)
            .map(|component| component.needs.clone())
            .unwrap_or_default();
        if reference.starts_with(PROGRAM) {
            let inside = |name: &&String| INSIDE.iter().any(|start| name.starts_with(start));
            needs.extend(self.all.keys().filter(inside).cloned());
        }
        needs
    }

    /// The list embedded in the program, in the format of cargo-auditable: packages that refer to each other
    /// by index.
    pub(super) fn audit(&self) -> Value {
        let place = |reference: &String| self.all.keys().position(|other| other == reference);
        let packages: Vec<Value> = self
            .all
            .iter()
            .map(|(reference, component)| {
                let source = if component.ours { "local" } else { "crates.io" };
                let mut package =
                    json!({ "name": component.name, "version": component.version, "source": source });
                let needs: Vec<usize> = self.needs(reference).iter().filter_map(place).collect();
                if !needs.is_empty() {
                    package["dependencies"] = json!(needs);
                }
                if reference.starts_with(PROGRAM) {
                    package["root"] = json!(true);
                }
                package
            })
            .collect();
        json!({ "packages": packages })
    }

    /// The licences of all foreign crates, each text once, with the crates that include it.
    pub(super) fn licences(&self) -> Result<String> {
        let mut texts: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
        let mut out = String::from(
            "crabbox is compiled with the crates below. Behind each is the licence that it names; the texts that they bring follow, each once.\n\n",
        );
        for component in self.all.values().filter(|component| !component.ours) {
            let crate_name = format!("{} {}", component.name, component.version);
            let found = texts_of(&component.dir)?;
            let note = if found.is_empty() { ", brings no text" } else { "" };
            // Writing to a string cannot fail.
            writeln!(out, "  {crate_name}: {}{note}", component.licence).ok();
            for text in found {
                // Compare independently of line breaks.
                let key: Vec<&str> = text.split_whitespace().collect();
                let entry = texts.entry(key.join(" ")).or_insert((text, BTreeSet::new()));
                entry.1.insert(crate_name.clone());
            }
        }
        for (text, crates) in texts.values() {
            let crates: Vec<&str> = crates.iter().map(String::as_str).collect();
            writeln!(
                out,
                "\n{}\n{}\n\n{}",
                "=".repeat(78),
                crates.join(", "),
                text.trim_end()
            )
            .ok();
        }
        Ok(out)
    }
}

/// The licence and copyright texts in a crate's directory.
fn texts_of(dir: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        if !LICENCES.iter().any(|start| name.starts_with(start)) {
            continue;
        }
        if entry.path().is_dir() {
            for inner in fs::read_dir(entry.path())? {
                paths.push(inner?.path());
            }
        } else {
            paths.push(entry.path());
        }
    }
    paths.sort();
    let mut texts = Vec::new();
    for path in paths {
        let facts = fs::metadata(&path)?;
        ensure!(
            facts.is_file() && facts.len() <= LONGEST,
            "{} is no licence",
            path.display()
        );
        texts.push(String::from_utf8_lossy(&fs::read(&path)?).into_owned());
    }
    Ok(texts)
}

/// The checksums in `Cargo.lock`, by package URL.
fn checksums(lock: &str) -> BTreeMap<String, String> {
    let field = |block: &str, name: &str| {
        let start = format!("{name} = \"");
        let line = block.lines().find_map(|line| line.strip_prefix(start.as_str()));
        line.and_then(|line| line.strip_suffix('"')).map(str::to_owned)
    };
    lock.split("[[package]]")
        .filter_map(|block| {
            let (name, version) = (field(block, "name")?, field(block, "version")?);
            Some((format!("pkg:cargo/{name}@{version}"), field(block, "checksum")?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Metadata of our three programs, of which the first depends on `used`, which has the build dependency
    /// `builder`.
    fn metadata() -> Metadata {
        let package = |name: &str, source: Value, licence: &str| {
            json!({
                "id": name, "name": name, "version": "1.0.0", "license": licence, "source": source,
                "manifest_path": format!("/nowhere/{name}/Cargo.toml"),
            })
        };
        let edge = |to: &str, kind: Value| json!({ "pkg": to, "dep_kinds": [{ "kind": kind }] });
        let value = json!({
            "packages": [
                package("crabbox", Value::Null, "MIT"), package("crabbox-agent", Value::Null, "MIT"),
                package("crabbox-guest", Value::Null, "MIT"), package("used", json!("registry"), "MIT/Apache-2.0"),
                package("builder", json!("registry"), "MIT"), package("tested", json!("registry"), "MIT"),
            ],
            "resolve": { "nodes": [
                { "id": "crabbox", "deps": [edge("used", Value::Null), edge("tested", json!("dev"))] },
                { "id": "crabbox-agent", "deps": [] }, { "id": "crabbox-guest", "deps": [] },
                { "id": "used", "deps": [edge("builder", json!("build"))] },
                { "id": "builder", "deps": [] }, { "id": "tested", "deps": [] },
            ] },
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_bill_has_what_is_linked_and_nothing_else() {
        let lock = "[[package]]\nname = \"used\"\nversion = \"1.0.0\"\nchecksum = \"abcd\"\n\n[[package]]\nname = \"crabbox\"\nversion = \"1.0.0\"\n";
        let components = Components::of(&metadata(), &checksums(lock)).unwrap();
        let bill: Value = serde_json::from_str(&components.cyclonedx("1.0.0").unwrap()).unwrap();
        let listed = bill["components"].as_array().unwrap();
        let names: Vec<&str> = listed.iter().filter_map(|entry| entry["name"].as_str()).collect();
        assert_eq!(names, ["crabbox-agent", "crabbox-guest", "used"]);
        assert_eq!(listed[2]["hashes"][0]["content"], "abcd");
        assert_eq!(listed[2]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        let edges = bill["dependencies"].as_array().unwrap();
        let program = edges
            .iter()
            .find(|edge| edge["ref"] == "pkg:cargo/crabbox@1.0.0")
            .unwrap();
        assert_eq!(
            components.audit(),
            json!({ "packages": [
                { "name": "crabbox-agent", "version": "1.0.0", "source": "local" },
                { "name": "crabbox-guest", "version": "1.0.0", "source": "local" },
                { "name": "crabbox", "version": "1.0.0", "source": "local", "dependencies": [0, 1, 3], "root": true },
                { "name": "used", "version": "1.0.0", "source": "crates.io" },
            ] })
        );
        assert_eq!(
            program["dependsOn"],
            json!([
                "pkg:cargo/crabbox-agent@1.0.0",
                "pkg:cargo/crabbox-guest@1.0.0",
                "pkg:cargo/used@1.0.0"
            ])
        );
    }

    #[test]
    fn a_crate_without_a_licence_or_a_missing_program_makes_no_bill() {
        let mut without = metadata();
        without.packages[3].license = None;
        let error = Components::of(&without, &BTreeMap::new()).unwrap_err();
        assert!(
            error.to_string().contains("used@1.0.0 names no licence"),
            "{error}"
        );
        let mut two = metadata();
        two.packages.remove(1);
        assert!(Components::of(&two, &BTreeMap::new()).is_err());
    }
}
