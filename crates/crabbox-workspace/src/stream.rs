//! What is taken in from the other side while it comes: files, and the words of a command of ours.
//!
//! It must never take more than there is room for here, nor keep more words than a message has use for.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use crabbox_host::beneath::{BeneathError, Existing, Placing};
use crabbox_host::budget::{Bound, Budget, OverBudget};

use crabbox_ssh::target::Target;

/// How much of what the other side says is kept, in bytes.
const WORDS_LIMIT: usize = 16 * 1024;

/// How much of the files of `target` may land in the file system of `into`.
pub(crate) fn budget(target: &Target, into: impl AsFd) -> io::Result<Budget> {
    let room = Budget::free_space(into)?;
    Ok(match target.capacity {
        Some(bytes) => room.each_at_most(bytes, Bound::Lease),
        None => room,
    })
}

/// A file that is written in order, with holes where there are zeros, and takes no more than it may.
#[derive(Debug)]
pub(crate) struct Sparse {
    /// What of it may be stored: that is the other side's disk at most.
    each: Budget,
    end: u64,
}

impl Sparse {
    /// One of the files that `budget` is for, which has nothing yet.
    pub(crate) fn of(budget: &Budget) -> Self {
        Self {
            each: budget.of_one_file(),
            end: 0,
        }
    }

    /// Takes the next bytes. Those of a hole count too for what there is room for: whoever sends them can send others.
    pub(crate) fn take(&mut self, file: &File, budget: &mut Budget, piece: &[u8]) -> io::Result<()> {
        budget.take(piece.len() as u64).map_err(too_large)?;
        if piece.iter().any(|byte| *byte != 0) {
            self.each.take(piece.len() as u64).map_err(too_large)?;
            file.write_all_at(piece, self.end)?;
        }
        self.end += piece.len() as u64;
        Ok(())
    }

    /// Gives it its length.
    pub(crate) fn finish(&self, file: &File) -> io::Result<()> {
        file.set_len(self.end)
    }
}

/// A file that comes, on its way to its place.
pub(crate) struct Arriving {
    placing: Placing,
    sparse: Sparse,
    is_program: bool,
    /// As messages show it.
    name: String,
}

/// Why a file that comes is not in its place.
#[derive(Debug)]
pub(crate) enum Unplaced {
    /// It is more than may be kept.
    Over { name: String, over: OverBudget },
    /// It could not be written here.
    Local { path: PathBuf, source: io::Error },
    /// It could not be put there.
    Beneath(BeneathError),
}

impl From<BeneathError> for Unplaced {
    fn from(error: BeneathError) -> Self {
        Self::Beneath(error)
    }
}

impl Arriving {
    /// One that `budget` is for, which has nothing yet and will be at `placing`.
    pub(crate) fn new(placing: Placing, budget: &Budget, is_program: bool, name: String) -> Self {
        Self {
            placing,
            sparse: Sparse::of(budget),
            is_program,
            name,
        }
    }

    /// Takes the next bytes.
    pub(crate) fn take(&mut self, budget: &mut Budget, piece: &[u8]) -> Result<(), Unplaced> {
        let taken = self.sparse.take(self.placing.file(), budget, piece);
        taken.map_err(|source| self.blame(source))
    }

    /// Puts it in its place, where nothing may be.
    pub(crate) fn end(mut self) -> Result<(), Unplaced> {
        let ended = self.sparse.finish(self.placing.file());
        ended.map_err(|source| self.blame(source))?;
        if self.is_program {
            self.placing.make_executable()?;
        }
        self.placing.commit(Existing::Refuse)?;
        Ok(())
    }

    /// Whose fault it is that a part of it is not here.
    fn blame(&self, source: io::Error) -> Unplaced {
        match OverBudget::of(&source) {
            Some(over) => Unplaced::Over {
                name: self.name.clone(),
                over,
            },
            None => Unplaced::Local {
                path: self.placing.path(),
                source,
            },
        }
    }
}

/// Whether so many bytes may come.
pub(crate) fn expect(budget: &Budget, bytes: u64) -> io::Result<()> {
    budget.allows(bytes).map_err(too_large)
}

fn too_large(over: OverBudget) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, over)
}

/// The last words of the other side.
#[derive(Debug, Default)]
pub(crate) struct Words(Vec<u8>);

impl Words {
    /// All that is kept, as text without white space around it.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).trim().to_owned()
    }
}

impl io::Write for Words {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        let surplus = self.0.len().saturating_sub(WORDS_LIMIT);
        self.0.drain(..surplus);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
