//! Drops the unwind tables from the agent that is uploaded to leases (`src/link.ld`): it never unwinds, and
//! they are a tenth of its size.
//!
//! It must never affect another build of the agent, such as that of the tests, whose panics unwind.

use std::io::Write as _;
use std::path::Path;

fn main() -> std::io::Result<()> {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let mut out = std::io::stdout();
    writeln!(out, "cargo::rerun-if-changed=build.rs")?;
    // The agent that is uploaded is the static build.
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
