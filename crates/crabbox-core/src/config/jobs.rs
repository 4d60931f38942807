//! The section `jobs` of the configuration: named commands with their `run` flags.
//!
//! A job only contains arguments of `crabbox run`; a repository's job must never be able to set more than the
//! keys and flags that a repository may set, so each job records whether its file is trusted.

use std::collections::BTreeMap;
use std::path::Path;

use super::fields::{Unknown, Wrong, list, mapping, scalar, truth, wrong};
use super::key::KEYS;
use super::layer::{Layer, Place};
use super::value::{Bases, expectation, from_text, is_usable};
use super::yaml::{Content, Node};

/// Fields that become a `run` flag with a value: the YAML path in the job, and the flag.
const FLAGS: &[(&str, &str)] = &[
    ("provider", "provider"),
    ("target", "target"),
    ("targetOS", "target"),
    ("windows.mode", "windows-mode"),
    ("profile", "profile"),
    ("class", "class"),
    ("architecture", "arch"),
    ("serverType", "type"),
    ("type", "type"),
    ("market", "market"),
    ("capacity.market", "market"),
    ("ttl", "ttl"),
    ("idleTimeout", "idle-timeout"),
    ("desktopEnv", "desktop-env"),
    ("network", "network"),
    ("label", "label"),
];
/// Fields that become a switch.
const SWITCHES: &[(&str, &str)] = &[
    ("desktop", "desktop"),
    ("browser", "browser"),
    ("code", "code"),
    ("shell", "shell"),
    ("noSync", "no-sync"),
    ("syncOnly", "sync-only"),
    ("checksum", "checksum"),
    ("forceSyncLarge", "force-sync-large"),
];
/// Fields that become one flag per value.
const LISTS: &[(&str, &str)] = &[
    ("junit", "junit"),
    ("artifactGlobs", "artifact-glob"),
    ("requiredArtifacts", "require-artifact"),
    ("downloads", "download"),
];
/// Fields of the Go program without a counterpart here.
const FOREIGN: &[&str] = &["hydrate.actions", "hydrate.githubRunner"];
/// Fields that are only meaningful together with those.
const IDLE: &[&str] = &["actions", "hydrate", "capacity", "windows"];

/// A job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// `run` flags, in the order of the tables above: the name without dashes, and its value; `None` for a
    /// switch.
    pub flags: Vec<(&'static str, Option<String>)>,
    /// The command.
    pub command: Option<String>,
    /// When the lease is released: `auto`, `always`, `success`, `failure` or `never`.
    pub stop: Option<String>,
    /// Requested features that this program does not have.
    pub foreign: Vec<&'static str>,
    /// Its position in the file.
    pub place: Place,
    /// Whether the user of this host wrote it, and not a repository.
    pub is_trusted: bool,
}

impl Job {
    /// The values of a flag, in order; none for a switch.
    pub fn values_of(&self, flag: &str) -> impl Iterator<Item = &str> {
        let given = self.flags.iter().filter(move |(name, _)| *name == flag);
        given.filter_map(|(_, value)| value.as_deref())
    }

    /// Whether a flag or switch is there.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|(name, _)| *name == flag)
    }
}

/// The jobs of a file by name, each with its errors.
type Jobs = BTreeMap<String, Result<Job, Wrong>>;

/// Reads the section of one file. Errors in one job do not affect the others.
pub(super) fn read(
    section: &Node,
    layer: Layer,
    at: &dyn Fn(&Node) -> Place,
) -> Result<(Jobs, Unknown), Wrong> {
    let (mut jobs, mut unknown) = (BTreeMap::new(), Vec::new());
    for (name, node) in mapping(section, "jobs")? {
        let job = Job {
            flags: Vec::new(),
            command: None,
            stop: None,
            foreign: Vec::new(),
            place: at(node),
            is_trusted: layer.is_trusted(),
        };
        let path = format!("jobs.{name}");
        jobs.insert(name.to_owned(), filled(job, node, &path, at, &mut unknown));
    }
    Ok((jobs, unknown))
}

/// Reads the job at `node`.
fn filled(
    mut job: Job,
    node: &Node,
    path: &str,
    at: &dyn Fn(&Node) -> Place,
    unknown: &mut Unknown,
) -> Result<Job, Wrong> {
    let mut fields = BTreeMap::new();
    collect(node, path, "", &mut fields)?;
    for (field, node) in &fields {
        let path = format!("{path}.{field}");
        if !take(&mut job, field, node, &path)? {
            unknown.push((path, at(node)));
        }
    }
    job.flags.sort_by_key(|(flag, _)| order(flag));
    Ok(job)
}

fn order(flag: &str) -> usize {
    let known = FLAGS.iter().chain(SWITCHES).chain(LISTS);
    known
        .into_iter()
        .position(|(_, name)| *name == flag)
        .unwrap_or(usize::MAX)
}

/// Reads a field; returns whether it is known.
fn take(job: &mut Job, field: &str, node: &Node, path: &str) -> Result<bool, Wrong> {
    let find = |table: &[(&'static str, &'static str)]| {
        table
            .iter()
            .find(|(name, _)| *name == field)
            .map(|(_, flag)| *flag)
    };
    if let Some(flag) = find(FLAGS) {
        let value = scalar(node, path, "a text")?;
        if !value.is_empty() {
            judge(flag, &value, node, path)?;
            job.flags.push((flag, Some(value)));
        }
    } else if let Some(flag) = find(SWITCHES) {
        if truth(node, path)? {
            job.flags.push((flag, None));
        }
    } else if let Some(flag) = find(LISTS) {
        for value in list(node, path)? {
            job.flags.push((flag, Some(value)));
        }
    } else if let Some(foreign) = FOREIGN.iter().find(|name| **name == field) {
        if truth(node, path)? {
            job.foreign.push(foreign);
        }
    } else if field == "command" {
        job.command = Some(scalar(node, path, "a text")?).filter(|command| !command.trim().is_empty());
    } else if field == "stop" {
        let stop = scalar(node, path, STOPS)?;
        if !["auto", "always", "success", "failure", "never", ""].contains(&stop.as_str()) {
            return Err(wrong(node, path, STOPS));
        }
        job.stop = Some(stop).filter(|stop| !stop.is_empty());
    } else {
        return Ok(IDLE
            .iter()
            .any(|section| field.split('.').next() == Some(section)));
    }
    Ok(true)
}

/// Checks the value of a flag here, where its place in the file can be reported: the user did not type that
/// flag, so an error about the command line would be confusing.
fn judge(flag: &str, text: &str, node: &Node, path: &str) -> Result<(), Wrong> {
    let mut keys = KEYS.iter();
    let Some(key) = keys.find(|key| key.flag.is_some_and(|known| known.name == flag)) else {
        return Ok(());
    };
    // None of these is a path.
    let nowhere = Bases {
        home: None,
        relative: Path::new(""),
    };
    match from_text(key.kind, text, nowhere) {
        Some(value) if is_usable(key, &value) => Ok(()),
        _ => Err(wrong(node, path, expectation(key))),
    }
}

/// The values of `stop`.
const STOPS: &str = "auto, always, success, failure or never";

/// The fields of a job by their paths; descends only into mappings with known subfields.
fn collect<'a>(
    node: &'a Node,
    path: &str,
    above: &str,
    fields: &mut BTreeMap<String, &'a Node>,
) -> Result<(), Wrong> {
    for (name, value) in mapping(node, path)? {
        let field = if above.is_empty() {
            name.to_owned()
        } else {
            format!("{above}.{name}")
        };
        match &value.content {
            Content::Null => {}
            Content::Map(_) if IDLE.contains(&field.as_str()) => {
                collect(value, &format!("{path}.{name}"), &field, fields)?;
            }
            _ => {
                fields.insert(field, value);
            }
        }
    }
    Ok(())
}
