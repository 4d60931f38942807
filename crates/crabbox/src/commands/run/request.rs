//! What is to be run: the words of the command line, its script, its environment, and the flags that exclude each other.

use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crabbox_core::config::Settings;
use crabbox_core::config::allow::{Allow, Verdict};
use crabbox_core::fault::{Fault, Kind};
use crabbox_engine::run::Form;
use crabbox_engine::run::pattern::{Pattern, PatternError};

use crate::args::RunArgs;
use crate::env::Env;

/// The largest script that is uploaded, in bytes.
const SCRIPT_LIMIT: u64 = 16 << 20;

/// Why the command line cannot be run.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// There is nothing to run.
    #[error("usage: crabbox run [flags] -- <command...>")]
    Usage,
    /// Two flags exclude each other.
    #[error("{first} cannot be combined with {second}")]
    Conflict {
        /// The first.
        first: &'static str,
        /// The second.
        second: &'static str,
    },
    /// Two sources for one script.
    #[error("--script and --script-stdin are mutually exclusive")]
    TwoScripts,
    /// A slug for a lease that has one.
    #[error("--slug only applies when creating a new lease; omit --id or use the existing slug")]
    SlugWithId,
    /// Both streams into one file.
    #[error("capture stdout/stderr: paths must be different")]
    SamePath,
    /// A download without its two halves.
    #[error("--download expects remote=local")]
    Download,
    /// A script without a byte.
    #[error("script {source_name} is empty")]
    EmptyScript {
        /// Where it came from.
        source_name: String,
    },
    /// A script that is too large.
    #[error("script {source_name} is larger than {} MiB", SCRIPT_LIMIT >> 20)]
    LargeScript {
        /// Where it came from.
        source_name: String,
    },
    /// A script that cannot be read.
    #[error("read script {}", path.display())]
    Script {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// No preset of that name.
    #[error("unknown preset {name:?}")]
    Preset {
        /// The name.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// A pattern for artifacts that is none.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// A word that is not text.
    #[error("the command has a word that is not valid UTF-8: {}", word.to_string_lossy())]
    NotText {
        /// The word.
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
            Self::Preset { known, .. } => vec![format!("the configuration has {}", known.join(", "))],
            _ => Vec::new(),
        }
    }
}

/// A script to be uploaded and run.
#[derive(Debug)]
pub(super) struct Script {
    /// Where it came from, for a line.
    pub(super) source: String,
    /// Its content.
    pub(super) content: Vec<u8>,
}

/// What is to be run.
#[derive(Debug)]
pub(super) struct Request {
    /// The script, if it is one.
    pub(super) script: Option<Script>,
    /// The words: the command, or the script's arguments.
    pub(super) words: Vec<String>,
    /// `--download`, taken apart.
    pub(super) downloads: Vec<(String, PathBuf)>,
    /// `--artifact-glob`.
    pub(super) artifacts: Vec<Pattern>,
    /// `--require-artifact`.
    pub(super) required: Vec<Pattern>,
    /// Whether a shell gets the words as they are.
    pub(super) shell: bool,
    /// Whether the tools of the lease are shown first.
    pub(super) preflight: bool,
    /// Variables from the configuration.
    pub(super) env: Vec<(String, String)>,
}

impl Request {
    /// Checks the flags and reads the script.
    pub(super) fn new(args: &RunArgs) -> Result<Self, RequestError> {
        check(args)?;
        let words = args.command.words.iter().map(|word| {
            word.clone()
                .into_string()
                .map_err(|word| RequestError::NotText { word })
        });
        let words: Vec<String> = words.collect::<Result<_, _>>()?;
        let script = script(args)?;
        if script.is_none() && words.is_empty() && !args.sync.sync_only && args.command.preset.is_none() {
            return Err(RequestError::Usage);
        }
        let downloads = args.results.download.iter().map(|pair| {
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
            artifacts: patterns(&args.results.artifact_glob)?,
            required: patterns(&args.results.require_artifact)?,
            words,
            shell: args.command.shell,
            preflight: args.command.preflight,
            env: Vec::new(),
        })
    }

    /// The same with what the configuration adds: the profile, and the preset if one is named.
    pub(super) fn configured(
        mut self,
        settings: &Settings,
        preset: Option<&str>,
    ) -> Result<Self, RequestError> {
        self.artifacts.extend(patterns(&settings.artifact_globs)?);
        let mut env = settings.env.clone();
        if let Some(name) = preset {
            let preset = settings.presets.get(name).ok_or_else(|| RequestError::Preset {
                name: name.to_owned(),
                known: settings.presets.keys().cloned().collect(),
            })?;
            self.words = vec![preset.command.clone()];
            self.shell |= preset.shell;
            self.preflight |= preset.preflight;
            self.artifacts.extend(patterns(&preset.artifact_globs)?);
            env.extend(preset.env.clone());
        }
        self.env = env.into_iter().collect();
        Ok(self)
    }

    /// The command in the form that the other side gets; `uploaded` is the script's path there.
    pub(super) fn form(&self, uploaded: Option<&str>) -> Form {
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

    /// The command as it is shown.
    pub(super) fn display(&self) -> String {
        match &self.script {
            Some(script) => format!("{} {}", script.source, self.words.join(" "))
                .trim_end()
                .to_owned(),
            None => self.words.join(" "),
        }
    }
}

fn patterns(list: &[String]) -> Result<Vec<Pattern>, PatternError> {
    list.iter().map(|text| text.parse()).collect()
}

fn check(args: &RunArgs) -> Result<(), RequestError> {
    let script = args.command.script.is_some() || args.command.script_stdin;
    let conflict = |first, second| Err(RequestError::Conflict { first, second });
    if args.command.script.is_some() && args.command.script_stdin {
        return Err(RequestError::TwoScripts);
    }
    if args.command.preset.is_some() {
        let other = [
            (!args.command.words.is_empty(), "a command"),
            (script, "--script"),
            (args.sync.sync_only, "--sync-only"),
        ];
        if let Some((_, other)) = other.into_iter().find(|(given, _)| *given) {
            return conflict("--preset", other);
        }
    }
    if args.id.is_some() && args.slug.is_some() {
        return Err(RequestError::SlugWithId);
    }
    if args.sync.full_resync && args.sync.no_sync {
        return conflict("--full-resync", "--no-sync");
    }
    if script && args.sync.sync_only {
        return conflict("--script", "--sync-only");
    }
    if args.sync.sync_only && args.sync.no_sync {
        return conflict("--sync-only", "--no-sync");
    }
    if args.sync.sync_only && !args.results.artifact_glob.is_empty() {
        return conflict("--artifact-glob", "--sync-only");
    }
    if args.sync.sync_only && !args.results.require_artifact.is_empty() {
        return conflict("--require-artifact", "--sync-only");
    }
    let (out, err) = (&args.results.capture_stdout, &args.results.capture_stderr);
    if out.is_some() && out == err {
        return Err(RequestError::SamePath);
    }
    Ok(())
}

fn script(args: &RunArgs) -> Result<Option<Script>, RequestError> {
    let (source, content) = match &args.command.script {
        Some(path) => (path.display().to_string(), read(path)?),
        None if args.command.script_stdin => {
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

/// The variables that `allow` lets through, in order of their names.
pub(super) fn forwarded(env: &Env, allow: &Allow) -> Vec<(String, String)> {
    env.texts()
        .filter(|(name, _)| allow.judge(name) == Verdict::Passes)
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_allowed_variables_are_forwarded() {
        let env = Env::for_test(
            Path::new("/"),
            &[
                ("CI", "1"),
                ("MY_A", "a"),
                ("MY_B", ""),
                ("SECRET", "s"),
                ("CRABBOX_SLUG", "no"),
            ],
        );
        let mut allow = Allow::default();
        allow.trust(["CI", "MY_*", "*", "CRABBOX_SLUG"].map(str::to_owned));
        let names: Vec<String> = forwarded(&env, &allow)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["CI", "MY_A", "MY_B"]);
    }
}
