//! The bundle that is written locally for a failed run. Its entries are the Go program's.

use std::io::Read as _;
use std::path::Path;

use crabbox_host::place::{Access, Place};
use crabbox_workspace::command::RemoteError;
use crabbox_workspace::results::bundle;

use crate::provider::lease::Lease;
use crate::run::Run;
use crate::run::error::BundleError;
use crate::run::event::EndEvent;
use crate::run::report::{Ended, RunReport};

/// How much of a captured stream goes into a bundle at most, in bytes.
const CAPTURED_LIMIT: u64 = 16 << 20;

const README: &str = "What a failed crabbox run left behind.\n\ncrabbox-run.json     the run\ntimings.json         where its time went\nenv.redacted.txt     the names of the variables it was given\nconfig.redacted.txt  its configuration\nstdout.log, stderr.log  the streams that were captured in files, or their last lines\n\nOutput of a command may hold secrets: look before you pass this on.\n";

impl Run<'_> {
    /// Writes the bundle and reports its path.
    pub(super) fn bundle(&self, lease: &Lease, report: &RunReport, ended: &Ended) -> Result<(), BundleError> {
        let now = crabbox_core::timestamp::rfc3339(crabbox_host::clock::unix_seconds());
        let stamp: String = now.chars().filter(|c| !matches!(c, '-' | ':')).collect();
        let name = format!(".crabbox/captures/{}-{stamp}.tar.gz", self.id.as_str());
        let (events, outcome) = (self.events, &report.outcome);
        let mut env = ended.env.join("=<redacted>\n");
        env.push_str("=<redacted>\n");
        let mut config = events.configuration().join("\n");
        config.push('\n');
        let mut files = vec![
            (
                "crabbox-run.json".to_owned(),
                events.failed_run(lease, outcome, &self.work.display())?,
            ),
            ("timings.json".to_owned(), events.timing(lease, outcome)?),
            ("env.redacted.txt".to_owned(), env.into_bytes()),
            ("config.redacted.txt".to_owned(), config.into_bytes()),
            ("README.txt".to_owned(), README.as_bytes().to_vec()),
        ];
        let results = &self.request.results;
        for (name, path, tail) in [
            ("stdout.log", &results.capture_stdout, &ended.stdout),
            ("stderr.log", &results.capture_stderr, &ended.stderr),
        ] {
            let content = match path {
                Some(path) => captured(&self.here.cwd.join(path)),
                None => tail.join("\n").into_bytes(),
            };
            files.push((name.to_owned(), content));
        }
        let place =
            Place::below(&self.repo.root, Path::new(&name), Access::Private).map_err(RemoteError::from)?;
        let bytes = bundle::write(&place, &files)?;
        events.end(&EndEvent::Bundled { name: &name, bytes });
        Ok(())
    }
}

/// The beginning of a captured stream; empty if the file was deleted since.
fn captured(path: &Path) -> Vec<u8> {
    let mut content = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        file.take(CAPTURED_LIMIT).read_to_end(&mut content).ok();
    }
    content
}
