//! The workspace's directories. It never looks at the current directory: every task works from anywhere.

use std::path::{Path, PathBuf};

use crabbox_host::command::Cmd;

/// The variables about a package that cargo sets when it runs the package's program
/// (<https://doc.rust-lang.org/cargo/reference/environment-variables.html>).
const OF_PACKAGE: [&str; 17] = [
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_LINKS",
    "CARGO_MANIFEST_PATH",
    "CARGO_PKG_AUTHORS",
    "CARGO_PKG_DESCRIPTION",
    "CARGO_PKG_HOMEPAGE",
    "CARGO_PKG_LICENSE",
    "CARGO_PKG_LICENSE_FILE",
    "CARGO_PKG_NAME",
    "CARGO_PKG_README",
    "CARGO_PKG_REPOSITORY",
    "CARGO_PKG_RUST_VERSION",
    "CARGO_PKG_VERSION",
    "CARGO_PKG_VERSION_MAJOR",
    "CARGO_PKG_VERSION_MINOR",
    "CARGO_PKG_VERSION_PATCH",
    "CARGO_PKG_VERSION_PRE",
];

/// The directory of the root `Cargo.toml`.
pub fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    // This crate is in `crates/`.
    manifest.ancestors().nth(2).unwrap_or(manifest)
}

/// The directory of everything that the lab keeps; below the default target directory even if cargo builds
/// elsewhere, so that it is found again.
pub(crate) fn lab_dir() -> PathBuf {
    root().join("target/lab")
}

/// The directory of our own builds, wherever the calling cargo builds.
pub fn target_dir() -> PathBuf {
    root().join("target")
}

/// The cargo that built this, in the workspace, with the environment of a call from outside of cargo: a build
/// script that depends on a variable about its package (`ring`'s does) would run again because xtask's
/// differs, and half of the workspace would be recompiled. The target directory does not depend on the caller
/// either: the products are looked for in one place.
pub fn cargo() -> Cmd {
    OF_PACKAGE
        .iter()
        .fold(Cmd::inheriting(env!("CARGO")), Cmd::env_remove)
        .env("CARGO_TARGET_DIR", target_dir())
        .cwd(root())
}

/// The path of the program `name` that cargo built beside the running program, which may be a test.
pub fn built_beside(name: &str) -> std::io::Result<PathBuf> {
    let this = std::env::current_exe()?;
    // Tests are in `deps` below the programs.
    let dir = this.ancestors().skip(1).find(|dir| !dir.ends_with("deps"));
    Ok(dir.unwrap_or(&this).join(name))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_program_is_looked_for_beside_the_directory_of_the_tests() {
        let this = std::env::current_exe().unwrap();
        let beside = super::built_beside("crabbox").unwrap();
        assert_eq!(beside, this.parent().unwrap().with_file_name("crabbox"));
    }

    #[test]
    fn cargo_builds_where_the_products_are_looked_for_whatever_the_caller_has() {
        let command = super::cargo().to_std();
        let mut told = command.get_envs().filter(|(name, _)| *name == "CARGO_TARGET_DIR");
        assert_eq!(
            told.next().and_then(|(_, value)| value),
            Some(super::target_dir().as_os_str())
        );
    }

    #[test]
    fn cargo_hears_nothing_of_the_package_that_calls_it() {
        let command = super::cargo().to_std();
        let kept: Vec<_> = std::env::vars_os()
            .filter_map(|(name, _)| name.into_string().ok())
            .filter(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
            .filter(|name| {
                !command
                    .get_envs()
                    .any(|(of, value)| of == name.as_str() && value.is_none())
            })
            .collect();
        assert!(kept.is_empty(), "{kept:?}");
        assert!(
            command
                .get_envs()
                .any(|(name, value)| name == "CARGO_PKG_NAME" && value.is_none())
        );
    }
}
