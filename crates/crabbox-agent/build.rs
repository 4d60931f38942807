//! Leaves the tables for unwinding out of the agent that travels (`src/link.ld`): nobody unwinds there, and they are a tenth of it.
//!
//! It must never touch another build of the agent, such as that of the tests, whose panics unwind.

use std::io::Write as _;
use std::path::Path;

fn main() -> std::io::Result<()> {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let mut out = std::io::stdout();
    writeln!(out, "cargo::rerun-if-changed=build.rs")?;
    // The one that travels is the static one.
    if variable("CARGO_CFG_TARGET_FEATURE")
        .split(',')
        .any(|feature| feature == "crt-static")
    {
        let script = Path::new(&variable("CARGO_MANIFEST_DIR")).join("src/link.ld");
        writeln!(out, "cargo::rerun-if-changed={}", script.display())?;
        writeln!(out, "cargo::rustc-link-arg-bins=-Wl,-T,{}", script.display())?;
    }
    Ok(())
}
