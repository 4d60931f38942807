//! Drops the unwind tables from a release, as the agent does (its `src/link.ld`): its panics abort, nobody
//! unwinds its stack, and they are a tenth of its size.
//!
//! It must never affect the development profile, whose tests unwind. Cargo does not tell a build script how
//! panics end, but which profile the chosen one inherits from: `release` and `lab` abort. A test of the
//! program in one of these would abort at its first panic.

use std::io::Write as _;
use std::path::Path;

#[expect(
    clippy::disallowed_methods,
    reason = "the environment is how cargo speaks to a build script"
)]
fn main() -> std::io::Result<()> {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let mut out = std::io::stdout();
    writeln!(out, "cargo::rerun-if-changed=build.rs")?;
    if variable("PROFILE") == "release" {
        let script = Path::new(&variable("CARGO_MANIFEST_DIR")).join("../crabbox-agent/src/link.ld");
        writeln!(out, "cargo::rerun-if-changed={}", script.display())?;
        writeln!(out, "cargo::rustc-link-arg-bins=-Wl,-T,{}", script.display())?;
    }
    Ok(())
}
