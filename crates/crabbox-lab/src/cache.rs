//! A cache, shared by all clones of this user, of things that are slow to make and seldom change: images and
//! their inputs.
//!
//! An entry is a directory named by the digest of its recipe. One process at a time makes it under another
//! name, and renames it when it is complete; before each use every file in it is checked against the digests
//! recorded when it was made. It must never be written to after that, except for additional files (a lock,
//! say).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use crabbox_host::digest;
use crabbox_host::files;
use crabbox_host::lock::FileLock;
use rustix::fs::{SeekFrom, seek};
use sha2::{Digest as _, Sha256};

use crate::lab::images::remove_tree;
use crate::workspace;

/// The file with the digests of all other files of an entry.
const DIGESTS: &str = "digests.json";
/// The name prefix of an unfinished entry.
const BUILDING: &str = "building-";
/// The name suffix of an entry's lock, whose modification time is when the entry was last used.
const LOCK: &str = ".lock";
/// Entries unused for this long are removed when a new one is made.
const UNUSED: Duration = Duration::from_hours(14 * 24);
/// The unit, in bytes, in which a digest skips zeros.
const BLOCK: u64 = 4096;
/// [`BLOCK`] as a length in memory.
const BLOCK_LEN: usize = 4096;
/// How much to read at a time for a digest; whole blocks.
const READ: usize = 1 << 20;
/// How long to wait for another process to make the same entry.
const PATIENCE: Duration = Duration::from_mins(30);

/// The cache of one user.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
}

/// One entry, as `cargo xtask cache` shows it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its kind, and the digest of its recipe.
    pub name: String,
    /// Its size on disk in bytes.
    pub bytes: u64,
    /// When it was last used; `None` if unknown.
    pub used: Option<SystemTime>,
    /// Whether a process is making or checking it now.
    pub held: bool,
}

impl Cache {
    /// The cache of this user: `crabbox/lab` in the cache directory (XDG Base Directory Specification), or
    /// below `target/` if there is none.
    pub fn of_user() -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "developers' tasks have no env module; this is the one place that looks for a home"
        )]
        let absolute = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|dir| dir.is_absolute())
        };
        let home = || absolute("HOME").map(|home| home.join(".cache"));
        let base = absolute("XDG_CACHE_HOME").or_else(home);
        Self::at(base.map_or_else(
            || workspace::lab_dir().join("cache"),
            |base| base.join("crabbox/lab"),
        ))
    }

    /// The cache in `dir`.
    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The entry `kind` for the recipe with the digest `key`. If it is missing or damaged, `make` fills an
    /// empty directory.
    pub fn entry(&self, kind: &str, key: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let name = format!("{kind}-{key}");
        files::create_private_dir(&self.dir)?;
        let path = self.dir.join(format!("{name}{LOCK}"));
        let lock = FileLock::acquire_within(&path, PATIENCE)?;
        File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_modified(SystemTime::now()))
            .with_context(|| format!("cannot note a use in {}", path.display()))?;
        let entry = self.dir.join(&name);
        if entry.exists() {
            match verify(&entry) {
                Ok(()) => return Ok(entry),
                Err(error) => eprintln!("xtask: {} is made anew: {error:#}", entry.display()),
            }
            remove_tree(&entry)?;
        }
        let building = self.dir.join(format!("{BUILDING}{name}"));
        remove_tree(&building)?;
        files::create_private_dir(&building)?;
        make(&building)?;
        let digests = digests(&building)?;
        fs::write(building.join(DIGESTS), serde_json::to_vec_pretty(&digests)?)?;
        fs::rename(&building, &entry).with_context(|| format!("cannot put {} in place", entry.display()))?;
        drop(lock);
        self.forget_unused()?;
        Ok(entry)
    }

    /// Whether the entry exists; if it turns out to be damaged, it is still made again.
    pub(crate) fn has(&self, kind: &str, key: &str) -> bool {
        self.dir.join(format!("{kind}-{key}")).exists()
    }

    /// All entries, sorted by name.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for name in self.names()? {
            let lock = self.dir.join(format!("{name}{LOCK}"));
            entries.push(Entry {
                bytes: bytes_of(&self.dir.join(&name))?,
                used: fs::metadata(&lock).and_then(|meta| meta.modified()).ok(),
                held: lock.exists() && FileLock::is_held(&lock)?,
                name,
            });
        }
        Ok(entries)
    }

    /// Removes the entry `name`; `false` if it does not exist or a process holds it. A running lab keeps its
    /// open files.
    pub fn remove(&self, name: &str) -> Result<bool> {
        ensure!(
            !name.is_empty() && !name.contains('/') && !name.starts_with('.'),
            "`{name}` cannot be an entry of the cache"
        );
        let entry = self.dir.join(name);
        if !entry.is_dir() {
            return Ok(false);
        }
        let Some(_lock) = FileLock::try_acquire(&self.dir.join(format!("{name}{LOCK}")))? else {
            return Ok(false);
        };
        // Rename it first, so that a removal that is killed half-way does not leave a broken entry.
        let building = self.dir.join(format!("{BUILDING}{name}"));
        remove_tree(&building)?;
        fs::rename(&entry, &building).with_context(|| format!("cannot remove {}", entry.display()))?;
        remove_tree(&building)?;
        Ok(true)
    }

    fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let listed = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(names),
            listed => listed.with_context(|| format!("cannot read {}", self.dir.display()))?,
        };
        for entry in listed {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.path().join(DIGESTS).is_file() && !name.starts_with(BUILDING) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Removes entries that have not been used for long, and unfinished ones of killed processes.
    fn forget_unused(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir).with_context(|| format!("cannot read {}", self.dir.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(name) = name.strip_prefix(BUILDING) else {
                continue;
            };
            if let Some(_lock) = FileLock::try_acquire(&self.dir.join(format!("{name}{LOCK}")))? {
                // A killed build's child may still write or have something mounted for a moment; then the
                // next call removes the rest.
                remove_tree(&entry.path()).ok();
            }
        }
        let entries = self.entries()?;
        let old = |used: SystemTime| used.elapsed().is_ok_and(|age| age > UNUSED);
        for entry in entries.iter().filter(|entry| entry.used.is_none_or(old)) {
            self.remove(&entry.name)?;
        }
        Ok(())
    }
}

/// Fails if a file of `entry` has changed since the entry was made, or is gone.
fn verify(entry: &Path) -> Result<()> {
    let path = entry.join(DIGESTS);
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let noted: BTreeMap<String, String> =
        serde_json::from_slice(&text).with_context(|| format!("cannot read {}", path.display()))?;
    for (name, noted) in &noted {
        let found = digest_of(&entry.join(name))?;
        if found != *noted {
            bail!("{name} has changed since it was made");
        }
    }
    Ok(())
}

/// The digest of each file and symlink below `dir`, by relative path.
fn digests(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(&next).with_context(|| format!("cannot read {}", next.display()))? {
            let path = entry?.path();
            let name = path.strip_prefix(dir)?;
            let name = name
                .to_str()
                .with_context(|| format!("{} is no text", name.display()))?;
            if fs::symlink_metadata(&path)?.is_dir() {
                todo.push(path);
            } else if name != DIGESTS {
                found.insert(name.to_owned(), digest_of(&path)?);
            }
        }
    }
    Ok(found)
}

/// Digest of a file's mode, length and contents, or of a symlink's target. Holes are skipped, since reading a
/// sparse disk would take seconds.
///
/// The position of holes does not matter: file systems fill and create holes by themselves on writeback
/// (delayed allocation, unwritten extents). So only blocks that are not zero count, each with its position.
fn digest_of(path: &Path) -> Result<String> {
    let context = || format!("cannot read {}", path.display());
    let meta = fs::symlink_metadata(path).with_context(context)?;
    if meta.is_symlink() {
        return Ok(format!(
            "-> {}",
            fs::read_link(path).with_context(context)?.display()
        ));
    }
    let mut hash = Sha256::new();
    let file = File::open(path).with_context(context)?;
    let (mut at, mut buffer) = (0, vec![0; READ]);
    loop {
        at = match seek(&file, SeekFrom::Data(at)) {
            // An extent may begin anywhere; align to blocks counted from the start of the file.
            Ok(data) => (data - data % BLOCK).max(at),
            // No data from here on.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error).with_context(context),
        };
        let end = seek(&file, SeekFrom::Hole(at)).with_context(context)?;
        let end = end.next_multiple_of(BLOCK).min(meta.len());
        while at < end {
            let room = usize::try_from(end - at).unwrap_or(READ).min(READ);
            let read = &mut buffer[..room];
            file.read_exact_at(read, at).with_context(context)?;
            for block in read.chunks(BLOCK_LEN) {
                if block.iter().any(|byte| *byte != 0) {
                    hash.update(at.to_le_bytes());
                    hash.update(block);
                }
                at += u64::try_from(block.len())?;
            }
        }
    }
    let content = digest::hex(&hash.finalize());
    Ok(format!(
        "{:o} {} {content}",
        meta.permissions().mode() & 0o7777,
        meta.len()
    ))
}

/// The size of `dir` on disk.
fn bytes_of(dir: &Path) -> Result<u64> {
    let (mut bytes, mut todo) = (0, vec![dir.to_owned()]);
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(&next).with_context(|| format!("cannot read {}", next.display()))? {
            let path = entry?.path();
            let meta = fs::symlink_metadata(&path)?;
            bytes += meta.blocks() * 512;
            if meta.is_dir() {
                todo.push(path);
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
