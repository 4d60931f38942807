//! A command of ours on the other side whose output is taken in while it comes.
//!
//! The taker runs in a thread of its own and may stop at any byte; it must be told nothing by the other side that it has not
//! checked. What the other side says on its standard error is bounded.

use std::fs::File;
use std::io::{self, PipeReader};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt as _;

use crabbox_host::budget::{Bound, Budget, OverBudget};

use crabbox_ssh::exec::{self, Exec, ExecError, RemoteStatus, Sink, Stdin};
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

/// Whether so many bytes may come.
pub(crate) fn expect(budget: &Budget, bytes: u64) -> io::Result<()> {
    budget.allows(bytes).map_err(too_large)
}

fn too_large(over: OverBudget) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, over)
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Streamed<T> {
    /// What the taker made of the output.
    pub(crate) taken: T,
    /// How the command ended; [`ExecError::Output`] when the taker stopped early.
    pub(crate) status: Result<RemoteStatus, ExecError>,
    /// The end of its standard error.
    pub(crate) said: Words,
}

/// Runs `script` and gives its output to `take`. Stops when `cancel` becomes readable.
pub(crate) fn stream<T: Send>(
    target: &Target,
    script: String,
    stdin: Stdin<'_>,
    cancel: Option<BorrowedFd<'_>>,
    take: impl FnOnce(PipeReader) -> T + Send,
) -> io::Result<Streamed<T>> {
    let (reader, mut writer) = io::pipe()?;
    let mut said = Words::default();
    let (taken, status) = std::thread::scope(|scope| {
        let taking = scope.spawn(move || take(reader));
        let exec = Exec {
            script,
            stdin,
            stdout: Sink::Writer(&mut writer),
            stderr: Sink::Writer(&mut said),
            cancel,
            limit: None,
        };
        let status = exec::run(target, exec);
        drop(writer);
        let taken = taking
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (taken, status)
    });
    Ok(Streamed { taken, status, said })
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
