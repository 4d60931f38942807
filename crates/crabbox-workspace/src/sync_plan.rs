//! Shows without a lease what a sync of this working tree would transfer: `crabbox sync-plan`.
//!
//! It only lists and counts; it must never change the tree or contact a machine.

use std::path::Path;

use crabbox_core::config::settings::SyncSettings;
use crabbox_sync::guardrail::{self, Judgement};
use crabbox_sync::manifest::Manifest;

pub use crabbox_sync::guardrail::{Limits, Reason, Status, Weight};
pub use crabbox_sync::manifest::Volume;

use crate::sync::{self, SyncError};

/// How many protected tracked files are named.
const EXAMPLES: usize = 5;

/// A tracked file that a built-in exclude would have dropped.
#[derive(Debug)]
pub struct ProtectedFile {
    /// Its path in the repository.
    pub path: String,
    /// The exclude.
    pub pattern: String,
}

/// What would be synced.
#[derive(Debug)]
pub struct SyncPlan {
    /// All files in scope.
    pub candidate: Volume,
    /// Those that differ from `HEAD`.
    pub dirty: Volume,
    /// How many tracked paths in scope are missing here, and would be deleted in the lease.
    pub deleted: usize,
    /// How many files a built-in exclude would have dropped if they were not tracked.
    pub protected: usize,
    /// The first of them.
    pub protected_examples: Vec<ProtectedFile>,
    /// The same as a warning line.
    pub protected_line: Option<String>,
    /// The result of checking the limits.
    pub judgement: Judgement,
    /// The largest files.
    pub top_files: Vec<Weight>,
    /// The largest directories, to the second level.
    pub top_dirs: Vec<Weight>,
}

/// Lists the tree around `cwd`; names at most `limit` files and directories.
pub fn plan(cwd: &Path, settings: &SyncSettings, limit: usize) -> Result<SyncPlan, SyncError> {
    let repo = sync::look(cwd)?;
    let (manifest, judgement) = sync::judge(&repo, settings)?;
    Ok(SyncPlan {
        candidate: manifest.candidate(),
        dirty: manifest.dirty(),
        deleted: manifest.deleted.len(),
        protected: manifest.protected_tracked.len(),
        protected_examples: examples(&manifest),
        protected_line: guardrail::protected_line(&manifest),
        top_files: guardrail::top_files(&manifest, limit),
        top_dirs: guardrail::top_dirs(&manifest, limit),
        judgement,
    })
}

fn examples(manifest: &Manifest) -> Vec<ProtectedFile> {
    let named = manifest.protected_tracked.iter().take(EXAMPLES);
    named
        .map(|(path, rule)| ProtectedFile {
            path: String::from_utf8_lossy(path).into_owned(),
            pattern: String::from_utf8_lossy(rule).into_owned(),
        })
        .collect()
}
