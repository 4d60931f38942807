//! What git's index says of a path besides its object: the bits that `git update-index` sets, by which a path that is not what
//! the index has still counts as unchanged.
//!
//! They travel with the seed, or else a tree that is clean here would not be clean there. Nothing here decides what is synced.

/// git was told to take it for unchanged (`--assume-unchanged`).
pub(crate) const ASSUMED: u8 = 1;
/// It is not to be looked at (`--skip-worktree`): so here, or because a rule of the user keeps it out of the lease.
pub(crate) const SKIPPED: u8 = 2;
/// It is to be added, without its content so far (`git add --intent-to-add`).
pub(crate) const INTENDED: u8 = 4;
/// A submodule, whose directory is there even if nothing of it comes.
pub(crate) const HOLLOW: u8 = 8;

/// A path of the index with bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The path.
    pub path: Vec<u8>,
    /// The bits of this module, none of them zero.
    pub flags: u8,
}

/// `<flags> <path>` records, NUL after each.
pub(crate) fn encode(marks: &[Mark]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for mark in marks {
        bytes.extend_from_slice(format!("{} ", mark.flags).as_bytes());
        bytes.extend_from_slice(&mark.path);
        bytes.push(0);
    }
    bytes
}
