//! What `crabbox sync-plan` shows: what a sync would send, without a lease. It must never change anything.

use serde::Serialize;

use crate::guardrail::{
    Counted, Judgement, Limits, Reason, Status, Weight, apart_lines, human_bytes, protected_line, top_dirs,
    top_files,
};
use crate::manifest::{Manifest, Volume};

/// Files and bytes, for people too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HumanVolume {
    /// How many files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The same for people.
    pub human_bytes: String,
}

impl From<Volume> for HumanVolume {
    fn from(volume: Volume) -> Self {
        Self {
            files: volume.files,
            bytes: volume.bytes,
            human_bytes: human_bytes(volume.bytes),
        }
    }
}

/// Tracked files that a built-in exclude would have dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProtectedTracked {
    /// How many.
    pub count: usize,
    /// Up to five of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
}

/// The guardrail's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Guardrail {
    /// What was counted.
    pub scope: Counted,
    /// How many files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The same for people.
    pub human_bytes: String,
    /// The limits.
    pub limits: Limits,
    /// Whether the limits may be passed.
    pub allow_large: bool,
    /// The worst of the reasons.
    pub status: Status,
    /// The limits that were reached.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
}

/// The document of `sync-plan --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SyncPlan {
    /// Everything in scope.
    pub candidate: HumanVolume,
    /// What differs from `HEAD`.
    pub dirty_delta: HumanVolume,
    /// How many tracked paths are gone.
    pub deleted_tracked_paths: usize,
    /// Tracked files kept in spite of a built-in exclude.
    pub protected_tracked_files: ProtectedTracked,
    /// The limits and what came of them.
    pub guardrail: Guardrail,
    /// The largest files.
    pub top_files: Vec<Weight>,
    /// The largest top-level directories.
    pub top_dirs: Vec<Weight>,
    /// What the lines say besides, about files that are or are not in it.
    #[serde(skip)]
    warnings: Vec<String>,
}

impl SyncPlan {
    /// The plan of `manifest`, with at most `limit` files and directories named.
    pub fn new(manifest: &Manifest, judgement: Judgement, limit: usize) -> Self {
        let shown = |(path, rule): &(Vec<u8>, Vec<u8>)| {
            format!(
                "{} ({})",
                String::from_utf8_lossy(path),
                String::from_utf8_lossy(rule)
            )
        };
        let counted = HumanVolume::from(judgement.volume);
        Self {
            candidate: manifest.candidate().into(),
            dirty_delta: manifest.dirty().into(),
            deleted_tracked_paths: manifest.deleted.len(),
            protected_tracked_files: ProtectedTracked {
                count: manifest.protected_tracked.len(),
                examples: manifest.protected_tracked.iter().take(5).map(shown).collect(),
            },
            guardrail: Guardrail {
                scope: judgement.counted,
                files: counted.files,
                bytes: counted.bytes,
                human_bytes: counted.human_bytes,
                limits: judgement.limits,
                allow_large: judgement.allow_large,
                status: judgement.status,
                reasons: judgement.reasons,
            },
            top_files: top_files(manifest, limit),
            top_dirs: top_dirs(manifest, limit),
            warnings: protected_line(manifest)
                .into_iter()
                .chain(apart_lines(manifest))
                .collect(),
        }
    }

    /// The lines of the text form.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "sync candidate: {} files, {}",
            self.candidate.files, self.candidate.human_bytes
        )];
        lines.extend(self.warnings.clone());
        if self.deleted_tracked_paths > 0 {
            lines.push(format!("deleted tracked paths: {}", self.deleted_tracked_paths));
        }
        for (title, weights) in [("top files:", &self.top_files), ("top dirs:", &self.top_dirs)] {
            lines.push(title.to_owned());
            lines.extend(
                weights
                    .iter()
                    .map(|weight| format!("  {:<10} {}", weight.human_bytes, weight.path.escape_debug())),
            );
        }
        lines
    }
}
