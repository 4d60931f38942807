//! One run of one plugin: its environment, its configuration on standard input, its result or its error.
//!
//! A plugin is a program of the host that runs with our privileges, so it is taken only from the given
//! directories, gets a time limit, and is killed with all its children when it exceeds it. Nothing here may
//! decide in which order plugins run.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use crabbox_host::command::{Captured, Cmd, CommandError};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::attachment::Attachment;
use crate::conf::{ConfList, Version};

/// How much of a plugin's output an error contains, in bytes.
const EXCERPT: usize = 1000;

/// The command for a plugin (`CNI_COMMAND`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Attach.
    Add,
    /// Detach.
    Del,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
        })
    }
}

/// Why one plugin failed.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// The program is in none of the directories.
    #[error("the CNI plugin {plugin} is not in {}", joined(.dirs))]
    Missing {
        /// The plugin.
        plugin: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// The program could not be run, or exceeded its time limit.
    #[error("the CNI plugin {plugin} did not finish {verb}")]
    Run {
        /// The plugin.
        plugin: String,
        /// The command.
        verb: Verb,
        /// What happened, including its standard error.
        #[source]
        source: CommandError,
    },
    /// The plugin failed and reported why, as the specification asks.
    #[error("the CNI plugin {plugin} failed on {verb} with code {code}: {msg}{}{}", said(" (", .details, ")"), said("; it printed: ", .stderr, ""))]
    Reported {
        /// The plugin.
        plugin: String,
        /// The command.
        verb: Verb,
        /// Its error code; the specification defines those below 100.
        code: i64,
        /// Its message.
        msg: String,
        /// Its longer message, often empty.
        details: String,
        /// The end of its standard error.
        stderr: String,
    },
    /// The plugin failed without an error report in the form of the specification.
    #[error("the CNI plugin {plugin} failed on {verb} ({status}) without an error report{}{}", said("; it answered: ", .stdout, ""), said("; it printed: ", .stderr, ""))]
    Failed {
        /// The plugin.
        plugin: String,
        /// The command.
        verb: Verb,
        /// How it ended.
        status: ExitStatus,
        /// The start of its standard output.
        stdout: String,
        /// The end of its standard error.
        stderr: String,
    },
    /// The plugin reported success, but its output is not a result.
    #[error("the CNI plugin {plugin} returned an invalid result for {verb}: {stdout:?}{}", said("; it printed: ", .stderr, ""))]
    Result {
        /// The plugin.
        plugin: String,
        /// The command.
        verb: Verb,
        /// The start of its standard output.
        stdout: String,
        /// The end of its standard error.
        stderr: String,
        /// Where it is invalid.
        #[source]
        source: serde_json::Error,
    },
    /// The plugin replied in another version than that of the request.
    #[error("the CNI plugin {plugin} answered {verb} in version {answered:?}; it was asked in {asked}")]
    Version {
        /// The plugin.
        plugin: String,
        /// The command.
        verb: Verb,
        /// The version of its reply.
        answered: String,
        /// The version of the network.
        asked: Version,
    },
}

fn joined(dirs: &[PathBuf]) -> String {
    dirs.iter()
        .map(|dir| dir.display().to_string())
        .collect::<Vec<_>>()
        .join(" or ")
}

fn said(before: &str, text: &str, after: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!("{before}{text}{after}")
    }
}

/// Where plugins are, and how long each may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) bin_dirs: &'a [PathBuf],
    pub(crate) limit: Duration,
}

/// One run.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) verb: Verb,
    pub(crate) conf: &'a ConfList,
    pub(crate) plugin: &'a Map<String, Value>,
    /// Keys to add to the plugin's configuration, such as `prevResult`.
    pub(crate) extra: Vec<(&'static str, Value)>,
    pub(crate) attachment: &'a Attachment,
    /// Empty if the namespace is gone, which DEL allows.
    pub(crate) netns: &'a Path,
}

/// The error object of the specification.
#[derive(Deserialize)]
struct Report {
    code: i64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

impl Call<'_> {
    fn name(&self) -> String {
        self.plugin
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    }

    /// Runs the plugin; returns its output if it succeeded.
    pub(crate) fn run(&self, place: Place<'_>) -> Result<Captured, PluginError> {
        let (plugin, verb) = (self.name(), self.verb);
        let program = place
            .bin_dirs
            .iter()
            .map(|dir| dir.join(&plugin))
            .find(|path| path.is_file())
            .ok_or_else(|| PluginError::Missing {
                plugin: plugin.clone(),
                dirs: place.bin_dirs.to_vec(),
            })?;
        let path = std::env::join_paths(place.bin_dirs).unwrap_or_default();
        let command = Cmd::new(program)
            .env("CNI_COMMAND", verb.to_string())
            .env("CNI_PATH", path)
            .env("CNI_CONTAINERID", &self.attachment.container_id)
            .env("CNI_NETNS", self.netns)
            .env("CNI_IFNAME", &self.attachment.ifname)
            .env("CNI_ARGS", self.attachment.args_text())
            .stdin(Value::Object(self.input()).to_string())
            .limit(place.limit)
            .own_group();
        let output = command.capture().map_err(|source| PluginError::Run {
            plugin: plugin.clone(),
            verb,
            source,
        })?;
        if output.status.success() {
            return Ok(output);
        }
        let stderr = tail(&output.stderr_text());
        Err(match serde_json::from_slice::<Report>(&output.stdout) {
            Ok(Report { code, msg, details }) => PluginError::Reported {
                plugin,
                verb,
                code,
                msg,
                details,
                stderr,
            },
            Err(_) => PluginError::Failed {
                plugin,
                verb,
                status: output.status,
                stdout: head(&output.stdout_text()),
                stderr,
            },
        })
    }

    /// Runs the plugin and reads its output as a result in the network's version.
    pub(crate) fn run_for_result(&self, place: Place<'_>) -> Result<Value, PluginError> {
        let output = self.run(place)?;
        let bad = |source| PluginError::Result {
            plugin: self.name(),
            verb: self.verb,
            stdout: head(&output.stdout_text()),
            stderr: tail(&output.stderr_text()),
            source,
        };
        let object: Map<String, Value> = serde_json::from_slice(&output.stdout).map_err(bad)?;
        let answered = object
            .get("cniVersion")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if answered != self.conf.version.as_str() {
            return Err(PluginError::Version {
                plugin: self.name(),
                verb: self.verb,
                answered: answered.to_owned(),
                asked: self.conf.version,
            });
        }
        Ok(Value::Object(object))
    }

    /// The execution configuration: the plugin's own, with the keys that the specification adds and without
    /// those it reserves for the runtime.
    fn input(&self) -> Map<String, Value> {
        let mut input: Map<String, Value> = self
            .plugin
            .iter()
            .filter(|(key, _)| *key != "capabilities" && !key.starts_with("cni.dev/"))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        input.insert("name".to_owned(), json!(self.conf.name));
        input.insert("cniVersion".to_owned(), json!(self.conf.version));
        let wanted = self.plugin.get("capabilities").and_then(Value::as_object);
        if let Some(wanted) = wanted {
            let given = &self.attachment.capability_args;
            let runtime: Map<String, Value> = given
                .iter()
                .filter(|(key, _)| wanted.get(*key).and_then(Value::as_bool).unwrap_or(false))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            if !runtime.is_empty() {
                input.insert("runtimeConfig".to_owned(), Value::Object(runtime));
            }
        }
        for (key, value) in &self.extra {
            input.insert((*key).to_owned(), value.clone());
        }
        input
    }
}

fn head(text: &str) -> String {
    text.chars().take(EXCERPT).collect()
}

fn tail(text: &str) -> String {
    let skip = text.chars().count().saturating_sub(EXCERPT);
    text.chars().skip(skip).collect()
}
