//! Where this workspace lies on disk. It never looks at the current directory: every task works from anywhere.

use std::path::{Path, PathBuf};

/// The directory of the root `Cargo.toml`.
pub fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    // This crate lies in `crates/`.
    manifest.ancestors().nth(2).unwrap_or(manifest)
}

/// The directory of everything the lab keeps; below the default target directory even when cargo builds elsewhere, so
/// that it is found again.
pub(crate) fn lab_dir() -> PathBuf {
    root().join("target/lab")
}

/// The directory that our own builds go to, wherever the caller's cargo builds.
pub fn target_dir() -> PathBuf {
    root().join("target")
}
