//! Reports of recorded runs: medians by provider, machine and command.
//!
//! Only successful runs are measured; failures are counted. A group with too few runs says so, and must never be left out.

use std::collections::BTreeMap;
use std::time::Duration;

use crabbox_core::duration::GoDuration;
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::record::{Record, SCHEMA_VERSION, Timing, about};
use crate::go;

/// A percentile of fewer runs than this is meaningless.
const ENOUGH_FOR_P95: usize = 3;

/// An invalid `--since`.
#[derive(Debug, thiserror::Error)]
pub(super) enum SinceError {
    /// The number of days is invalid.
    #[error("--since day duration must look like 7d")]
    Days,
    /// Not a known form.
    #[error("--since must be a duration such as 7d or 24h")]
    Duration,
    /// Negative.
    #[error("--since must not be negative")]
    Negative,
}

impl Fault for SinceError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// The Unix second from which records count; `None` for all.
pub(super) fn since(text: &str, now: i64) -> Result<Option<i64>, SinceError> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    if let Some(days) = text.strip_suffix('d') {
        let days: u32 = days.parse().map_err(|_| SinceError::Days)?;
        return Ok(Some(now - i64::from(days) * 24 * 3600));
    }
    let span: GoDuration = text.parse().map_err(|_| SinceError::Duration)?;
    if span.nanoseconds() < 0 {
        return Err(SinceError::Negative);
    }
    Ok(Some(now - span.nanoseconds() / 1_000_000_000))
}

/// Which records count.
#[derive(Debug)]
pub(super) struct Filters {
    pub(super) since: String,
    pub(super) since_seconds: Option<i64>,
    pub(super) providers: Vec<&'static str>,
    pub(super) command_fingerprint: String,
    pub(super) min_samples: usize,
}

impl Filters {
    fn let_through(&self, record: &Record, timing: &Timing) -> bool {
        let when = timestamp::parse(&record.recorded_at).unwrap_or(i64::MIN);
        let provider = timing.provider.trim().to_ascii_lowercase();
        self.since_seconds.is_none_or(|since| when >= since)
            && (self.command_fingerprint.is_empty()
                || self.command_fingerprint == record.benchmark.command_fingerprint)
            && (self.providers.is_empty() || self.providers.contains(&provider.as_str()))
    }
}

/// The document.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct Report {
    /// The version of the form.
    schema_version: u32,
    /// When it was made, RFC 3339.
    generated_at: String,
    /// The file of records.
    store_path: String,
    /// Which records were asked for.
    filters: FiltersView,
    /// How many records there are.
    observation_count: usize,
    /// How many of them were asked for.
    matched_count: usize,
    /// What they say.
    groups: Vec<Group>,
    /// What a reader should know of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// Which records were asked for.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct FiltersView {
    /// `--since`, as it was given.
    #[serde(skip_serializing_if = "String::is_empty")]
    since: String,
    /// The same as a time, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    since_time: Option<String>,
    /// Providers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    providers: Vec<&'static str>,
    /// A command.
    #[serde(skip_serializing_if = "String::is_empty")]
    command_fingerprint: String,
    /// How many runs are enough.
    min_samples: usize,
}

/// Runs that can be compared.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Group {
    /// Who recorded them.
    source: String,
    /// The provider.
    provider: String,
    /// Its family.
    #[serde(skip_serializing_if = "String::is_empty")]
    provider_family: String,
    /// Its kind.
    #[serde(skip_serializing_if = "String::is_empty")]
    provider_kind: String,
    /// Its category.
    #[serde(skip_serializing_if = "String::is_empty")]
    provider_category: String,
    /// The type of the machine.
    #[serde(skip_serializing_if = "String::is_empty")]
    machine_type: String,
    /// The command.
    #[serde(skip_serializing_if = "String::is_empty")]
    command_fingerprint: String,
    /// Whether they began cold; absent where nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    cold_run: Option<bool>,
    /// How many succeeded.
    n: usize,
    /// How many there are.
    observation_count: usize,
    /// How many failed.
    failure_count: usize,
    /// The median of `totalMs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    median_total_ms: Option<i64>,
    /// Its 95th percentile; absent for fewer than three runs.
    #[serde(skip_serializing_if = "Option::is_none", rename = "p95TotalMs")]
    p95_total_ms: Option<i64>,
    /// The median of `syncMs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    median_sync_ms: Option<i64>,
    /// The median of `commandMs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    median_command_ms: Option<i64>,
    /// The steps of the sync.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sync_phases: Vec<SyncPhase>,
    /// How many brought nothing.
    #[serde(skip_serializing_if = "is_zero")]
    sync_skipped_count: usize,
    /// Whether there are too few of them.
    insufficient_evidence: bool,
    /// The same in words.
    evidence: String,
}

/// A step of the sync.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct SyncPhase {
    /// Its name.
    name: String,
    /// In how many runs it took time.
    n: usize,
    /// The median of what it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    median_ms: Option<i64>,
    /// The 95th percentile; absent for fewer than three.
    #[serde(skip_serializing_if = "Option::is_none", rename = "p95Ms")]
    p95_ms: Option<i64>,
    /// In how many there was nothing to do in it.
    #[serde(skip_serializing_if = "is_zero")]
    skipped_count: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// The numbers of a group while they are collected.
#[derive(Debug, Default)]
struct Numbers {
    total: Vec<i64>,
    sync: Vec<i64>,
    command: Vec<i64>,
    skipped: usize,
    failures: usize,
    /// For each phase: its durations where it took time, and how often it was skipped.
    phases: BTreeMap<String, (Vec<i64>, usize)>,
}

impl Numbers {
    fn add(&mut self, timing: &Timing) {
        if timing.exit_code != 0 {
            self.failures += 1;
            return;
        }
        self.total.push(timing.total_ms);
        self.sync.push(timing.sync_ms);
        self.command.push(timing.command_ms);
        self.skipped += usize::from(timing.sync_skipped);
        let mut of_run: BTreeMap<&str, (i64, bool)> = BTreeMap::new();
        for phase in &timing.sync_phases {
            let name = phase.name.trim();
            if !name.is_empty() {
                let (ms, skipped) = of_run.entry(name).or_default();
                *ms += phase.ms.max(0);
                *skipped |= phase.skipped;
            }
        }
        for (name, (ms, skipped)) in of_run {
            let (values, skips) = self.phases.entry(name.to_owned()).or_default();
            if ms > 0 {
                values.push(ms);
            }
            *skips += usize::from(skipped);
        }
    }

    fn finish(self, group: &mut Group, min_samples: usize) {
        group.n = self.total.len();
        group.failure_count = self.failures;
        group.observation_count = group.n + self.failures;
        group.median_total_ms = median(&self.total);
        group.p95_total_ms = p95(&self.total);
        group.median_sync_ms = median(&self.sync);
        group.median_command_ms = median(&self.command);
        group.sync_skipped_count = self.skipped;
        group.sync_phases = self
            .phases
            .into_iter()
            .map(|(name, (values, skipped_count))| SyncPhase {
                name,
                n: values.len(),
                median_ms: median(&values),
                p95_ms: p95(&values),
                skipped_count,
            })
            .collect();
        group.insufficient_evidence = group.n < min_samples;
        group.evidence = match group.n {
            0 => format!("insufficient_successful_samples need={min_samples}"),
            n if n < min_samples => format!("insufficient_successful_samples n={n} need={min_samples}"),
            _ => "sufficient_local_samples".to_owned(),
        };
    }
}

fn sorted(values: &[i64]) -> Vec<i64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted
}

fn median(values: &[i64]) -> Option<i64> {
    let sorted = sorted(values);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    Some(if sorted.len().is_multiple_of(2) {
        i64::midpoint(sorted[middle - 1], upper)
    } else {
        upper
    })
}

/// By the nearest-rank method.
fn p95(values: &[i64]) -> Option<i64> {
    if values.len() < ENOUGH_FOR_P95 {
        return None;
    }
    let rank = (values.len() * 95).div_ceil(100);
    sorted(values).get(rank - 1).copied()
}

impl Report {
    /// The report on `records` of the file `store` at `now`.
    pub(super) fn new(store: &str, records: &[Record], filters: Filters, now: i64) -> Self {
        let mut groups: BTreeMap<Vec<String>, (Group, Numbers)> = BTreeMap::new();
        let mut matched_count = 0;
        for record in records {
            // The store has already checked that this parses.
            let Ok(timing) = record.timing() else { continue };
            if !filters.let_through(record, &timing) {
                continue;
            }
            matched_count += 1;
            let group = Group::of(record, &timing);
            let (_, numbers) = groups
                .entry(group.key())
                .or_insert_with(|| (group, Numbers::default()));
            numbers.add(&timing);
        }
        let mut warnings = Vec::new();
        let groups: Vec<Group> = groups
            .into_values()
            .map(|(mut group, numbers)| {
                numbers.finish(&mut group, filters.min_samples);
                if group.insufficient_evidence {
                    warnings.push(format!(
                        "insufficient evidence for provider={} command={} n={}",
                        group.provider,
                        go::blank(&group.command_fingerprint),
                        group.n
                    ));
                }
                group
            })
            .collect();
        if records.is_empty() {
            warnings.push("no benchmark timing records found".to_owned());
        } else if matched_count == 0 {
            warnings.push("no benchmark timing records matched the filters".to_owned());
        }
        Self {
            schema_version: SCHEMA_VERSION,
            generated_at: timestamp::rfc3339(now),
            store_path: store.to_owned(),
            filters: FiltersView {
                since: filters.since,
                since_time: filters.since_seconds.map(timestamp::rfc3339),
                providers: filters.providers,
                command_fingerprint: filters.command_fingerprint,
                min_samples: filters.min_samples,
            },
            observation_count: records.len(),
            matched_count,
            groups,
            warnings,
        }
    }

    /// The report as text.
    pub(super) fn lines(&self) -> Vec<String> {
        let store = &self.store_path;
        if self.observation_count == 0 {
            return vec![format!("no benchmark timing records found store={store}")];
        }
        if self.matched_count == 0 {
            return vec![format!(
                "no matching benchmark timing records store={store} observations={}",
                self.observation_count
            )];
        }
        let mut lines = vec![format!(
            "benchmark report store={store} observations={} matched={} min_samples={}",
            self.observation_count, self.matched_count, self.filters.min_samples
        )];
        for group in &self.groups {
            lines.push(group.line());
            lines.extend(group.sync_phases.iter().map(|phase| {
                format!(
                    "  sync_phase name={} n={} median={} p95={} skipped={}",
                    phase.name,
                    phase.n,
                    spelled(phase.median_ms),
                    spelled(phase.p95_ms),
                    phase.skipped_count
                )
            }));
        }
        lines
    }
}

/// Milliseconds as Go formats a duration.
fn spelled(ms: Option<i64>) -> String {
    ms.map_or_else(
        || "-".to_owned(),
        |ms| go::milliseconds(Duration::from_millis(ms.unsigned_abs())),
    )
}

impl Group {
    fn of(record: &Record, timing: &Timing) -> Self {
        let context = &record.benchmark;
        let facts = about(&timing.provider);
        let or = |recorded: &String, known: String| {
            if recorded.is_empty() {
                known
            } else {
                recorded.clone()
            }
        };
        let source = record.source.trim();
        Self {
            source: if source.is_empty() { "unknown" } else { source }.to_owned(),
            provider: timing.provider.clone(),
            provider_family: or(&context.provider_family, facts.family),
            provider_kind: or(&context.provider_kind, facts.kind),
            provider_category: or(&context.provider_category, facts.category),
            machine_type: timing.machine_type.clone(),
            command_fingerprint: context.command_fingerprint.clone(),
            cold_run: context.cold_run,
            n: 0,
            observation_count: 0,
            failure_count: 0,
            median_total_ms: None,
            p95_total_ms: None,
            median_sync_ms: None,
            median_command_ms: None,
            sync_phases: Vec::new(),
            sync_skipped_count: 0,
            insufficient_evidence: false,
            evidence: String::new(),
        }
    }

    /// The fields in which comparable runs agree.
    fn key(&self) -> Vec<String> {
        vec![
            self.source.clone(),
            self.provider.trim().to_ascii_lowercase(),
            self.provider_family.clone(),
            self.provider_category.clone(),
            self.provider_kind.clone(),
            self.machine_type.clone(),
            self.command_fingerprint.clone(),
            self.cold(),
        ]
    }

    fn cold(&self) -> String {
        self.cold_run
            .map_or_else(|| "unknown".to_owned(), |cold| cold.to_string())
    }

    fn line(&self) -> String {
        /// This many digits tell commands apart.
        const SHORT: usize = "sha256:".len() + 12;
        let command = self.command_fingerprint.get(..SHORT);
        format!(
            "{} source={} family={} kind={} machine={} command={} cold={} n={} median_total={} p95_total={} median_sync={} \
             median_command={} sync_skipped={} failures={} evidence={}",
            self.provider,
            self.source,
            go::blank(&self.provider_family),
            go::blank(&self.provider_kind),
            go::blank(&self.machine_type),
            go::blank(command.unwrap_or(&self.command_fingerprint)),
            self.cold(),
            self.n,
            spelled(self.median_total_ms),
            spelled(self.p95_total_ms),
            spelled(self.median_sync_ms),
            spelled(self.median_command_ms),
            self.sync_skipped_count,
            self.failure_count,
            self.evidence
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use serde_json::json;

    use super::super::record::Repository;

    const NOW: i64 = 1_754_000_000;

    fn record(ms: i64, code: i64, days_ago: i64) -> Record {
        let phases = json!([{"name": "manifest", "ms": ms}, {"name": "rsync", "skipped": true}]);
        let timing = json!({
            "provider": "ssh", "machineType": "ssh", "exitCode": code, "totalMs": ms, "syncMs": 1, "commandMs": 2,
            "syncSkipped": true, "syncPhases": phases,
        });
        let at = (NOW - days_ago * 86_400, 0);
        Record::new(at, "run", timing, &["x".to_owned()], &Repository::default())
    }

    fn filters(since: &str) -> Filters {
        Filters {
            since: since.to_owned(),
            since_seconds: super::since(since, NOW).unwrap(),
            providers: Vec::new(),
            command_fingerprint: String::new(),
            min_samples: 2,
        }
    }

    #[test]
    fn medians_are_of_runs_that_succeeded() {
        let records = [
            record(10, 0, 0),
            record(40, 0, 1),
            record(20, 0, 2),
            record(9000, 1, 0),
        ];
        let report = Report::new("s", &records, filters(""), NOW);
        let group = &report.groups[0];
        assert_eq!((group.n, group.observation_count, group.failure_count), (3, 4, 1));
        assert_eq!((group.median_total_ms, group.p95_total_ms), (Some(20), Some(40)));
        assert_eq!(group.sync_skipped_count, 3);
        assert_eq!(report.warnings, [""; 0]);
        let lines = report.lines();
        assert_eq!(
            lines[0],
            "benchmark report store=s observations=4 matched=4 min_samples=2"
        );
        assert!(
            lines[1].starts_with("ssh source=run family=ssh kind=ssh-lease machine=ssh command=sha256:")
                && lines[1].contains(" cold=unknown n=3 median_total=20ms p95_total=40ms median_sync=1ms median_command=2ms sync_skipped=3 failures=1 evidence=sufficient_local_samples"),
            "{}",
            lines[1]
        );
        assert_eq!(
            lines[2..],
            [
                "  sync_phase name=manifest n=3 median=20ms p95=40ms skipped=0",
                "  sync_phase name=rsync n=0 median=- p95=- skipped=3"
            ]
        );
    }

    #[test]
    fn what_is_too_little_or_not_asked_for_is_said() {
        let records = [record(10, 0, 0), record(40, 0, 3)];
        let report = Report::new("s", &records, filters("2d"), NOW);
        assert_eq!((report.matched_count, report.groups[0].n), (1, 1));
        assert_eq!(
            report.groups[0].evidence,
            "insufficient_successful_samples n=1 need=2"
        );
        assert!(report.warnings[0].starts_with("insufficient evidence for provider=ssh command=sha256:"));
        let none = Report::new(
            "s",
            &records,
            Filters {
                providers: vec!["firecracker"],
                ..filters("")
            },
            NOW,
        );
        assert_eq!(
            none.lines(),
            ["no matching benchmark timing records store=s observations=2"]
        );
        let empty = Report::new("s", &[], filters(""), NOW);
        assert_eq!(empty.lines(), ["no benchmark timing records found store=s"]);
        assert_eq!(super::since("24h", NOW).unwrap(), Some(NOW - 86_400));
        for (bad, why) in [("xd", "7d"), ("soon", "24h"), ("-1h", "negative")] {
            assert!(
                super::since(bad, NOW).unwrap_err().to_string().contains(why),
                "{bad}"
            );
        }
        assert_eq!((median(&[4, 1]), median(&[])), (Some(2), None));
    }
}
