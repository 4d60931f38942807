//! The read-only drive that carries files into a lab: a directory packed into an ext4 image, which is reused
//! until the directory changes. It never writes to the directory.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use crabbox_core::id::hex;
use crabbox_host::command::Cmd;
use sha2::{Digest as _, Sha256};

use crate::stage::stage;

/// The image for `source`, below `cache`; rebuilt if the directory has changed.
pub(super) fn ensure(cache: &Path, source: &Path) -> Result<PathBuf> {
    let source = fs::canonicalize(source).with_context(|| format!("cannot find {}", source.display()))?;
    let listing = Listing::of(&source)?;
    let place = hex(&Sha256::digest(source.as_os_str().as_encoded_bytes())[..4]);
    let dir = cache.join("artefacts").join(place);
    let image = dir.join(format!("{}.img", listing.key));
    fs::create_dir_all(&dir)?;
    let lock = fs::File::create(dir.join("lock"))?;
    lock.lock().context("cannot lock the artefacts")?;
    if image.is_file() {
        return Ok(image);
    }
    stage(&format!("pack {}", source.display()), || {
        // Room for inodes and block maps, and a minimum that mke2fs accepts.
        let size = listing.bytes + listing.bytes / 10 + listing.entries * 1024 + (16 << 20);
        let building = dir.join("building");
        fs::File::create(&building)?.set_len(size)?;
        Cmd::inheriting("/sbin/mke2fs")
            .args([
                "-q",
                "-F",
                "-t",
                "ext4",
                "-O",
                "^has_journal,^resize_inode",
                "-m",
                "0",
                "-N",
            ])
            .arg((listing.entries + 64).to_string())
            .arg("-d")
            .args([&source, &building])
            .run()?;
        // A lab that has an older image open keeps it until it is stopped.
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "img") {
                fs::remove_file(path)?;
            }
        }
        fs::rename(&building, &image)?;
        Ok(image)
    })
}

/// A directory's listing without file contents: names, sizes, modes, times and inode numbers, the criteria of
/// make and rsync.
struct Listing {
    key: String,
    bytes: u64,
    entries: u64,
}

impl Listing {
    fn of(source: &Path) -> Result<Self> {
        if !source.is_dir() {
            bail!("{} is not a directory", source.display());
        }
        let mut lines = Vec::new();
        let mut listing = Self {
            key: String::new(),
            bytes: 0,
            entries: 0,
        };
        let mut todo = vec![source.to_owned()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
                let path = entry?.path();
                let meta = fs::symlink_metadata(&path)?;
                let name = path.strip_prefix(source)?.display().to_string();
                let target = if meta.is_symlink() {
                    fs::read_link(&path)?
                } else {
                    PathBuf::new()
                };
                let size = if meta.is_dir() { 0 } else { meta.len() };
                lines.push(format!(
                    "{name}\0{:o}\0{size}\0{}.{:09}\0{}\0{}",
                    meta.mode(),
                    if meta.is_dir() { 0 } else { meta.mtime() },
                    if meta.is_dir() { 0 } else { meta.mtime_nsec() },
                    if meta.is_dir() { 0 } else { meta.ino() },
                    target.display()
                ));
                listing.bytes += (meta.blocks() * 512).max(4096);
                listing.entries += 1;
                if meta.is_dir() {
                    todo.push(path);
                }
            }
        }
        lines.sort_unstable();
        listing.key = hex(&Sha256::digest(lines.join("\n"))[..8]);
        Ok(listing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_directory_is_packed_once_and_a_changed_one_again() {
        let home = tempfile::tempdir().unwrap();
        let source = home.path().join("in");
        fs::create_dir_all(source.join("deep")).unwrap();
        fs::write(source.join("deep/file"), "one").unwrap();
        let cache = home.path().join("cache");
        let first = ensure(&cache, &source).unwrap();
        let built = fs::metadata(&first).unwrap().ino();
        assert_eq!(
            fs::metadata(ensure(&cache, &source).unwrap()).unwrap().ino(),
            built
        );

        fs::write(source.join("deep/file"), "three").unwrap();
        let second = ensure(&cache, &source).unwrap();
        assert_ne!(first, second);
        assert!(!first.exists(), "the older image is gone");
        let out = Cmd::inheriting("/sbin/debugfs")
            .args(["-R", "cat deep/file"])
            .arg(&second)
            .run()
            .unwrap();
        assert_eq!(out.stdout_text(), "three");
    }

    #[test]
    fn a_sparse_file_stays_sparse() {
        let home = tempfile::tempdir().unwrap();
        let source = home.path().join("in");
        fs::create_dir_all(&source).unwrap();
        fs::File::create(source.join("disk"))
            .unwrap()
            .set_len(1 << 30)
            .unwrap();
        let image = ensure(&home.path().join("cache"), &source).unwrap();
        assert!(fs::metadata(image).unwrap().len() < 1 << 26);
    }

    #[test]
    fn no_directory_is_said_so() {
        assert!(ensure(Path::new("/nonexistent"), Path::new("/nonexistent")).is_err());
    }
}
