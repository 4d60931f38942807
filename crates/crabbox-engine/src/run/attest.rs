//! The signed receipt of a run: what ran where, how it ended, and the digest of its output.
//!
//! It attests a run whose command began, and only states what this program has observed itself.

use std::time::Duration;

use crabbox_core::receipt::{self, RunReceipt, TerminalReceipt};
use crabbox_core::timestamp;
use crabbox_host::beneath::Existing;
use crabbox_host::clock;

use crate::provider::lease::Lease;
use crate::receipt::signature;
use crate::run::Run;
use crate::run::error::EvidenceError;
use crate::run::event::ResultEvent;
use crate::run::evidence::Attest;
use crate::run::report::{Artifact, Outcome, RunReport};
use crate::run::witnessed::Witnessed;

impl Run<'_> {
    /// Writes the receipt of a run that ended with the exit code in its report, if one was requested and the
    /// command began.
    pub(super) fn attest(&self, lease: &Lease, report: &mut RunReport) -> Result<(), EvidenceError> {
        let (Some(attest), Some(seen)) = (&self.evidence.attest, &report.witnessed) else {
            return Ok(());
        };
        let outcome = &report.outcome;
        let file = if outcome.exit_code == 0 {
            self.of_success(lease, attest, seen, outcome)
        } else {
            self.of_end(lease, attest, seen, outcome)
        };
        attest.place.write(&file, Existing::Replace)?;
        let artifact = Artifact {
            kind: "receipt",
            path: attest.name.display().to_string(),
            template: None,
            bytes: file.len() as u64,
        };
        self.events.result(&ResultEvent::Evidence(&artifact));
        report.outcome.artifacts.push(artifact);
        Ok(())
    }

    /// A receipt in the format that every version of the Go program can verify.
    fn of_success(&self, lease: &Lease, attest: &Attest, seen: &Witnessed, outcome: &Outcome) -> Vec<u8> {
        let receipt = RunReceipt {
            generated_at: &timestamp::rfc3339(clock::unix_seconds()),
            provider: lease.provider,
            lease_id: &lease.id,
            slug: &lease.slug,
            run_id: &outcome.run_id,
            command: &self.work.display(),
            exit_code: i64::from(outcome.exit_code),
            command_ms: milliseconds(outcome.command),
            log_sha256: &format!("sha256:{}", seen.sha256),
        };
        let public = attest.key.public();
        receipt.file(&public, &attest.key.sign(&receipt.signed(&public)))
    }

    /// A receipt in the format that also covers failures.
    fn of_end(&self, lease: &Lease, attest: &Attest, seen: &Witnessed, outcome: &Outcome) -> Vec<u8> {
        let took = seen.began.elapsed();
        let (seconds, nanoseconds) = seen.at;
        let ended = Duration::from_nanos(u64::from(nanoseconds)) + took;
        let ended_seconds = seconds.saturating_add(i64::try_from(ended.as_secs()).unwrap_or(0));
        let script = self.work.script.iter().map(|script| script.source.as_str());
        let words = script.chain(self.work.words.iter().map(String::as_str));
        let public = attest.key.public();
        let receipt = TerminalReceipt {
            started_at: &timestamp::rfc3339_nano(seconds, nanoseconds),
            ended_at: &timestamp::rfc3339_nano(ended_seconds, ended.subsec_nanos()),
            provider: lease.provider,
            lease_id: &lease.id,
            slug: &lease.slug,
            run_id: &outcome.run_id,
            command: &self.work.display(),
            command_sha256: &signature::digest_of(&receipt::command_bytes(words)),
            exit_code: i64::from(outcome.exit_code),
            sync_ms: milliseconds(outcome.sync),
            command_ms: milliseconds(outcome.command),
            duration_ms: milliseconds(took),
            log_sha256: &format!("sha256:{}", seen.sha256),
            signer: &signature::fingerprint(&public),
        };
        receipt.file(&public, &attest.key.sign(&receipt.signed(&public)))
    }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
