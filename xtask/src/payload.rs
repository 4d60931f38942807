//! What runs in the lab: our binaries, Firecracker and a guest image, built or fetched once and kept below `target/`.
//!
//! Each part is keyed by what it is made of, so that a second call does nothing. Nothing here may be installed on this host.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use crabbox_host::command::Cmd;
use crabbox_image::build::{BuildRecipe, build_debian};
use crabbox_image::fetch;
use crabbox_image::store::{Image, Store};
use sha2::{Digest as _, Sha256};

use crate::stage::stage;
use crate::workspace;

mod cloud;

/// The target that the guest's first process is built for; naming it keeps its flags away from build scripts.
const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Everything that a KVM host needs to lease.
#[derive(Debug)]
pub(crate) struct Payload {
    /// The `crabbox` program.
    pub(crate) crabbox: PathBuf,
    /// The guest's first process.
    pub(crate) guest: PathBuf,
    /// A directory with `bin/firecracker`, `bin/jailer` and the image store `images/`; changes only with its parts.
    pub(crate) artefacts: PathBuf,
}

impl Payload {
    /// One of Firecracker's programs.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.artefacts.join("bin").join(name)
    }

    /// The guest image.
    pub(crate) fn image(&self) -> Result<Image> {
        Ok(Store::open(&self.artefacts.join("images"))?.get("default")?)
    }
}

/// Builds and fetches what is missing.
pub(crate) fn ensure() -> Result<Payload> {
    let guest = guest_binary()?;
    let crabbox = crabbox(&guest)?;
    let artefacts = artefacts(&guest)?;
    Ok(Payload {
        crabbox,
        guest,
        artefacts,
    })
}

/// The guest's first process, static.
pub(crate) fn guest_binary() -> Result<PathBuf> {
    stage("building crabbox-guest", || {
        cargo(
            &[
                "build",
                "--profile",
                "guest",
                "-p",
                "crabbox-guest",
                "--target",
                GUEST_TARGET,
            ],
            &[("RUSTFLAGS", Path::new("-C target-feature=+crt-static"))],
        )
    })?;
    found(&format!("{GUEST_TARGET}/guest/crabbox-guest"))
}

/// The program, with the guest's first process inside.
pub(crate) fn crabbox(guest: &Path) -> Result<PathBuf> {
    stage("building crabbox", || {
        cargo(
            &["build", "--profile", "lab", "-p", "crabbox"],
            &[("CRABBOX_GUEST_BINARY", guest)],
        )
    })?;
    found("lab/crabbox")
}

/// The program as `cargo test` builds it: quick to build, and with the same words.
pub(crate) fn development_binary() -> Result<PathBuf> {
    stage("building crabbox", || cargo(&["build", "-p", "crabbox"], &[]))?;
    found("debug/crabbox")
}

/// Firecracker, jailer and the image.
fn artefacts(guest: &Path) -> Result<PathBuf> {
    let dir = workspace::target_dir().join("payload");
    let bin = dir.join("bin");
    crate::lab::packages::ensure_tools()?;
    stage("fetching firecracker", || {
        Ok(fetch::ensure_firecracker(&bin, &quiet)?)
    })?;
    let store = Store::open(&dir.join("images"))?;
    let key = image_key(guest)?;
    let stamp = workspace::target_dir().join("payload-image.key");
    let current =
        std::fs::read_to_string(&stamp).is_ok_and(|built| built == key) && store.get("default").is_ok();
    let current = current && cloud::NAMES.iter().all(|name| store.get(name).is_ok());
    if !current {
        stage("building the guest image", || {
            Ok(build_debian(&BuildRecipe::debian(guest), &store, &quiet)?)
        })?;
        cloud::ensure(&store, guest)?;
        for old in store
            .list()?
            .images
            .into_iter()
            .filter(|image| image.names.is_empty())
        {
            store.remove(&old.manifest.digest)?;
        }
        std::fs::write(&stamp, key).context("cannot note which image was built")?;
    }
    Ok(dir)
}

fn quiet(_stage: &str) {}

/// What an image depends on: the first process, and the recipe's own sources.
fn image_key(guest: &Path) -> Result<String> {
    let mut digest = Sha256::new();
    digest.update(std::fs::read(guest)?);
    let sources = workspace::root().join("crates/crabbox-image/src");
    let mut files = Vec::new();
    for dir in [sources.clone(), sources.join("build"), sources.join("initrd")] {
        for entry in std::fs::read_dir(&dir).into_iter().flatten() {
            files.push(entry?.path());
        }
    }
    files.sort();
    for file in files.iter().filter(|file| file.is_file()) {
        digest.update(std::fs::read(file)?);
    }
    Ok(crabbox_core::id::hex(&digest.finalize()))
}

/// Runs cargo with its own output, so that a failed build shows why.
fn cargo(args: &[&str], env: &[(&str, &Path)]) -> Result<()> {
    let mut cmd = Cmd::new(env!("CARGO"))
        .arg("--quiet")
        .args(args)
        .cwd(workspace::root());
    // Where cargo builds must not depend on who calls: the products are looked for in one place.
    cmd = cmd.env("CARGO_TARGET_DIR", workspace::target_dir());
    for (name, value) in env {
        cmd = cmd.env(name, value);
    }
    let mut command = cmd.to_std();
    let status = cmd.spawn(&mut command)?.wait()?;
    ensure!(status.success(), "`cargo {}` failed", args.join(" "));
    Ok(())
}

fn found(name: &str) -> Result<PathBuf> {
    let path = workspace::target_dir().join(name);
    ensure!(path.is_file(), "cargo built no {}", path.display());
    Ok(path)
}
