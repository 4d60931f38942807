//! What a run fetches after its command: test results, required files, downloads, artifacts; and the evidence
//! of the run.

use std::os::fd::AsFd as _;
use std::path::Path;

use crabbox_host::entry_path::EntryPath;
use crabbox_host::place::{Access, Place};
use crabbox_workspace::command::{self, RemoteError};
use crabbox_workspace::owner::Owner;
use crabbox_workspace::results::collect;
use crabbox_workspace::results::junit::Report;
use crabbox_workspace::results::pattern::Pattern;
use crabbox_workspace::results::schema::{self, Judgement};

use crate::provider::lease::{Lease, Target};
use crate::run::Run;
use crate::run::error::{ResultError, RunError};
use crate::run::event::{PolicyFailure, ResultEvent, RunEvents};
use crate::run::report::{Artifact, RunReport, SchemaValidation};

/// The collected test reports.
#[derive(Debug, Default)]
pub(super) struct Collected {
    report: Report,
    /// Whether some reports could not be read.
    is_partial: bool,
    /// Whether the user interrupted the reading.
    is_interrupted: bool,
}

/// Collects the results of several steps and remembers the first failure.
struct Results<'a> {
    events: &'a dyn RunEvents,
    failed: Option<RunError>,
}

impl<'a> Results<'a> {
    fn of(events: &'a dyn RunEvents) -> Self {
        Self { events, failed: None }
    }

    /// Adds the result of a step. The first failure is kept as the run's error, and the others are only
    /// reported. Returns an error at once if the user interrupted, or if nothing more can arrive.
    fn add<T>(&mut self, owner: &mut Owner, result: Result<T, RunError>) -> Result<Option<T>, RunError> {
        let error = match result {
            Ok(value) => return Ok(Some(value)),
            Err(error) => error,
        };
        let is_interrupted = matches!(
            error,
            RunError::Remote(RemoteError::Interrupted { .. } | RemoteError::Cancelled)
        );
        if is_interrupted {
            return Err(error);
        }
        match &self.failed {
            None => self.failed = Some(error),
            Some(_) => self.events.result(&ResultEvent::Also(&error)),
        }
        if owner.is_broken() {
            self.passed()?;
        }
        Ok(None)
    }

    /// Fails with the first failure, if there was one.
    fn passed(&mut self) -> Result<(), RunError> {
        self.failed.take().map_or(Ok(()), Err)
    }
}

impl Run<'_> {
    fn incomplete(&self, is_report: bool, problems: &[String]) {
        for problem in problems {
            self.events
                .result(&ResultEvent::Incomplete { is_report, problem });
        }
    }

    /// Reads the test reports, if any are wanted. Unreadable reports only cause a warning, because the
    /// command's result is what counts.
    pub(super) fn junit(&self, owner: &mut Owner, workdir: &str) -> Option<Collected> {
        let results = &self.settings.results;
        let auto = results.auto.value;
        if results.junit.value.is_empty() && !auto {
            return None;
        }
        let seen = match collect::reports(owner, workdir, &results.junit.value, auto) {
            Ok(seen) => seen,
            Err(error) => {
                self.events.result(&ResultEvent::ReportsUnread(&error));
                return Some(Collected {
                    is_partial: true,
                    is_interrupted: matches!(error, RemoteError::Cancelled),
                    ..Collected::default()
                });
            }
        };
        self.incomplete(true, &seen.problems);
        self.incomplete(true, &seen.aside);
        self.events.result(&ResultEvent::Tests(&seen.report));
        Some(Collected {
            report: seen.report,
            is_partial: !seen.problems.is_empty(),
            is_interrupted: false,
        })
    }

    /// Applies the policy for test reports, if there is one. Unknown results count as failures.
    fn judge_tests(&self, collected: Option<&Collected>) -> Result<(), ResultError> {
        if !self.settings.results.fail_on_failures.value {
            return Ok(());
        }
        let failing = |why| self.events.result(&ResultEvent::Policy(why));
        let (failures, errors) = collected.map_or((0, 0), |all| (all.report.failures, all.report.errors));
        if failures > 0 || errors > 0 {
            failing(PolicyFailure::Failed { failures, errors });
            return Err(ResultError::Tests { failures, errors });
        }
        if collected.is_some_and(|all| all.is_partial) {
            failing(PolicyFailure::Unread);
            return Err(ResultError::Unread);
        }
        let Some(report) = collected
            .map(|all| &all.report)
            .filter(|all| !all.files.is_empty())
        else {
            failing(PolicyFailure::NoReport);
            return Err(ResultError::NoReport);
        };
        if report.tests == 0 {
            failing(PolicyFailure::NoTests);
            return Err(ResultError::NoTests);
        }
        Ok(())
    }

    /// Everything that follows a successful command. Every step runs even if an earlier one failed; the first
    /// error is the run's error.
    pub(super) fn collect(
        &self,
        lease: &Lease,
        owner: &mut Owner,
        target: &Target,
        tests: Option<&Collected>,
        report: &mut RunReport,
    ) -> Result<(), RunError> {
        let workdir = &report.outcome.workdir.clone();
        if tests.is_some_and(|all| all.is_interrupted) {
            return Err(RemoteError::Cancelled.into());
        }
        let mut results = Results::of(self.events);
        results.add(owner, self.judge_tests(tests).map_err(RunError::from))?;
        let named = self.named(owner, workdir, &mut results)?;
        self.schemas(owner, workdir, report, &mut results)?;
        self.downloads(owner, target, workdir, report, &mut results)?;
        if let Some(names) = named {
            let archived = self.artifacts(owner, target, workdir, &names, report);
            results.add(owner, archived)?;
        }
        results.passed()?;
        self.prove(lease, report)?;
        Ok(self.attest(lease, report)?)
    }

    /// The files that match the artifact patterns; `None` if there are no patterns, or if listing failed.
    fn named(
        &self,
        owner: &mut Owner,
        workdir: &str,
        results: &mut Results<'_>,
    ) -> Result<Option<Vec<Vec<u8>>>, RunError> {
        let work = &self.work;
        let patterns: Vec<&Pattern> = work.required.iter().chain(&work.artifacts).collect();
        if patterns.is_empty() {
            return Ok(None);
        }
        let listed = collect::list(owner, workdir, &patterns).map_err(RunError::from);
        let Some(listed) = results.add(owner, listed)? else {
            return Ok(None);
        };
        self.incomplete(false, &listed.problems);
        self.incomplete(false, &listed.aside);
        for pattern in &work.required {
            let matched = listed.names.iter().filter(|name| pattern.matches(name)).count();
            self.events.result(&ResultEvent::Required { pattern, matched });
            if matched == 0 {
                let pattern = pattern.to_string();
                results.add(owner, Err::<(), _>(ResultError::Missing { pattern }.into()))?;
            }
        }
        Ok(Some(listed.names))
    }

    /// Validates all files that have schemas.
    fn schemas(
        &self,
        owner: &mut Owner,
        workdir: &str,
        report: &mut RunReport,
        results: &mut Results<'_>,
    ) -> Result<(), RunError> {
        for required in &self.work.schemas {
            let judged = required.judge(owner, workdir, self.interrupts.as_fd());
            let Some(judgement) = results.add(owner, judged.map_err(RunError::from))? else {
                // A file that could not be validated is not downloaded either.
                report.outcome.schemas.push(SchemaValidation {
                    artifact: required.remote.clone(),
                    schema: required.schema.display().to_string(),
                    valid: false,
                    violations: Vec::new(),
                    error: Some("fetch failed"),
                });
                continue;
            };
            self.events.result(&ResultEvent::Schema {
                required,
                judgement: &judgement,
            });
            let remote = required.remote.clone();
            let (violations, error, failed) = match judgement {
                Judgement::Absent(why) => {
                    let failed = ResultError::Unfetched { remote, why };
                    (Vec::new(), Some("fetch failed"), Some(failed))
                }
                Judgement::Held(violations) => {
                    let checks = schema::count(&violations);
                    let failed = ResultError::Schema { remote, checks };
                    let failed = (!violations.is_empty()).then_some(failed);
                    (violations, None, failed)
                }
            };
            report.outcome.schemas.push(SchemaValidation {
                artifact: required.remote.clone(),
                schema: required.schema.display().to_string(),
                valid: failed.is_none(),
                violations,
                error,
            });
            results.add(owner, failed.map_or(Ok(()), |failed| Err(failed.into())))?;
        }
        Ok(())
    }

    fn downloads(
        &self,
        owner: &mut Owner,
        target: &Target,
        workdir: &str,
        report: &mut RunReport,
        results: &mut Results<'_>,
    ) -> Result<(), RunError> {
        let valid = |remote: &str| {
            let of = |path: &str| EntryPath::normal(path.as_bytes()).ok();
            let mut held = report.outcome.schemas.iter();
            held.all(|held| held.valid || of(&held.artifact).is_none_or(|path| Some(path) != of(remote)))
        };
        // A file that violates its schema must not replace a local file.
        let (wanted, withheld): (Vec<_>, Vec<_>) =
            self.work.downloads.iter().partition(|(remote, _)| valid(remote));
        for (remote, _) in withheld {
            let remote = remote.clone();
            results.add(owner, Err::<(), _>(ResultError::Withheld { remote }.into()))?;
        }
        for (remote, local) in wanted {
            let local = &self
                .here
                .cwd
                .join(command::destination(&self.here.cwd, remote, local));
            let place = Place::new(&self.repo.root, local, Access::Shared).map_err(RemoteError::from);
            let brought = place.and_then(|place| command::download(owner, target, workdir, remote, &place));
            let Some(bytes) = results.add(owner, brought.map_err(RunError::from))? else {
                continue;
            };
            self.events
                .result(&ResultEvent::Downloaded { path: local, bytes });
            report.outcome.artifacts.push(Artifact {
                kind: "download",
                path: local.display().to_string(),
                template: None,
                bytes,
            });
        }
        Ok(())
    }

    fn artifacts(
        &self,
        owner: &mut Owner,
        target: &Target,
        workdir: &str,
        names: &[Vec<u8>],
        report: &mut RunReport,
    ) -> Result<(), RunError> {
        let wanted = &self.work.artifacts;
        for pattern in wanted {
            if !names.iter().any(|name| pattern.matches(name)) {
                self.events.result(&ResultEvent::NoArtifact(pattern));
            }
        }
        // If nothing matched, a missing required file has already been reported, and an archive would add
        // nothing.
        if names.is_empty() && wanted.is_empty() {
            return Ok(());
        }
        let id = self.id.as_str();
        let name = format!(".crabbox/runs/{id}/{id}-artifacts.tgz");
        let place =
            Place::below(&self.repo.root, Path::new(&name), Access::Private).map_err(RemoteError::from)?;
        let local = place.path();
        let archived = collect::archive(owner, target, workdir, names, &place)?;
        let bytes = archived.bytes;
        self.incomplete(false, &archived.problems);
        let path = local.display().to_string();
        self.events.result(&ResultEvent::Archived { path: &path, bytes });
        report.outcome.artifacts.push(Artifact {
            kind: "artifact-glob",
            path,
            template: None,
            bytes,
        });
        // A file that merely changed while it was read has arrived.
        if archived.lost.is_empty() {
            return Ok(());
        }
        self.must_have_come(names, &archived.lost)
    }

    /// Each required pattern must have brought at least one file: an unreadable file is as bad as a missing
    /// one.
    fn must_have_come(&self, names: &[Vec<u8>], lost: &[Vec<u8>]) -> Result<(), RunError> {
        let required = &self.work.required;
        let matches = |name: &&Vec<u8>| required.iter().any(|pattern| pattern.matches(name));
        let names: Vec<&Vec<u8>> = names.iter().filter(matches).collect();
        let came = |pattern: &&Pattern| {
            let mut names = names.iter();
            names.any(|name| pattern.matches(name) && !lost.contains(name))
        };
        let lost = |pattern: &&Pattern| names.iter().any(|name| pattern.matches(name)) && !came(pattern);
        match required.iter().find(lost) {
            None => Ok(()),
            Some(pattern) => Err(ResultError::Unreadable {
                pattern: pattern.to_string(),
            }
            .into()),
        }
    }
}
