//! One line per stage on standard error, with its seconds. It never writes to standard output.

use std::io::{IsTerminal as _, Write as _};
use std::time::Instant;

use anyhow::{Context as _, Result};

/// Returns to the beginning of a terminal's line and clears it.
const ANEW: &str = "\r\x1b[K";

/// Does `work` and reports how long it took; a failure names the stage. Lines of concurrent stages do not
/// mix.
pub fn stage<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let anew = if std::io::stderr().is_terminal() { ANEW } else { "" };
    if !anew.is_empty() {
        eprint!("{anew}xtask: {what} ... ");
        // Ignored: the line only informs the user.
        std::io::stderr().flush().ok();
    }
    let result = work();
    let seconds = started.elapsed().as_secs_f64();
    let failed = if result.is_ok() { "" } else { "failed after " };
    eprintln!("{anew}xtask: {what} ... {failed}{seconds:.1} s");
    result.with_context(|| format!("failed: {what}"))
}
