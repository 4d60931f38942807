//! One request of the external protocol, version 1: parsed from another program's bytes and fully validated
//! in one place.
//!
//! A parsed request can be acted on without further checks. Nothing here may inspect this host. Unknown
//! fields are ignored, so that the protocol can add some.

use std::path::PathBuf;
use std::time::Duration;

use crabbox_core::external::{External, ExternalError};
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::id::LeaseId;
use crabbox_core::labels::Labels;
use crabbox_core::state::LeaseState;
use crabbox_core::strict_json::{self, Limits, StrictJsonError};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The protocol version that this program speaks.
pub const VERSION: u64 = 1;

/// The maximum size of a request and of an answer: the Go program's limit for a stream.
pub const BYTES: usize = 1 << 20;

/// A request has a few dozen values, and about as many labels.
const LIMITS: Limits = Limits {
    depth: 32,
    values: 10_000,
};

/// The longest text that names a lease or a state, in bytes.
const TEXT_LIMIT: usize = 256;

/// The longest path (`PATH_MAX` of Linux).
const PATH_LIMIT: usize = 4096;

/// The longest time that labels may ask for: a year, in seconds.
const SECONDS_LIMIT: u64 = 366 * 24 * 3600;

const OPERATIONS: [&str; 7] = [
    "doctor", "acquire", "resolve", "list", "release", "touch", "cleanup",
];

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The operation.
    pub operation: Operation,
    /// The `external.config` of the requester.
    pub config: Map<String, Value>,
    /// The root of the repository that it is made for, absolute.
    pub repo: Option<PathBuf>,
}

/// The operation of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Check whether this host can lease machines.
    Doctor,
    /// Have a lease ready.
    Acquire {
        /// What the requester calls the lease.
        desired: External,
        /// Whether to keep it.
        keep: bool,
    },
    /// Describe a lease and how to enter it.
    Resolve(Resolve),
    /// List the leases.
    List,
    /// Give a lease back.
    Release(Release),
    /// Report that a lease is in use.
    Touch {
        /// The lease.
        lease: LeaseId,
        /// Its new state.
        state: Option<LeaseState>,
        /// Its new idle limit.
        idle: Option<Duration>,
    },
    /// Remove what is no longer needed.
    Cleanup {
        /// Only report what would be done.
        dry_run: bool,
    },
}

/// Which lease to resolve, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolve {
    /// As a user typed it, or as a claim names it.
    pub text: String,
    /// What the requester knows about it.
    pub known: Option<External>,
    /// Whether to take over another repository's claim.
    pub reclaim: bool,
    /// Whether it is only resolved to be given back.
    pub release_only: bool,
}

/// A lease to give back, and the conditions for that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// The lease.
    pub lease: LeaseId,
    /// What it must match, as far as the request says so.
    pub fences: ReleaseConditions,
}

/// Conditions that a lease must match; an empty text matches anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReleaseConditions {
    /// Its id.
    pub lease: String,
    /// The id of the attempt that made it; here each attempt is a lease.
    pub attempt: String,
    /// Its slug.
    pub slug: String,
    /// Its id on our side.
    pub cloud_id: String,
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The input is empty.
    #[error("no request: one JSON object is expected on standard input")]
    Empty,
    /// It is too long.
    #[error("the request is larger than {BYTES} bytes")]
    TooLarge,
    /// It is not a single, unambiguous JSON document.
    #[error("the request is not one JSON object")]
    Json(#[source] StrictJsonError),
    /// Its protocol version is not supported.
    #[error("protocolVersion {found} is not supported: this adapter speaks version {VERSION}")]
    Version {
        /// What was found, shortened.
        found: String,
    },
    /// The operation is unknown.
    #[error("unknown operation {found}: expected one of {}", OPERATIONS.join(", "))]
    Operation {
        /// What was found, shortened.
        found: String,
    },
    /// A field has the wrong type.
    #[error("the request does not match version {VERSION} of the protocol: {why}")]
    Shape {
        /// The parser's message, shortened because it quotes the input.
        why: String,
    },
    /// A required field is missing.
    #[error("operation {operation} needs {field}")]
    Missing {
        /// The operation.
        operation: &'static str,
        /// The field.
        field: &'static str,
    },
    /// The lease's names cannot be recorded.
    #[error("{field} cannot be used")]
    Names {
        /// The field.
        field: &'static str,
        /// Why.
        #[source]
        source: ExternalError,
    },
    /// A field has an invalid value.
    #[error("{field} {found} cannot be used: expected {expected}")]
    Field {
        /// The field.
        field: &'static str,
        /// What was found, shortened.
        found: String,
        /// What is expected.
        expected: &'static str,
    },
}

impl Fault for RequestError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Empty => {
                "`crabbox adapter external` is to be started by a program that speaks the protocol (docs/external.md)"
            }
            Self::Version { .. } => "use compatible versions of both programs",
            _ => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

/// Parses the request in `bytes`, which must hold nothing else.
pub fn parse(bytes: &[u8]) -> Result<Request, RequestError> {
    if bytes.len() > BYTES {
        return Err(RequestError::TooLarge);
    }
    if bytes.trim_ascii().is_empty() {
        return Err(RequestError::Empty);
    }
    let value = strict_json::parse(bytes, LIMITS).map_err(RequestError::Json)?;
    // Check this first: another version may give the other fields another meaning.
    let version = value.get("protocolVersion");
    if version.and_then(Value::as_u64) != Some(VERSION) {
        let found = version.map_or_else(|| "(none)".to_owned(), |version| shown(&version.to_string()));
        return Err(RequestError::Version { found });
    }
    let raw: Result<Raw, _> = serde_json::from_value(value);
    raw.map_err(|error| RequestError::Shape {
        why: error.to_string().chars().take(200).collect(),
    })?
    .judge()
}

/// The request as written. Only the used fields of `lease` and `repo` are read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "the fields are the protocol's")]
struct Raw {
    operation: String,
    config: Option<Map<String, Value>>,
    desired: Option<RawNames>,
    lease: Option<RawLease>,
    expected: Option<RawExpected>,
    id: String,
    state: String,
    keep: bool,
    reclaim: bool,
    release_only: bool,
    dry_run: bool,
    repo: Option<RawRepo>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawNames {
    lease_id: String,
    slug: String,
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawLease {
    lease_id: String,
    cloud_id: String,
    labels: Option<Labels>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawExpected {
    lease_id: String,
    attempt_lease_id: String,
    slug: String,
    cloud_id: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawRepo {
    root: String,
}

impl Raw {
    fn judge(self) -> Result<Request, RequestError> {
        let operation = match self.operation.as_str() {
            "doctor" => Operation::Doctor,
            "acquire" => Operation::Acquire {
                desired: names(self.desired.as_ref().ok_or(missing("acquire", "desired"))?)?,
                keep: self.keep,
            },
            "resolve" => Operation::Resolve(self.resolve()?),
            "list" => Operation::List,
            "release" => Operation::Release(self.release()?),
            "touch" => {
                let lease = self.lease.as_ref().ok_or(missing("touch", "lease.leaseId"))?;
                Operation::Touch {
                    lease: lease_id("touch", lease)?,
                    state: state(&self.state)?,
                    idle: idle(lease.labels.as_ref())?,
                }
            }
            "cleanup" => Operation::Cleanup {
                dry_run: self.dry_run,
            },
            found => {
                return Err(RequestError::Operation { found: shown(found) });
            }
        };
        let repo = self.repo.map(|repo| repo.root).filter(|root| !root.is_empty());
        Ok(Request {
            operation,
            config: self.config.unwrap_or_default(),
            repo: repo.map(|root| path(&root)).transpose()?,
        })
    }

    fn resolve(&self) -> Result<Resolve, RequestError> {
        let known = self.desired.as_ref().map(names).transpose()?;
        let text = text("id", &self.id)?;
        if text.is_empty() && known.is_none() {
            return Err(missing("resolve", "id"));
        }
        Ok(Resolve {
            text,
            known,
            reclaim: self.reclaim,
            release_only: self.release_only,
        })
    }

    fn release(&self) -> Result<Release, RequestError> {
        let lease = self.lease.as_ref().ok_or(missing("release", "lease.leaseId"))?;
        let mut fences = ReleaseConditions::default();
        if let Some(expected) = &self.expected {
            fences = ReleaseConditions {
                lease: text("expected.leaseId", &expected.lease_id)?,
                attempt: text("expected.attemptLeaseId", &expected.attempt_lease_id)?,
                slug: text("expected.slug", &expected.slug)?,
                cloud_id: text("expected.cloudId", &expected.cloud_id)?,
            };
        }
        if fences.cloud_id.is_empty() {
            fences.cloud_id = text("lease.cloudId", &lease.cloud_id)?;
        }
        Ok(Release {
            lease: lease_id("release", lease)?,
            fences,
        })
    }
}

const fn missing(operation: &'static str, field: &'static str) -> RequestError {
    RequestError::Missing { operation, field }
}

fn names(raw: &RawNames) -> Result<External, RequestError> {
    External::new(&raw.lease_id, &raw.slug, &raw.name).map_err(|source| RequestError::Names {
        field: "desired",
        source,
    })
}

fn lease_id(operation: &'static str, lease: &RawLease) -> Result<LeaseId, RequestError> {
    const FIELD: &str = "lease.leaseId";
    if lease.lease_id.is_empty() {
        return Err(missing(operation, FIELD));
    }
    LeaseId::parse(&lease.lease_id).map_err(|_| RequestError::Field {
        field: FIELD,
        found: shown(&lease.lease_id),
        expected: "cbx_ and 12 lowercase hexadecimal digits",
    })
}

/// A state of a lease in use. The other program cannot declare a lease ended; it releases it instead.
fn state(word: &str) -> Result<Option<LeaseState>, RequestError> {
    // The Go program sends `touched` when it means no state.
    if word.is_empty() || word == "touched" {
        return Ok(None);
    }
    match LeaseState::from(word) {
        state @ (LeaseState::Leased | LeaseState::Ready | LeaseState::Running | LeaseState::Active) => {
            Ok(Some(state))
        }
        _ => Err(RequestError::Field {
            field: "state",
            found: shown(word),
            expected: "leased, ready, running, active or touched",
        }),
    }
}

/// The idle limit that the labels of the other program carry.
fn idle(labels: Option<&Labels>) -> Result<Option<Duration>, RequestError> {
    const FIELD: &str = "lease.labels.idle_timeout_secs";
    let Some(seconds) = labels.and_then(|labels| labels.get("idle_timeout_secs")) else {
        return Ok(None);
    };
    let parsed = seconds.trim().parse().ok();
    match parsed.filter(|seconds| (1..=SECONDS_LIMIT).contains(seconds)) {
        Some(seconds) => Ok(Some(Duration::from_secs(seconds))),
        None => Err(RequestError::Field {
            field: FIELD,
            found: shown(seconds),
            expected: "whole seconds, from 1 to those of a year",
        }),
    }
}

fn path(root: &str) -> Result<PathBuf, RequestError> {
    let path = PathBuf::from(root);
    if path.is_absolute() && root.len() < PATH_LIMIT && !root.contains('\0') {
        return Ok(path);
    }
    Err(RequestError::Field {
        field: "repo.root",
        found: shown(root),
        expected: "an absolute path",
    })
}

/// A text that is compared with names, or displayed.
fn text(field: &'static str, text: &str) -> Result<String, RequestError> {
    let trimmed = text.trim();
    if trimmed.len() <= TEXT_LIMIT && !trimmed.contains(char::is_control) {
        return Ok(trimmed.to_owned());
    }
    Err(RequestError::Field {
        field,
        found: shown(text),
        expected: "at most 256 bytes without control characters",
    })
}

/// The beginning of another program's text, as quoted in messages.
fn shown(text: &str) -> String {
    let beginning: String = text.chars().take(64).collect();
    let more = if beginning.len() < text.len() { "..." } else { "" };
    format!("{beginning:?}{more}")
}

#[cfg(test)]
mod tests;
