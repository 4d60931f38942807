//! The payload of the lab: our binaries, Firecracker and guest images, built or fetched once.
//!
//! Each part is keyed by its inputs, so that a second call does nothing, even from another clone. Nothing
//! here may be installed on this host.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use crabbox_host::command::Cmd;
use crabbox_host::digest::{sha256, sha256_file};
use crabbox_image::build::{Agent, BuildRecipe, build_debian};
use crabbox_image::fetch;
use crabbox_image::store::{Image, Store};
use sha2::{Digest as _, Sha256};

use crate::cache::Cache;
use crate::stage::stage;
use crate::workspace;

mod cloud;

/// Test files for which cargo also builds our programs, those of their packages.
pub const PROGRAMS_OF: [&str; 2] = ["cli", "fake_vmm"];

/// Crates of the program that the tests compile with an extra feature; without it, cargo would compile them
/// twice.
const AS_TESTED: [(&str, &str); 5] = [
    ("crabbox-image", "crabbox-image/fuzzing"),
    ("crabbox-machine", "crabbox-machine/fuzzing"),
    ("crabbox-net", "crabbox-net/fuzzing"),
    ("crabbox-ssh", "crabbox-ssh/fuzzing"),
    ("crabbox-sync", "crabbox-sync/fuzzing"),
];

/// Everything that a KVM host needs to lease.
#[derive(Debug)]
pub struct Payload {
    /// The `crabbox` program.
    pub crabbox: PathBuf,
    /// The guest's first process.
    pub guest: PathBuf,
    /// A directory with `bin/firecracker`, `bin/jailer` and the image store `images/`; changes only with its
    /// parts.
    pub artefacts: PathBuf,
}

impl Payload {
    /// One of Firecracker's programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.artefacts.join("bin").join(name)
    }

    /// The guest image.
    pub fn image(&self) -> Result<Image> {
        Ok(Store::open(&self.artefacts.join("images"))?.get("default")?)
    }
}

/// Which guest images are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Images {
    /// Our own, from which leases are made unless another is named.
    Ours,
    /// Foreign ones as well, which the end-to-end tests lease.
    All,
}

/// The embedded programs as files.
#[derive(Debug, Clone)]
pub(crate) struct Carried {
    /// The guest's first process.
    pub(crate) guest: PathBuf,
    /// The agent.
    agent: PathBuf,
}

/// The guest's first process and the agent, static: exactly those embedded in crabbox.
pub(crate) fn carried() -> Result<Carried> {
    stage("building crabbox-guest and crabbox-agent", || {
        let build = crabbox_embed::Build {
            cargo: env!("CARGO").as_ref(),
            root: workspace::root(),
            target: &workspace::target_dir(),
            platform: &format!("{}-unknown-linux-gnu", std::env::consts::ARCH),
            cross: None,
        };
        Ok(Carried {
            guest: build.program("crabbox-guest")?,
            agent: build.program("crabbox-agent")?,
        })
    })
}

/// How to compile the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// Optimised, for measurements: everything is compiled again.
    Optimised,
    /// Like the tests, so that nearly all of it is already compiled; with overflow checks.
    Tested,
    /// Like xtask itself, so that nearly all of it is already compiled: for a quick first look.
    Quick,
}

/// The program, compiled as `build` says.
pub(crate) fn program(build: Build) -> Result<PathBuf> {
    match build {
        Build::Optimised => {
            stage("building crabbox", || {
                cargo(&["build", "--profile", "lab", "-p", "crabbox"])
            })?;
            found("lab/crabbox")
        }
        Build::Tested => small(&development_binary()?),
        Build::Quick => {
            let args = [&["build", "--bin", "crabbox"], &quick_packages()[..]].concat();
            stage("building crabbox", || cargo(&args))?;
            small(&found("debug/crabbox")?)
        }
    }
}

/// The packages to name to cargo for building the program so that a later run of the tests finds all of it
/// compiled.
pub fn quick_packages() -> Vec<&'static str> {
    let mut args = vec!["--package", "crabbox", "--package", "xtask"];
    for (package, feature) in AS_TESTED {
        args.extend(["--package", package, "--features", feature]);
    }
    args
}

/// A stripped copy of the program `built`: a third of the size, because it has to be copied into a lab.
fn small(built: &Path) -> Result<PathBuf> {
    let small = workspace::target_dir().join("quick/crabbox");
    std::fs::create_dir_all(small.with_file_name(""))?;
    // Write a new file, since another task may be copying the existing one.
    let new = small.with_extension(std::process::id().to_string());
    let stripped = Cmd::inheriting("strip")
        .args(["--strip-all", "-o"])
        .args([&new, built])
        .run();
    if stripped.is_err() {
        // binutils normally come with a linker; without them, use the larger program.
        return Ok(built.to_owned());
    }
    std::fs::rename(&new, &small)?;
    Ok(small)
}

/// The program as `cargo test` builds it: quick to build, and with the same messages.
pub fn development_binary() -> Result<PathBuf> {
    // With the tests' features for the whole workspace; otherwise everything would be compiled again.
    let mut args = vec!["test", "--no-run", "--workspace"];
    args.extend(PROGRAMS_OF.iter().flat_map(|file| ["--test", file]));
    stage("building crabbox", || cargo(&args))?;
    found("debug/crabbox")
}

/// Whether [`artefacts`] would have to make something.
pub(crate) fn is_missing(carried: &Carried, images: Images) -> Result<bool> {
    let (cache, key) = (Cache::of_user(), image_key(carried)?);
    let all = images == Images::All && !cache.has("payload-all", &cloud::key(&key));
    Ok(all || !cache.has("payload", &key))
}

/// A directory with Firecracker, the jailer and the images that contain the `carried` programs.
pub(crate) fn artefacts(carried: &Carried, images: Images) -> Result<PathBuf> {
    crate::lab::packages::ensure_tools()?;
    let cache = Cache::of_user();
    let key = image_key(carried)?;
    let ours = cache.entry("payload", &key, |dir| {
        stage("fetching firecracker", || {
            Ok(fetch::ensure_firecracker(&dir.join("bin"), &quiet)?)
        })?;
        let store = Store::open(&dir.join("images"))?;
        stage("building the guest image", || {
            let mut recipe = BuildRecipe::debian(&carried.guest);
            let program = std::fs::read(&carried.agent)?;
            recipe.agent = Some(Agent {
                digest: sha256(&program),
                program,
            });
            Ok(build_debian(&recipe, &store, &quiet)?)
        })?;
        Ok(())
    })?;
    if images == Images::Ours {
        return Ok(ours);
    }
    cache.entry("payload-all", &cloud::key(&key), |dir| {
        Cmd::inheriting("cp")
            .args(["-a", "--sparse=always", "--no-target-directory"])
            .args([&ours, dir])
            .run()?;
        cloud::ensure(&Store::open(&dir.join("images"))?, &carried.guest, &cache)
    })
}

fn quiet(_stage: &str) {}

/// The inputs of the images: the two embedded programs, Firecracker's version, and the recipe's sources.
fn image_key(carried: &Carried) -> Result<String> {
    let mut digest = Sha256::new();
    digest.update(std::fs::read(&carried.guest)?);
    digest.update(sha256_file(&carried.agent)?);
    digest.update(fetch::VERSION);
    let mut todo = vec![workspace::root().join("crates/crabbox-image/src")];
    let mut files = Vec::new();
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                todo.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    for file in files {
        digest.update(std::fs::read(file)?);
    }
    Ok(crabbox_core::id::hex(&digest.finalize()[..8]))
}

/// Runs cargo with its own output, so that a failed build shows why.
fn cargo(args: &[&str]) -> Result<()> {
    let cmd = workspace::cargo().arg("--quiet").args(args);
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
