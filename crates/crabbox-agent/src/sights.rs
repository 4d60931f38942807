//! What was seen of each path of a manifest, by row number, in an unlinked temporary file.
//!
//! A number that was never written counts as not seen; one number must never return what was seen of another.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::bytes::discard;
use crate::failure::{At as _, Failure};
use crate::seen::{FileState, SIZE};

/// How many entries are written or read at once.
const BLOCK: usize = 256;

/// The file of entries.
#[derive(Debug)]
pub(crate) struct ScanResults {
    file: File,
    /// The path where the file was created, for messages.
    shown: PathBuf,
    /// Consecutive entries that are not in the file yet; `first` is the number of the first.
    new: Vec<u8>,
    first: usize,
    /// The entries that were read last; `from` is the number of the first.
    old: Vec<u8>,
    from: usize,
}

impl ScanResults {
    /// Creates an empty file at `path`, which determines the file system, and unlinks it.
    pub(crate) fn new(path: &Path) -> Result<Self, Failure> {
        discard(path)?;
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .at(path)?;
        discard(path)?;
        Ok(Self::of(file, path.to_owned()))
    }

    fn of(file: File, shown: PathBuf) -> Self {
        Self {
            file,
            shown,
            new: Vec::new(),
            first: 0,
            old: Vec::new(),
            from: 0,
        }
    }

    /// Stores what was seen of `number`, or that nothing was.
    pub(crate) fn put(&mut self, number: usize, seen: Option<&FileState>) -> Result<(), Failure> {
        if number != self.first + self.new.len() / SIZE || self.new.len() >= BLOCK * SIZE {
            self.flush()?;
            self.first = number;
        }
        self.new.extend_from_slice(&FileState::pack(seen));
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.file
            .write_all_at(&self.new, offset(self.first))
            .at(&self.shown)?;
        self.new.clear();
        self.old.clear();
        Ok(())
    }

    /// What was seen of `number`.
    pub(crate) fn get(&mut self, number: usize) -> Result<Option<FileState>, Failure> {
        if !self.new.is_empty() {
            self.flush()?;
        }
        let held = self.from..self.from + self.old.len() / SIZE;
        if !held.contains(&number) {
            self.from = number / BLOCK * BLOCK;
            self.old.resize(BLOCK * SIZE, 0);
            let mut read = 0;
            loop {
                match self
                    .file
                    .read_at(&mut self.old[read..], offset(self.from) + read as u64)
                {
                    Ok(0) => break,
                    Ok(count) => read += count,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        self.old.clear();
                        return Err(error).at(&self.shown);
                    }
                }
            }
            // Entries beyond the end of the file were never written.
            self.old[read..].fill(0);
        }
        let at = (number - self.from) * SIZE;
        Ok(FileState::unpack(&self.old[at..at + SIZE]))
    }
}

fn offset(number: usize) -> u64 {
    (number * SIZE) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seen::{Kind, Time};

    #[test]
    fn each_number_has_what_was_written_of_it_last_and_no_other_has_any() {
        let dir = tempfile::tempdir().unwrap();
        let mut sights = ScanResults::new(&dir.path().join("sights")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let time = Time {
            seconds: -5,
            nanoseconds: 7,
        };
        let seen = |inode| FileState {
            size: 1,
            inode,
            modified: time,
            changed: time,
            mode: 0o644,
            kind: Kind::File,
        };
        assert_eq!(sights.get(3).unwrap(), None);
        for number in (0..3 * BLOCK).filter(|number| number % 5 != 0) {
            sights.put(number, Some(&seen(number as u64))).unwrap();
        }
        // Overwrite entries before and after the buffered block.
        sights.put(7, None).unwrap();
        sights.put(2 * BLOCK + 4, Some(&seen(9))).unwrap();
        for number in (0..4 * BLOCK).rev().chain(0..BLOCK) {
            let inode = match number {
                number if number % 5 == 0 || number >= 3 * BLOCK || number == 7 => None,
                number if number == 2 * BLOCK + 4 => Some(9),
                number => Some(number as u64),
            };
            assert_eq!(sights.get(number).unwrap(), inode.map(seen), "{number}");
        }
    }

    #[test]
    fn a_file_that_fails_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("now");
        let why = format!("{}: Bad file descriptor", at.display());
        let mut deaf = ScanResults::of(File::create(&at).unwrap(), at.clone());
        assert_eq!(deaf.get(0).unwrap_err().why(), why);
        let mut mute = ScanResults::of(File::open(&at).unwrap(), at);
        mute.put(0, None).unwrap();
        assert_eq!(mute.get(0).unwrap_err().why(), why);
    }
}
