//! The request of a run: its lease, its tree, its command, its results; and the validation before anything
//! happens.
//!
//! A request is plain data, whether it comes from a command line, a job of the configuration, or a command
//! that runs others. All rules about conflicting wishes are here.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crabbox_core::config::Settings;
use crabbox_core::config::profiles::ProofTemplate;
use crabbox_core::fault::{Fault, Kind};
use crabbox_workspace::command::Form;
use crabbox_workspace::preflight::{self, UnknownTool};
use crabbox_workspace::quote;
use crabbox_workspace::results::pattern::{Pattern, PatternError};
use crabbox_workspace::results::schema::{self, SchemaError};

use super::proof_text::{self, ProofTextError};
use super::template::{TemplateError, Variables};

mod options;

pub use options::{CommandOptions, LeaseOptions, ResultOptions, RunRequest, StopAfter, SyncOptions};

/// The largest script that is uploaded, in bytes.
const SCRIPT_LIMIT: u64 = 16 << 20;

/// Why a request cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// There is no command.
    #[error("usage: crabbox run [flags] -- <command...>")]
    Usage,
    /// An unknown tool is to be shown.
    #[error(transparent)]
    Preflight(#[from] UnknownTool),
    /// Two flags exclude each other.
    #[error("{first} cannot be combined with {second}")]
    Conflict {
        /// The first.
        first: &'static str,
        /// The second.
        second: &'static str,
    },
    /// There are two sources for the script.
    #[error("--script and --script-stdin are mutually exclusive")]
    TwoScripts,
    /// A slug was given for an existing lease.
    #[error("--slug only applies when creating a new lease; omit --id or use the existing slug")]
    SlugWithId,
    /// A signing key was given without a receipt.
    #[error("--attest-key requires --attest")]
    KeyAlone,
    /// Both streams would go to the same file.
    #[error("capture stdout/stderr: paths must be different")]
    SamePath,
    /// A download lacks one of its two parts.
    #[error("--download expects remote=local")]
    Download,
    /// The script is empty.
    #[error("script {source_name} is empty")]
    EmptyScript {
        /// Its source.
        source_name: String,
    },
    /// The script is too large.
    #[error("script {source_name} is larger than {} MiB", SCRIPT_LIMIT >> 20)]
    LargeScript {
        /// Its source.
        source_name: String,
    },
    /// The script cannot be read.
    #[error("read script {}", path.display())]
    Script {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The preset does not exist.
    #[error("unknown preset {name:?}")]
    Preset {
        /// The name.
        name: String,
        /// The existing names.
        known: Vec<String>,
    },
    /// A placeholder, or its value, is not valid.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The proof template does not exist.
    #[error("proof template {name:?} is not configured for profile {profile:?}")]
    ProofTemplate {
        /// The name.
        name: String,
        /// The profile.
        profile: String,
        /// The existing names.
        known: Vec<String>,
    },
    /// A schema is not valid, or has no file.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// A text of a proof template uses an unknown variable.
    #[error(transparent)]
    ProofText(#[from] ProofTextError),
    /// An artifact pattern is not valid.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// An argument is not valid UTF-8.
    #[error("the command has a word that is not valid UTF-8: {}", word.to_string_lossy())]
    NotText {
        /// The argument.
        word: OsString,
    },
}

impl Fault for RequestError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Preset { known, .. } if known.is_empty() => {
                vec!["a preset is written under `presets` in a configuration file".to_owned()]
            }
            Self::ProofTemplate { known, .. } if known.is_empty() => {
                vec!["a proof template is written under `proofTemplates` in a configuration file".to_owned()]
            }
            Self::Preset { known, .. } | Self::ProofTemplate { known, .. } => {
                vec![format!("the configuration has {}", known.join(", "))]
            }
            Self::Template(error) => error.hints(),
            _ => Vec::new(),
        }
    }
}

/// A script to upload and run.
#[derive(Debug)]
pub struct Script {
    /// Its source, for messages.
    pub source: String,
    /// Its content.
    pub content: Vec<u8>,
}

/// The work of a run: a validated request with its script read.
#[derive(Debug)]
pub struct Work {
    /// The script, if the command is one.
    pub script: Option<Script>,
    /// The command's words, or the script's arguments.
    pub words: Vec<String>,
    /// Files to download: the remote path and the local one.
    pub downloads: Vec<(String, PathBuf)>,
    /// Patterns of files to fetch.
    pub artifacts: Vec<Pattern>,
    /// Patterns of required files.
    pub required: Vec<Pattern>,
    /// Required files that must satisfy a schema.
    pub schemas: Vec<schema::Required>,
    /// Whether a shell interprets the words.
    pub shell: bool,
    /// Whether to show the lease's tools first.
    pub preflight: bool,
    /// Which tools to show.
    pub tools: Vec<&'static str>,
    /// Variables from the configuration.
    pub env: Vec<(String, String)>,
    /// The values of the configuration's placeholders.
    pub variables: Variables,
    /// The name and template of the proof, if a proof is wanted and has a template.
    pub proof: Option<(String, ProofTemplate)>,
}

impl Work {
    /// Checks the flags and reads the script.
    pub fn new(request: &RunRequest) -> Result<Self, RequestError> {
        check(request)?;
        let words = request.command.words.iter().map(|word| {
            word.clone()
                .into_string()
                .map_err(|word| RequestError::NotText { word })
        });
        let words: Vec<String> = words.collect::<Result<_, _>>()?;
        let script = script(&request.command)?;
        if script.is_none() && words.is_empty() && !request.sync.sync_only && request.command.preset.is_none()
        {
            return Err(RequestError::Usage);
        }
        let downloads = request.results.download.iter().map(|pair| {
            let (remote, local) = pair.split_once('=').ok_or(RequestError::Download)?;
            if remote.is_empty() || local.is_empty() {
                Err(RequestError::Download)
            } else {
                Ok((remote.to_owned(), local.into()))
            }
        });
        Ok(Self {
            script,
            downloads: downloads.collect::<Result<_, _>>()?,
            artifacts: patterns(&request.results.artifact_glob)?,
            required: patterns(&request.results.require_artifact)?,
            schemas: schema::load(&request.results.require_artifact_schema)?,
            words,
            shell: request.command.shell,
            preflight: request.command.preflight,
            tools: Vec::new(),
            env: Vec::new(),
            variables: Variables::new(&request.command.preset_vars, request.command.scenario.as_deref())?,
            proof: None,
        })
    }

    /// Adds what the configuration contributes: the profile, and the named preset and proof template.
    pub fn configured(mut self, settings: &Settings, request: &RunRequest) -> Result<Self, RequestError> {
        self.artifacts.extend(patterns(&settings.artifact_globs)?);
        self.tools = preflight::tools(&settings.preflight_tools.value)?;
        let profile = &settings.profile.value;
        let mut env = self.filled(&format!("profile {profile}"), &settings.env)?;
        let mut template = request.results.proof_template.clone().unwrap_or_default();
        if let Some(name) = &request.command.preset {
            let preset = settings.presets.get(name).ok_or_else(|| RequestError::Preset {
                name: name.clone(),
                known: settings.presets.keys().cloned().collect(),
            })?;
            let place = format!("preset {name}");
            env.extend(self.filled(&place, &preset.env)?);
            let script = self
                .variables
                .fill_script(&format!("{place} command"), &preset.command)?;
            // The inserted values are quoted for a shell, so a shell must run the command.
            self.shell |= preset.shell || script.is_some();
            self.words = vec![script.unwrap_or_else(|| preset.command.clone())];
            self.preflight |= preset.preflight;
            self.artifacts.extend(patterns(&preset.artifact_globs)?);
            if template.is_empty() {
                template.clone_from(&preset.proof_template);
            }
        }
        if request.results.emit_proof.is_some() && !template.is_empty() {
            let found = settings.proof_templates.get(&template);
            let found = found.ok_or_else(|| RequestError::ProofTemplate {
                name: template.clone(),
                profile: settings.profile.value.clone(),
                known: settings.proof_templates.keys().cloned().collect(),
            })?;
            let found = proof_text::prepare(found, &mut self.variables)?;
            self.proof = Some((template, found));
        }
        self.env = env.into_iter().collect();
        Ok(self)
    }

    /// The command's variables with their placeholders filled in; `place` names their origin in errors.
    fn filled(
        &mut self,
        place: &str,
        env: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, RequestError> {
        let filled = env.iter().map(|(name, text)| {
            let text = self.variables.fill(&format!("{place} env {name}"), text)?;
            Ok((name.clone(), text))
        });
        filled.collect()
    }

    /// The command in the form that is sent to the lease; `uploaded` is the script's path there.
    pub fn form(&self, uploaded: Option<&str>) -> Form {
        match (uploaded, &self.script) {
            (Some(path), Some(script)) => {
                let direct = script.content.starts_with(b"#!");
                let mut words = if direct {
                    vec![format!("./{path}")]
                } else {
                    vec!["bash".to_owned(), path.to_owned()]
                };
                words.extend(self.words.iter().cloned());
                Form::Argv(words)
            }
            _ if self.shell => Form::shell(&self.words),
            _ => Form::detect(&self.words),
        }
    }

    /// The command for display: a shell command line with the same words.
    pub fn display(&self) -> String {
        let script = self.script.iter().map(|script| &script.source);
        quote::line(script.chain(&self.words))
    }
}

impl Work {
    /// The words that identify runs of the same command in the records.
    pub fn recorded(&self) -> Vec<String> {
        let mut words = match &self.script {
            None => Vec::new(),
            Some(script) if script.source == "stdin" => vec!["--script-stdin".to_owned()],
            Some(script) => vec!["--script".to_owned(), script.source.clone()],
        };
        words.extend(self.words.iter().cloned());
        words
    }
}

fn patterns(list: &[String]) -> Result<Vec<Pattern>, PatternError> {
    list.iter().map(|text| text.parse()).collect()
}

fn check(request: &RunRequest) -> Result<(), RequestError> {
    let script = request.command.script.is_some() || request.command.script_stdin;
    let conflict = |first, second| Err(RequestError::Conflict { first, second });
    if request.command.script.is_some() && request.command.script_stdin {
        return Err(RequestError::TwoScripts);
    }
    if request.command.preset.is_some() {
        let other = [
            (!request.command.words.is_empty(), "a command"),
            (script, "--script"),
            (request.sync.sync_only, "--sync-only"),
        ];
        if let Some((_, other)) = other.into_iter().find(|(given, _)| *given) {
            return conflict("--preset", other);
        }
    }
    if request.lease.id.is_some() && request.lease.slug.is_some() {
        return Err(RequestError::SlugWithId);
    }
    if request.sync.full_resync && request.sync.no_sync {
        return conflict("--full-resync", "--no-sync");
    }
    if script && request.sync.sync_only {
        return conflict("--script", "--sync-only");
    }
    if request.sync.sync_only && request.sync.no_sync {
        return conflict("--sync-only", "--no-sync");
    }
    if request.sync.sync_only && !request.results.artifact_glob.is_empty() {
        return conflict("--artifact-glob", "--sync-only");
    }
    if request.sync.sync_only && !request.results.require_artifact.is_empty() {
        return conflict("--require-artifact", "--sync-only");
    }
    if request.sync.sync_only && !request.results.require_artifact_schema.is_empty() {
        return conflict("--require-artifact-schema", "--sync-only");
    }
    if request.sync.sync_only && request.results.emit_proof.is_some() {
        return conflict("--emit-proof", "--sync-only");
    }
    if request.sync.sync_only && request.results.attest.is_some() {
        return conflict("--attest", "--sync-only");
    }
    if request.results.attest_key.is_some() && request.results.attest.is_none() {
        return Err(RequestError::KeyAlone);
    }
    let (out, err) = (&request.results.capture_stdout, &request.results.capture_stderr);
    if out.is_some() && out == err {
        return Err(RequestError::SamePath);
    }
    Ok(())
}

fn script(command: &CommandOptions) -> Result<Option<Script>, RequestError> {
    let (source, content) = match &command.script {
        Some(path) => (path.display().to_string(), read(path)?),
        None if command.script_stdin => {
            let path = Path::new("/dev/stdin");
            let mut content = Vec::new();
            let read = std::io::stdin()
                .lock()
                .take(SCRIPT_LIMIT + 1)
                .read_to_end(&mut content);
            read.map_err(|source| RequestError::Script {
                path: path.to_owned(),
                source,
            })?;
            ("stdin".to_owned(), content)
        }
        None => return Ok(None),
    };
    if content.is_empty() {
        return Err(RequestError::EmptyScript { source_name: source });
    }
    if content.len() as u64 > SCRIPT_LIMIT {
        return Err(RequestError::LargeScript { source_name: source });
    }
    Ok(Some(Script { source, content }))
}

fn read(path: &Path) -> Result<Vec<u8>, RequestError> {
    let failed = |source| RequestError::Script {
        path: path.to_owned(),
        source,
    };
    let mut content = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(SCRIPT_LIMIT + 1)
        .read_to_end(&mut content)
        .map_err(failed)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a lease ends after a successful run and after a failed one, first for a new lease, then for an
    /// existing one.
    fn over(wish: &LeaseOptions) -> [bool; 4] {
        [(true, false), (true, true), (false, false), (false, true)]
            .map(|(new, failed)| wish.is_over(new, failed))
    }

    #[test]
    fn a_new_lease_goes_unless_it_is_kept_and_a_word_about_its_end_wins() {
        let plain = LeaseOptions::default;
        let kept = || LeaseOptions {
            keep: true,
            ..plain()
        };
        let for_failures = || LeaseOptions {
            keep_on_failure: true,
            ..plain()
        };
        assert_eq!(over(&plain()), [true, true, false, false]);
        assert_eq!(over(&kept()), [false; 4]);
        assert_eq!(over(&for_failures()), [true, false, false, false]);
        for wish in [plain(), kept(), for_failures()] {
            let after = |word| {
                over(&LeaseOptions {
                    stop_after: StopAfter::by_name(word),
                    ..wish.clone()
                })
            };
            assert_eq!(after("always"), [true; 4]);
            assert_eq!(after("never"), [false; 4]);
            assert_eq!(after("success"), [true, false, true, false]);
            assert_eq!(after("failure"), [false, true, false, true]);
            assert_eq!(after("auto"), over(&wish));
        }
    }

    #[test]
    fn what_excludes_each_other_is_refused_before_anything_happens() {
        let run = || RunRequest {
            command: CommandOptions {
                words: vec!["true".into()],
                ..CommandOptions::default()
            },
            ..RunRequest::default()
        };
        let refused = |change: fn(&mut RunRequest)| {
            let mut request = run();
            change(&mut request);
            Work::new(&request).unwrap_err().to_string()
        };
        assert!(Work::new(&run()).is_ok());
        assert_eq!(
            refused(|run| run.command.words.clear()),
            "usage: crabbox run [flags] -- <command...>"
        );
        assert_eq!(
            refused(|run| run.command.preset = Some("p".to_owned())),
            "--preset cannot be combined with a command"
        );
        assert_eq!(
            refused(|run| {
                run.sync.sync_only = true;
                run.sync.no_sync = true;
            }),
            "--sync-only cannot be combined with --no-sync"
        );
        assert_eq!(
            refused(|run| {
                run.lease.id = Some("a".to_owned());
                run.lease.slug = Some("b".to_owned());
            }),
            "--slug only applies when creating a new lease; omit --id or use the existing slug"
        );
        assert_eq!(
            refused(|run| {
                run.sync.sync_only = true;
                run.results.emit_proof = Some("p".into());
            }),
            "--emit-proof cannot be combined with --sync-only"
        );
        assert_eq!(
            refused(|run| {
                run.sync.sync_only = true;
                run.results.attest = Some("r".into());
            }),
            "--attest cannot be combined with --sync-only"
        );
        assert_eq!(
            refused(|run| run.results.attest_key = Some("k".into())),
            "--attest-key requires --attest"
        );
        assert_eq!(
            refused(|run| run.results.download.push("x".to_owned())),
            "--download expects remote=local"
        );
        assert_eq!(
            refused(|run| {
                run.results.capture_stdout = Some("x".into());
                run.results.capture_stderr = Some("x".into());
            }),
            "capture stdout/stderr: paths must be different"
        );
    }
}
