//! What a run leaves as evidence of itself: files of which each has a place of its own before a machine is leased.
//!
//! Nothing may be written over a key, or two things into one file.

use std::path::{Path, PathBuf};

use crabbox_core::fault::{Fault, Kind};
use crabbox_host::place::{self, Access, Place, PlaceError};
use crabbox_ssh::attest::{AttestKey, AttestKeyError, KEY_PATH};

use crate::run::proof_text::ProofTextError;
use crate::run::request::ResultWish;

/// Why there can be no evidence of a run.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// Two of its files would be one.
    #[error("{first} and {second} paths must be different")]
    SamePath {
        /// One.
        first: &'static str,
        /// The other.
        second: String,
    },
    /// The proof would be one with another of its files.
    #[error("emit proof/{other}: paths must be different")]
    SameAsProof {
        /// The other.
        other: String,
    },
    /// The template of the proof asks for what is not there.
    #[error(transparent)]
    Template(#[from] ProofTextError),
    /// A file has no place.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// There is no key to sign a receipt with.
    #[error(transparent)]
    Key(#[from] AttestKeyError),
}

impl Fault for EvidenceError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// The receipt of a run, to be written.
#[derive(Debug)]
pub(super) struct Attest {
    /// What signs it.
    pub(super) key: AttestKey,
    /// The file as it was named.
    pub(super) name: PathBuf,
    /// Where it is.
    pub(super) place: Place,
}

/// The proof of a run, to be written.
#[derive(Debug)]
pub(super) struct Proof {
    /// The file as it was named.
    pub(super) name: PathBuf,
    /// Where it is.
    pub(super) place: Place,
}

/// The evidence that was asked for.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// A signed receipt.
    pub(super) attest: Option<Attest>,
    /// A proof in words.
    pub(super) proof: Option<Proof>,
}

/// Where paths of a request lead.
#[derive(Debug, Clone, Copy)]
pub(super) struct Base<'a> {
    /// The current directory.
    pub(super) cwd: &'a Path,
    /// The repository's root.
    pub(super) repository: &'a Path,
    /// This user's configuration directory.
    pub(super) config: &'a Path,
}

impl Evidence {
    /// Whether there is any.
    pub(super) fn is_wanted(&self) -> bool {
        self.attest.is_some() || self.proof.is_some()
    }

    /// Finds a place for each file, and the key.
    pub(super) fn prepare(wish: &ResultWish, base: &Base<'_>) -> Result<Self, EvidenceError> {
        let key_path = match &wish.attest_key {
            Some(path) => base.cwd.join(path),
            None => base.config.join(KEY_PATH),
        };
        distinct(wish, base, &key_path)?;
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

/// The place of a file, in a directory that is there from now on.
fn placed(name: &Path, base: &Base<'_>) -> Result<Place, EvidenceError> {
    let place = Place::new(base.repository, &base.cwd.join(name), Access::Private)?;
    place.directory()?;
    Ok(place)
}

/// What the proof is called.
const PROOF: &str = "emit proof";

/// Refuses evidence that would be written over something else of the run, or over the key.
fn distinct(wish: &ResultWish, base: &Base<'_>, key_path: &Path) -> Result<(), EvidenceError> {
    let at = |path: &Path| place::straight(&base.cwd.join(path));
    let of = |path: &Option<PathBuf>| path.as_deref().map(at);
    let mut others: Vec<(String, PathBuf)> = Vec::new();
    let mut add = |label: &str, path: Option<PathBuf>| {
        others.extend(path.map(|path| (label.to_owned(), path)));
    };
    add("capture stdout", of(&wish.capture_stdout));
    add("capture stderr", of(&wish.capture_stderr));
    let record = wish.timing_record.as_deref();
    let record = record.filter(|record| !["default", "off", ""].contains(record));
    add("timing record", record.map(|path| at(Path::new(path))));
    for pair in &wish.download {
        if let Some((remote, local)) = pair.split_once('=') {
            add(&format!("download {remote}"), Some(at(Path::new(local))));
        }
    }
    let mut evidence = Vec::new();
    // Nothing is written over the key, whether this run signs with it or not.
    let key = place::straight(key_path);
    if let Some(receipt) = of(&wish.attest) {
        evidence.push(("attest receipt", receipt));
        evidence.push(("attest key", key));
    } else {
        others.push(("attest key".to_owned(), key));
    }
    evidence.extend(of(&wish.emit_proof).map(|proof| (PROOF, proof)));
    for (index, (first, path)) in evidence.iter().enumerate() {
        let later = evidence[index + 1..].iter().map(|(label, path)| (*label, path));
        let others = others.iter().map(|(label, path)| (label.as_str(), path));
        let Some((second, _)) = later.chain(others).find(|(_, other)| *other == path) else {
            continue;
        };
        let second = second.to_owned();
        return Err(if *first == PROOF {
            EvidenceError::SameAsProof { other: second }
        } else {
            EvidenceError::SamePath { first, second }
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_files_of_a_run_are_one() {
        let dir = tempfile::tempdir().unwrap();
        let base = Base {
            cwd: dir.path(),
            repository: dir.path(),
            config: &dir.path().join("config"),
        };
        let told = |wish: ResultWish| Evidence::prepare(&wish, &base).unwrap_err().to_string();
        let wish = || ResultWish {
            attest: Some("a/../r.json".into()),
            ..ResultWish::default()
        };
        for (change, second) in [
            (
                (|wish| wish.capture_stdout = Some("r.json".into())) as fn(&mut ResultWish),
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
                (|wish| wish.capture_stderr = Some("p.md".into())) as fn(&mut ResultWish),
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
}
