//! What a run brings back when its command has ended: test results, required files, downloads, artifacts.

use std::path::PathBuf;

use crabbox_core::fault::{Fault, Kind};
use crabbox_engine::lease::Target;
use crabbox_engine::run::junit::Report;
use crabbox_engine::run::owner::Owner;
use crabbox_engine::run::{self, collect};
use crabbox_host::console::harmless;

use super::Run;
use super::report::Summary;
use crate::timing::Artifact;
use crate::ui::CommandError;

/// How many failed tests are named.
const NAMED: usize = 10;

/// Why a run whose command succeeded failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResultError {
    /// A file that had to be there is not.
    #[error("missing required artifact: {pattern}")]
    Missing {
        /// Its pattern.
        pattern: String,
    },
    /// Tests failed.
    #[error("JUnit results contain {failures} failures and {errors} errors")]
    Tests {
        /// Tests that failed.
        failures: u64,
        /// Tests that could not be run.
        errors: u64,
    },
}

impl Fault for ResultError {
    fn kind(&self) -> Kind {
        match self {
            Self::Missing { .. } => Kind::Remote,
            Self::Tests { .. } => Kind::General,
        }
    }
}

impl Run<'_> {
    /// Reads the test reports, if there shall be any. What cannot be read is a warning, for the command is what counts.
    pub(super) fn junit(&self, target: &Target, workdir: &str, owner: &Owner) -> Option<Report> {
        let results = &self.settings.results;
        let auto = results.auto.value.then_some(owner);
        if results.junit.value.is_empty() && auto.is_none() {
            return None;
        }
        let printer = self.ctx.printer;
        let (report, problems) = match collect::reports(target, workdir, &results.junit.value, auto) {
            Ok(seen) => seen,
            Err(error) => {
                let error = CommandError::from(error).text();
                printer.warn(format_args!("collect test results incomplete: {error}"));
                return None;
            }
        };
        for problem in problems {
            printer.warn(format_args!(
                "collect test results incomplete: {}",
                harmless(&problem)
            ));
        }
        printer.note(format_args!(
            "test results files={} tests={} failures={} errors={} skipped={}",
            report.files.len(),
            report.tests,
            report.failures,
            report.errors,
            report.skipped
        ));
        for failed in report.failed.iter().take(NAMED) {
            let message = failed.message.lines().next().unwrap_or_default();
            let line = format!("test failed: {} {message}", failed.name);
            printer.note(harmless(line.trim_end()));
        }
        Some(report)
    }

    /// Everything that follows a command that succeeded.
    pub(super) fn bring_back(
        &self,
        target: &Target,
        workdir: &str,
        report: Option<&Report>,
        summary: &mut Summary,
    ) -> Result<(), CommandError> {
        let printer = self.ctx.printer;
        if let Some(report) = report.filter(|report| !report.passed())
            && self.settings.results.fail_on_failures.value
        {
            let (failures, errors) = (report.failures, report.errors);
            printer.note(format_args!("test results policy: failing run because collected JUnit reports contain failures={failures} errors={errors}"));
            return Err(ResultError::Tests { failures, errors }.into());
        }
        let request = self.request;
        let names = if request.required.is_empty() && request.artifacts.is_empty() {
            Vec::new()
        } else {
            collect::list(target, workdir)?
        };
        let mut missing = None;
        for pattern in &request.required {
            let matched = names.iter().filter(|name| pattern.matches(name)).count();
            printer.note(format_args!("required artifact {pattern} matched={matched}"));
            if matched == 0 && missing.is_none() {
                missing = Some(ResultError::Missing {
                    pattern: pattern.to_string(),
                });
            }
        }
        if let Some(missing) = missing {
            return Err(missing.into());
        }
        self.downloads(target, workdir, summary)?;
        self.artifacts(target, workdir, names, summary)
    }

    fn downloads(&self, target: &Target, workdir: &str, summary: &mut Summary) -> Result<(), CommandError> {
        for (remote, local) in &self.request.downloads {
            let local = self.ctx.env.cwd()?.join(local);
            let bytes = run::download(target, workdir, remote, &local)?;
            self.ctx
                .printer
                .note(format_args!("downloaded {} bytes={bytes}", local.display()));
            summary.outcome.artifacts.push(Artifact {
                kind: "download",
                path: local.display().to_string(),
                bytes,
            });
        }
        Ok(())
    }

    fn artifacts(
        &self,
        target: &Target,
        workdir: &str,
        mut names: Vec<Vec<u8>>,
        summary: &mut Summary,
    ) -> Result<(), CommandError> {
        let patterns = &self.request.artifacts;
        if patterns.is_empty() {
            return Ok(());
        }
        let printer = self.ctx.printer;
        for pattern in patterns {
            if !names.iter().any(|name| pattern.matches(name)) {
                printer.warn(format_args!("no artifact matches {pattern}"));
            }
        }
        names.retain(|name| patterns.iter().any(|pattern| pattern.matches(name)));
        let id = self.id.as_str();
        let local: PathBuf = self
            .repo
            .root
            .join(format!(".crabbox/runs/{id}/{id}-artifacts.tgz"));
        let bytes = collect::archive(target, workdir, &names, &local)?;
        let path = local.display().to_string();
        printer.note(format_args!(
            "artifact kind=artifact-glob path={path} bytes={bytes}"
        ));
        summary.outcome.artifacts.push(Artifact {
            kind: "artifact-glob",
            path,
            bytes,
        });
        Ok(())
    }
}
