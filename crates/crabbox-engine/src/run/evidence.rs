//! The files that a run leaves as evidence. Each gets its place before a machine is leased, and the run's
//! other local files are checked along with them.
//!
//! No file may overwrite a key, and no two outputs may go to the same file.

use std::path::{Path, PathBuf};

use crabbox_core::fault::{Fault, Kind};
use crabbox_host::place::{self, Access, Manner, Place, PlaceError};
use crabbox_workspace::command;

use crate::receipt::signature::{AttestKey, AttestKeyError, KEY_PATH};
use crate::run::proof_text::ProofTextError;
use crate::run::request::ResultOptions;

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

    /// Finds a place for each file of evidence, and the key. Also checks that the run's other files can be
    /// written.
    pub(super) fn prepare(options: &ResultOptions, base: &Base<'_>) -> Result<Self, EvidenceError> {
        let key_path = match &options.attest_key {
            Some(path) => base.cwd.join(path),
            None => base.config.join(KEY_PATH),
        };
        let results = results(options, base);
        distinct(options, base, &key_path, &results)?;
        for file in &results {
            Place::new(base.repository, &file.path, Access::Private)?.look(file.manner)?;
        }
        let attest = options
            .attest
            .as_ref()
            .map(|name| -> Result<Attest, EvidenceError> {
                Ok(Attest {
                    place: placed(name, base)?,
                    key: if options.attest_key.is_some() {
                        AttestKey::load(&key_path)?
                    } else {
                        AttestKey::ensure(&key_path)?
                    },
                    name: name.clone(),
                })
            });
        let proof = options.emit_proof.as_ref().map(|name| {
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

/// A stream, timing or download that goes to a file.
struct ResultFile {
    /// Its name in messages.
    label: String,
    /// Its path.
    path: PathBuf,
    /// How it is written.
    manner: Manner,
}

/// The requested streams, timings and downloads.
fn results(options: &ResultOptions, base: &Base<'_>) -> Vec<ResultFile> {
    let mut files = Vec::new();
    for (label, path) in [
        (STDOUT, &options.capture_stdout),
        (STDERR, &options.capture_stderr),
    ] {
        files.extend(path.as_deref().map(|path| ResultFile {
            label: label.to_owned(),
            path: base.cwd.join(path),
            manner: Manner::Stream,
        }));
    }
    let record = options.timing_record(base.cwd, base.state);
    files.extend(record.map(|path| ResultFile {
        label: "timing record".to_owned(),
        path,
        manner: Manner::Append,
    }));
    let downloads = options.download.iter().filter_map(|pair| pair.split_once('='));
    files.extend(downloads.map(|(remote, local)| {
        let local = command::destination(base.cwd, remote, Path::new(local));
        ResultFile {
            label: format!("download {remote}"),
            path: base.cwd.join(local),
            manner: Manner::Whole,
        }
    }));
    files
}

/// Refuses a run with two outputs in one file, or with an output that would overwrite the key.
fn distinct(
    options: &ResultOptions,
    base: &Base<'_>,
    key_path: &Path,
    results: &[ResultFile],
) -> Result<(), EvidenceError> {
    let evidence = |label: &str, path: &Option<PathBuf>| {
        path.as_deref()
            .map(|path| Output::new(label, &base.cwd.join(path)))
    };
    // The key must not be overwritten even if this run signs nothing.
    let mut key = Some(Output::new("attest key", key_path));
    let mut outputs: Vec<Output> = Vec::new();
    if let Some(receipt) = evidence("attest receipt", &options.attest) {
        outputs.push(receipt);
        outputs.extend(key.take());
    }
    outputs.extend(evidence(PROOF, &options.emit_proof));
    outputs.extend(results.iter().map(|file| Output::new(&file.label, &file.path)));
    outputs.extend(key);
    for (index, first) in outputs.iter().enumerate() {
        let mut later = outputs[index + 1..].iter();
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

    type Change = fn(&mut ResultOptions);

    /// The directories of a run: the repository is the current one.
    struct Dirs {
        root: tempfile::TempDir,
        config: PathBuf,
        state: PathBuf,
    }

    impl Dirs {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            Self {
                config: root.path().join("config"),
                state: root.path().join("state"),
                root,
            }
        }

        fn base(&self) -> Base<'_> {
            Base {
                cwd: self.root.path(),
                repository: self.root.path(),
                config: &self.config,
                state: &self.state,
            }
        }
    }

    #[test]
    fn no_two_files_of_a_run_are_one() {
        let dirs = Dirs::new();
        let (dir, base) = (dirs.root.path(), dirs.base());
        let told = |options: ResultOptions| Evidence::prepare(&options, &base).unwrap_err().to_string();
        let options = || ResultOptions {
            attest: Some("a/../r.json".into()),
            ..ResultOptions::default()
        };
        for (change, second) in [
            (
                (|options| options.capture_stdout = Some("r.json".into())) as Change,
                "capture stdout",
            ),
            (
                |options| options.capture_stderr = Some("./r.json".into()),
                "capture stderr",
            ),
            (
                |options| options.timing_record = Some("r.json".to_owned()),
                "timing record",
            ),
            (
                |options| options.download = vec!["x=r.json".to_owned()],
                "download x",
            ),
            (|options| options.attest_key = Some("r.json".into()), "attest key"),
            (|options| options.emit_proof = Some("r.json".into()), "emit proof"),
            (
                |options| options.attest = Some("config/attest/id_ed25519.pem".into()),
                "attest key",
            ),
        ] {
            let mut options = options();
            change(&mut options);
            assert_eq!(
                told(options),
                format!("attest receipt and {second} paths must be different")
            );
        }
        let mut keyed = options();
        keyed.attest_key = Some("key.pem".into());
        keyed.download = vec!["x=key.pem".to_owned()];
        assert_eq!(told(keyed), "attest key and download x paths must be different");
        for (change, other) in [
            (
                (|options| options.capture_stderr = Some("p.md".into())) as Change,
                "capture stderr",
            ),
            (
                |options| options.download = vec!["x=p.md".to_owned()],
                "download x",
            ),
        ] {
            let mut options = ResultOptions {
                emit_proof: Some("./p.md".into()),
                ..ResultOptions::default()
            };
            change(&mut options);
            assert_eq!(
                told(options),
                format!("emit proof/{other}: paths must be different")
            );
        }
        assert!(!dir.join("config").exists(), "nothing was made");
        let evidence = Evidence::prepare(&options(), &base).unwrap();
        assert_eq!(evidence.attest.unwrap().place.path(), dir.join("r.json"));
    }

    #[test]
    fn a_result_that_would_be_lost_or_cannot_be_written_is_told_before_anything_is_made() {
        let dirs = Dirs::new();
        let (dir, base) = (dirs.root.path(), dirs.base());
        std::fs::create_dir(dir.join("real")).unwrap();
        std::os::unix::fs::symlink("real", dir.join("link")).unwrap();
        let captured: Change = |options| options.capture_stdout = Some("z".into());
        for (change, told) in [
            (
                (|options| options.capture_stderr = Some("./z".into())) as Change,
                "capture stdout/stderr: paths must be different",
            ),
            (
                |options| options.timing_record = Some("z".to_owned()),
                "capture stdout and timing record paths must be different",
            ),
            (
                |options| options.download = vec!["a.txt=real/../z".to_owned()],
                "capture stdout and download a.txt paths must be different",
            ),
            (
                |options| options.download = vec!["a=real/b".to_owned(), "b=link/b".to_owned()],
                "download a and download b paths must be different",
            ),
            (
                |options| options.download = vec!["out/z=./".to_owned()],
                "capture stdout and download out/z paths must be different",
            ),
            (
                |options| {
                    options.capture_stderr = Some("state/timings.jsonl".into());
                    options.timing_record = Some("default".to_owned());
                },
                "capture stderr and timing record paths must be different",
            ),
            (
                |options| options.capture_stderr = Some("config/attest/id_ed25519.pem".into()),
                "capture stderr and attest key paths must be different",
            ),
        ] {
            let mut options = ResultOptions::default();
            captured(&mut options);
            change(&mut options);
            assert_eq!(
                Evidence::prepare(&options, &base).unwrap_err().to_string(),
                told,
                "{options:?}"
            );
        }
        // A file that keeps nothing loses nothing.
        let nothing = ResultOptions {
            capture_stdout: Some("/dev/null".into()),
            timing_record: Some("/dev/null".to_owned()),
            ..ResultOptions::default()
        };
        assert!(Evidence::prepare(&nothing, &base).is_ok());
        // Downloads into a directory keep their own names, whether or not the directory exists.
        let apart = ResultOptions {
            download: ["out/a=real", "out/b=real/", "a=new/", "b=new/", "c=."]
                .map(str::to_owned)
                .to_vec(),
            ..ResultOptions::default()
        };
        assert!(Evidence::prepare(&apart, &base).is_ok());
        std::fs::create_dir(dir.join("real/a")).unwrap();
        // Outputs that cannot be written are refused beforehand.
        for change in [
            (|options| options.capture_stdout = Some("real".into())) as Change,
            |options| options.timing_record = Some("link".to_owned()),
            |options| options.download = vec!["a=real".to_owned()],
            |options| options.attest = Some("real".into()),
        ] {
            let mut options = ResultOptions::default();
            change(&mut options);
            let error = Evidence::prepare(&options, &base).unwrap_err();
            assert!(matches!(error, EvidenceError::Place(_)), "{options:?}: {error}");
        }
        assert!(!dir.join("config").exists(), "nothing was made");
    }
}
