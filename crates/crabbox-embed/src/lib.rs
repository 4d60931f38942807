//! Builds the programs that crabbox carries inside itself and runs elsewhere: the guest's first process and the agent. For build
//! scripts and developers' tasks only.
//!
//! It is another cargo's work, in a target directory of its own, so that every way of building crabbox carries the same programs and
//! they are built once. It must never look at what the cargo around it builds for: they are static and small whatever that is.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Error, Result, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The programs, each a crate of that name. Both are always built together: alone each would have its dependencies compiled with
/// features of its own.
const PROGRAMS: [&str; 2] = ["crabbox-agent", "crabbox-guest"];

/// What is in them: a change of any of these is another program.
const SOURCES: [&str; 4] = [
    "crabbox-agent",
    "crabbox-agent-protocol",
    "crabbox-guest",
    "crabbox-guest-protocol",
];

/// Naming the target keeps the flags away from build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Static, and without what only a debugger would use: they travel.
const FLAGS: &str = "-C target-feature=+crt-static -C relocation-model=static -C force-unwind-tables=no -C link-arg=-Wl,--icf=all";

/// The program `name`, built by `cargo` from the workspace `root` below `target`, the workspace's target directory.
pub fn built(cargo: &OsStr, root: &Path, target: &Path, name: &str) -> Result<PathBuf> {
    let dir = target.join("agent");
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--locked", "--profile", "guest"])
        .args(["--target", TARGET])
        .args(PROGRAMS.iter().flat_map(|program| ["--package", program]))
        .arg("--target-dir")
        .arg(&dir)
        .current_dir(root)
        .env("RUSTFLAGS", FLAGS);
    // What the cargo around this one is about: it may be checking, or measuring.
    for name in [
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "CARGO_BUILD_TARGET",
    ] {
        command.env_remove(name);
    }
    let status = command.status()?;
    let path = dir.join(TARGET).join("guest").join(name);
    if !status.success() || !path.is_file() {
        return Err(Error::other(format!("{name} was not built: {status}")));
    }
    Ok(path)
}

/// What a build script of a crate in `crates/` does: has `name` built again when its sources change, and writes it compressed into the
/// script's own directory as `<name>.gz`. The bytes, as they will run.
pub fn for_build_script(name: &str) -> Result<Vec<u8>> {
    let here = PathBuf::from(of_cargo("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(of_cargo("OUT_DIR")?);
    let (Some(crates), Some(root)) = (here.parent(), here.ancestors().nth(2)) else {
        return Err(Error::other(format!("{} is in no workspace", here.display())));
    };
    let sources = SOURCES
        .iter()
        .flat_map(|source| ["src", "Cargo.toml"].map(|part| crates.join(source).join(part)));
    for path in sources.chain([root.join("Cargo.lock")]) {
        say(&format!("rerun-if-changed={}", path.display()))?;
    }
    // <target>/<profile>/build/<this crate>/out
    let target = out.ancestors().nth(4).unwrap_or(&out);
    let bytes = std::fs::read(built(&of_cargo("CARGO")?, root, target, name)?)?;
    // Half the size; the whole program has to stay small.
    let file = File::create(out.join(name).with_extension("gz"))?;
    let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::best());
    encoder.write_all(&bytes)?;
    encoder.finish()?;
    Ok(bytes)
}

#[expect(
    clippy::disallowed_methods,
    reason = "cargo speaks to build scripts through the environment"
)]
fn of_cargo(name: &str) -> Result<OsString> {
    std::env::var_os(name).ok_or_else(|| Error::other(format!("cargo sets no {name}")))
}

/// An instruction for cargo.
pub fn say(instruction: &str) -> Result<()> {
    writeln!(std::io::stdout(), "cargo::{instruction}")
}
