//! `job`: commands of the configuration with their flags, by name.
//!
//! A job of a repository must never be able to do more than its text says: what it brings back goes into the repository and
//! nowhere else, and never into `.git`.

use std::path::{Component, Path};

use crabbox_core::config::jobs::Job;
use crabbox_core::fault::{Fault, Kind};
use schemars::JsonSchema;
use serde::Serialize;

use crate::args::{JobCommand, JobListArgs, JobRunArgs};
use crate::commands::compose::Words;
use crate::commands::run;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// Why a job is not run.
#[derive(Debug, thiserror::Error)]
enum JobError {
    /// None was named.
    #[error("usage: crabbox job run [flags] <name>")]
    Usage,
    /// There is no such job.
    #[error("no job {name:?} is configured{}", names(.known))]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// It asks for something that this program has not.
    #[error("job {name:?} ({place}) asks for {field}, which this program does not support")]
    Foreign {
        /// Its name.
        name: String,
        /// Where it stands.
        place: String,
        /// What it asks for.
        field: &'static str,
    },
    /// There is nothing to run.
    #[error("job {name:?} ({place}) has no command")]
    Nothing {
        /// Its name.
        name: String,
        /// Where it stands.
        place: String,
    },
    /// A repository wants to write to the host.
    #[error(
        "job {name:?} ({place}) would download to {path:?}: a repository's job must stay inside the repository and out of .git"
    )]
    Outside {
        /// Its name.
        name: String,
        /// Where it stands.
        place: String,
        /// The path.
        path: String,
    },
}

fn names(known: &[String]) -> String {
    if known.is_empty() {
        "; there are no jobs".to_owned()
    } else {
        format!("; there are {}", known.join(", "))
    }
}

impl Fault for JobError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

pub(super) fn run(ctx: &Ctx<'_>, command: &JobCommand) -> Result<Exit, CommandError> {
    match command {
        JobCommand::List(args) => list(ctx, args),
        JobCommand::Run(args) => start(ctx, args),
    }
}

/// A job, as `--json` prints it.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct JobView {
    /// Its name.
    name: String,
    /// What it runs; empty when it only syncs.
    command: String,
    /// The command line that does the same.
    run: String,
    /// The file, line and column where it stands.
    place: String,
}

fn list(ctx: &Ctx<'_>, args: &JobListArgs) -> Result<Exit, CommandError> {
    let jobs = ctx.settings(&[])?.jobs;
    let view = |(name, job): (&String, &Job)| JobView {
        name: name.clone(),
        command: job.command.clone().unwrap_or_default(),
        run: words(job, None, false).shown(),
        place: job.place.to_string(),
    };
    let views: Vec<JobView> = jobs.iter().map(view).collect();
    if args.json {
        ctx.printer.json(&views)?;
    } else if views.is_empty() {
        ctx.printer.line("no jobs configured");
    }
    if !args.json {
        for view in &views {
            let line = format!("{} {}", view.name, view.command.replace('\n', " "));
            ctx.printer.line(crabbox_host::console::harmless(line.trim_end()));
        }
    }
    Ok(Exit::SUCCESS)
}

fn start(ctx: &Ctx<'_>, args: &JobRunArgs) -> Result<Exit, CommandError> {
    if args.json_events {
        ctx.printer.tell_events();
    }
    let name = args.name.as_deref().ok_or(JobError::Usage)?;
    let jobs = ctx.settings(&[])?.jobs;
    let job = jobs.get(name).ok_or_else(|| JobError::Unknown {
        name: name.to_owned(),
        known: jobs.keys().cloned().collect(),
    })?;
    check(name, job)?;
    let words = words(job, args.id.as_deref(), args.json_events);
    if args.dry_run {
        ctx.printer.line(words.shown());
        return Ok(Exit::SUCCESS);
    }
    run::run(ctx, words.run()?.as_ref())
}

fn check(name: &str, job: &Job) -> Result<(), JobError> {
    let (name, place) = (name.to_owned(), job.place.to_string());
    if let Some(field) = job.foreign.first() {
        return Err(JobError::Foreign { name, place, field });
    }
    let is_sync_only = job.flags.iter().any(|(flag, _)| *flag == "sync-only");
    if job.command.is_none() && !is_sync_only {
        return Err(JobError::Nothing { name, place });
    }
    let downloads = job.flags.iter().filter(|(flag, _)| *flag == "download");
    for (_, value) in downloads {
        let path = value.as_deref().and_then(|value| value.split_once('='));
        if let Some((_, path)) = path
            && !job.is_trusted
            && !stays_inside(Path::new(path))
        {
            let path = path.to_owned();
            return Err(JobError::Outside { name, place, path });
        }
    }
    Ok(())
}

fn stays_inside(path: &Path) -> bool {
    path.components().all(|part| match part {
        Component::Normal(name) => !name.eq_ignore_ascii_case(".git"),
        Component::CurDir => true,
        Component::ParentDir | Component::RootDir | Component::Prefix(_) => false,
    })
}

/// The `run` that this job is.
fn words(job: &Job, lease: Option<&str>, json_events: bool) -> Words {
    let words = Words::new("run")
        .maybe("id", lease)
        .switch("json-events", json_events);
    let words = job.flags.iter().fold(words, |words, (flag, value)| match value {
        Some(value) => words.flag(flag, value),
        None => words.switch(flag, true),
    });
    // `auto` is what a run does that is not told otherwise.
    let stop = job.stop.as_deref().filter(|stop| *stop != "auto");
    let words = words.maybe("stop-after", stop);
    match &job.command {
        Some(command) => words.rest([command.into()]),
        None => words,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_writes_nowhere_but_into_itself() {
        for (path, inside) in [
            ("out/report.html", true),
            ("./x", true),
            ("../x", false),
            ("/etc/cron.d/x", false),
            (".git/hooks/pre-commit", false),
            ("sub/.GIT/config", false),
            ("a/../../x", false),
        ] {
            assert_eq!(stays_inside(Path::new(path)), inside, "{path}");
        }
    }
}
