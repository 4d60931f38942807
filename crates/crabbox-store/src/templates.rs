//! Templates: snapshots of guests without an identity, each stored under a key of everything that it depends
//! on.
//!
//! ```text
//! <state>/firecracker/templates/
//!     secret             drawn once; part of every key, so that a directory from another host never matches
//!     make.lock          held while a template is being made
//!     programs           cached digests of programs that keys depend on, valid as long as their files are unchanged
//!     .making-<random>/  an unfinished template; abandoned if the lock is free
//!     <key>/             memory, vmstate, layer, manifest.json; and `checked`, `failures`
//! ```
//! A template appears under its key in one rename, complete or not at all. It must never be used unless every
//! file matches its manifest. A damaged template counts as absent and never causes an error of a lease.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crabbox_host::digest::{self, hex};
use crabbox_host::files::{self, FileError};
use crabbox_host::holes::{HoleError, Holes};
use crabbox_host::lock::{FileLock, LockError};
use crabbox_host::process::{self, ProcessError};
use crabbox_host::random;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::places::Places;

mod check;
mod program;

use check::{Depth, allocated, check, failures, is_unused, manifest, modified, note_checked};

/// The guest memory.
pub const MEMORY: &str = "memory";
/// The state of the machine and its devices, as Firecracker wrote it.
pub const VMSTATE: &str = "vmstate";
/// The private disk at the moment of the snapshot.
pub const LAYER: &str = "layer";

const SECRET: &str = "secret";
const LOCK: &str = "make.lock";
const MANIFEST: &str = "manifest.json";
/// The boot id of the host during which every byte was last verified.
const CHECKED: &str = "checked";
/// A file with one byte for each failed restore.
const FAILURES: &str = "failures";
const MAKING: &str = ".making-";
const VERSION: u32 = 1;
/// The longest accepted manifest, in bytes; a real one is about 1 KiB.
const MANIFEST_LIMIT: u64 = 64 * 1024;
/// The shortest run of zeros that becomes a hole, in bytes: shorter holes would cost more in extents than
/// they save.
const LEAST_HOLE: u64 = 64 * 1024;
/// Number of consecutive failures after which a template is no longer used.
pub const MOST_FAILURES: u64 = 2;
/// How long an unused template is kept.
pub const UNUSED_LIMIT: Duration = Duration::from_hours(14 * 24);

/// Errors of the store, or of a template that is being made.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A part is not a regular file of our own without other links.
    #[error(transparent)]
    Hole(#[from] HoleError),
    /// The lock cannot be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The host's boot id cannot be read.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The kernel returned no random bytes.
    #[error("cannot generate random bytes for a template")]
    Random(#[source] std::io::Error),
    /// The secret is not valid.
    #[error("{} does not hold the secret of this host; remove it, and all templates become invalid", path.display())]
    Secret {
        /// The file.
        path: PathBuf,
    },
    /// The maker was interrupted.
    #[error("interrupted while sealing the template")]
    Stopped,
    /// Its manifest cannot be written.
    #[error("cannot describe the template")]
    Describe(#[source] serde_json::Error),
}

/// Why an existing template is not used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// Restores from it have failed.
    #[error("it was set aside after {failures} machines failed to start from it")]
    SetAside {
        /// How often.
        failures: u64,
    },
    /// Its manifest cannot be read.
    #[error("its manifest cannot be read: {why}")]
    Manifest {
        /// Why.
        why: String,
    },
    /// A part has changed.
    #[error("its {name} has changed ({what})")]
    Changed {
        /// The part.
        name: String,
        /// What differs.
        what: &'static str,
    },
    /// It could not be inspected.
    #[error(transparent)]
    Look(#[from] TemplateError),
}

impl From<FileError> for Unusable {
    fn from(error: FileError) -> Self {
        Self::Look(error.into())
    }
}

/// The manifest's facts about one part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    bytes: u64,
    inode: u64,
    /// Nanoseconds since 1970.
    modified: i128,
    /// [`digest::sha256_sparse`].
    sha256: String,
}

/// The manifest of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The token that its guest knows.
    pub token: String,
    /// The digest of its image.
    pub image: String,
    /// The digest of the host's facts.
    pub host: String,
    /// When it was made, in seconds since 1970.
    pub made_at: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    version: u32,
    key: String,
    #[serde(flatten)]
    about: About,
    parts: BTreeMap<String, Part>,
}

/// A usable template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Its directory.
    pub dir: PathBuf,
    /// Its key.
    pub key: String,
    /// Its manifest.
    pub about: About,
    /// Disk space of its files, in bytes.
    pub allocated: u64,
}

/// The state of a key.
#[derive(Debug)]
pub enum TemplateState {
    /// A usable template.
    Ready(Template),
    /// An unusable template.
    Unusable(Unusable),
    /// No template.
    Absent,
}

/// A template removed by garbage collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swept {
    /// Its key.
    pub key: String,
    /// The reason.
    pub why: &'static str,
    /// Disk space that it used, in bytes.
    pub bytes: u64,
}

fn key(secret: &str, facts: &str) -> String {
    digest::sha256(format!("{secret}\n{facts}").as_bytes())
}

/// The templates of a state directory.
#[derive(Debug, Clone)]
pub struct Templates {
    dir: PathBuf,
}

impl Templates {
    /// The templates of `places`. Nothing is created before it is needed.
    pub fn of(places: &Places) -> Self {
        Self {
            dir: places.state.join("firecracker/templates"),
        }
    }

    /// Whether this host has a secret, which is made for the first template.
    pub fn is_there(&self) -> bool {
        self.dir.join(SECRET).is_file()
    }

    /// The key for `facts`, computed from them and from this host's secret, which is made if it is missing.
    pub fn key(&self, facts: &str) -> Result<String, TemplateError> {
        Ok(key(&self.secret()?, facts))
    }

    /// The same without making the secret; `None` if there is none, in which case no template exists.
    pub fn known_key(&self, facts: &str) -> Result<Option<String>, TemplateError> {
        Ok(self.drawn_secret()?.map(|secret| key(&secret, facts)))
    }

    /// The secret, if it exists.
    fn drawn_secret(&self) -> Result<Option<String>, TemplateError> {
        let path = self.dir.join(SECRET);
        match files::read_regular(&path, 128) {
            Ok(bytes) => String::from_utf8(bytes)
                .ok()
                .filter(|text| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
                .map(Some)
                .ok_or(TemplateError::Secret { path }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(FileError::io("read", &path, source).into()),
        }
    }

    fn secret(&self) -> Result<String, TemplateError> {
        if let Some(secret) = self.drawn_secret()? {
            return Ok(secret);
        }
        let path = self.dir.join(SECRET);
        files::create_private_dir(&self.dir)?;
        let secret = hex(&random::bytes::<32>().map_err(TemplateError::Random)?);
        // The first process wins: linking the finished file either succeeds or finds a secret.
        let drawn = self.dir.join(format!("secret.{}", &secret[..16]));
        files::write_atomic(&drawn, secret.as_bytes(), 0o600)?;
        let linked = std::fs::hard_link(&drawn, &path);
        std::fs::remove_file(&drawn).map_err(|source| FileError::io("remove", &drawn, source))?;
        match linked {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(FileError::io("make", &path, error).into());
            }
            _ => files::sync_dir(&self.dir)?,
        }
        self.drawn_secret()?.ok_or(TemplateError::Secret { path })
    }

    /// The state of `key` according to file attributes only: no contents are read, and nothing is written.
    pub fn look(&self, key: &str) -> TemplateState {
        self.found(key, Depth::Look)
    }

    fn found(&self, key: &str, depth: Depth) -> TemplateState {
        let dir = self.dir.join(key);
        if !dir.is_dir() {
            return TemplateState::Absent;
        }
        match check(&dir, key, depth) {
            Ok(template) => TemplateState::Ready(template),
            Err(unusable) => TemplateState::Unusable(unusable),
        }
    }

    /// The state of `key`. If this boot of the host has not verified the contents yet, every byte is read;
    /// afterwards file attributes are enough, since only root can change a file.
    pub fn find(&self, key: &str) -> TemplateState {
        self.found(key, Depth::OncePerBoot)
    }

    /// Every key with a directory, sorted.
    pub fn keys(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut keys: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .collect();
        keys.sort();
        keys
    }

    /// The SHA-256 of a program on which templates depend, cached as long as its file is unchanged.
    pub fn program_digest(&self, program: &Path) -> Result<String, FileError> {
        program::digest(&self.dir, program)
    }

    /// Removes the template of `key`, if there is one. Leases restored from it have their own links to its
    /// files.
    pub fn remove(&self, key: &str) -> Result<(), TemplateError> {
        let dir = self.dir.join(key);
        if dir.is_dir() { remove(&dir) } else { Ok(()) }
    }

    /// Removes what remains in a store without templates; does nothing if there is a template, or while one
    /// is being made.
    pub fn dissolve(&self) -> Result<(), TemplateError> {
        if !self.dir.is_dir() {
            return Ok(());
        }
        let Some(lock) = self.try_make()? else {
            return Ok(());
        };
        self.remove_unfinished()?;
        if !self.keys().is_empty() {
            return Ok(());
        }
        for name in [SECRET, program::KNOWN, LOCK] {
            files::remove_tree(&self.dir.join(name))?;
        }
        drop(lock);
        match std::fs::remove_dir(&self.dir) {
            Err(error)
                if !matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Err(FileError::io("remove directory", &self.dir, error).into())
            }
            _ => Ok(()),
        }
    }

    /// Reads every byte of the template of `key`.
    pub fn verify(&self, key: &str) -> Result<Template, Unusable> {
        check(&self.dir.join(key), key, Depth::EveryByte)
    }

    /// The lock for making a template; `None` if another process holds it.
    pub fn try_make(&self) -> Result<Option<FileLock>, TemplateError> {
        files::create_private_dir(&self.dir)?;
        Ok(FileLock::try_acquire(&self.dir.join(LOCK))?)
    }

    /// An empty directory for the parts of a new template; removes leftovers of dead makers. The caller holds
    /// the lock.
    pub fn workplace(&self, _lock: &FileLock) -> Result<PathBuf, TemplateError> {
        self.remove_unfinished()?;
        let name = hex(&random::bytes::<8>().map_err(TemplateError::Random)?);
        let dir = self.dir.join(format!("{MAKING}{name}"));
        files::create_private_dir(&dir)?;
        Ok(dir)
    }

    /// Removes leftovers of dead makers; does nothing while a template is being made, or if none was ever
    /// made.
    pub fn remove_dead(&self) -> Result<(), TemplateError> {
        if self.dir.is_dir()
            && let Some(_lock) = self.try_make()?
        {
            self.remove_unfinished()?;
        }
        Ok(())
    }

    fn remove_unfinished(&self) -> Result<(), TemplateError> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("secret.") {
                std::fs::remove_file(entry.path())
                    .map_err(|source| FileError::io("remove", &entry.path(), source))?;
            }
            if name.starts_with(MAKING) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Seals the parts in `workplace`: punches out their zeros, makes them read-only, and writes the
    /// manifest. It reads the whole memory, which takes seconds; `stop` is polled all the time.
    pub fn seal(
        &self,
        workplace: &Path,
        key: &str,
        about: About,
        stop: &dyn Fn() -> bool,
    ) -> Result<Template, TemplateError> {
        let mut parts = BTreeMap::new();
        for name in [MEMORY, VMSTATE, LAYER] {
            let path = workplace.join(name);
            match Holes::open(&path, process::euid()).and_then(|holes| holes.punch_zeros(LEAST_HOLE, stop)) {
                // Without holes the part takes more space, but works just as well.
                Ok(Some(_)) | Err(HoleError::Unsupported) => {}
                Ok(None) => return Err(TemplateError::Stopped),
                Err(error) => return Err(error.into()),
            }
            let fail = |source| FileError::io("seal", &path, source);
            // Readable for everybody, because a jailed VMM has its own uid. The directories above are
            // accessible only to root.
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).map_err(fail)?;
            let file = files::open_regular(&path).map_err(fail)?;
            file.sync_all().map_err(fail)?;
            let facts = file.metadata().map_err(fail)?;
            let part = Part {
                bytes: facts.len(),
                inode: facts.ino(),
                modified: modified(&facts),
                sha256: digest::sha256_sparse(&path, stop)?.ok_or(TemplateError::Stopped)?,
            };
            parts.insert(name.to_owned(), part);
        }
        let manifest = Manifest {
            version: VERSION,
            key: key.to_owned(),
            about,
            parts,
        };
        let text = serde_json::to_vec_pretty(&manifest).map_err(TemplateError::Describe)?;
        files::write_atomic(&workplace.join(MANIFEST), &text, 0o600)?;
        note_checked(workplace)?;
        Ok(Template {
            allocated: allocated(workplace),
            dir: workplace.to_owned(),
            key: key.to_owned(),
            about: manifest.about,
        })
    }

    /// Publishes a sealed template and replaces an earlier one. The caller holds the lock.
    pub fn publish(&self, sealed: Template, _lock: &FileLock) -> Result<Template, TemplateError> {
        let place = self.dir.join(&sealed.key);
        let fail = |errno: Errno| FileError::io("publish", &place, errno);
        let from = &sealed.dir;
        match renameat_with(CWD, from, CWD, &place, RenameFlags::EXCHANGE) {
            // After the exchange the old template is at the new one's former path.
            Ok(()) => remove(from)?,
            Err(Errno::NOENT) => {
                renameat_with(CWD, from, CWD, &place, RenameFlags::NOREPLACE).map_err(fail)?;
            }
            Err(errno) => return Err(fail(errno).into()),
        }
        files::sync_dir(&self.dir)?;
        Ok(Template { dir: place, ..sealed })
    }

    /// Records a failed restore from the template of `key` with this token; a template that has replaced it
    /// meanwhile is not affected.
    pub fn note_failure(&self, key: &str, token: &str) -> Result<(), TemplateError> {
        let dir = self.dir.join(key);
        if !manifest(&dir).is_ok_and(|manifest| manifest.about.token == token) {
            return Ok(());
        }
        let path = dir.join(FAILURES);
        let failures = failures(&dir) + 1;
        let marks = "x".repeat(usize::try_from(failures.min(MOST_FAILURES * 2)).unwrap_or(0));
        Ok(files::write_atomic(&path, marks.as_bytes(), 0o600)?)
    }

    /// Records a successful restore, which clears earlier failures.
    pub fn note_success(&self, key: &str) {
        let path = self.dir.join(key).join(FAILURES);
        if path.exists() {
            // If this fails, the next success tries again.
            std::fs::remove_file(&path).ok();
        }
        // The modification time records the last use; see `sweep`.
        if let Ok(file) = std::fs::File::open(self.dir.join(key).join(CHECKED)) {
            file.set_modified(SystemTime::now()).ok();
        }
    }

    /// Removes unusable templates: unfinished ones, those of an image or host not in `images` and `host`,
    /// those unused for long, and damaged ones. `None` while a template is being made.
    pub fn sweep(
        &self,
        images: &[String],
        host: &str,
        dry_run: bool,
    ) -> Result<Option<Vec<Swept>>, TemplateError> {
        if !self.dir.is_dir() {
            return Ok(Some(Vec::new()));
        }
        let Some(_lock) = self.try_make()? else {
            return Ok(None);
        };
        if !dry_run {
            self.remove_unfinished()?;
        }
        let mut swept = Vec::new();
        for key in self.keys() {
            let dir = self.dir.join(&key);
            let why = match check(&dir, &key, Depth::Look) {
                Err(Unusable::SetAside { .. }) => Some("set aside"),
                Err(_) => Some("broken"),
                Ok(template) if !images.contains(&template.about.image) => Some("its image is gone"),
                Ok(template) if template.about.host != host => {
                    Some("made on another host, kernel or microcode")
                }
                Ok(_) if is_unused(&dir) => Some("unused"),
                Ok(_) => None,
            };
            let Some(why) = why else { continue };
            let bytes = allocated(&dir);
            if !dry_run {
                remove(&dir)?;
            }
            swept.push(Swept { key, why, bytes });
        }
        Ok(Some(swept))
    }
}

/// Removes a template. It is renamed first, so that no partial template is ever visible under its key.
fn remove(dir: &Path) -> Result<(), TemplateError> {
    let fail = |source| FileError::io("remove", dir, source);
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let gone = if name.starts_with(MAKING) {
        dir.to_owned()
    } else {
        let gone = dir.with_file_name(format!("{MAKING}{name}"));
        std::fs::rename(dir, &gone).map_err(fail)?;
        gone
    };
    std::fs::remove_dir_all(gone).map_err(fail)?;
    Ok(())
}

#[cfg(test)]
mod tests;
