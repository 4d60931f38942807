//! Progress reports of long operations.
//!
//! A stage is a short phrase for a person; the binary decides how to show it. Nothing here may print.

/// Receives the stages of a download or a build as they begin.
pub trait Progress {
    /// The stage `name` begins now, for example `installing packages`.
    fn stage(&self, name: &str);

    /// Progress of the current stage: `done` bytes, of `total` if known. Called often.
    fn bytes(&self, done: u64, total: Option<u64>) {
        let _ = (done, total);
    }

    /// Something that the user should know about a result that is made nevertheless.
    fn warn(&self, problem: &str);
}

impl<F: Fn(&str)> Progress for F {
    fn stage(&self, name: &str) {
        self(name);
    }

    fn warn(&self, problem: &str) {
        self(problem);
    }
}
