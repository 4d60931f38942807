//! `job`: named commands of the configuration, with their flags.
//!
//! A repository's job must never be able to do more than its text says: downloads go into the repository only, and never into `.git`.

use std::path::{Component, Path};

use crabbox_core::config::jobs::Job;
use crabbox_core::config::{ConfigError, Provider, Resolution, Settings};
use crabbox_core::fault::{Fault, Kind};
use crabbox_engine::run::request::{RunRequest, StopAfter};
use schemars::JsonSchema;
use serde::Serialize;

use crate::args::{JobCommand, JobListArgs, JobRunArgs, flags_of_run};
use crate::command_line::CommandLine;
use crate::commands::work::run::{self, Invocation, Manner};
use crate::context::Ctx;
use crate::goflags::UsageError;
use crate::settings::SettingsError;
use crate::ui::{CommandError, Exit};

/// Why a job is not run.
#[derive(Debug, thiserror::Error)]
enum JobError {
    /// No job was named.
    #[error("usage: crabbox job run [flags] <name>")]
    Usage,
    /// There is no such job.
    #[error("job {name:?} is not configured{}", names(.known))]
    Unknown {
        /// The requested name.
        name: String,
        /// The names of the configured jobs.
        known: Vec<String>,
    },
    /// It uses a field that this program does not support.
    #[error("job {name:?} ({place}) asks for {field}, which this program does not support")]
    Foreign {
        /// Its name.
        name: String,
        /// Where it is defined.
        place: String,
        /// The unsupported field.
        field: &'static str,
    },
    /// It has a value that `run` refuses.
    #[error("job {name:?} ({place})")]
    Refused {
        /// Its name.
        name: String,
        /// Where it is defined.
        place: String,
        /// The refusal.
        #[source]
        source: UsageError,
    },
    /// It has no command.
    #[error("job {name:?} ({place}) has no command")]
    Nothing {
        /// Its name.
        name: String,
        /// Where it is defined.
        place: String,
    },
    /// A repository's job would write outside of the repository.
    #[error(
        "job {name:?} ({place}) would download to {path:?}: a repository's job must stay inside the repository and out of .git"
    )]
    Outside {
        /// Its name.
        name: String,
        /// Where it is defined.
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

pub(in crate::commands) fn run(ctx: &Ctx<'_>, command: &JobCommand) -> Result<Exit, CommandError> {
    match command {
        JobCommand::List(args) => list(ctx, args),
        JobCommand::Run(args) => start(ctx, args),
    }
}

/// A job, as `--json` prints it.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::commands) struct JobView {
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
    let Resolution { jobs, settings, .. } = ctx.settings(&[])?;
    let view = |(name, job): (&String, &Result<Job, ConfigError>)| match job {
        Ok(job) => Some(JobView {
            name: name.clone(),
            command: job.command.clone().unwrap_or_default(),
            run: words(job, &settings, &Given::default()).shown(),
            place: job.place.to_string(),
        }),
        Err(error) => {
            ctx.printer.warn(error);
            None
        }
    };
    let views: Vec<JobView> = jobs.iter().filter_map(view).collect();
    if args.json {
        ctx.printer.json(&views)?;
    } else if views.is_empty() {
        ctx.printer.line("no jobs configured");
    }
    if !args.json {
        for (name, job) in &jobs {
            if let Ok(job) = job {
                ctx.printer
                    .line(crabbox_host::console::harmless(&listed(name, job)));
            }
        }
    }
    Ok(Exit::SUCCESS)
}

/// The line of a job; its command line is shown by `--json` and `job run --dry-run`.
fn listed(name: &str, job: &Job) -> String {
    let flag = |wanted: &str| {
        let found = job.flags.iter().find(|(flag, _)| *flag == wanted);
        found.and_then(|(_, value)| value.as_deref()).unwrap_or("-")
    };
    format!(
        "{name} provider={} target={} hydrate_actions={} stop={}",
        flag("provider"),
        flag("target"),
        job.foreign.contains(&"hydrate.actions"),
        job.stop.as_deref().unwrap_or("auto")
    )
}

fn start(ctx: &Ctx<'_>, args: &JobRunArgs) -> Result<Exit, CommandError> {
    if args.json_events {
        ctx.printer.tell_events();
    }
    if args.verbose {
        ctx.printer.be_verbose();
    }
    let name = args.name.as_deref().ok_or(JobError::Usage)?;
    let Resolution { jobs, settings, .. } = ctx.settings(&[])?;
    let job = jobs.get(name).ok_or_else(|| JobError::Unknown {
        name: name.to_owned(),
        known: jobs.keys().cloned().collect(),
    })?;
    let job = job.as_ref().map_err(|error| SettingsError::from(error.clone()))?;
    let mut job = job.clone();
    if args.no_hydrate {
        job.foreign.clear();
    }
    if let Some(stop) = args.stop {
        job.stop = Some(stop.word().to_owned());
    }
    let job = &job;
    check(name, job)?;
    if let Some(provider) = foreign_provider(job, &settings) {
        ctx.printer.warn(format_args!(
            "{}: provider {provider} of job {name} is ignored: you chose {} ({})",
            job.place, settings.provider.value, settings.provider.origin
        ));
    }
    let given = Given {
        lease: args.id.as_deref(),
        preset_vars: &args.preset_var,
        json_events: args.json_events,
        stop: args.stop.is_some(),
    };
    // Also checked for a dry run, which must not show a line that would be refused.
    let invocation = invocation(job, &settings, &given).map_err(|source| JobError::Refused {
        name: name.to_owned(),
        place: job.place.to_string(),
        source,
    })?;
    if args.dry_run {
        ctx.printer.lines(words(job, &settings, &given).shown());
        return Ok(Exit::SUCCESS);
    }
    run::run(ctx, &invocation)
}

/// What the command line adds to a job.
#[derive(Debug, Clone, Copy, Default)]
struct Given<'a> {
    lease: Option<&'a str>,
    preset_vars: &'a [String],
    json_events: bool,
    /// Whether it says when to give the lease back.
    stop: bool,
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
        let pair = value.as_deref().and_then(|value| value.split_once('='));
        if let Some((remote, path)) = pair
            && !job.is_trusted
            && !(stays_inside(Path::new(path)) && stays_inside(name_of(remote)))
        {
            let path = path.to_owned();
            return Err(JobError::Outside { name, place, path });
        }
    }
    Ok(())
}

/// The file name of a download into a directory.
fn name_of(remote: &str) -> &Path {
    Path::new(remote).file_name().map_or(Path::new(""), Path::new)
}

fn stays_inside(path: &Path) -> bool {
    path.components().all(|part| match part {
        Component::Normal(name) => !name.eq_ignore_ascii_case(".git"),
        Component::CurDir => true,
        Component::ParentDir | Component::RootDir | Component::Prefix(_) => false,
    })
}

/// The provider that a repository's job asks for, if the user of this host has chosen another: passed as a flag, it would override the user's choice.
fn foreign_provider<'a>(job: &'a Job, settings: &Settings) -> Option<&'a str> {
    let chosen = &settings.provider;
    if job.is_trusted || chosen.is_default() || !chosen.layer().is_trusted() {
        return None;
    }
    let (_, asked) = job.flags.iter().find(|(flag, _)| *flag == "provider")?;
    asked
        .as_deref()
        .filter(|asked| Provider::by_name(asked) != settings.provider())
}

/// The run that this job describes.
fn invocation(job: &Job, settings: &Settings, given: &Given<'_>) -> Result<Invocation, UsageError> {
    let ignored = foreign_provider(job, settings).is_some();
    let mut keys = Vec::new();
    let mut request = RunRequest::default();
    let RunRequest {
        sync,
        command,
        results,
        ..
    } = &mut request;
    for (flag, value) in &job.flags {
        // A switch without a value is on.
        let value = value.as_deref().unwrap_or("true");
        match *flag {
            "provider" if ignored => {}
            "shell" => command.shell = true,
            "no-sync" => sync.no_sync = true,
            "sync-only" => sync.sync_only = true,
            "label" => command.label = Some(value.to_owned()),
            "download" => results.download.push(value.to_owned()),
            "artifact-glob" => results.artifact_glob.push(value.to_owned()),
            "require-artifact" => results.require_artifact.push(value.to_owned()),
            flag => keys.push((flag, value)),
        }
    }
    command.words.extend(job.command.iter().map(Into::into));
    command.preset_vars = given.preset_vars.to_vec();
    // An empty name means no lease, as on the command line.
    let lease = given.lease.filter(|lease| !lease.trim_ascii().is_empty());
    request.lease.id = lease.map(str::to_owned);
    request.lease.stop_after = job.stop.as_deref().and_then(StopAfter::by_name);
    request.lease.is_others_stop = request.lease.stop_after.is_some() && !given.stop && !job.is_trusted;
    let flags = flags_of_run(&keys).map_err(|refused| {
        let provider = refused.provider.as_deref().unwrap_or("firecracker");
        refused.by(provider)
    })?;
    Ok(Invocation {
        request,
        flags,
        manner: Manner {
            json_events: given.json_events,
            ..Manner::default()
        },
    })
}

/// The equivalent command line.
fn words(job: &Job, settings: &Settings, given: &Given<'_>) -> CommandLine {
    let words = given.preset_vars.iter().fold(
        CommandLine::new("run")
            .maybe("id", given.lease)
            .switch("json-events", given.json_events),
        |words, value| words.flag("preset-var", value),
    );
    let ignored = foreign_provider(job, settings).is_some();
    let flags = job
        .flags
        .iter()
        .filter(|(flag, _)| !(ignored && *flag == "provider"));
    let words = flags.fold(words, |words, (flag, value)| match value {
        Some(value) => words.flag(flag, value),
        None => words.switch(flag, true),
    });
    // `auto` is the default of `run`.
    let stop = job.stop.as_deref().filter(|stop| *stop != "auto");
    let words = words.maybe("stop-after", stop);
    match &job.command {
        Some(command) => words.rest([command.into()]),
        None => words,
    }
}

#[cfg(test)]
mod tests {
    use crabbox_core::config::layer::Layer;
    use crabbox_core::config::{ConfigFile, Inputs, resolve};

    use super::*;
    use crate::args::Command;
    use crate::goflags::Stop;

    fn resolved(text: &str, layer: Layer, user: &str) -> Resolution {
        let file = |name: &str, layer, text: &str| ConfigFile {
            path: Path::new("/x").join(name),
            layer,
            text: text.to_owned(),
        };
        resolve(&Inputs {
            files: &[
                file("user.yaml", Layer::UserFile, user),
                file("crabbox.yaml", layer, text),
            ],
            environment: &|_| None,
            flags: &[],
            home: None,
            cwd: Path::new("/x"),
            user_file: Some(Path::new("/x/user.yaml")),
        })
        .unwrap()
    }

    /// The argument parser's reading of the line shown for the job.
    fn typed(job: &Job, settings: &Settings, given: &Given<'_>) -> Result<Invocation, UsageError> {
        match words(job, settings, given).parse() {
            Ok(Command::Run(args)) => Ok((*args).into()),
            Err(Stop::Refused(refused)) => Err(refused.by("firecracker")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_job_is_the_run_whose_command_line_is_shown_for_it() {
        let text = "jobs:\n  all: {provider: ssh, target: linux, targetOS: macos, windows: {mode: wsl2}, profile: p, class: standard, \
            architecture: arm64, serverType: a, type: b, ttl: 1h, idleTimeout: 5m, desktopEnv: gnome, network: public, label: 'n n', \
            desktop: true, browser: true, code: true, shell: true, noSync: true, checksum: true, forceSyncLarge: true, \
            junit: ['a.xml', 'b.xml'], artifactGlobs: ['*', ''], requiredArtifacts: [x], downloads: [a=b, ''], command: '--x y', stop: failure}\n  \
            some: {syncOnly: true, stop: auto, noSync: false}\n  market: {market: spot, command: x}\n";
        for layer in [Layer::RepoFile, Layer::UserFile] {
            let Resolution { jobs, settings, .. } = resolved(text, layer, "provider: firecracker\n");
            for (name, job) in &jobs {
                let job = job.as_ref().unwrap();
                for lease in [None, Some("jade-krill"), Some(" ")] {
                    let given = Given {
                        lease,
                        preset_vars: &["a=b c".to_owned(), "--x=-".to_owned()],
                        json_events: true,
                        stop: false,
                    };
                    let mut made = invocation(job, &settings, &given);
                    if let Ok(made) = &mut made {
                        // On the command line the choice is always the user's own.
                        let is_others = std::mem::take(&mut made.request.lease.is_others_stop);
                        assert_eq!(is_others, layer == Layer::RepoFile && name == "all");
                    }
                    assert_eq!(made, typed(job, &settings, &given), "{name} {layer:?} {lease:?}");
                    if let Ok(made) = &made {
                        assert_eq!(made.request.command.preset_vars, given.preset_vars);
                    }
                    assert_eq!(made.is_err(), name == "market");
                }
            }
            let all = invocation(jobs["all"].as_ref().unwrap(), &settings, &Given::default()).unwrap();
            let provider = all.flags.iter().any(|flag| flag.values == ["ssh"]);
            assert_eq!(
                provider,
                layer == Layer::UserFile,
                "a repository exchanges no provider"
            );
        }
    }

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
        // A download into a directory keeps its remote file name.
        for (remote, inside) in [
            ("p/.git", false),
            ("p/.GIT/", false),
            ("p/x", true),
            (".git/x", true),
            ("", true),
        ] {
            assert_eq!(stays_inside(name_of(remote)), inside, "{remote}");
        }
    }
}
