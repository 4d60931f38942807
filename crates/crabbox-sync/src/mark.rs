//! Flags of paths in git's index: the bits set by `git update-index`, which let a path that differs from the
//! index count as unchanged.
//!
//! They are sent with the seed, because otherwise a tree that is clean here would not be clean in the lease.
//! They do not affect what is synced.

/// git assumes that it is unchanged (`--assume-unchanged`).
pub(crate) const ASSUMED: u8 = 1;
/// git does not examine it (`--skip-worktree`): either set here, or because an exclude rule keeps it out of
/// the lease.
pub(crate) const SKIPPED: u8 = 2;
/// It is to be added, without its content yet (`git add --intent-to-add`).
pub(crate) const INTENDED: u8 = 4;
/// A submodule, whose directory exists even if none of its files are synced.
pub(crate) const HOLLOW: u8 = 8;

/// A path of the index with flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The path.
    pub path: Vec<u8>,
    /// The flags of this module; never zero.
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
