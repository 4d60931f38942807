//! The command of a run: its variables, where its streams go, and the meaning of its end.
//!
//! Values of variables must never appear in an argument vector or in a printed line.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crabbox_core::config::Settings;
use crabbox_core::config::allow::{Allow, Verdict};
use crabbox_host::budget::{Bounded, Budget};
use crabbox_host::clock;
use crabbox_host::place::{Access, Place};
use crabbox_machine::lifecycle::vmm_end;
use crabbox_workspace::command::{self, Job, RemoteError, RemoteStatus};
use crabbox_workspace::env_profile::{self, Profile, ProfileError, Unread};
use crabbox_workspace::owner::Owner;
use crabbox_workspace::tee::{Pass, Phases, Tee, To};
use crabbox_workspace::transcript::Transcript;

use crate::provider::lease::{Lease, Target};
use crate::run::error::{RunError, RunFailure};
use crate::run::event::{CommandEvent, EndEvent, RunEvents, StartEvent};
use crate::run::report::{Ended, RunReport};
use crate::run::request::{CommandOptions, Work};
use crate::run::witnessed::Witnessed;
use crate::run::{Here, Run};

/// How long to watch whether the machine is going down after its connection broke.
const GOING_DOWN: Duration = Duration::from_secs(5);
/// How long the supervisor of a machine that went down may take for the last line of its console.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How many lines of the console of a machine that went down are shown.
const LAST_LINES: usize = 20;

/// Local variables that are passed to the command.
#[derive(Debug, Default)]
pub(super) struct Variables {
    /// Which variables may be passed on.
    allow: Allow,
    /// Variables from `--env-from-profile`.
    profile: Vec<(String, String)>,
    /// Variables of this process.
    own: Vec<(String, String)>,
    /// Names of variables that the repository asks for, but that are not passed on.
    withheld: BTreeSet<String>,
    /// Names of variables that should be passed on, but are not valid UTF-8.
    not_text: Vec<String>,
    /// Ignored lines of those files.
    unread: Vec<Unread>,
}

impl Variables {
    /// The variables that the request and the configuration let through.
    pub(super) fn new(command: &CommandOptions, settings: &Settings, here: &Here) -> Result<Self, RunError> {
        let mut allow = Allow::new(&settings.env_allow);
        allow.trust(command.allow_env.iter().map(String::as_str));
        let Profile {
            variables: mut profile,
            unread,
        } = env_profile::read(&command.env_from_profile, &here.cwd)?;
        let of_file = profile.iter().map(|(name, _)| name);
        let of_process = here.variables.iter().map(|(name, _)| name);
        let withheld = of_file
            .chain(of_process)
            .filter(|name| allow.judge(name) == Verdict::Withheld)
            .cloned()
            .collect();
        let passes = |name: &str| allow.judge(name) == Verdict::Passes;
        let not_text = here.not_text.iter().filter(|name| passes(name));
        let not_text = not_text.cloned().collect();
        profile.retain(|(name, _)| passes(name));
        if let Some(name) = &command.env_helper {
            env_profile::helper(name)?;
            if profile.is_empty() {
                return Err(ProfileError::NothingForHelper.into());
            }
        }
        Ok(Self {
            own: forwarded(&here.variables, &allow),
            allow,
            profile,
            withheld,
            not_text,
            unread,
        })
    }

    /// Reports the variables that are not passed on.
    pub(super) fn tell(&self, settings: &Settings, events: &dyn RunEvents) {
        for name in &self.withheld {
            events.start(&StartEvent::Withheld {
                name,
                origin: &settings.env_allow.origin,
            });
        }
        for name in &self.not_text {
            events.start(&StartEvent::NotText { name });
        }
        for entry in self.allow.unmatchable() {
            events.start(&StartEvent::Unmatchable { entry: &entry });
        }
        for unread in &self.unread {
            events.start(&StartEvent::Unread(unread));
        }
    }

    /// Adds the variables of the configuration. A variable from a file takes precedence over it, and one of
    /// this process over both.
    fn all(&self, configured: &[(String, String)]) -> Vec<(String, String)> {
        let mut env = configured.to_vec();
        for stronger in [&self.profile, &self.own] {
            env.retain(|(name, _)| stronger.iter().all(|(known, _)| known != name));
            env.extend(stronger.iter().cloned());
        }
        env
    }
}

/// Checks whether this can be run in a lease at all.
pub(super) fn check(work: &Work, variables: &Variables) -> Result<(), RunError> {
    // The script's path is only known after the upload, so use a placeholder.
    let script = work.script.as_ref().map(|_| "script");
    Ok(command::check(work.form(script), variables.all(&work.env))?)
}

/// Whether the command may still run in the tree although the run is over.
fn may_still_run(failure: &RunFailure) -> bool {
    matches!(
        failure,
        RunFailure::Lost
            | RunFailure::Killed
            | RunFailure::GivenBack { .. }
            | RunFailure::MachineDown
            | RunFailure::Interrupted { stopped: false }
            | RunFailure::Unread { stopped: false }
    )
}

impl Run<'_> {
    /// Runs the command and fetches its results.
    pub(super) fn command(
        &self,
        lease: &Lease,
        target: &Target,
        owner: &mut Owner,
        report: &mut RunReport,
    ) -> Result<(), RunError> {
        let events = self.events;
        let workdir = report.outcome.workdir.clone();
        let uploaded = self.upload(owner, &workdir)?;
        self.events.command(&CommandEvent::Running {
            lease,
            command: &self.work.display(),
        });
        let env = self.env(lease);
        let mut ended = Ended {
            env: env.iter().map(|(name, _)| name.clone()).collect(),
            ..Ended::default()
        };
        let (out, err) = (
            |bytes: &[u8]| events.stdout(bytes),
            |bytes: &[u8]| events.stderr(bytes),
        );
        let phases = Phases::of_command(Instant::now());
        let results = &self.request.results;
        let transcript = self.evidence.is_wanted().then(Transcript::default);
        let mut stdout = Tee::new(self.capture(results.capture_stdout.as_deref(), &out)?, &phases)
            .with(transcript.as_ref());
        let mut stderr = Tee::new(self.capture(results.capture_stderr.as_deref(), &err)?, &phases)
            .with(transcript.as_ref());
        let seen = Witnessed::begin();
        let stage = self.stage("command");
        let started = Instant::now();
        let captures = [
            ("stdout", &results.capture_stdout),
            ("stderr", &results.capture_stderr),
        ];
        for (stream, path) in captures {
            if let Some(path) = path {
                events.command(&CommandEvent::Capturing { stream, path });
            }
        }
        let before = self.before(&workdir);
        let status = command::command(
            owner,
            Job {
                workdir: workdir.clone(),
                env,
                before,
                form: self.work.form(uploaded.as_deref()),
                stdout: &mut stdout,
                stderr: &mut stderr,
                cancel: self.interrupts.as_fd(),
            },
        )?;
        let end = Instant::now();
        stage.end(matches!(status, RemoteStatus::Exited(0)));
        report.outcome.command = end - started;
        report.outcome.phases = phases.ended(end);
        (ended.stdout, ended.stderr) = (stdout.tail(), stderr.tail());
        if let Some(transcript) = &transcript {
            report.witnessed = Some(seen.ended(transcript, results, [stdout.bytes(), stderr.bytes()]));
        }
        for ((stream, path), bytes) in captures.into_iter().zip([stdout.captured(), stderr.captured()]) {
            if let (Some(path), Some(bytes)) = (path, bytes) {
                events.command(&CommandEvent::Captured { stream, path, bytes });
            }
        }
        // A terminal's Ctrl-C ends the readers of a pipeline, too.
        let is_unread = self.interrupts.caught().is_none() && (stdout.is_unread() || stderr.is_unread());
        let failure = self.failure(lease, status, is_unread);
        let reached = matches!(status, RemoteStatus::Exited(_));
        let tests = reached.then(|| self.junit(owner, &workdir)).flatten();
        let Some(failure) = failure else {
            let stage = self.stage("results");
            let brought = self.collect(lease, owner, target, tests.as_ref(), report);
            stage.end(brought.is_ok());
            return brought;
        };
        report.down = matches!(failure, RunFailure::MachineDown);
        // If the command may still be running in the tree, the tree must not be handed to another run as it
        // is.
        report.unquiet = may_still_run(&failure);
        if !matches!(
            failure,
            RunFailure::Interrupted { .. } | RunFailure::Unread { .. }
        ) {
            report.ended = Some(ended);
        }
        Err(failure.into())
    }

    /// Why a command with this status counts as failed, if it does. `is_unread`: a reader of its output has
    /// gone.
    fn failure(&self, lease: &Lease, status: RemoteStatus, is_unread: bool) -> Option<RunFailure> {
        match status {
            RemoteStatus::Exited(0) => None,
            RemoteStatus::Exited(code) => Some(RunFailure::Exited(code)),
            RemoteStatus::Killed => Some(RunFailure::Killed),
            RemoteStatus::ConnectionLost if self.went_down(lease) => Some(RunFailure::MachineDown),
            RemoteStatus::ConnectionLost if self.provider.is_given_back(lease) => {
                Some(RunFailure::GivenBack { id: lease.id.clone() })
            }
            RemoteStatus::ConnectionLost => Some(RunFailure::Lost),
            RemoteStatus::Cancelled { stopped } if is_unread => Some(RunFailure::Unread { stopped }),
            RemoteStatus::Cancelled { stopped } | RemoteStatus::TimedOut { stopped } => {
                Some(RunFailure::Interrupted { stopped })
            }
        }
    }

    /// Whether the connection broke because the machine went down; if so, what its console said last is
    /// reported. A guest that powers itself off closes its connections first.
    pub(super) fn went_down(&self, lease: &Lease) -> bool {
        let down = || match self.provider.is_down(lease) {
            Some(false) => None,
            told => Some(told.is_some()),
        };
        let is_down = clock::poll_until(GOING_DOWN, down).unwrap_or(false);
        if is_down && let Some(console) = &self.console {
            // The supervisor notices the end when we do, and adds how the VMM ended.
            let whole = || {
                let lines = console.tail(LAST_LINES);
                let is_whole = lines
                    .last()
                    .is_some_and(|line| line.starts_with(vmm_end::VMM_END_PREFIX));
                is_whole.then_some(lines)
            };
            let lines = clock::poll_until(LAST_WORDS, whole).unwrap_or_else(|| console.tail(LAST_LINES));
            self.events.end(&EndEvent::WentDown { console: &lines });
        }
        is_down
    }

    /// Uploads the script, if there is one, and returns its path.
    fn upload(&self, owner: &mut Owner, workdir: &str) -> Result<Option<String>, RunError> {
        let Some(script) = &self.work.script else {
            return Ok(None);
        };
        let name = Path::new(&script.source)
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        let path = command::upload_script(owner, workdir, &name, &script.content, self.interrupts.as_fd())?;
        self.events.command(&CommandEvent::Uploaded {
            source: &script.source,
            path: &path,
        });
        Ok(Some(path))
    }

    /// What our wrapper script does before the command, which saves a separate execution.
    fn before(&self, workdir: &str) -> String {
        let mut before = String::new();
        if let Some(name) = &self.request.command.env_helper {
            before.push_str(&env_profile::helper_lines(name, workdir, &self.variables.profile));
            self.events.command(&CommandEvent::Helper { name });
        }
        before
    }

    /// The variables of the command: first those that are allowed through, then ours.
    fn env(&self, lease: &Lease) -> Vec<(String, String)> {
        let mut env = self.variables.all(&self.work.env);
        self.events.command(&CommandEvent::Forwarding {
            lease,
            variables: &env,
            allow: &self.variables.allow,
        });
        for (name, value) in [
            ("CRABBOX_LEASE_ID", lease.id.as_str()),
            ("CRABBOX_RUN_ID", self.id.as_str()),
            ("CRABBOX_SLUG", &lease.slug),
        ] {
            env.push((name.to_owned(), value.to_owned()));
        }
        env
    }

    /// The destination of a stream: passed through, or written to a private file, limited by the free space.
    fn capture<'a>(&self, path: Option<&Path>, pass: &'a Pass<'a>) -> Result<To<'a>, RunError> {
        let Some(path) = path else {
            return Ok(To::Pass(pass));
        };
        let path = self.here.cwd.join(path);
        let file = Place::new(&self.repo.root, &path, Access::Private)
            .and_then(|place| place.stream())
            .map_err(RemoteError::from)?;
        let budget = Budget::free_space(&file).map_err(|source| RunFailure::Capture { path, source })?;
        Ok(To::File(Bounded::new(file, budget)))
    }
}

/// The variables that `allow` lets through.
fn forwarded(variables: &[(String, String)], allow: &Allow) -> Vec<(String, String)> {
    variables
        .iter()
        .filter(|(name, _)| allow.judge(name) == Verdict::Passes)
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_allowed_variables_are_forwarded() {
        let variables = [
            ("CI", "1"),
            ("CRABBOX_SLUG", "no"),
            ("MY_A", "a"),
            ("MY_B", ""),
            ("SECRET", "s"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut allow = Allow::default();
        allow.trust(["CI", "MY_*", "*", "CRABBOX_SLUG"]);
        let names: Vec<String> = forwarded(&variables, &allow)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["CI", "MY_A", "MY_B"]);
    }
}
