//! What a run brings back when its command has ended: test results, required files, downloads, artifacts; and the evidence of it.

use std::os::fd::AsFd as _;
use std::path::Path;

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
use crate::run::event::{PolicyFailure, ResultEvent};
use crate::run::report::{Artifact, RunReport, SchemaValidation};

/// What was collected of test reports.
#[derive(Debug, Default)]
pub(super) struct Collected {
    report: Report,
    /// Whether some of what was asked for could not be read.
    is_partial: bool,
    /// Whether the user interrupted the reading.
    is_interrupted: bool,
}

impl Run<'_> {
    fn incomplete(&self, is_report: bool, problems: &[String]) {
        for problem in problems {
            self.events
                .result(&ResultEvent::Incomplete { is_report, problem });
        }
    }

    /// Reads the test reports, if there shall be any. What cannot be read is a warning, for the command is what counts.
    pub(super) fn junit(&self, owner: &mut Owner, workdir: &str) -> Option<Collected> {
        let results = &self.settings.results;
        let auto = results.auto.value;
        if results.junit.value.is_empty() && !auto {
            return None;
        }
        let (report, problems) = match collect::reports(owner, workdir, &results.junit.value, auto) {
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
        let is_partial = !problems.is_empty();
        self.incomplete(true, &problems);
        self.events.result(&ResultEvent::Tests(&report));
        Some(Collected {
            report,
            is_partial,
            is_interrupted: false,
        })
    }

    /// Judges the reports by the policy, if there is one. What is not known counts as a failure.
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
        if collected.is_none_or(|all| all.report.files.is_empty()) {
            failing(PolicyFailure::NoReport);
            return Err(ResultError::NoReport);
        }
        Ok(())
    }

    /// Everything that follows a command that succeeded.
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
        self.judge_tests(tests)?;
        let work = &self.work;
        let names = if work.required.is_empty() && work.artifacts.is_empty() {
            collect::Listing::default()
        } else {
            collect::list(owner, workdir)?
        };
        self.incomplete(false, &names.problems);
        let names = names.names;
        let mut missing = None;
        for pattern in &work.required {
            let matched = names.iter().filter(|name| pattern.matches(name)).count();
            self.events.result(&ResultEvent::Required { pattern, matched });
            if matched == 0 && missing.is_none() {
                missing = Some(ResultError::Missing {
                    pattern: pattern.to_string(),
                });
            }
        }
        if let Some(missing) = missing {
            return Err(missing.into());
        }
        self.schemas(owner, workdir, report)?;
        self.downloads(owner, target, workdir, report)?;
        self.artifacts(owner, target, workdir, names, report)?;
        self.prove(lease, report)?;
        Ok(self.attest(lease, report)?)
    }

    /// Holds files against their schemas, all of them; the first that does not satisfy is why the run fails.
    fn schemas(&self, owner: &mut Owner, workdir: &str, report: &mut RunReport) -> Result<(), RunError> {
        let mut failure = None;
        for required in &self.work.schemas {
            let judgement = required.judge(owner, workdir, self.interrupts.as_fd())?;
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
            failure = failure.or(failed);
        }
        failure.map_or(Ok(()), |failure| Err(failure.into()))
    }

    fn downloads(
        &self,
        owner: &mut Owner,
        target: &Target,
        workdir: &str,
        report: &mut RunReport,
    ) -> Result<(), RunError> {
        for (remote, local) in &self.work.downloads {
            let local = self.here.cwd.join(local);
            let place = Place::new(&self.repo.root, &local, Access::Shared).map_err(RemoteError::from)?;
            let bytes = command::download(owner, target, workdir, remote, &place)?;
            self.events
                .result(&ResultEvent::Downloaded { path: &local, bytes });
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
        mut names: Vec<Vec<u8>>,
        report: &mut RunReport,
    ) -> Result<(), RunError> {
        let (wanted, required) = (&self.work.artifacts, &self.work.required);
        if wanted.is_empty() && required.is_empty() {
            return Ok(());
        }
        for pattern in wanted {
            if !names.iter().any(|name| pattern.matches(name)) {
                self.events.result(&ResultEvent::NoArtifact(pattern));
            }
        }
        // What had to be there is also kept.
        let patterns = || wanted.iter().chain(required);
        names.retain(|name| patterns().any(|pattern| pattern.matches(name)));
        let id = self.id.as_str();
        let name = format!(".crabbox/runs/{id}/{id}-artifacts.tgz");
        let place =
            Place::below(&self.repo.root, Path::new(&name), Access::Private).map_err(RemoteError::from)?;
        let local = place.path();
        let archived = collect::archive(owner, target, workdir, &names, &place)?;
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
        // One that only changed came.
        if archived.lost.is_empty() {
            return Ok(());
        }
        self.must_have_come(&names, &archived.lost)
    }

    /// A pattern that had to match has to have brought something: what is there and cannot be read is as good as missing.
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
