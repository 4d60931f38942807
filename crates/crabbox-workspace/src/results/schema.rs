//! Validates JSON files of a run against JSON schemas.
//!
//! The schema comes from the user, the file from the machine, and both are bounded: in size, in depth, and in
//! processing time. It must never fetch a schema from anywhere, or repeat values from the file.

mod references;

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::strict_json::{self, Limits, StrictJsonError};
use crabbox_host::files;
use crabbox_ssh::exec::RemoteStatus;
use crabbox_ssh::quote;
use jsonschema::error::ValidationErrorKind;
use jsonschema::{PatternOptions, ValidationError, Validator};
use serde_json::Value;

use crate::command::{RemoteError, ask};
use crate::owner::Owner;

/// The largest schema, in bytes.
const SCHEMA_BYTES: u64 = 1 << 20;
/// The most values of a schema, and its deepest nesting.
const SCHEMA: Limits = Limits {
    depth: 64,
    values: 4096,
};
/// The largest file that is checked, in bytes.
const FILE_BYTES: usize = 5 << 20;
/// The most values of such a file, and its deepest nesting.
const FILE: Limits = Limits {
    depth: 64,
    values: 100_000,
};
/// The largest pattern, compiled, in bytes.
const PATTERN_BYTES: usize = 1 << 20;
/// The most combinations of file values and schema values for which all violations are collected, because
/// they are all kept in memory.
const MEETINGS: usize = 1 << 20;
/// The most violations reported for one file.
const VIOLATIONS: usize = 100;
/// The longest time to compile a schema or to check a file.
const LIMIT: Duration = Duration::from_secs(30);
/// Stack size in bytes: validation recurses through references as deep as the schema is long.
const STACK: usize = 256 << 20;

const NO_FILE: u8 = 8;

/// Why a schema cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The flag lacks one of its two parts.
    #[error("--require-artifact-schema expects remote=schema.json")]
    Spec,
    /// The path could be anywhere, or match several files.
    #[error("--require-artifact-schema requires a safe relative artifact path: {remote}")]
    Remote {
        /// Its path.
        remote: String,
    },
    /// Two schemas for one file.
    #[error("--require-artifact-schema lists {remote:?} more than once")]
    Twice {
        /// Its path.
        remote: String,
    },
    /// The schema cannot be read.
    #[error("--require-artifact-schema: read schema {}", path.display())]
    Read {
        /// Its file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is not a valid or supported schema.
    #[error("--require-artifact-schema: invalid schema {}: {why}", path.display())]
    Invalid {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl Fault for SchemaError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// A file that must exist and satisfy a schema.
#[derive(Debug)]
pub struct Required {
    /// Its path below the working directory.
    pub remote: String,
    /// The schema's file as given.
    pub schema: PathBuf,
    validator: Arc<Validator>,
    /// How many values the schema has with every reference expanded.
    size: usize,
}

/// The result for such a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// The file could not be fetched; the reason.
    Absent(String),
    /// It was checked; these places violate the schema.
    Held(Vec<String>),
}

/// Reads the schemas of `specs`, each `remote=schema.json`. Duplicates are ignored.
pub fn load(specs: &[String]) -> Result<Vec<Required>, SchemaError> {
    let mut required: Vec<Required> = Vec::new();
    let distinct: Vec<&String> = specs
        .iter()
        .enumerate()
        .filter(|(index, spec)| !specs[..*index].contains(spec))
        .map(|(_, spec)| spec)
        .collect();
    for spec in distinct {
        let (remote, schema) = spec.trim().split_once('=').ok_or(SchemaError::Spec)?;
        let (remote, schema) = (remote.trim(), PathBuf::from(schema.trim()));
        if remote.is_empty() || schema.as_os_str().is_empty() {
            return Err(SchemaError::Spec);
        }
        let remote = below(remote).ok_or_else(|| SchemaError::Remote {
            remote: remote.to_owned(),
        })?;
        if required.iter().any(|earlier| earlier.remote == remote) {
            return Err(SchemaError::Twice { remote });
        }
        let text = files::read_regular(&schema, SCHEMA_BYTES).map_err(|source| SchemaError::Read {
            path: schema.clone(),
            source,
        })?;
        let (validator, size) = compile(text).map_err(|why| SchemaError::Invalid {
            path: schema.clone(),
            why,
        })?;
        required.push(Required {
            remote,
            schema,
            validator: Arc::new(validator),
            size,
        });
    }
    Ok(required)
}

/// Normalises the path of one file below the working directory.
fn below(path: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_./@+=,-".contains(c);
    if path.starts_with(['-', '/']) || !path.chars().all(allowed) {
        return None;
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !["", "."].contains(part)).collect();
    (!parts.is_empty() && !parts.contains(&"..")).then(|| parts.join("/"))
}

/// The number of values in `value`, including itself.
fn size(value: &Value) -> usize {
    match value {
        Value::Array(values) => 1 + values.iter().map(size).sum::<usize>(),
        Value::Object(fields) => 1 + fields.values().map(size).sum::<usize>(),
        _ => 1,
    }
}

fn compile(text: Vec<u8>) -> Result<(Validator, usize), String> {
    let compiled = bounded(move || {
        let schema = strict_json::parse(&text, SCHEMA).map_err(|error| error.to_string())?;
        let size = references::check(&schema)?;
        jsonschema::options()
            .with_pattern_options(PatternOptions::regex().size_limit(PATTERN_BYTES))
            .build(&schema)
            .map(|validator| (validator, size))
            .map_err(|error| error.to_string())
    });
    compiled.unwrap_or_else(|| Err(slow("compiling it")))
}

fn slow(activity: &str) -> String {
    format!("{activity} takes longer than {} s", LIMIT.as_secs())
}

/// The result of `work`, if it finishes in time. Otherwise it keeps running: this program ends soon.
fn bounded<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, heard) = mpsc::channel();
    std::thread::Builder::new()
        .stack_size(STACK)
        .spawn(move || {
            // The receiver is gone if it took too long.
            sender.send(work()).ok();
        })
        .ok()?;
    heard.recv_timeout(LIMIT).ok()
}

impl Required {
    /// Fetches the file and checks it against the schema. Stops when `cancel` becomes readable.
    pub fn judge(
        &self,
        owner: &mut Owner,
        workdir: &str,
        cancel: BorrowedFd<'_>,
    ) -> Result<Judgement, RemoteError> {
        let file = quote::single(&self.remote);
        let script = format!(
            "test -f {file} || exit {NO_FILE}\nexec head -c {} -- {file}",
            FILE_BYTES + 1
        );
        let answer = ask(owner, workdir, &script, &[], cancel)?;
        let absent = |why: &str| Ok(Judgement::Absent(why.to_owned()));
        match answer.status {
            RemoteStatus::Exited(0) if answer.stdout.len() > FILE_BYTES => {
                absent("it is larger than 5 MiB, and was not read")
            }
            RemoteStatus::Exited(0) => Ok(Judgement::Held(self.violations(answer.stdout))),
            RemoteStatus::Exited(NO_FILE) => absent("there is no such file"),
            _ => absent(&answer.said()),
        }
    }

    /// The places of `file` that violate the schema, each with the place in the schema, without the values
    /// there.
    pub fn violations(&self, file: Vec<u8>) -> Vec<String> {
        let (validator, schema) = (Arc::clone(&self.validator), self.size);
        let found = bounded(move || {
            let value = match strict_json::parse(&file, FILE) {
                Ok(value) => value,
                Err(StrictJsonError::Syntax(_)) => {
                    return vec!["(root): artifact is not valid JSON".to_owned()];
                }
                Err(error) => return vec![format!("(root): artifact is not taken: {error}")],
            };
            let mut found = Found::default();
            // Collect only the first violation if all of them might exhaust memory.
            if schema.saturating_mul(size(&value)) <= MEETINGS {
                for error in validator.iter_errors(&value) {
                    found.add(&error);
                }
            } else if let Err(error) = validator.validate(&value) {
                found.add(&error);
                found.lines.push(ONLY_FIRST.to_owned());
            }
            found.lines
        });
        found.unwrap_or_else(|| vec![format!("(root): {}", slow("holding it against the schema"))])
    }
}

/// The violations found, each place once.
#[derive(Debug, Default)]
struct Found {
    lines: Vec<String>,
    seen: BTreeSet<(String, String)>,
}

impl Found {
    fn is_full(&self) -> bool {
        self.lines.len() > VIOLATIONS
    }

    /// Adds an error, or instead the errors that caused it.
    fn add(&mut self, error: &ValidationError<'_>) {
        match error.kind() {
            ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context }
                if context.iter().any(|branch| !branch.is_empty()) =>
            {
                for error in context.iter().flatten() {
                    self.add(error);
                }
            }
            _ => self.place(error.instance_path().as_str(), error.schema_path().as_str()),
        }
    }

    fn place(&mut self, instance: &str, keyword: &str) {
        if self.is_full() || !self.seen.insert((instance.to_owned(), keyword.to_owned())) {
            return;
        }
        self.lines.push(if self.lines.len() == VIOLATIONS {
            "(root): there are more violations, which are not shown".to_owned()
        } else {
            let at = if instance.is_empty() { "(root)" } else { instance };
            format!("{at}: does not satisfy JSON Schema constraint {keyword}")
        });
    }
}

/// Added after the first violation if no others were collected.
const ONLY_FIRST: &str = "(root): no other violation was looked for, since schema or file are large";

/// The number of failed checks, as text.
pub fn count(violations: &[String]) -> String {
    if violations.last().is_some_and(|last| last == ONLY_FIRST) {
        return format!("at least {} check(s)", violations.len() - 1);
    }
    if violations.len() > VIOLATIONS {
        format!("at least {} checks", violations.len())
    } else {
        format!("{} check(s)", violations.len())
    }
}

#[cfg(test)]
mod tests;
