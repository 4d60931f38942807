//! A run that failed: of what kind the failure is, and the bundle that it leaves here (behaviour reference 5.3).

use std::path::{Path, PathBuf};

use crabbox_core::fault::{Fault, Kind};
use crabbox_engine::lease::Lease;
use crabbox_engine::run::{RunError, bundle};
use schemars::JsonSchema;
use serde::Serialize;

use super::Run;
use super::report::{Ended, Summary};
use crate::timing::TimingJson;
use crate::ui::Document;

/// The most of a captured stream that goes into a bundle, in bytes.
const CAPTURED_LIMIT: u64 = 16 << 20;

/// What a failure is thought to be, from the words that were told about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Class {
    /// The area, as the digest names it.
    pub(super) area: &'static str,
    /// The stage that it blocks.
    pub(super) stage: &'static str,
    /// Whether another try may help: `true`, `false` or `unknown`.
    pub(super) retry: &'static str,
}

/// Words, and what they tell.
const KNOWN: [(&[&str], Class); 5] = [
    (
        // Our own words, see `RunFailure`.
        &[
            "the connection to the lease was lost",
            "the machine of the lease went down",
        ],
        Class {
            area: "ssh_connectivity",
            stage: "ssh",
            retry: "unknown",
        },
    ),
    (
        &["timed out waiting for ssh"],
        Class {
            area: "ssh_connectivity",
            stage: "ssh",
            retry: "true",
        },
    ),
    (
        &["exdev", "enomem", "err_pnpm"],
        Class {
            area: "install_setup",
            stage: "install",
            retry: "unknown",
        },
    ),
    (
        &["rate limit", "context length"],
        Class {
            area: "model_tool_provider_limit",
            stage: "model_call",
            retry: "unknown",
        },
    ),
    (
        &["out of memory", "cannot allocate memory"],
        Class {
            area: "resource_exhaustion",
            stage: "resource_exhaustion",
            retry: "false",
        },
    ),
];

/// The class of a failure that was told in these words.
pub(super) fn classify(text: &str) -> Option<Class> {
    let text = text.to_lowercase();
    KNOWN
        .iter()
        .find(|(words, _)| words.iter().any(|word| text.contains(word)))
        .map(|(_, class)| *class)
}

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub(super) enum BundleError {
    /// A document could not be written down.
    #[error("cannot describe the run")]
    Json(#[from] serde_json::Error),
    /// The file could not be written.
    #[error(transparent)]
    Write(#[from] RunError),
}

impl Fault for BundleError {
    fn kind(&self) -> Kind {
        Kind::General
    }
}

/// `crabbox-run.json` of a failure bundle.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct BundledRun<'a> {
    provider: &'a str,
    lease_id: &'a str,
    slug: &'a str,
    run_id: &'a str,
    command: String,
    workdir: &'a str,
    exit_code: i32,
    actions_run_url: &'static str,
    capture_on_fail_flag: bool,
}

const README: &str = "What a failed crabbox run left behind.\n\ncrabbox-run.json     the run\ntimings.json         where its time went\nenv.redacted.txt     the names of the variables it was given\nconfig.redacted.txt  its configuration\nstdout.log, stderr.log  the streams that were captured in files, or their last lines\n\nOutput of a command may hold secrets: look before you pass this on.\n";

impl Run<'_> {
    /// Writes the bundle and says where it is.
    pub(super) fn bundle(&self, lease: &Lease, summary: &Summary, ended: &Ended) -> Result<(), BundleError> {
        let now = crabbox_core::timestamp::rfc3339(crabbox_host::clock::unix_seconds());
        let stamp: String = now.chars().filter(|c| !matches!(c, '-' | ':')).collect();
        let name = format!(".crabbox/captures/{}-{stamp}.tar.gz", self.id.as_str());
        let run = BundledRun {
            provider: lease.provider,
            lease_id: &lease.id,
            slug: &lease.slug,
            run_id: self.id.as_str(),
            command: self.request.display(),
            workdir: &summary.outcome.workdir,
            exit_code: summary.outcome.exit_code,
            actions_run_url: "",
            capture_on_fail_flag: self.args.results.capture_on_fail,
        };
        let mut env = ended.env.join("=<redacted>\n");
        env.push_str("=<redacted>\n");
        let mut config = crate::commands::config::described(self.settings).join("\n");
        config.push('\n');
        let mut files = vec![
            ("crabbox-run.json".to_owned(), json(&run)?),
            (
                "timings.json".to_owned(),
                json(&TimingJson::new(lease, &summary.outcome))?,
            ),
            ("env.redacted.txt".to_owned(), env.into_bytes()),
            ("config.redacted.txt".to_owned(), config.into_bytes()),
            ("README.txt".to_owned(), README.as_bytes().to_vec()),
        ];
        let results = &self.args.results;
        for (name, path, tail) in [
            ("stdout.log", &results.capture_stdout, &ended.stdout),
            ("stderr.log", &results.capture_stderr, &ended.stderr),
        ] {
            let content = match path {
                Some(path) => captured(path),
                None => tail.join("\n").into_bytes(),
            };
            files.push((name.to_owned(), content));
        }
        let path: PathBuf = self.repo.root.join(&name);
        let bytes = bundle::write(&path, &files)?;
        self.ctx.printer.note(format_args!(
            "failure-bundle local={name} bytes={bytes} secret_risk=caller-redacts-before-sharing"
        ));
        Ok(())
    }
}

fn json(value: &impl Document) -> Result<Vec<u8>, BundleError> {
    Ok(serde_json::to_vec(value)?)
}

/// The beginning of a captured stream; a file that has gone meanwhile is an empty one.
fn captured(path: &Path) -> Vec<u8> {
    use std::io::Read as _;
    let mut content = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        file.take(CAPTURED_LIMIT).read_to_end(&mut content).ok();
    }
    content
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::run::error::RunFailure;

    #[test]
    fn known_words_tell_the_class() {
        let class = |text: &str| classify(text).map(|class| (class.stage, class.retry));
        assert_eq!(
            class("timed out waiting for SSH on 10.0.0.2"),
            Some(("ssh", "true"))
        );
        let ours = [RunFailure::Lost, RunFailure::MachineDown].map(|failure| failure.to_string());
        for text in ours {
            assert_eq!(class(&text), Some(("ssh", "unknown")), "{text}");
        }
        assert_eq!(class("ERR_PNPM_X"), Some(("install", "unknown")));
        assert_eq!(
            class("fork: Cannot allocate memory"),
            Some(("resource_exhaustion", "false"))
        );
        assert_eq!(class("assertion failed"), None);
    }
}
