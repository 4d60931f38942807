//! Stores data from the remote side as it arrives: files, and the messages of our own commands.
//!
//! It must never accept more than there is room for, nor keep more text than a message can use.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use crabbox_host::beneath::{BeneathError, Existing, Placing};
use crabbox_host::budget::{Bound, Budget, OverBudget};

use crabbox_ssh::target::Target;

/// How much remote text is kept, in bytes.
const WORDS_LIMIT: usize = 16 * 1024;

/// How many bytes of files of `target` may be stored in the file system of `into`.
pub(crate) fn budget(target: &Target, into: impl AsFd) -> io::Result<Budget> {
    let room = Budget::free_space(into)?;
    Ok(match target.capacity {
        Some(bytes) => room.each_at_most(bytes, Bound::Lease),
        None => room,
    })
}

/// Writes a file sequentially, with holes for zeros, and within its budget.
#[derive(Debug)]
pub(crate) struct Sparse {
    /// The limit for its stored bytes: at most the size of the lease's disk.
    each: Budget,
    end: u64,
}

impl Sparse {
    /// An empty file within `budget`.
    pub(crate) fn of(budget: &Budget) -> Self {
        Self {
            each: budget.of_one_file(),
            end: 0,
        }
    }

    /// Writes the next bytes. A hole also counts towards the free space, because the sender could as well
    /// send data.
    pub(crate) fn take(&mut self, file: &File, budget: &mut Budget, piece: &[u8]) -> io::Result<()> {
        budget.take(piece.len() as u64).map_err(too_large)?;
        if piece.iter().any(|byte| *byte != 0) {
            self.each.take(piece.len() as u64).map_err(too_large)?;
            file.write_all_at(piece, self.end)?;
        }
        self.end += piece.len() as u64;
        Ok(())
    }

    /// Sets its final length.
    pub(crate) fn finish(&self, file: &File) -> io::Result<()> {
        file.set_len(self.end)
    }
}

/// A file being received.
pub(crate) struct Arriving {
    placing: Placing,
    sparse: Sparse,
    is_program: bool,
    /// Its name for messages.
    name: String,
}

/// Why a received file could not be put in place.
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
    /// An empty file within `budget`, which will be moved to `placing`.
    pub(crate) fn new(placing: Placing, budget: &Budget, is_program: bool, name: String) -> Self {
        Self {
            placing,
            sparse: Sparse::of(budget),
            is_program,
            name,
        }
    }

    /// Writes the next bytes.
    pub(crate) fn take(&mut self, budget: &mut Budget, piece: &[u8]) -> Result<(), Unplaced> {
        let taken = self.sparse.take(self.placing.file(), budget, piece);
        taken.map_err(|source| self.blame(source))
    }

    /// Moves it to its place, where nothing may exist.
    pub(crate) fn end(mut self) -> Result<(), Unplaced> {
        let ended = self.sparse.finish(self.placing.file());
        ended.map_err(|source| self.blame(source))?;
        if self.is_program {
            self.placing.make_executable()?;
        }
        self.placing.commit(Existing::Refuse)?;
        Ok(())
    }

    /// Distinguishes an exceeded budget from a local error.
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

/// Checks that this many bytes may be received.
pub(crate) fn expect(budget: &Budget, bytes: u64) -> io::Result<()> {
    budget.allows(bytes).map_err(too_large)
}

fn too_large(over: OverBudget) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, over)
}

/// The end of the remote text.
#[derive(Debug, Default)]
pub(crate) struct Words(Vec<u8>);

impl Words {
    /// The kept text, without surrounding white space.
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
