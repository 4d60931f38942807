//! Claim files: `<state>/claims/<id>.json`, shared with the Go program, in exactly its format.
//!
//! Every access holds the claim's lock. A change must start from the file's current contents under that lock,
//! and happen only if they are what the caller saw. Unknown fields of other programs are preserved.

use std::path::PathBuf;
use std::time::Duration;

use crabbox_core::claim::{Claim, is_valid_claim_id};
use crabbox_core::id::hex;
use crabbox_host::files::{self, FileError};
use crabbox_host::lock::{FileLock, LockError};
use serde_json::{Map, Value};

use crate::places::Places;

/// How long to wait for the holder of a claim lock.
const LOCK_LIMIT: Duration = Duration::from_secs(30);

/// Largest claim in bytes, the same limit as in the Go program.
const SIZE_LIMIT: u64 = 1 << 20;

/// Why a claim cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The id cannot be used as a file name.
    #[error("{id:?} is not a valid claim id")]
    InvalidId {
        /// The id.
        id: String,
    },
    /// The lock cannot be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The file cannot be read.
    #[error("cannot read claim {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a claim.
    #[error("claim {} is invalid", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// The path of a claim is a link, a directory, a pipe or a device.
    #[error("claim {} is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file is larger than any claim.
    #[error("claim {} is larger than {SIZE_LIMIT} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file names no lease.
    #[error("claim {} names no lease", path.display())]
    NoLease {
        /// The file.
        path: PathBuf,
    },
    /// The file names another lease.
    #[error("claim {} belongs to lease {found}", path.display())]
    Misplaced {
        /// The file.
        path: PathBuf,
        /// The lease it names.
        found: String,
    },
    /// Another process changed it since the caller read it.
    #[error("lease {id} claim changed; retry")]
    Changed {
        /// The lease.
        id: String,
    },
    /// The file cannot be written or removed.
    #[error(transparent)]
    Write(#[from] FileError),
    /// The kernel gave no random bytes.
    #[error("cannot generate a claim revision")]
    Random(#[source] std::io::Error),
}

/// An unusable claim file, listed with the usable ones.
#[derive(Debug)]
pub struct Problem {
    /// The file's name.
    pub file: String,
    /// The reason.
    pub error: ClaimError,
}

/// Every claim, sorted by file name.
#[derive(Debug, Default)]
pub struct Listing {
    /// The usable claims.
    pub claims: Vec<Claim>,
    /// The unusable ones.
    pub problems: Vec<Problem>,
}

/// Reads the claim of lease `id`; `None` if it does not exist.
pub fn read(places: &Places, id: &str) -> Result<Option<Claim>, ClaimError> {
    let guard = lock(places, id)?;
    let claim = load(places, id)?.map(|(claim, _)| claim);
    if claim.is_none() {
        // A lookup of a missing claim must not leave its lock file behind.
        guard.remove_while_held()?;
    }
    Ok(claim)
}

/// Changes the claim of lease `id` under its lock. `change` gets the current claim (`None` if it does not
/// exist) and returns the new one, or `None` to change nothing. The new claim gets a new random revision.
pub fn update<E: From<ClaimError>>(
    places: &Places,
    id: &str,
    change: impl FnOnce(Option<&Claim>) -> Result<Option<Claim>, E>,
) -> Result<Option<Claim>, E> {
    let guard = lock(places, id).map_err(E::from)?;
    let standing = load(places, id).map_err(E::from)?;
    let (old, mut raw) = match standing {
        Some((claim, raw)) => (Some(claim), raw),
        None => (None, Map::new()),
    };
    let Some(mut claim) = change(old.as_ref())? else {
        if old.is_none() {
            guard.remove_while_held().map_err(ClaimError::from)?;
        }
        return Ok(None);
    };
    id.clone_into(&mut claim.lease_id);
    claim.revision = hex(&crabbox_host::random::bytes::<16>().map_err(ClaimError::Random)?);
    store(places, &claim, &mut raw)?;
    Ok(Some(claim))
}

/// Removes the claim of lease `id`; with `seen`, only if it is still the claim that the caller saw.
pub fn remove(places: &Places, id: &str, seen: Option<&Claim>) -> Result<bool, ClaimError> {
    let guard = lock(places, id)?;
    if let (Some(seen), Some((standing, _))) = (seen, load(places, id)?)
        && *seen != standing
    {
        return Err(ClaimError::Changed { id: id.to_owned() });
    }
    let path = path_of(places, id);
    let removed = files::remove_if_there(&path).map_err(|source| ClaimError::Read { path, source })?;
    guard.remove_while_held()?;
    Ok(removed)
}

/// Reads every claim.
pub fn list(places: &Places) -> Result<Listing, ClaimError> {
    let dir = places.claims();
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Listing::default()),
        Err(source) => return Err(ClaimError::Read { path: dir, source }),
    };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| {
            name.strip_suffix(".json")
                .is_some_and(|id| !id.is_empty() && !id.starts_with('.'))
        })
        .collect();
    names.sort();
    let mut listing = Listing::default();
    for file in names {
        match load(places, file.strip_suffix(".json").unwrap_or(&file)) {
            Ok(Some((claim, _))) => listing.claims.push(claim),
            Ok(None) => {}
            Err(error) => listing.problems.push(Problem { file, error }),
        }
    }
    Ok(listing)
}

fn lock(places: &Places, id: &str) -> Result<FileLock, ClaimError> {
    if !is_valid_claim_id(id) {
        return Err(ClaimError::InvalidId { id: id.to_owned() });
    }
    Ok(FileLock::acquire_within(&places.claim_lock(id), LOCK_LIMIT)?)
}

fn path_of(places: &Places, id: &str) -> PathBuf {
    places.claims().join(format!("{id}.json"))
}

/// A claim with the file's complete contents, including fields of other programs.
type Loaded = (Claim, Map<String, Value>);

fn load(places: &Places, id: &str) -> Result<Option<Loaded>, ClaimError> {
    if !is_valid_claim_id(id) {
        return Err(ClaimError::InvalidId { id: id.to_owned() });
    }
    let path = path_of(places, id);
    // Refuse a link, which may lead to another file, and a pipe, which would block the read until it has a
    // writer.
    match std::fs::symlink_metadata(&path) {
        Ok(facts) if !facts.is_file() => return Err(ClaimError::NotAFile { path }),
        Ok(facts) if facts.len() > SIZE_LIMIT => return Err(ClaimError::TooLarge { path }),
        _ => {}
    }
    let text = match files::read_regular(&path, SIZE_LIMIT) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ClaimError::Read { path, source }),
    };
    let decode = |source| ClaimError::Decode {
        path: path.clone(),
        source,
    };
    let raw: Map<String, Value> = serde_json::from_slice(&text).map_err(decode)?;
    let claim: Claim = serde_json::from_value(Value::Object(raw.clone())).map_err(decode)?;
    if claim.lease_id.trim().is_empty() {
        return Err(ClaimError::NoLease { path });
    }
    if claim.lease_id != id {
        return Err(ClaimError::Misplaced {
            path,
            found: claim.lease_id,
        });
    }
    Ok(Some((claim, raw)))
}

fn store(places: &Places, claim: &Claim, raw: &mut Map<String, Value>) -> Result<(), ClaimError> {
    let path = path_of(places, &claim.lease_id);
    let encode = |source| ClaimError::Decode {
        path: path.clone(),
        source,
    };
    let known = serde_json::to_value(claim).map_err(encode)?;
    let all = serde_json::to_value(Claim::full()).map_err(encode)?;
    if let (Value::Object(known), Value::Object(all)) = (known, all) {
        raw.retain(|name, _| !all.contains_key(name));
        // Known fields first, in the Go program's order, then fields of other programs.
        let foreign = std::mem::replace(raw, known);
        raw.extend(foreign);
    }
    let mut text = serde_json::to_vec_pretty(raw).map_err(encode)?;
    text.push(b'\n');
    files::create_private_dir(&places.claims())?;
    files::write_atomic(&path, &text, 0o600)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(places: &Places, id: &str, repo: &str) -> Claim {
        update::<ClaimError>(places, id, |_| {
            Ok(Some(Claim {
                repo_root: repo.into(),
                ..Claim::default()
            }))
        })
        .unwrap()
        .unwrap()
    }

    #[test]
    fn every_change_draws_a_revision_and_a_stale_view_loses() {
        let root = tempfile::tempdir().unwrap();
        let places = Places::below(root.path());
        let first = put(&places, "cbx_a", "/r1");
        let second = put(&places, "cbx_a", "/r2");
        assert!(first.revision.len() == 32 && first.revision != second.revision);
        assert!(matches!(
            remove(&places, "cbx_a", Some(&first)),
            Err(ClaimError::Changed { .. })
        ));
        assert!(remove(&places, "cbx_a", Some(&second)).unwrap());
        assert!(!remove(&places, "cbx_a", None).unwrap());
        assert!(
            !places.claim_lock("cbx_a").exists(),
            "the lock file goes with the claim"
        );
    }

    #[test]
    fn fields_of_other_programs_survive() {
        let root = tempfile::tempdir().unwrap();
        let places = Places::below(root.path());
        put(&places, "cbx_a", "/r1");
        let path = path_of(&places, "cbx_a");
        let text = std::fs::read_to_string(&path)
            .unwrap()
            .replacen('{', "{\n  \"bridgeURL\": \"u\",", 1);
        std::fs::write(&path, text).unwrap();
        put(&places, "cbx_a", "/r2");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.contains("\"bridgeURL\": \"u\"") && text.contains("/r2"),
            "{text}"
        );
    }

    #[test]
    fn bad_files_are_problems_beside_the_good_ones() {
        let root = tempfile::tempdir().unwrap();
        let places = Places::below(root.path());
        put(&places, "cbx_a", "/r1");
        std::fs::write(places.claims().join("cbx_b.json"), "[]").unwrap();
        std::fs::write(places.claims().join("cbx_c.json"), "{\"leaseID\":\"cbx_a\"}").unwrap();
        let listing = list(&places).unwrap();
        assert_eq!((listing.claims.len(), listing.problems.len()), (1, 2));
        // Each unusable entry is reported by its kind; links are not followed, and pipes are not waited for.
        let large = places.claims().join("cbx_large.json");
        std::fs::File::create(&large)
            .unwrap()
            .set_len(SIZE_LIMIT + 1)
            .unwrap();
        let link = places.claims().join("cbx_link.json");
        std::os::unix::fs::symlink(path_of(&places, "cbx_a"), &link).unwrap();
        std::fs::create_dir(places.claims().join("cbx_dir.json")).unwrap();
        std::fs::write(places.claims().join("cbx_none.json"), "{}").unwrap();
        // Names that not every system can store, and one that would be read as another claim's.
        for id in ["CON", "a<b", "cbx_a.json"] {
            std::fs::write(path_of(&places, id), format!("{{\"leaseID\":{id:?}}}")).unwrap();
        }
        let listing = list(&places).unwrap();
        let refused = |file: &str| {
            let mut problems = listing.problems.iter();
            problems
                .find(|problem| problem.file == file)
                .map(|problem| &problem.error)
        };
        for file in ["CON.json", "a<b.json"] {
            assert!(
                matches!(refused(file), Some(ClaimError::InvalidId { .. })),
                "{listing:?}"
            );
        }
        assert_eq!(listing.claims.len(), 2, "{listing:?}");
        let kinds = ["cbx_large", "cbx_link", "cbx_dir", "cbx_none"].map(|id| load(&places, id).unwrap_err());
        assert!(
            matches!(
                kinds,
                [
                    ClaimError::TooLarge { .. },
                    ClaimError::NotAFile { .. },
                    ClaimError::NotAFile { .. },
                    ClaimError::NoLease { .. }
                ]
            ),
            "{kinds:?}"
        );
        std::fs::remove_file(places.claims().join("cbx_none.json")).unwrap();
        assert!(matches!(read(&places, "../x"), Err(ClaimError::InvalidId { .. })));
        assert!(read(&places, "cbx_none").unwrap().is_none());
        assert!(
            !places.claim_lock("cbx_none").exists(),
            "a look leaves nothing behind"
        );
    }

    #[test]
    fn concurrent_updates_are_never_lost() {
        let root = tempfile::tempdir().unwrap();
        let places = Places::below(root.path());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        update::<ClaimError>(&places, "cbx_a", |old| {
                            let mut claim = old.cloned().unwrap_or_default();
                            claim.idle_timeout_seconds += 1;
                            Ok(Some(claim))
                        })
                        .unwrap();
                    }
                });
            }
        });
        assert_eq!(read(&places, "cbx_a").unwrap().unwrap().idle_timeout_seconds, 100);
    }
}
