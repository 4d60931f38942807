//! `dist`: what users install: a tarball, a Debian and an RPM package, the bill of materials (CycloneDX), the
//! install script, and their digests.
//!
//! The same commit and toolchain give the same bytes, in whatever directory they are built. It must never
//! include a file of this machine: every file of a package is listed in `contents`.

mod audit;
mod components;
mod contents;
mod deb;
mod rpm;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum as _;
use crabbox_host::command::Cmd;
use crabbox_lab::lab::packages;
use sha2::{Digest as _, Sha256};

use crate::{cross, stage, workspace};
use components::Components;
use contents::{Content, Origin};

/// The only platform that this builds for.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Its architecture, as `uname -m` reports it, and Debian's name for it.
const MACHINE: &str = "x86_64";
const DEBIAN: &str = "amd64";

/// The arguments of `dist`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Pack this program instead of building one
    #[arg(long, value_name = "PATH")]
    crabbox: Option<PathBuf>,
    /// Where the files are put
    #[arg(long, value_name = "DIR", default_value = "target/dist")]
    out: PathBuf,
    /// Make this file alone, which is no release
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// How hard is compressed, 1 to 9
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u8).range(1..=9))]
    effort: u8,
    /// The address below which each version's files will lie, for the install script
    #[arg(long, value_name = "URL", default_value = "")]
    releases: String,
}

/// The files that take long to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The tarball.
    Tarball,
    /// The Debian package.
    Deb,
    /// The RPM package.
    Rpm,
}

/// The file with the digests of all others.
const SUMS: &str = "SHA256SUMS";

/// The maximum size of the program in bytes, so that it does not grow unnoticed. The goal is 10 MB; of 12.9
/// MB the agents and the guest's first process, compressed, take 2.0, the JSON Schema validator with its
/// regular expressions 1.2, relocations 0.6, TLS for one download 0.4, and netlink packets 0.3.
const MOST: u64 = 13_000_000;

/// What is packed, and as which version.
struct Release<'a> {
    version: &'a str,
    /// Also prints its own man pages and completions.
    program: &'a Path,
    components: &'a Components,
    /// The commit time of the sources, in seconds since 1970, which is the time of every file.
    epoch: u64,
    releases: &'a str,
    /// The compression level: 1 to 9.
    effort: u8,
}

/// Builds and packs.
pub(crate) fn main(arguments: &Arguments) -> Result<ExitCode> {
    packages::ensure_dist_tools(|name| calls_for(arguments.only, arguments.crabbox.is_none(), name))?;
    let components = Components::read(TARGET)?;
    let program = match &arguments.crabbox {
        Some(path) => path
            .canonicalize()
            .with_context(|| format!("cannot find {}", path.display()))?,
        None => audit::audited(&build()?, &components, &workspace::target_dir().join("audited"))?,
    };
    let bytes = fs::metadata(&program)?.len();
    // Check before anything exists that looks like a release.
    ensure!(
        arguments.crabbox.is_some() || bytes <= MOST,
        "the program has {bytes} bytes, {MOST} are the most that it may have; nothing was packed"
    );
    let release = Release {
        version: env!("CARGO_PKG_VERSION"),
        program: &program,
        components: &components,
        epoch: epoch()?,
        releases: &arguments.releases,
        effort: arguments.effort,
    };
    let out = workspace::root().join(&arguments.out);
    let made = stage::stage("packing", || pack(&release, arguments.only, &out))?;
    println!("{:>9} bytes  {} (the program itself)", bytes, program.display());
    for path in made {
        println!("{:>9} bytes  {}", fs::metadata(&path)?.len(), path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the Debian package `name` has a tool needed for making `only` this file, or all; `built` says
/// whether the program is built, too.
fn calls_for(only: Option<Part>, built: bool, name: &str) -> bool {
    match name {
        "binutils" => built,
        "rpm" => only.is_none_or(|only| only == Part::Rpm),
        "xz-utils" => only != Some(Part::Tarball),
        _ => true,
    }
}

/// Builds the program for release, without any path of this machine in it.
fn build() -> Result<PathBuf> {
    // Otherwise no agent for aarch64 would be embedded.
    cross::ready()?;
    let root = workspace::root();
    let cargo = PathBuf::from(env!("CARGO"));
    // cargo's home has the sources of dependencies; its path comes from the metadata, which names that of
    // each source.
    let home = components::cargo_home()?;
    let flags = [
        format!("--remap-path-prefix={}=/crabbox", root.display()),
        format!("--remap-path-prefix={}=/cargo", home.display()),
        // Merges functions with identical code; only the linker bundled with rustc for x86_64 supports this.
        "-Clink-arg=-Wl,--icf=all".to_owned(),
        // A panic aborts, and nothing else walks the stack.
        "-Cforce-unwind-tables=no".to_owned(),
    ];
    let cmd = Cmd::inheriting(cargo)
        .args([
            "build",
            "--release",
            "--locked",
            "--package",
            "crabbox",
            "--target",
        ])
        .arg(TARGET)
        .cwd(root)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CARGO_TARGET_DIR", workspace::target_dir())
        .env("CARGO_INCREMENTAL", "0");
    stage::stage("building crabbox", || Ok(cmd.run()?))?;
    let built = workspace::target_dir().join(TARGET).join("release/crabbox");
    ensure!(built.is_file(), "cargo built no {}", built.display());
    Ok(built)
}

/// When the checked out commit was made.
fn epoch() -> Result<u64> {
    let said = Cmd::inheriting("git")
        .args(["log", "-1", "--format=%ct"])
        .cwd(workspace::root())
        .run()
        .context("packages bear the time of a commit, so they are made in a clone")?;
    let text = said.stdout_text();
    text.trim()
        .parse()
        .with_context(|| format!("git named no time: {text}"))
}

/// Makes all files of a release in `out`, or `only` one, replacing those of the same names.
fn pack(release: &Release<'_>, only: Option<Part>, out: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let scratch = tempfile::Builder::new()
        .prefix(".packing-")
        .tempdir_in(out)
        .with_context(|| format!("cannot write in {}", out.display()))?;
    let contents = contents::all(release, &scratch.path().join("spoken"))?;
    let make = |part: Part| match part {
        Part::Tarball => tarball(release, &contents, scratch.path()),
        Part::Deb => deb::package(release, &contents, scratch.path()),
        Part::Rpm => rpm::package(release, &contents, scratch.path()),
    };
    let mut made = Vec::new();
    for part in Part::value_variants() {
        if only.is_none_or(|only| only == *part) {
            made.push(make(*part)?);
        }
    }
    if only.is_none() {
        let bill = release.components.cyclonedx(release.version)?;
        let name = format!("crabbox-{}.cdx.json", release.version);
        made.push(written(scratch.path(), &name, &bill)?);
        made.push(written(scratch.path(), "install.sh", &install_script(release))?);
    }
    let mut sums = String::new();
    let mut paths = Vec::new();
    for file in made {
        let name = file.file_name().context("a file without a name")?;
        let digest = crabbox_core::id::hex(&Sha256::digest(fs::read(&file)?));
        // Writing to a string cannot fail.
        writeln!(sums, "{digest}  {}", name.display()).ok();
        let path = out.join(name);
        fs::rename(&file, &path)?;
        paths.push(path);
    }
    if only.is_none() {
        paths.push(written(out, SUMS, &sums)?);
    } else {
        forget(&out.join(SUMS), &paths)?;
    }
    Ok(paths)
}

/// Removes the digests `sums` of an earlier release if they name a file of `paths`, which was replaced by one
/// made alone.
fn forget(sums: &Path, paths: &[PathBuf]) -> Result<()> {
    let Ok(text) = fs::read_to_string(sums) else {
        return Ok(());
    };
    let replaced = |line: &str| {
        let name = line.split_once("  ").map(|(_, name)| name.as_ref());
        paths.iter().any(|path| path.file_name() == name)
    };
    if text.lines().any(replaced) {
        fs::remove_file(sums).with_context(|| format!("cannot remove {}", sums.display()))?;
        eprintln!(
            "xtask: {} went: it had the digest of the file that was made anew",
            sums.display()
        );
    }
    Ok(())
}

/// The install script with the address of this release's files.
fn install_script(release: &Release<'_>) -> String {
    include_str!("../../scripts/install.sh")
        .replace("@VERSION@", release.version)
        .replace("@RELEASES@", release.releases)
}

fn written(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// A directory with `bin` and `share`, for any prefix.
fn tarball(release: &Release<'_>, contents: &[Content], scratch: &Path) -> Result<PathBuf> {
    let name = format!("crabbox-{}-{}-linux", release.version, MACHINE);
    let root = scratch.join("tar").join(&name);
    for content in contents {
        content.place(&root, content.portable)?;
    }
    let path = scratch.join(format!("{name}.tar.gz"));
    Cmd::inheriting("tar")
        .args([
            "--create",
            "--sort=name",
            "--format=gnu",
            "--owner=0",
            "--group=0",
        ])
        .args(["--numeric-owner", &format!("--mtime=@{}", release.epoch)])
        .arg(format!(
            "--use-compress-program=gzip --no-name -{}",
            release.effort
        ))
        .args(["--file".as_ref(), path.as_os_str()])
        .args(["--directory".as_ref(), scratch.join("tar").as_os_str()])
        .arg(&name)
        .run()?;
    Ok(path)
}

/// The output of `program` with the arguments `words`, in an empty home below `scratch`.
fn spoken(program: &Path, words: &[&str], scratch: &Path) -> Result<String> {
    fs::create_dir_all(scratch)?;
    let said = Cmd::new(program)
        .args(words)
        .cwd(scratch)
        .env("HOME", scratch)
        .run()?;
    Ok(said.stdout_text())
}

/// The file `path` compressed by gzip, without time and name.
fn zipped(path: &Path) -> Result<Origin> {
    let packed = Cmd::inheriting("gzip")
        .args(["--no-name", "--best", "--stdout"])
        .arg(path)
        .run()?;
    Ok(Origin::Bytes(packed.stdout))
}
