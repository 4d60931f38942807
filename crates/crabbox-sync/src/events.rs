//! What a sync tells its caller while it runs. It must never be needed for the sync to be right.

/// How far a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of file content handled so far.
    pub bytes: u64,
    /// Files sent so far, where rsync says.
    pub files: Option<u64>,
}

/// What a sync is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Asking the lease what it lacks.
    Compare,
    /// Sending this much.
    Send {
        /// How many files and links.
        files: u64,
        /// Their sizes added up; an upper limit, where rsync sends differences.
        bytes: u64,
    },
    /// Bringing the repository in the lease up to date.
    Seed,
    /// Writing down what arrived.
    Finish,
}

/// Told what happens; called from more than one thread.
pub trait SyncEvents: Sync {
    /// A stage begins.
    fn stage(&self, _stage: Stage) {}
    /// The transfer moved on.
    fn progress(&self, _progress: Progress) {}
    /// Something that the user should read; the sync goes on.
    fn warning(&self, _line: &str) {}
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl SyncEvents for Silent {}
