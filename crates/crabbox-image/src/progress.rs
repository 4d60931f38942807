//! How long work reports its progress.
//!
//! A stage is a short phrase for a person; the binary decides how it looks. Nothing here may print.

/// Receives the stages of a download or a build as they begin.
pub trait Progress {
    /// The stage `name` begins now, for example `installing packages`.
    fn stage(&self, name: &str);

    /// Of the stage that is going on, `done` bytes are dealt with, of `total` where that is known. Called often.
    fn bytes(&self, done: u64, total: Option<u64>) {
        let _ = (done, total);
    }
}

impl<F: Fn(&str)> Progress for F {
    fn stage(&self, name: &str) {
        self(name);
    }
}
