//! Whole files that the program generates: the JSON schemas, kept in `docs/schemas`, and the man pages, which
//! are not kept.
//!
//! Files that the program no longer generates are stale, too. Nothing outside `docs/schemas` and `target/man`
//! is touched.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::program::Program;
use crate::workspace;

/// A set of files by name.
type Files = BTreeMap<String, String>;

/// The files that the program generates.
#[derive(Debug)]
pub(super) struct Reference {
    schemas: Files,
}

impl Reference {
    /// Makes the program generate everything; the man pages stay in `target/man` for packaging.
    pub(super) fn new(program: &Program) -> Result<Self> {
        let dir = workspace::target_dir().join("docs-home/reference");
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        program.write_reference(&dir)?;
        let man = workspace::target_dir().join("man");
        fs::create_dir_all(&man)?;
        for (name, text) in read(&dir.join("man"))? {
            fs::write(man.join(name), text)?;
        }
        let schemas = read(&dir.join("schemas"))?;
        ensure!(!schemas.is_empty(), "the program wrote no schema");
        Ok(Self { schemas })
    }

    /// The names of files that differ from what the program generates; with `write` they are corrected.
    pub(super) fn settle(&self, write: bool) -> Result<Vec<String>> {
        let dir = schemas_dir();
        fs::create_dir_all(&dir)?;
        let kept = read(&dir)?;
        let mut stale = Vec::new();
        for (name, text) in &self.schemas {
            if kept.get(name) != Some(text) {
                stale.push(format!("docs/schemas/{name}"));
                if write {
                    fs::write(dir.join(name), text)?;
                }
            }
        }
        for name in kept.keys().filter(|name| !self.schemas.contains_key(*name)) {
            stale.push(format!("docs/schemas/{name}"));
            if write {
                fs::remove_file(dir.join(name))?;
            }
        }
        Ok(stale)
    }

    /// A table of all documents with their schemas.
    pub(super) fn table(&self) -> Result<String> {
        let mut rows = vec!["| Document | Schema |".to_owned(), "|---|---|".to_owned()];
        for (name, text) in &self.schemas {
            let schema: Value = serde_json::from_str(text).with_context(|| format!("cannot read {name}"))?;
            let title = schema["title"].as_str().unwrap_or_default();
            rows.push(format!("| {title} | [{name}](schemas/{name}) |"));
        }
        Ok(rows.join("\n"))
    }
}

fn schemas_dir() -> PathBuf {
    workspace::root().join("docs/schemas")
}

fn read(dir: &Path) -> Result<Files> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    entries
        .map(|entry| {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            Ok((name, fs::read_to_string(entry.path())?))
        })
        .collect()
}
