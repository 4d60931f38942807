//! One calm line a stage on standard error, with its seconds. It never writes to standard output.

use std::io::Write as _;
use std::time::Instant;

use anyhow::{Context as _, Result};

/// Does `work` and says how long it took; a failure names the stage.
pub(crate) fn stage<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    eprint!("xtask: {what} ... ");
    // The line is for a human's patience only.
    std::io::stderr().flush().ok();
    let result = work();
    let seconds = started.elapsed().as_secs_f64();
    match &result {
        Ok(_) => eprintln!("{seconds:.1} s"),
        Err(_) => eprintln!("failed after {seconds:.1} s"),
    }
    result.with_context(|| format!("failed: {what}"))
}
