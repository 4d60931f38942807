//! Lets the crate carry the guest's first process when `CRABBOX_GUEST_BINARY` names it (see `src/guest_binary.rs`).

use std::io::Write as _;
use std::path::PathBuf;

#[expect(
    clippy::disallowed_methods,
    reason = "cargo speaks to build scripts through the environment"
)]
fn main() -> std::io::Result<()> {
    println!("cargo::rustc-check-cfg=cfg(embedded_guest)");
    println!("cargo::rerun-if-env-changed=CRABBOX_GUEST_BINARY");
    if let Some(path) = std::env::var_os("CRABBOX_GUEST_BINARY") {
        println!("cargo::rerun-if-changed={}", path.to_string_lossy());
        println!("cargo::rustc-cfg=embedded_guest");
        // Half the size; the whole program has to stay under 10 MB.
        let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("crabbox-guest.gz");
        let file = std::fs::File::create(out)?;
        let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::best());
        encoder.write_all(&std::fs::read(path)?)?;
        encoder.finish()?;
    }
    Ok(())
}
