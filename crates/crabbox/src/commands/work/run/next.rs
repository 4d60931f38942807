//! What a failed run suggests to do next, as command lines to be pasted.
//!
//! It must never name what is gone when the lines are read: a lease that is given back, a machine that went down.

use crabbox_core::config::FlagValue;
use crabbox_engine::provider::lease::Lease;
use crabbox_engine::run::event::Onwards;
use crabbox_engine::run::report::RunReport;
use crabbox_engine::run::request::StopAfter;
use crabbox_host::console::harmless;

use super::words::RunWords;
use crate::args::RUN_GROUPS;
use crate::command_line::CommandLine;

impl RunWords<'_> {
    /// What can be done after a failure.
    pub(super) fn next(&self, lease: &Lease, report: &RunReport, onwards: &Onwards) -> Vec<CommandLine> {
        let given = &self.invocation.flags;
        let again = |given, name| Some(self.again(lease, given, name)?).filter(|_| report.retry() != "false");
        let ssh = |given, name| CommandLine::for_lease("ssh", lease.provider, given).option("id", name);
        match onwards {
            Onwards::Nowhere => again(given, None).into_iter().collect(),
            Onwards::Lease => {
                let mut next = vec![ssh(given, lease.slug.as_str())];
                next.extend(again(given, Some(&lease.slug)));
                next.push(CommandLine::stop(lease, given));
                next
            }
            Onwards::Host(leading) => {
                // By the name that the flags alone give it.
                let mut given: Vec<FlagValue> = given.clone();
                given.retain(|flag| leading.iter().all(|known| known.key != flag.key));
                given.extend(leading.iter().cloned());
                let mut next = vec![ssh(&given, lease.address.as_str())];
                next.extend(again(&given, Some(&lease.address)));
                next
            }
        }
    }

    /// The same run again: in the lease called `name`, or in a new one. None where no line can say it: a script that came from a
    /// file or from standard input, and words that a terminal does not show as they are.
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
            .maybe_option("scenario", command.scenario.as_deref());
        if command.preset.is_none() {
            line = line.rest(command.words.iter().cloned());
        }
        let has_script = command.script.is_some() || command.script_stdin;
        let shown = line.shown();
        let is_shown_whole = shown.split('\n').all(|part| harmless(part) == part);
        (!has_script && is_shown_whole).then_some(line)
    }
}
