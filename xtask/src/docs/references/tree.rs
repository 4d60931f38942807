//! The files of the repository and the names in their code, for checking references.
//!
//! Only files on disk outside of build directories count; git is not consulted. It never looks above the
//! root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::prose;

/// Directories of build products and of git.
const NOT_OURS: [&str; 3] = ["target", ".git", "node_modules"];
/// The maximum size of a file to read, in bytes: sources and documents are far smaller.
const LONGEST: u64 = 1 << 20;

/// The repository as seen by references.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// Text files, by their path from the root.
    pub texts: BTreeMap<String, String>,
    /// Every file and directory, from the root.
    paths: BTreeSet<String>,
    /// The words of each crate's code and of its file names, by the crate's directory.
    words: BTreeMap<String, BTreeSet<String>>,
}

impl Tree {
    /// Reads everything below `root`.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let mut tree = Self::default();
        tree.walk(root, "")?;
        for (path, text) in &tree.texts {
            let words = tree.words.entry(home(path).to_owned()).or_default();
            words.extend(path.split(['/', '.', '-']).map(str::to_owned));
            for line in text.lines().filter(|_| !is(path, "md")) {
                let code = match prose::comment(line) {
                    Some(at) if is(path, "rs") => &line[..at],
                    _ => line,
                };
                words.extend(identifiers(code).map(str::to_owned));
            }
        }
        Ok(tree)
    }

    fn walk(&mut self, dir: &Path, above: &str) -> Result<()> {
        let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if NOT_OURS.contains(&name.as_str()) {
                continue;
            }
            let path = format!("{above}{name}");
            let facts = fs::symlink_metadata(entry.path())
                .with_context(|| format!("cannot look at {}", entry.path().display()))?;
            if facts.is_dir() {
                self.walk(&entry.path(), &format!("{path}/"))?;
            } else if facts.is_file() && facts.len() <= LONGEST {
                let bytes = fs::read(entry.path()).with_context(|| format!("cannot read {path}"))?;
                if let Ok(text) = String::from_utf8(bytes) {
                    self.texts.insert(path.clone(), text);
                }
            }
            self.paths.insert(path);
        }
        Ok(())
    }

    /// The file or directory that `name` means in the file `from`: relative to the root, to that file's
    /// directory, or as the end of a path.
    pub(super) fn find(&self, name: &str, from: &str) -> Option<&str> {
        let name = name.trim_end_matches('/');
        let beside = from.rsplit_once('/').map(|(dir, _)| format!("{dir}/{name}"));
        let end = format!("/{name}");
        beside
            .and_then(|path| self.paths.get(&path))
            .or_else(|| self.paths.get(name))
            .or_else(|| self.paths.iter().find(|path| path.ends_with(&end)))
            .map(String::as_str)
    }

    /// Whether `name` is a directory at the root.
    pub(super) fn is_top(&self, name: &str) -> bool {
        let within = format!("{name}/");
        self.paths.iter().any(|path| path.starts_with(&within))
    }

    /// Whether the code below `home` has the word `name`; anywhere, if `home` is `None`.
    pub(super) fn has_word(&self, name: &str, home: Option<&str>) -> bool {
        match home {
            Some(home) => self.words.get(home).is_some_and(|words| words.contains(name)),
            None => self.words.values().any(|words| words.contains(name)),
        }
    }

    /// The directory of the crate `crabbox-NAME`, if it exists.
    pub(super) fn crate_dir(&self, name: &str) -> Option<&str> {
        self.words
            .get_key_value(&format!("crates/crabbox-{}", name.replace('_', "-")))
            .map(|(dir, _)| dir.as_str())
    }

    /// Whether a package of that name is in the workspace.
    pub(super) fn has_package(&self, name: &str) -> bool {
        let line = format!("name = \"{name}\"");
        let mut manifests = self.texts.iter().filter(|(path, _)| path.ends_with("Cargo.toml"));
        manifests.any(|(_, text)| text.lines().any(|found| found == line))
    }

    /// Whether some package has an integration test of that name.
    pub(super) fn has_suite(&self, name: &str) -> bool {
        let ends = [format!("/tests/{name}.rs"), format!("/tests/{name}/main.rs")];
        self.paths
            .iter()
            .any(|path| ends.iter().any(|end| path.ends_with(end)))
    }
}

/// Whether the name of a file ends with `.extension`.
pub(super) fn is(path: &str, extension: &str) -> bool {
    Path::new(path)
        .extension()
        .is_some_and(|found| found == extension)
}

/// The directory of the crate that a file belongs to; for a file outside of crates, its first directory.
pub(super) fn home(path: &str) -> &str {
    let mut parts = path.match_indices('/').map(|(at, _)| at);
    let first = parts.next().unwrap_or(0);
    if path.starts_with("crates/") {
        return &path[..parts.next().unwrap_or(first)];
    }
    &path[..first]
}

/// The identifiers in `code`.
fn identifiers(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
}
