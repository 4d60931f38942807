//! `dist`: what users install: a tarball, a Debian and an RPM package, the list of what is inside (CycloneDX), the install script, and their digests.
//!
//! The same commit and toolchain give the same bytes, whatever directory they are built in. It must never put in a file of this machine:
//! every file of a package is named in `contents`.

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

use crate::{stage, workspace};
use components::Components;
use contents::{Content, Origin};

/// The one platform that this builds for.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Its machine, as `uname -m` has it, and as Debian calls it.
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

/// The most bytes that the program may have, so that it does not grow unnoticed. 10 MB is what it is to come down to; of 13.4 MB
/// the validator of JSON Schemas with its regular expressions has 1.7, tables for unwinding 1.2, the agent and the guest's first process
/// 1.3, TLS for one download 0.7, and packets of netlink 0.4.
const MOST: u64 = 14_500_000;

/// What is packed, and as which version.
struct Release<'a> {
    version: &'a str,
    /// It writes its man pages and completions itself.
    program: &'a Path,
    components: &'a Components,
    /// When the sources were committed, in seconds since 1970: the time of every file.
    epoch: u64,
    releases: &'a str,
    /// How much time compressing may take: 1 to 9.
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
    // Before anything is there that looks like a release.
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

/// Whether the Debian package `name` has a tool that is called to make `only` this file, or all; `built` says whether the program is built, too.
fn calls_for(only: Option<Part>, built: bool, name: &str) -> bool {
    match name {
        "binutils" => built,
        "rpm" => only.is_none_or(|only| only == Part::Rpm),
        "xz-utils" => only != Some(Part::Tarball),
        _ => true,
    }
}

/// The program as it is released; no path of this machine is in it.
fn build() -> Result<PathBuf> {
    let root = workspace::root();
    let cargo = PathBuf::from(env!("CARGO"));
    // Beside the toolchain's own is where cargo keeps the sources of dependencies, which metadata names for each of them.
    let home = components::cargo_home()?;
    let flags = [
        format!("--remap-path-prefix={}=/crabbox", root.display()),
        format!("--remap-path-prefix={}=/cargo", home.display()),
        // Functions of the same code are one; only the linker that rustc brings for x86_64 knows this.
        "-Clink-arg=-Wl,--icf=all".to_owned(),
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

/// When the commit was made that is checked out.
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

/// Makes all files of a release in `out`, or `only` one, in place of those of the same names.
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
        // Writing to a text does not fail.
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

/// Removes the digests `sums` of an earlier release when a file of `paths`, which was made alone, took the place of one that they name.
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

/// The install script, which knows where this release's files will lie.
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

/// One directory with `bin` and `share`, for any prefix.
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

/// What `program` says to `words`, in an empty home below `scratch`.
fn spoken(program: &Path, words: &[&str], scratch: &Path) -> Result<String> {
    fs::create_dir_all(scratch)?;
    let said = Cmd::new(program)
        .args(words)
        .cwd(scratch)
        .env("HOME", scratch)
        .run()?;
    Ok(said.stdout_text())
}

/// The file `path` as gzip has it, without a time or a name.
fn zipped(path: &Path) -> Result<Origin> {
    let packed = Cmd::inheriting("gzip")
        .args(["--no-name", "--best", "--stdout"])
        .arg(path)
        .run()?;
    Ok(Origin::Bytes(packed.stdout))
}
