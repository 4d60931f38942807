//! Lease records, `metadata.json`, one directory per lease.
//!
//! A record is rewritten whole and atomically; unknown fields are preserved. Reading a list must never fail
//! because of one record: an unreadable record is returned with its reason.

use std::path::{Path, PathBuf};

use crabbox_core::record::{LeaseRecord, SCHEMA_VERSION};
use crabbox_host::files::{self, FileError};
use serde_json::{Map, Value};

use crate::places::LeaseDir;

/// A lease directory with a readable record.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredLease {
    /// Its directory.
    pub dir: LeaseDir,
    /// Its record.
    pub record: LeaseRecord,
    /// The record as it is on disk, with fields of other programs.
    raw: Map<String, Value>,
}

/// A lease directory with an unusable record.
#[derive(Debug)]
pub struct Unreadable {
    /// The directory's name, usually a lease id.
    pub name: String,
    /// The directory.
    pub path: PathBuf,
    /// The reason.
    pub error: RecordError,
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The directory has no `metadata.json`: its maker died before writing it.
    #[error("{} has no metadata.json", dir.display())]
    Missing {
        /// The lease directory.
        dir: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a record.
    #[error("{} is not a lease record", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A newer version of a program wrote it.
    #[error("{} has schemaVersion {found}, but this program knows {SCHEMA_VERSION}: another version of crabbox made the lease", path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// The record names another lease than its directory.
    #[error("{} belongs to lease {found}, not to {expected}", path.display())]
    Misplaced {
        /// The file.
        path: PathBuf,
        /// The directory's name.
        expected: String,
        /// The record's lease id.
        found: String,
    },
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] FileError),
}

/// The contents of the lease directory, sorted by name.
#[derive(Debug, Default)]
pub struct Listing {
    /// Leases with a record.
    pub leases: Vec<StoredLease>,
    /// Directories whose record cannot be used.
    pub unreadable: Vec<Unreadable>,
}

/// Reads every lease directory in `leases`; a missing directory counts as empty.
pub fn list(leases: &Path) -> Result<Listing, RecordError> {
    let fail = |source| RecordError::Read {
        path: leases.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(leases) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Listing::default()),
        Err(error) => return Err(fail(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(fail)?;
        if entry.file_type().map_err(fail)?.is_dir() {
            names.push(entry.file_name());
        }
    }
    names.sort();
    let mut listing = Listing::default();
    for name in names {
        let path = leases.join(&name);
        match read(&LeaseDir::at(&path)) {
            Ok(lease) => listing.leases.push(lease),
            Err(error) => {
                listing.unreadable.push(Unreadable {
                    name: name.to_string_lossy().into_owned(),
                    path,
                    error,
                });
            }
        }
    }
    Ok(listing)
}

/// Reads the record of one lease directory.
pub fn read(dir: &LeaseDir) -> Result<StoredLease, RecordError> {
    let path = dir.metadata();
    let text = match files::read_named(&path) {
        Ok(Some(text)) => text,
        Ok(None) => {
            return Err(RecordError::Missing {
                dir: dir.path().to_owned(),
            });
        }
        Err(source) => return Err(RecordError::Read { path, source }),
    };
    let decode = |source| RecordError::Decode {
        path: path.clone(),
        source,
    };
    let raw: Map<String, Value> = serde_json::from_slice(&text).map_err(decode)?;
    // Check the version before the fields, which may have another meaning in a newer version. A record
    // without a version is of the first one.
    if let Some(found) = raw.get("schemaVersion").and_then(Value::as_u64)
        && found > u64::from(SCHEMA_VERSION)
    {
        return Err(RecordError::TooNew { path, found });
    }
    let record: LeaseRecord = serde_json::from_value(Value::Object(raw.clone())).map_err(decode)?;
    let record = record.placed_in(&dir.path().to_string_lossy());
    let expected = dir
        .path()
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    if record.lease_id != expected {
        return Err(RecordError::Misplaced {
            path,
            expected,
            found: record.lease_id,
        });
    }
    Ok(StoredLease {
        dir: dir.clone(),
        record,
        raw,
    })
}

impl StoredLease {
    /// A lease that has no record on disk yet.
    pub fn new(dir: LeaseDir, record: LeaseRecord) -> Self {
        Self {
            dir,
            record,
            raw: Map::new(),
        }
    }

    /// Writes the record. The lease directory must exist: a write never restores a removed lease.
    pub fn save(&mut self) -> Result<(), RecordError> {
        let path = self.dir.metadata();
        let encode = |source| RecordError::Decode {
            path: path.clone(),
            source,
        };
        let known = serde_json::to_value(&self.record).map_err(encode)?;
        let all = serde_json::to_value(LeaseRecord::full()).map_err(encode)?;
        let mut merged = self.raw.clone();
        if let (Value::Object(known), Value::Object(all)) = (known, all) {
            for name in all.keys().filter(|name| !known.contains_key(*name)) {
                merged.shift_remove(name);
            }
            merged.extend(known);
        }
        let mut text = serde_json::to_vec_pretty(&merged).map_err(encode)?;
        text.push(b'\n');
        files::write_atomic(&path, &text, 0o600)?;
        self.raw = merged;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease_dir(root: &Path, id: &str) -> LeaseDir {
        let path = root.join(id);
        std::fs::create_dir_all(&path).unwrap();
        LeaseDir::at(path)
    }

    fn record(id: &str) -> LeaseRecord {
        LeaseRecord {
            schema_version: 1,
            lease_id: id.into(),
            pid: 7,
            ..LeaseRecord::default()
        }
    }

    #[test]
    fn one_bad_record_does_not_hide_the_others() {
        let root = tempfile::tempdir().unwrap();
        StoredLease::new(lease_dir(root.path(), "cbx_a"), record("cbx_a"))
            .save()
            .unwrap();
        std::fs::write(lease_dir(root.path(), "cbx_b").metadata(), "{\"pid\": \"x\"").unwrap();
        lease_dir(root.path(), "cbx_c");
        std::fs::write(
            lease_dir(root.path(), "cbx_d").metadata(),
            "{\"leaseID\":\"cbx_a\"}",
        )
        .unwrap();
        std::fs::write(root.path().join("a-file"), "").unwrap();
        let listing = list(root.path()).unwrap();
        assert_eq!(listing.leases.len(), 1);
        let reasons: Vec<String> = listing
            .unreadable
            .iter()
            .map(|bad| bad.error.to_string())
            .collect();
        assert_eq!(reasons.len(), 3, "{reasons:?}");
        assert!(reasons[0].contains("is not a lease record") && reasons[1].contains("no metadata.json"));
        assert!(reasons[2].contains("belongs to lease cbx_a"), "{reasons:?}");
    }

    #[test]
    fn a_record_of_a_later_version_is_named_and_one_without_a_version_is_read() {
        let root = tempfile::tempdir().unwrap();
        let dir = lease_dir(root.path(), "cbx_a");
        std::fs::create_dir_all(dir.path()).unwrap();
        let with = |version: &str| {
            std::fs::write(
                dir.metadata(),
                format!(r#"{{{version}"leaseID":"cbx_a","sshPort":22}}"#),
            )
            .unwrap();
            read(&dir)
        };
        // Its fields may have other types in a newer version, so the error is about the version.
        assert!(matches!(
            with(r#""schemaVersion":2,"#),
            Err(RecordError::TooNew { found: 2, .. })
        ));
        assert!(matches!(
            with(r#""schemaVersion":1,"#),
            Err(RecordError::Decode { .. })
        ));
        std::fs::write(dir.metadata(), r#"{"leaseID":"cbx_a"}"#).unwrap();
        assert!(read(&dir).is_ok());
    }

    #[test]
    fn fields_of_other_programs_survive_and_cleared_ones_go() {
        let root = tempfile::tempdir().unwrap();
        let dir = lease_dir(root.path(), "cbx_a");
        std::fs::write(
            dir.metadata(),
            r#"{"leaseID":"cbx_a","pid":7,"fromTheFuture":{"x":1}}"#,
        )
        .unwrap();
        let mut lease = read(&dir).unwrap();
        lease.record.pid = 0;
        lease.save().unwrap();
        let text = std::fs::read_to_string(dir.metadata()).unwrap();
        assert!(
            text.contains("fromTheFuture") && !text.contains("\"pid\""),
            "{text}"
        );
        assert!(
            text.ends_with("}\n") && text.contains("\n  \"leaseID\""),
            "{text}"
        );
    }

    #[test]
    fn saving_does_not_bring_a_removed_lease_back() {
        let root = tempfile::tempdir().unwrap();
        let dir = lease_dir(root.path(), "cbx_a");
        let mut lease = StoredLease::new(dir.clone(), record("cbx_a"));
        lease.save().unwrap();
        files::remove_tree(dir.path()).unwrap();
        assert!(lease.save().is_err());
        assert!(!dir.path().exists());
    }

    #[test]
    fn no_directory_is_no_leases() {
        let listing = list(Path::new("/nonexistent/crabbox")).unwrap();
        assert!(listing.leases.is_empty() && listing.unreadable.is_empty());
    }
}
