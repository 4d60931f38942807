//! The files that a run leaves as evidence. Each gets its place before a machine is leased, and the run's other local files are
//! checked along with them.
//!
//! No file may overwrite a key, and no two outputs may go to the same file.

use std::path::{Path, PathBuf};

use crabbox_core::fault::{Fault, Kind};
use crabbox_host::place::{self, Access, Manner, Place, PlaceError};
use crabbox_workspace::command;

use crate::receipt::signature::{AttestKey, AttestKeyError, KEY_PATH};
use crate::run::proof_text::ProofTextError;
use crate::run::request::ResultWish;

/// Why the evidence cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// Two of the files have the same path.
    #[error("{first} and {second} paths must be different")]
    SamePath {
        /// One.
        first: String,
        /// The other.
        second: String,
    },
    /// Both streams have the same path.
    #[error("capture stdout/stderr: paths must be different")]
    OneCapture,
    /// The proof has the same path as another file.
    #[error("emit proof/{other}: paths must be different")]
    SameAsProof {
        /// The other.
        other: String,
    },
    /// The template of the proof uses an unknown variable.
    #[error(transparent)]
    Template(#[from] ProofTextError),
    /// A file cannot be placed.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The key for signing a receipt cannot be used.
    #[error(transparent)]
    Key(#[from] AttestKeyError),
}

impl Fault for EvidenceError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// The receipt to write for a run.
#[derive(Debug)]
pub(super) struct Attest {
    /// The signing key.
    pub(super) key: AttestKey,
    /// The file's name as given.
    pub(super) name: PathBuf,
    /// Its place.
    pub(super) place: Place,
}

/// The proof to write for a run.
#[derive(Debug)]
pub(super) struct Proof {
    /// The file's name as given.
    pub(super) name: PathBuf,
    /// Its place.
    pub(super) place: Place,
}

/// The requested evidence.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// A signed receipt.
    pub(super) attest: Option<Attest>,
    /// A proof in words.
    pub(super) proof: Option<Proof>,
}

/// The directories that the paths of a request refer to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Base<'a> {
    /// The current directory.
    pub(super) cwd: &'a Path,
    /// The repository's root.
    pub(super) repository: &'a Path,
    /// This user's configuration directory.
    pub(super) config: &'a Path,
    /// This user's directory for state.
    pub(super) state: &'a Path,
}

impl Evidence {
    /// Whether any evidence was requested.
    pub(super) fn is_wanted(&self) -> bool {
        self.attest.is_some() || self.proof.is_some()
    }

    /// Finds a place for each file of evidence, and the key. Also checks that the run's other files can be written.
    pub(super) fn prepare(wish: &ResultWish, base: &Base<'_>) -> Result<Self, EvidenceError> {
        let key_path = match &wish.attest_key {
            Some(path) => base.cwd.join(path),
            None => base.config.join(KEY_PATH),
        };
        let results = results(wish, base);
        distinct(wish, base, &key_path, &results)?;
        for (_, path, manner) in &results {
            Place::new(base.repository, path, Access::Private)?.look(*manner)?;
        }
        let attest = wish.attest.as_ref().map(|name| -> Result<Attest, EvidenceError> {
            Ok(Attest {
                place: placed(name, base)?,
                key: if wish.attest_key.is_some() {
                    AttestKey::load(&key_path)?
                } else {
                    AttestKey::ensure(&key_path)?
                },
                name: name.clone(),
            })
        });
        let proof = wish.emit_proof.as_ref().map(|name| {
            Ok::<_, EvidenceError>(Proof {
                place: placed(name, base)?,
                name: name.clone(),
            })
        });
        Ok(Self {
            attest: attest.transpose()?,
            proof: proof.transpose()?,
        })
    }
}

/// The place of a file, whose directory is created.
fn placed(name: &Path, base: &Base<'_>) -> Result<Place, EvidenceError> {
    let place = Place::new(base.repository, &base.cwd.join(name), Access::Private)?;
    place.look(Manner::Whole)?;
    place.directory()?;
    Ok(place)
}

/// The name of the proof in messages.
const PROOF: &str = "emit proof";
/// The name of the file of standard output in messages.
const STDOUT: &str = "capture stdout";
/// The name of the file of standard error in messages.
const STDERR: &str = "capture stderr";

/// An output file of a run.
struct Output {
    /// Its name in messages.
    label: String,
    /// Its path, with all links resolved.
    path: PathBuf,
}

impl Output {
    fn new(label: impl Into<String>, path: &Path) -> Self {
        Self {
            label: label.into(),
            path: place::straight(path),
        }
    }

    /// Whether the file keeps what is written to it: pipes and devices can take two outputs without harm.
    fn is_kept(&self) -> bool {
        let is_special = |facts: std::fs::Metadata| !facts.is_file() && !facts.is_dir();
        !std::fs::metadata(&self.path).is_ok_and(is_special)
    }
}

/// The requested streams, timings and downloads, each with the manner of writing.
fn results(wish: &ResultWish, base: &Base<'_>) -> Vec<(String, PathBuf, Manner)> {
    let at = |path: &Path| base.cwd.join(path);
    let mut all = Vec::new();
    for (label, path) in [(STDOUT, &wish.capture_stdout), (STDERR, &wish.capture_stderr)] {
        all.extend(
            path.as_deref()
                .map(|path| (label.to_owned(), at(path), Manner::Stream)),
        );
    }
    all.extend(
        wish.timing_record(base.cwd, base.state)
            .map(|path| ("timing record".to_owned(), path, Manner::Append)),
    );
    let downloads = wish.download.iter().filter_map(|pair| pair.split_once('='));
    all.extend(downloads.map(|(remote, local)| {
        let label = format!("download {remote}");
        let local = command::destination(base.cwd, remote, Path::new(local));
        (label, at(&local), Manner::Whole)
    }));
    all
}

/// Refuses a run with two outputs in one file, or with an output that would overwrite the key.
fn distinct(
    wish: &ResultWish,
    base: &Base<'_>,
    key_path: &Path,
    results: &[(String, PathBuf, Manner)],
) -> Result<(), EvidenceError> {
    let evidence = |label: &str, path: &Option<PathBuf>| {
        path.as_deref()
            .map(|path| Output::new(label, &base.cwd.join(path)))
    };
    // The key must not be overwritten even if this run signs nothing.
    let mut key = Some(Output::new("attest key", key_path));
    let mut all: Vec<Output> = Vec::new();
    if let Some(receipt) = evidence("attest receipt", &wish.attest) {
        all.push(receipt);
        all.extend(key.take());
    }
    all.extend(evidence(PROOF, &wish.emit_proof));
    all.extend(results.iter().map(|(label, path, _)| Output::new(label, path)));
    all.extend(key);
    for (index, first) in all.iter().enumerate() {
        let mut later = all[index + 1..].iter();
        let Some(second) = later.find(|other| other.path == first.path && other.is_kept()) else {
            continue;
        };
        let other = second.label.clone();
        return Err(match (first.label.as_str(), other.as_str()) {
            (PROOF, _) => EvidenceError::SameAsProof { other },
            (STDOUT, STDERR) => EvidenceError::OneCapture,
            (first, _) => EvidenceError::SamePath {
                first: first.to_owned(),
                second: other,
            },
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut ResultWish);

    #[test]
    fn no_two_files_of_a_run_are_one() {
        let dir = tempfile::tempdir().unwrap();
        let base = Base {
            cwd: dir.path(),
            repository: dir.path(),
            config: &dir.path().join("config"),
            state: &dir.path().join("state"),
        };
        let told = |wish: ResultWish| Evidence::prepare(&wish, &base).unwrap_err().to_string();
        let wish = || ResultWish {
            attest: Some("a/../r.json".into()),
            ..ResultWish::default()
        };
        for (change, second) in [
            (
                (|wish| wish.capture_stdout = Some("r.json".into())) as Change,
                "capture stdout",
            ),
            (
                |wish| wish.capture_stderr = Some("./r.json".into()),
                "capture stderr",
            ),
            (
                |wish| wish.timing_record = Some("r.json".to_owned()),
                "timing record",
            ),
            (|wish| wish.download = vec!["x=r.json".to_owned()], "download x"),
            (|wish| wish.attest_key = Some("r.json".into()), "attest key"),
            (|wish| wish.emit_proof = Some("r.json".into()), "emit proof"),
            (
                |wish| wish.attest = Some("config/attest/id_ed25519.pem".into()),
                "attest key",
            ),
        ] {
            let mut wish = wish();
            change(&mut wish);
            assert_eq!(
                told(wish),
                format!("attest receipt and {second} paths must be different")
            );
        }
        let mut keyed = wish();
        keyed.attest_key = Some("key.pem".into());
        keyed.download = vec!["x=key.pem".to_owned()];
        assert_eq!(told(keyed), "attest key and download x paths must be different");
        for (change, other) in [
            (
                (|wish| wish.capture_stderr = Some("p.md".into())) as Change,
                "capture stderr",
            ),
            (|wish| wish.download = vec!["x=p.md".to_owned()], "download x"),
        ] {
            let mut wish = ResultWish {
                emit_proof: Some("./p.md".into()),
                ..ResultWish::default()
            };
            change(&mut wish);
            assert_eq!(told(wish), format!("emit proof/{other}: paths must be different"));
        }
        assert!(!dir.path().join("config").exists(), "nothing was made");
        let evidence = Evidence::prepare(&wish(), &base).unwrap();
        assert_eq!(evidence.attest.unwrap().place.path(), dir.path().join("r.json"));
    }

    #[test]
    fn a_result_that_would_be_lost_or_cannot_be_written_is_told_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let base = Base {
            cwd: dir.path(),
            repository: dir.path(),
            config: &dir.path().join("config"),
            state: &dir.path().join("state"),
        };
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        let captured: Change = |wish| wish.capture_stdout = Some("z".into());
        for (change, told) in [
            (
                (|wish| wish.capture_stderr = Some("./z".into())) as Change,
                "capture stdout/stderr: paths must be different",
            ),
            (
                |wish| wish.timing_record = Some("z".to_owned()),
                "capture stdout and timing record paths must be different",
            ),
            (
                |wish| wish.download = vec!["a.txt=real/../z".to_owned()],
                "capture stdout and download a.txt paths must be different",
            ),
            (
                |wish| wish.download = vec!["a=real/b".to_owned(), "b=link/b".to_owned()],
                "download a and download b paths must be different",
            ),
            (
                |wish| wish.download = vec!["out/z=./".to_owned()],
                "capture stdout and download out/z paths must be different",
            ),
            (
                |wish| {
                    wish.capture_stderr = Some("state/timings.jsonl".into());
                    wish.timing_record = Some("default".to_owned());
                },
                "capture stderr and timing record paths must be different",
            ),
            (
                |wish| wish.capture_stderr = Some("config/attest/id_ed25519.pem".into()),
                "capture stderr and attest key paths must be different",
            ),
        ] {
            let mut wish = ResultWish::default();
            captured(&mut wish);
            change(&mut wish);
            assert_eq!(
                Evidence::prepare(&wish, &base).unwrap_err().to_string(),
                told,
                "{wish:?}"
            );
        }
        // A file that keeps nothing loses nothing.
        let nothing = ResultWish {
            capture_stdout: Some("/dev/null".into()),
            timing_record: Some("/dev/null".to_owned()),
            ..ResultWish::default()
        };
        assert!(Evidence::prepare(&nothing, &base).is_ok());
        // Downloads into a directory keep their own names, whether or not the directory exists.
        let apart = ResultWish {
            download: ["out/a=real", "out/b=real/", "a=new/", "b=new/", "c=."]
                .map(str::to_owned)
                .to_vec(),
            ..ResultWish::default()
        };
        assert!(Evidence::prepare(&apart, &base).is_ok());
        std::fs::create_dir(dir.path().join("real/a")).unwrap();
        // Outputs that cannot be written are refused beforehand.
        for change in [
            (|wish| wish.capture_stdout = Some("real".into())) as Change,
            |wish| wish.timing_record = Some("link".to_owned()),
            |wish| wish.download = vec!["a=real".to_owned()],
            |wish| wish.attest = Some("real".into()),
        ] {
            let mut wish = ResultWish::default();
            change(&mut wish);
            let error = Evidence::prepare(&wish, &base).unwrap_err();
            assert!(matches!(error, EvidenceError::Place(_)), "{wish:?}: {error}");
        }
        assert!(!dir.path().join("config").exists(), "nothing was made");
    }
}
