//! The next steps that a failed run suggests, as command lines to be pasted.
//!
//! It must never name something that is gone when the lines are read: a lease that was given back, a machine
//! that went down.

use std::path::Path;

use crabbox_core::config::FlagValue;
use crabbox_engine::provider::lease::Lease;
use crabbox_engine::run::event::NextStep;
use crabbox_engine::run::report::RunReport;
use crabbox_engine::run::request::StopAfter;
use crabbox_host::console::harmless;

use super::words::RunWords;
use crate::args::RUN_GROUPS;
use crate::command_line::CommandLine;

impl RunWords<'_> {
    /// The possible next steps after a failure.
    pub(super) fn next(&self, lease: &Lease, report: &RunReport, onwards: &NextStep) -> Vec<CommandLine> {
        let given = &self.invocation.flags;
        let again = |given, name| Some(self.again(lease, given, name)?).filter(|_| report.retry() != "false");
        let ssh = |given, name| CommandLine::for_lease("ssh", lease.provider, given).option("id", name);
        match onwards {
            NextStep::Nowhere => again(given, None).into_iter().collect(),
            NextStep::Lease => {
                let mut next = vec![ssh(given, lease.slug.as_str())];
                next.extend(again(given, Some(&lease.slug)));
                next.push(CommandLine::stop(lease, given));
                next
            }
            NextStep::Host(leading) => {
                // Name the host as the flags alone identify it.
                let mut given: Vec<FlagValue> = given.clone();
                given.retain(|flag| leading.iter().all(|known| known.key != flag.key));
                given.extend(leading.iter().cloned());
                let mut next = vec![ssh(&given, lease.address.as_str())];
                next.extend(again(&given, Some(&lease.address)));
                next
            }
        }
    }

    /// The same run again: in the lease called `name`, or in a new one. `None` if no line can express it: a
    /// script read from a pipe, or words that a terminal does not show unchanged.
    fn again(&self, lease: &Lease, given: &[FlagValue], name: Option<&str>) -> Option<CommandLine> {
        let (request, manner) = (&self.invocation.request, self.invocation.manner);
        let (wish, sync) = (&request.lease, &request.sync);
        let (command, results) = (&request.command, &request.results);
        let mut line = CommandLine::new("run")
            .option("provider", lease.provider)
            .repeated(given, RUN_GROUPS)
            .maybe_option("id", name)
            .switch("fresh-sync", name.is_some() && !sync.no_sync)
            .switch("no-sync", sync.no_sync)
            .switch("debug", manner.debug)
            .maybe_option("stop-after", wish.stop_after.map(StopAfter::name))
            .switch("reclaim", wish.reclaim);
        if name.is_none() {
            line = line
                .maybe_option("slug", wish.slug.as_deref())
                .switch("keep", wish.keep)
                .switch("keep-on-failure", wish.keep_on_failure)
                .switch("yes", wish.set_up);
        }
        line = line
            .options("allow-env", &command.allow_env)
            .options("env-from-profile", &command.env_from_profile)
            .maybe_option("env-helper", command.env_helper.as_deref())
            .switch("preflight", command.preflight)
            .maybe_option("label", command.label.as_deref())
            .options("capture-stdout", &results.capture_stdout)
            .options("capture-stderr", &results.capture_stderr)
            .options("download", &results.download)
            .options("artifact-glob", &results.artifact_glob)
            .options("require-artifact", &results.require_artifact)
            .options("require-artifact-schema", &results.require_artifact_schema)
            .options("emit-proof", &results.emit_proof)
            .maybe_option("proof-template", results.proof_template.as_deref())
            .options("attest", &results.attest)
            .options("attest-key", &results.attest_key)
            .maybe_option("timing-record", results.timing_record.as_deref())
            .switch("timing-json", manner.timing_json)
            .switch("json-events", manner.json_events)
            .switch("verbose", manner.verbose)
            .switch("shell", command.shell)
            .maybe_option("preset", command.preset.as_deref())
            .options("preset-var", &command.preset_vars)
            .maybe_option("scenario", command.scenario.as_deref())
            .options("script", &command.script);
        // With a script the words after `--` are optional.
        if command.preset.is_none() && !(command.words.is_empty() && command.script.is_some()) {
            line = line.rest(command.words.iter().cloned());
        }
        let is_gone =
            command.script_stdin || command.script.as_deref().is_some_and(|script| !is_kept(script));
        let shown = line.shown();
        let is_shown_whole = shown.split('\n').all(|part| harmless(part) == part);
        (!is_gone && is_shown_whole).then_some(line)
    }
}

/// Whether `script` will still name the same script later: a regular file, and not one below `/dev` or
/// `/proc`, where a name can mean this process alone.
fn is_kept(script: &Path) -> bool {
    let is_ours = ["/dev", "/proc"].iter().any(|dir| script.starts_with(dir));
    !is_ours && script.to_str().is_some() && script.is_file()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    #[test]
    fn a_script_is_there_again_only_as_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("build.sh");
        assert!(!is_kept(&file));
        std::fs::write(&file, "true").unwrap();
        assert!(is_kept(&file));
        let unreadable = dir.path().join(OsStr::from_bytes(b"caf\xe9"));
        std::fs::write(&unreadable, "true").unwrap();
        assert!(!is_kept(&unreadable), "no line can show it");
        for gone in [
            "/dev/stdin",
            "/dev/fd/63",
            "/proc/self/fd/0",
            "/proc/self/status",
            "/tmp",
        ] {
            assert!(!is_kept(Path::new(gone)), "{gone}");
        }
    }
}
