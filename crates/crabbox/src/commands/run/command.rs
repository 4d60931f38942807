//! The command of a run: what it is given, where its streams go, and what its end means.
//!
//! Values of variables must never stand in an argument vector or in a line that is printed.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crabbox_core::config::Settings;
use crabbox_core::config::allow::{Allow, Verdict};
use crabbox_engine::lease::{Lease, Target};
use crabbox_engine::run::owner::Owner;
use crabbox_engine::run::{self, Job, RemoteStatus, Sink};
use crabbox_host::clock;

use super::Run;
use super::error::RunFailure;
use super::profile::{self, ProfileError};
use super::report::{Ended, Summary};
use super::request;
use super::streams::{Phases, Tee, To};
use crate::args::RunArgs;
use crate::context::Ctx;
use crate::ui::CommandError;

/// How long a machine whose connection broke is watched going down.
const GOING_DOWN: Duration = Duration::from_secs(5);

/// Variables for the command that come from here.
#[derive(Debug, Default)]
pub(super) struct Variables {
    /// What may be handed on.
    allow: Allow,
    /// Those of `--env-from-profile`.
    profile: Vec<(String, String)>,
}

/// The variables that the command line and the configuration let through.
pub(super) fn variables(
    ctx: &Ctx<'_>,
    args: &RunArgs,
    settings: &Settings,
) -> Result<Variables, CommandError> {
    let command = &args.command;
    let mut allow = Allow::new(&settings.env_allow);
    allow.trust(
        command
            .allow_env
            .iter()
            .flat_map(|list| list.split(','))
            .map(str::to_owned),
    );
    let mut profile = profile::read(&command.env_from_profile, ctx.env.cwd()?)?;
    let of_file = profile.iter().map(|(name, _)| name.as_str());
    let of_process = ctx.env.texts().map(|(name, _)| name);
    let withheld: BTreeSet<&str> = of_file
        .chain(of_process)
        .filter(|name| allow.judge(name) == Verdict::Withheld)
        .collect();
    for name in withheld {
        ctx.printer.warn(format_args!(
            "{name} is not handed on: only the repository asks for it ({}), and it looks like a secret; --allow-env {name} hands it on, \
             and so does env.allow in your own configuration",
            settings.env_allow.origin
        ));
    }
    profile.retain(|(name, _)| allow.judge(name) == Verdict::Passes);
    if let Some(name) = &command.env_helper {
        profile::helper(name)?;
        if profile.is_empty() {
            return Err(ProfileError::NothingForHelper.into());
        }
    }
    Ok(Variables { allow, profile })
}

impl Run<'_> {
    /// Runs the command and brings back what it leaves.
    pub(super) fn command(
        &self,
        lease: &Lease,
        target: &Target,
        owner: &Owner,
        summary: &mut Summary,
    ) -> Result<(), CommandError> {
        let printer = self.ctx.printer;
        let workdir = summary.outcome.workdir.clone();
        let uploaded = self.upload(target, &workdir)?;
        printer.note(format_args!(
            "running on {} {}",
            lease.address,
            self.request.display()
        ));
        let env = self.env(lease);
        let mut ended = Ended {
            env: env.iter().map(|(name, _)| name.clone()).collect(),
            ..Ended::default()
        };
        let (out, err) = (
            |bytes: &[u8]| printer.bytes(bytes),
            |bytes: &[u8]| printer.note_bytes(bytes),
        );
        let phases = Phases::default();
        let results = &self.args.results;
        let mut stdout = Tee::new(capture(results.capture_stdout.as_deref(), &out)?, &phases);
        let mut stderr = Tee::new(capture(results.capture_stderr.as_deref(), &err)?, &phases);
        let stage = printer.stage("command");
        let started = Instant::now();
        let status = run::command(
            target,
            Job {
                workdir: workdir.clone(),
                env,
                before: self.before(owner, &workdir),
                form: self.request.form(uploaded.as_deref()),
                stdout: Sink::Writer(&mut stdout),
                stderr: Sink::Writer(&mut stderr),
                cancel: self.interrupts.as_fd(),
            },
        )?;
        let end = Instant::now();
        stage.end(matches!(status, RemoteStatus::Exited(0)));
        summary.outcome.command = end - started;
        summary.outcome.phases = phases.ended(end);
        (ended.stdout, ended.stderr) = (stdout.tail(), stderr.tail());
        let failure = match status {
            RemoteStatus::Exited(0) => None,
            RemoteStatus::Exited(code) => Some(RunFailure::Exited(code)),
            RemoteStatus::Killed => Some(RunFailure::Killed),
            RemoteStatus::ConnectionLost if self.went_down(lease) => Some(RunFailure::MachineDown),
            RemoteStatus::ConnectionLost => Some(RunFailure::Lost),
            RemoteStatus::Cancelled { stopped } | RemoteStatus::TimedOut { stopped } => {
                Some(RunFailure::Interrupted { stopped })
            }
        };
        let reached = matches!(status, RemoteStatus::Exited(_));
        let report = reached.then(|| self.junit(target, &workdir, owner)).flatten();
        let Some(failure) = failure else {
            let stage = printer.stage("results");
            let brought = self.bring_back(target, &workdir, report.as_ref(), summary);
            stage.end(brought.is_ok());
            return brought;
        };
        summary.down = matches!(failure, RunFailure::MachineDown);
        // A tree in which the command may still run is not handed on as it is.
        summary.unquiet = matches!(
            failure,
            RunFailure::Lost | RunFailure::MachineDown | RunFailure::Interrupted { stopped: false }
        );
        if !matches!(failure, RunFailure::Interrupted { .. }) {
            summary.ended = Some(ended);
        }
        Err(failure.into())
    }

    /// Whether the connection broke because the machine went down. A guest that turns itself off ends its connections first.
    pub(super) fn went_down(&self, lease: &Lease) -> bool {
        let down = || match self.provider.is_down(lease) {
            Some(false) => None,
            told => Some(told.is_some()),
        };
        clock::poll_until(GOING_DOWN, down).unwrap_or(false)
    }

    /// Brings the script over, if there is one; answers its path.
    fn upload(&self, target: &Target, workdir: &str) -> Result<Option<String>, CommandError> {
        let Some(script) = &self.request.script else {
            return Ok(None);
        };
        let name = Path::new(&script.source)
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        let path = run::upload_script(target, workdir, &name, &script.content)?;
        self.ctx
            .printer
            .note(format_args!("uploaded script {} -> {path}", script.source));
        Ok(Some(path))
    }

    /// What the command's own script does before the command, so that it costs no execution of its own.
    fn before(&self, owner: &Owner, workdir: &str) -> String {
        let mut before = owner.mark();
        if let Some(name) = &self.args.command.env_helper {
            before.push('\n');
            before.push_str(&profile::helper_lines(
                name,
                self.id.as_str(),
                workdir,
                &self.variables.profile,
            ));
            self.ctx.printer.note(format_args!(
                "env helper remote=.crabbox/env/{name} usage='./.crabbox/env/{name} <command>'"
            ));
        }
        before
    }

    /// Variables of the command: those that are allowed through, then ours.
    fn env(&self, lease: &Lease) -> Vec<(String, String)> {
        let Variables { allow, profile } = &self.variables;
        // A variable of this process wins over the file.
        let own = request::forwarded(&self.ctx.env, allow);
        let mut env = self.request.env.clone();
        env.retain(|(name, _)| profile.iter().all(|(known, _)| known != name));
        env.extend(profile.clone());
        env.retain(|(name, _)| own.iter().all(|(known, _)| known != name));
        env.extend(own);
        let command = &self.args.command;
        if !command.allow_env.is_empty()
            || !command.env_from_profile.is_empty()
            || self.ctx.env.os("CRABBOX_ENV_ALLOW").is_some()
        {
            let what = if env.is_empty() {
                format!(
                    "matched=none allow={}",
                    allow.names().collect::<Vec<_>>().join(",")
                )
            } else {
                format!("vars={}", profile::described(&env))
            };
            self.ctx.printer.note(format_args!(
                "env forwarding provider={} behavior=forwarded {what}",
                lease.provider
            ));
        }
        for (name, value) in [
            ("CRABBOX_LEASE_ID", lease.id.as_str()),
            ("CRABBOX_RUN_ID", self.id.as_str()),
            ("CRABBOX_SLUG", &lease.slug),
        ] {
            env.push((name.to_owned(), value.to_owned()));
        }
        env
    }
}

fn capture<'a>(path: Option<&Path>, pass: &'a (dyn Fn(&[u8]) + Sync)) -> Result<To<'a>, RunFailure> {
    match path {
        None => Ok(To::Pass(pass)),
        Some(path) => File::create(path)
            .map(To::File)
            .map_err(|source| RunFailure::Capture {
                path: path.to_owned(),
                source,
            }),
    }
}
