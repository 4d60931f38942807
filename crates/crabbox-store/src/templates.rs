//! Templates: machines that were frozen before they knew who they were, each below the key of all that it depends on.
//!
//! ```text
//! <state>/firecracker/templates/
//!     secret             drawn once; part of every key, so that a directory from another host never matches
//!     make.lock          held by whoever makes one
//!     programs           digests of programs that keys have in them, as long as the files stay untouched
//!     .making-<random>/  one that is not finished; without the lock it is nobody's
//!     <key>/             memory, vmstate, layer, manifest.json; and `checked`, `failures`
//! ```
//! A template appears under its key in one rename, whole, or not at all. Nothing of one may be used that is not, file by file, what its
//! manifest says; whatever is wrong with one makes it absent, and never an error of the lease that would have used it.

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

/// The machine's memory.
pub const MEMORY: &str = "memory";
/// The state of the machine and its devices, as Firecracker wrote it.
pub const VMSTATE: &str = "vmstate";
/// The private disk at the moment when the machine stood still.
pub const LAYER: &str = "layer";

const SECRET: &str = "secret";
const LOCK: &str = "make.lock";
const MANIFEST: &str = "manifest.json";
/// Holds the boot of the host during which every byte was last read.
const CHECKED: &str = "checked";
/// Has a byte for each machine that did not come of it.
const FAILURES: &str = "failures";
const MAKING: &str = ".making-";
const VERSION: u32 = 1;
/// The longest manifest that is read, in bytes; ours have about one KiB.
const MANIFEST_LIMIT: u64 = 64 * 1024;
/// The shortest run of zeros that is not kept, in bytes: less would make more extents than it saves room.
const LEAST_HOLE: u64 = 64 * 1024;
/// After how many failures one after the other a template is set aside.
pub const MOST_FAILURES: u64 = 2;
/// How long a template is kept that nobody uses.
pub const UNUSED_LIMIT: Duration = Duration::from_hours(14 * 24);

/// What is wrong with the store, or with a template that is to be made.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A part of it is no file of our own alone.
    #[error(transparent)]
    Hole(#[from] HoleError),
    /// The lock cannot be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The host's boot cannot be told.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// No random bytes.
    #[error("cannot draw random bytes for a template")]
    Random(#[source] std::io::Error),
    /// The secret is not one.
    #[error("{} does not hold the secret of this host; remove it, and all templates become invalid", path.display())]
    Secret {
        /// The file.
        path: PathBuf,
    },
    /// Whoever makes it gave up.
    #[error("interrupted while the template was sealed")]
    Stopped,
    /// Its description cannot be written.
    #[error("cannot describe the template")]
    Describe(#[source] serde_json::Error),
}

/// Why there is a template and it is not used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// Machines did not come of it.
    #[error("it was set aside after {failures} machines did not come of it")]
    SetAside {
        /// How many.
        failures: u64,
    },
    /// Its description cannot be read.
    #[error("its manifest cannot be read: {why}")]
    Manifest {
        /// Why.
        why: String,
    },
    /// A part of it is not what it was.
    #[error("its {name} is not what it was ({what})")]
    Changed {
        /// Which.
        name: String,
        /// What differs.
        what: &'static str,
    },
    /// It could not be looked at.
    #[error(transparent)]
    Look(#[from] TemplateError),
}

impl From<FileError> for Unusable {
    fn from(error: FileError) -> Self {
        Self::Look(error.into())
    }
}

/// A part as it was published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    bytes: u64,
    inode: u64,
    /// Nanoseconds since 1970.
    modified: i128,
    /// [`digest::sha256_sparse`].
    sha256: String,
}

/// What is written down about a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The token that its guest keeps.
    pub token: String,
    /// The digest of the image that it runs.
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

/// A template that may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Its directory.
    pub dir: PathBuf,
    /// Its key.
    pub key: String,
    /// What is written down about it.
    pub about: About,
    /// Bytes that its files take up.
    pub allocated: u64,
}

/// What is there under a key.
#[derive(Debug)]
pub enum Found {
    /// It may be used.
    Ready(Template),
    /// It may not.
    Unusable(Unusable),
    /// Nothing is.
    Absent,
}

/// What a sweep did with a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swept {
    /// Its key.
    pub key: String,
    /// Why it went.
    pub why: &'static str,
    /// Bytes that it took up.
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
    /// Those of `places`. Nothing is made before it is needed.
    pub fn of(places: &Places) -> Self {
        Self {
            dir: places.state.join("firecracker/templates"),
        }
    }

    /// Whether a secret was drawn here, with which the first template begins.
    pub fn is_there(&self) -> bool {
        self.dir.join(SECRET).is_file()
    }

    /// The key of what `facts` describe: it follows from them and from this host's secret, which is made when it is missing.
    pub fn key(&self, facts: &str) -> Result<String, TemplateError> {
        Ok(key(&self.secret()?, facts))
    }

    /// The same for those who only look; `None` where there is no secret, and so nothing that has a key.
    pub fn known_key(&self, facts: &str) -> Result<Option<String>, TemplateError> {
        Ok(self.drawn_secret()?.map(|secret| key(&secret, facts)))
    }

    /// The secret, if it was drawn.
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
        // Whoever is first decides: a link to a finished file is made or not made.
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

    /// What is there under `key` by what the file system says of it: no byte is read, and nothing is written down.
    pub fn look(&self, key: &str) -> Found {
        self.found(key, Depth::Look)
    }

    fn found(&self, key: &str, depth: Depth) -> Found {
        let dir = self.dir.join(key);
        if !dir.is_dir() {
            return Found::Absent;
        }
        match check(&dir, key, depth) {
            Ok(template) => Found::Ready(template),
            Err(unusable) => Found::Unusable(unusable),
        }
    }

    /// What is there under `key`. Every byte is read where this boot of the host has not done so yet; later a look at each file is
    /// enough, since nobody but root can change one.
    pub fn find(&self, key: &str) -> Found {
        self.found(key, Depth::OncePerBoot)
    }

    /// Every key that has something, sorted.
    pub fn keys(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut keys: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .collect();
        keys.sort();
        keys
    }

    /// The SHA-256 of a program that templates depend on, remembered as long as its file stays untouched.
    pub fn program_digest(&self, program: &Path) -> Result<String, FileError> {
        program::digest(&self.dir, program)
    }

    /// Removes the template of `key`, if there is one. Leases that came of it have names of their own for what they use.
    pub fn remove(&self, key: &str) -> Result<(), TemplateError> {
        let dir = self.dir.join(key);
        if dir.is_dir() { remove(&dir) } else { Ok(()) }
    }

    /// Removes what a store without templates still has; nothing where it has one, or while somebody makes one.
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

    /// The lock of whoever makes a template; `None` if somebody does.
    pub fn try_make(&self) -> Result<Option<FileLock>, TemplateError> {
        files::create_private_dir(&self.dir)?;
        Ok(FileLock::try_acquire(&self.dir.join(LOCK))?)
    }

    /// An empty directory for the parts of a new one; what died in the making is removed. Under the lock.
    pub fn workplace(&self, _lock: &FileLock) -> Result<PathBuf, TemplateError> {
        self.remove_unfinished()?;
        let name = hex(&random::bytes::<8>().map_err(TemplateError::Random)?);
        let dir = self.dir.join(format!("{MAKING}{name}"));
        files::create_private_dir(&dir)?;
        Ok(dir)
    }

    /// Removes what makers left that died; nothing while somebody makes one, and where nobody ever did.
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

    /// Makes the parts in `workplace` unchangeable, without their zeros, and describes them there. All of the memory is read for it, so it
    /// takes seconds: `stop` is asked all the time whether to give it up.
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
                // It takes more room, and is none the worse for it.
                Ok(Some(_)) | Err(HoleError::Unsupported) => {}
                Ok(None) => return Err(TemplateError::Stopped),
                Err(error) => return Err(error.into()),
            }
            let fail = |source| FileError::io("seal", &path, source);
            // Everybody's to read: a jailed VMM has a uid of its own. The directories above are root's alone.
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

    /// Puts a sealed template in its place, instead of whatever was there. Under the lock.
    pub fn publish(&self, sealed: Template, _lock: &FileLock) -> Result<Template, TemplateError> {
        let place = self.dir.join(&sealed.key);
        let fail = |errno: Errno| FileError::io("publish", &place, errno);
        let from = &sealed.dir;
        match renameat_with(CWD, from, CWD, &place, RenameFlags::EXCHANGE) {
            // What was there lies where the new one lay.
            Ok(()) => remove(from)?,
            Err(Errno::NOENT) => {
                renameat_with(CWD, from, CWD, &place, RenameFlags::NOREPLACE).map_err(fail)?;
            }
            Err(errno) => return Err(fail(errno).into()),
        }
        files::sync_dir(&self.dir)?;
        Ok(Template { dir: place, ..sealed })
    }

    /// Notes that a machine did not come of the template of `key` that has this token; one that took its place meanwhile is not blamed.
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

    /// Notes that one did: what went wrong before had nothing to do with it.
    pub fn note_success(&self, key: &str) {
        let path = self.dir.join(key).join(FAILURES);
        if path.exists() {
            // The next success tries again.
            std::fs::remove_file(&path).ok();
        }
        // When it was last used; see `sweep`.
        if let Ok(file) = std::fs::File::open(self.dir.join(key).join(CHECKED)) {
            file.set_modified(SystemTime::now()).ok();
        }
    }

    /// Removes what is of no use: half-made ones, those of another image or host than `images` and `host` say, those that nobody has used for
    /// long, and those that are broken. `None` where somebody is making one.
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

/// Removes a template: out of its name first, so that nobody finds half of it.
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
