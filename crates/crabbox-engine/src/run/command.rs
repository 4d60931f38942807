//! The command of a run: what it is given, where its streams go, and what its end means.
//!
//! Values of variables must never stand in an argument vector or in a line that is printed.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crabbox_core::config::allow::{Allow, Verdict};
use crabbox_host::budget::{Bounded, Budget};
use crabbox_host::clock;
use crabbox_host::place::{Access, Place};
use crabbox_workspace::command::{self, Job, RemoteError, RemoteStatus};
use crabbox_workspace::env_profile::{self, ProfileError};
use crabbox_workspace::owner::Owner;
use crabbox_workspace::tee::{Phases, Tee, To};
use crabbox_workspace::transcript::Transcript;

use crate::provider::lease::{Lease, Target};
use crate::run::error::{RunError, RunFailure};
use crate::run::event::{CommandEvent, StartEvent};
use crate::run::report::{Ended, RunReport};
use crate::run::witnessed::Witnessed;
use crate::run::{Given, Run};

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

/// The variables that the request and the configuration let through.
pub(super) fn variables(given: &Given<'_>) -> Result<Variables, RunError> {
    let (command, settings, here) = (&given.request.command, given.settings, given.here);
    let mut allow = Allow::new(&settings.env_allow);
    allow.trust(
        command
            .allow_env
            .iter()
            .flat_map(|list| list.split(','))
            .map(str::to_owned),
    );
    let mut profile = env_profile::read(&command.env_from_profile, &here.cwd)?;
    let of_file = profile.iter().map(|(name, _)| name.as_str());
    let of_process = here.variables.iter().map(|(name, _)| name.as_str());
    let withheld: BTreeSet<&str> = of_file
        .chain(of_process)
        .filter(|name| allow.judge(name) == Verdict::Withheld)
        .collect();
    for name in withheld {
        given.events.start(&StartEvent::Withheld {
            name,
            origin: &settings.env_allow.origin,
        });
    }
    for name in here
        .not_text
        .iter()
        .filter(|name| allow.judge(name) == Verdict::Passes)
    {
        given.events.start(&StartEvent::NotText { name });
    }
    profile.retain(|(name, _)| allow.judge(name) == Verdict::Passes);
    if let Some(name) = &command.env_helper {
        env_profile::helper(name)?;
        if profile.is_empty() {
            return Err(ProfileError::NothingForHelper.into());
        }
    }
    Ok(Variables { allow, profile })
}

impl Run<'_> {
    /// Runs the command and brings back what it leaves.
    #[expect(
        clippy::too_many_lines,
        reason = "one command, whose streams all of it shares"
    )]
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
        let failure = match status {
            RemoteStatus::Exited(0) => None,
            RemoteStatus::Exited(code) => Some(RunFailure::Exited(code)),
            RemoteStatus::Killed => Some(RunFailure::Killed),
            RemoteStatus::ConnectionLost if self.went_down(lease) => Some(RunFailure::MachineDown),
            RemoteStatus::ConnectionLost if self.provider.is_given_back(lease) => {
                Some(RunFailure::GivenBack { id: lease.id.clone() })
            }
            RemoteStatus::ConnectionLost => Some(RunFailure::Lost),
            RemoteStatus::Cancelled { stopped } | RemoteStatus::TimedOut { stopped } => {
                Some(RunFailure::Interrupted { stopped })
            }
        };
        let reached = matches!(status, RemoteStatus::Exited(_));
        let tests = reached.then(|| self.junit(owner, &workdir)).flatten();
        let Some(failure) = failure else {
            let stage = self.stage("results");
            let brought = self.collect(lease, owner, target, tests.as_ref(), report);
            stage.end(brought.is_ok());
            return brought;
        };
        report.down = matches!(failure, RunFailure::MachineDown);
        // A tree in which the command may still run is not handed on as it is.
        report.unquiet = matches!(
            failure,
            RunFailure::Lost
                | RunFailure::Killed
                | RunFailure::GivenBack { .. }
                | RunFailure::MachineDown
                | RunFailure::Interrupted { stopped: false }
        );
        if !matches!(failure, RunFailure::Interrupted { .. }) {
            report.ended = Some(ended);
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

    /// Brings the script over, if there is one; returns its path.
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

    /// What the command's own script does before the command, so that it costs no execution of its own.
    fn before(&self, workdir: &str) -> String {
        let mut before = String::new();
        if let Some(name) = &self.request.command.env_helper {
            before.push_str(&env_profile::helper_lines(name, workdir, &self.variables.profile));
            self.events.command(&CommandEvent::Helper { name });
        }
        before
    }

    /// Variables of the command: those that are allowed through, then ours.
    fn env(&self, lease: &Lease) -> Vec<(String, String)> {
        let Variables { allow, profile } = &self.variables;
        // A variable of this process wins over the file.
        let own = forwarded(&self.here.variables, allow);
        let mut env = self.work.env.clone();
        env.retain(|(name, _)| profile.iter().all(|(known, _)| known != name));
        env.extend(profile.clone());
        env.retain(|(name, _)| own.iter().all(|(known, _)| known != name));
        env.extend(own);
        self.events.command(&CommandEvent::Forwarding {
            lease,
            variables: &env,
            allow,
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

    /// Where a stream goes: through to ours, or into a private file that takes no more than there is room for.
    fn capture<'a>(&self, path: Option<&Path>, pass: &'a (dyn Fn(&[u8]) + Sync)) -> Result<To<'a>, RunError> {
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

/// Those of `variables` that `allow` lets through.
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
        allow.trust(["CI", "MY_*", "*", "CRABBOX_SLUG"].map(str::to_owned));
        let names: Vec<String> = forwarded(&variables, &allow)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["CI", "MY_A", "MY_B"]);
    }
}
