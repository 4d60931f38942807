//! The record of one run: what it took, which command, in which repository and on which provider.
//!
//! The format is the Go program's, because both append to one file. A record must never contain a variable's
//! value.

use crabbox_core::config::Provider as Which;
use crabbox_core::timestamp;
use crabbox_engine::provider::registry;
use crabbox_host::digest;
use crabbox_workspace::quote;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ui;

/// The version of the format.
pub(super) const SCHEMA_VERSION: u32 = 1;

/// The record.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct Record {
    pub(super) schema_version: u32,
    /// When it was recorded, RFC 3339.
    pub(super) recorded_at: String,
    /// Who made it: `run`, `bench-run`, `bench-record` or the text of `--source`.
    #[serde(default)]
    pub(super) source: String,
    #[serde(default)]
    pub(in crate::commands) benchmark: Context,
    /// The document of `--timing-json`, unchanged.
    pub(super) timing: Value,
}

/// What the record describes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::commands) struct Context {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) command_fingerprint: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) command_display: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) repo_fingerprint: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) repo_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) repo_head: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) provider_family: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) provider_kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) provider_category: String,
    /// Whether the machine was made for the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::commands) cold_run: Option<bool>,
    /// The repeat, counted from 1; 0 if unknown.
    #[serde(skip_serializing_if = "is_zero")]
    pub(in crate::commands) repeat_index: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The repository of a run.
#[derive(Debug, Clone, Default)]
pub(in crate::commands) struct Repository {
    /// Its name.
    pub(in crate::commands) name: String,
    /// The URL of its origin, without credentials.
    pub(in crate::commands) remote: String,
    /// The commit.
    pub(in crate::commands) head: String,
}

/// The timings that a report needs. Missing fields count as zero, as in the Go program.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Timing {
    pub(super) provider: String,
    pub(super) machine_type: String,
    pub(super) exit_code: i64,
    pub(super) total_ms: i64,
    pub(super) sync_ms: i64,
    pub(super) command_ms: i64,
    pub(super) sync_skipped: bool,
    pub(super) sync_phases: Vec<Phase>,
}

/// A phase of a sync.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Phase {
    pub(super) name: String,
    pub(super) ms: i64,
    pub(super) skipped: bool,
}

impl Record {
    /// A record made at `now` (seconds and nanoseconds) of a run of `command` in `repository` that took
    /// `timing`.
    pub(in crate::commands) fn new(
        now: (i64, u32),
        source: &str,
        timing: Value,
        command: &[String],
        repository: &Repository,
    ) -> Self {
        let provider = timing["provider"].as_str().unwrap_or_default();
        let facts = about(provider);
        Self {
            schema_version: SCHEMA_VERSION,
            recorded_at: timestamp::rfc3339_nano(now.0, now.1),
            source: if source.is_empty() { "run" } else { source }.to_owned(),
            benchmark: Context {
                command_fingerprint: fingerprint(command),
                command_display: quote::line(command),
                repo_fingerprint: repository.fingerprint(),
                repo_name: repository.name.clone(),
                repo_head: repository.head.clone(),
                provider_family: facts.family,
                provider_kind: facts.kind,
                provider_category: facts.category,
                cold_run: None,
                repeat_index: 0,
            },
            timing,
        }
    }

    /// The timings that a report needs; the error names a field of the wrong type.
    pub(super) fn timing(&self) -> Result<Timing, serde_json::Error> {
        serde_json::from_value(self.timing.clone())
    }
}

/// What a record says of a provider; empty for one that this program does not have.
#[derive(Default)]
pub(super) struct ProviderFacts {
    pub(super) family: String,
    pub(super) kind: String,
    pub(super) category: String,
}

pub(super) fn about(provider: &str) -> ProviderFacts {
    let Ok(which) = Which::by_name(provider) else {
        return ProviderFacts::default();
    };
    ProviderFacts {
        family: which.name().to_owned(),
        kind: "ssh-lease".to_owned(),
        category: registry::capabilities(which).category.to_owned(),
    }
}

/// Identifies runs of the same command: the digest of its words as JSON.
pub(super) fn fingerprint(command: &[String]) -> String {
    if command.is_empty() {
        return String::new();
    }
    let words = ui::go_json(&command).unwrap_or_default();
    format!("sha256:{}", digest::sha256(words.as_bytes()))
}

impl Repository {
    fn fingerprint(&self) -> String {
        let Self { name, remote, head } = self;
        if name.is_empty() && remote.is_empty() && head.is_empty() {
            return String::new();
        }
        let text = format!("v1\nname={name}\nremote={remote}\nhead={head}\n");
        format!("sha256:{}", digest::sha256(text.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_the_go_program_s() {
        let repository = Repository {
            name: "r".to_owned(),
            remote: "https://example.invalid/r".to_owned(),
            head: "0".repeat(40),
        };
        let timing = serde_json::json!({"provider": "ssh", "totalMs": 5});
        let command = ["a b".to_owned(), "<&>".to_owned()];
        let mut record = Record::new((1_754_000_000, 0), "", timing, &command, &repository);
        record.benchmark.cold_run = Some(true);
        // The digest of the bytes that Go's encoder produces for the words.
        assert_eq!(
            record.benchmark.command_fingerprint,
            format!("sha256:{}", digest::sha256(br#"["a b","\u003c\u0026\u003e"]"#))
        );
        let value = serde_json::to_value(&record).unwrap();
        for (place, wanted) in [
            ("/schemaVersion", serde_json::json!(1)),
            ("/recordedAt", "2025-07-31T22:13:20Z".into()),
            ("/source", "run".into()),
            ("/benchmark/repoName", "r".into()),
            ("/benchmark/providerKind", "ssh-lease".into()),
            ("/benchmark/providerCategory", "byo-ssh".into()),
            ("/benchmark/coldRun", true.into()),
            ("/timing/totalMs", 5.into()),
        ] {
            assert_eq!(value.pointer(place), Some(&wanted), "{place}");
        }
        assert_eq!(value.pointer("/benchmark/repeatIndex"), None);
        assert_eq!(fingerprint(&[]), "");
        let back: Record = serde_json::from_value(value).unwrap();
        assert_eq!(back.timing().unwrap().total_ms, 5);
    }
}
