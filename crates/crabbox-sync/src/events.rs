//! Events of a running sync. A sync must never depend on them.

/// How far a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of file content handled so far.
    pub bytes: u64,
    /// Files sent so far, if rsync reports them.
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
        /// The sum of their sizes; an upper limit if rsync sends only differences.
        bytes: u64,
    },
    /// Bringing the repository in the lease up to date.
    Seed,
    /// Recording what arrived.
    Finish,
}

/// Receives the events, from more than one thread.
pub trait SyncEvents: Sync {
    /// A stage begins.
    fn stage(&self, _stage: Stage) {}
    /// The transfer moved on.
    fn progress(&self, _progress: Progress) {}
    /// A message that the user should see; the sync goes on.
    fn warning(&self, _line: &str) {}
}

/// Ignores all events.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl SyncEvents for Silent {}
