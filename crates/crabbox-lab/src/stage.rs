//! One calm line a stage on standard error, with its seconds. It never writes to standard output.

use std::io::{IsTerminal as _, Write as _};
use std::time::Instant;

use anyhow::{Context as _, Result};

/// Goes back to the beginning of a terminal's line and empties it.
const ANEW: &str = "\r\x1b[K";

/// Does `work` and says how long it took; a failure names the stage. Several at once keep their lines apart.
pub fn stage<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let anew = if std::io::stderr().is_terminal() { ANEW } else { "" };
    if !anew.is_empty() {
        eprint!("{anew}xtask: {what} ... ");
        // The line is for a human's patience only.
        std::io::stderr().flush().ok();
    }
    let result = work();
    let seconds = started.elapsed().as_secs_f64();
    let failed = if result.is_ok() { "" } else { "failed after " };
    eprintln!("{anew}xtask: {what} ... {failed}{seconds:.1} s");
    result.with_context(|| format!("failed: {what}"))
}
