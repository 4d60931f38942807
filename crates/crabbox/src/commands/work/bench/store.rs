//! The file of records: JSON lines, appended to and read whole.
//!
//! Each line is written in a single write, so that two programs do not mix theirs. An unreadable line is an
//! error, never skipped.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

use crabbox_core::fault::{Fault, Kind};
use crabbox_host::place::{Place, PlaceError};

use super::record::{Record, SCHEMA_VERSION};

/// The longest line, in bytes.
const LINE_LIMIT: u64 = 10 << 20;

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// It cannot be read.
    #[error("read benchmark timing store {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error.
        #[source]
        source: std::io::Error,
    },
    /// A line is not a record.
    #[error("decode benchmark timing store {} line {line}: {why}", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// The path is not allowed.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The record could not be serialized.
    #[error("cannot describe the run")]
    Json(#[from] serde_json::Error),
    /// It cannot be written.
    #[error("write benchmark timing record {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The error.
        #[source]
        source: std::io::Error,
    },
}

impl Fault for StoreError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Decode { path, line, .. } => {
                vec![format!("`sed -i {line}d` on {} removes the line", path.display())]
            }
            _ => Vec::new(),
        }
    }
}

/// Appends `record`.
pub(super) fn append(place: &Place, record: &Record) -> Result<(), StoreError> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    let mut file = place.append()?;
    file.write_all(&line).map_err(|source| StoreError::Write {
        path: place.path(),
        source,
    })
}

/// All records; empty if the file does not exist.
pub(super) fn read(path: &Path) -> Result<Vec<Record>, StoreError> {
    let failed = |source| StoreError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened.map_err(failed)?,
    };
    let mut input = BufReader::new(file);
    let (mut records, mut number) = (Vec::new(), 0);
    loop {
        let mut line = Vec::new();
        let read = input.by_ref().take(LINE_LIMIT).read_until(b'\n', &mut line);
        if read.map_err(failed)? == 0 {
            return Ok(records);
        }
        number += 1;
        let wrong = |why: String| StoreError::Decode {
            path: path.to_owned(),
            line: number,
            why,
        };
        if line.len() as u64 == LINE_LIMIT {
            return Err(wrong(format!("it is longer than {} MiB", LINE_LIMIT >> 20)));
        }
        let line = line.trim_ascii();
        if !line.is_empty() {
            records.push(record(line).map_err(wrong)?);
        }
    }
}

/// The record in a line.
fn record(line: &[u8]) -> Result<Record, String> {
    let record: Record = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if record.schema_version != SCHEMA_VERSION {
        return Err(format!("unsupported schemaVersion={}", record.schema_version));
    }
    record.timing().map_err(|error| format!("timing: {error}"))?;
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_by_line_and_a_bad_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.jsonl");
        assert_eq!(read(&path).unwrap().len(), 0);
        let good = r#"{"schemaVersion":1,"recordedAt":"x","source":"run","benchmark":{},"timing":{"provider":"ssh"}}"#;
        std::fs::write(&path, format!("{good}\n\n{good}")).unwrap();
        assert_eq!(read(&path).unwrap().len(), 2);
        for (bad, why) in [
            ("{", "EOF while parsing"),
            (
                r#"{"provider":"ssh","totalMs":7}"#,
                "missing field `schemaVersion`",
            ),
            (
                r#"{"schemaVersion":2,"recordedAt":"","timing":{}}"#,
                "unsupported schemaVersion=2",
            ),
            (
                r#"{"schemaVersion":1,"recordedAt":"","timing":{"totalMs":"x"}}"#,
                "timing: invalid type",
            ),
        ] {
            std::fs::write(&path, format!("{good}\n{bad}\n")).unwrap();
            let told = read(&path).unwrap_err().to_string();
            assert!(told.contains(" line 2: ") && told.contains(why), "{told}");
        }
    }
}
