//! Builds the agent that this crate brings to the other side (see `src/far/agent.rs`): static, small, of the sources beside it.
//!
//! It is another cargo's work, in a target directory of its own, so that every way of building this crate has the same agent, and builds it once.

use std::fmt::Write as _;
use std::io::{Error, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::Digest as _;

/// Naming the target keeps the flags away from build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Static, and without what only a debugger would use: it travels.
const FLAGS: &str = "-C target-feature=+crt-static -C relocation-model=static -C force-unwind-tables=no -C link-arg=-Wl,--icf=all";

#[expect(
    clippy::disallowed_methods,
    reason = "cargo speaks to build scripts through the environment, and is itself a program"
)]
fn main() -> std::io::Result<()> {
    let variable =
        |name: &str| std::env::var_os(name).ok_or_else(|| Error::other(format!("cargo sets no {name}")));
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?);
    let crates = here.parent().unwrap_or(Path::new("."));
    let root = crates.parent().unwrap_or(Path::new("."));
    for part in [
        "crabbox-agent/src",
        "crabbox-agent/Cargo.toml",
        "crabbox-agent-protocol/src",
        "crabbox-agent-protocol/Cargo.toml",
    ] {
        println!("cargo::rerun-if-changed={}", crates.join(part).display());
    }
    println!("cargo::rerun-if-changed={}", root.join("Cargo.lock").display());
    // <target>/<profile>/build/<this crate>/out
    let target = out.ancestors().nth(4).unwrap_or(&out).join("agent");
    let mut cargo = Command::new(variable("CARGO")?);
    cargo
        .args([
            "build",
            "--quiet",
            "--locked",
            "--profile",
            "guest",
            "--package",
            "crabbox-agent",
            "--target",
            TARGET,
        ])
        .arg("--target-dir")
        .arg(&target)
        .current_dir(root)
        .env("RUSTFLAGS", FLAGS);
    // What the cargo around this one is about: it may be checking, or measuring.
    for name in [
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "CARGO_BUILD_TARGET",
    ] {
        cargo.env_remove(name);
    }
    let built = cargo.status()?;
    if !built.success() {
        return Err(Error::other(format!("the agent was not built: {built}")));
    }
    let agent = std::fs::read(target.join(TARGET).join("guest/crabbox-agent"))?;
    let digest = sha2::Sha256::digest(&agent);
    let mut name = String::new();
    for byte in digest {
        // Writing to a text does not fail.
        write!(name, "{byte:02x}").ok();
    }
    println!("cargo::rustc-env=CRABBOX_AGENT_DIGEST={name}");
    let file = std::fs::File::create(out.join("crabbox-agent.gz"))?;
    let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::best());
    encoder.write_all(&agent)?;
    encoder.finish()?;
    Ok(())
}
