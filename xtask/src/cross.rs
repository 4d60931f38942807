//! `cross`: a compiler for aarch64 machines, and its products: the agent, which every release embeds for such
//! hosts, and the program.
//!
//! Debian has a Rust compiler with libraries for both architectures. It is unpacked beside this machine's
//! toolchain and used for nothing else: it must never be installed, nor replace that toolchain. The results
//! run here under qemu-user, which proves nothing about a real aarch64 machine.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use crabbox_embed::{Build, Cross};
use crabbox_host::command::Cmd;
use crabbox_host::digest::sha256;
use crabbox_lab::cache::Cache;
use crabbox_lab::lab::packages;

use crate::{stage, workspace};

/// To be incremented when the layout of the unpacked files changes.
const VERSION: u32 = 1;

/// The Debian package of the compiler, which is kept recent enough for web browsers.
const COMPILER: &str = "rustc-web";

/// The Debian package of its libraries.
const LIBRARIES: &str = "libstd-rust-web-dev";

/// Debian's name of the target architecture.
const ARCHITECTURE: &str = "arm64";

/// Parts of the packages that are not needed here.
const UNUSED: [&str; 4] = ["share", "libexec", "bin/rustdoc", "lib/rustlib/etc"];

/// The emulator for programs of the target.
const EMULATOR: [&str; 3] = ["/usr/bin/qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"];

/// The arguments of `cross`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Arguments {
    /// Build the program itself, too, and let it say its version
    #[arg(long)]
    program: bool,
}

/// Gets the compiler and builds with it.
pub(crate) fn main(arguments: Arguments) -> Result<ExitCode> {
    let cross = ready()?;
    let agent = agent(&cross)?;
    println!("{:>9} bytes  {}", fs::metadata(&agent)?.len(), agent.display());
    if arguments.program {
        let program = program(&cross)?;
        let said = Cmd::inheriting(EMULATOR[0])
            .args(&EMULATOR[1..])
            .arg(&program)
            .arg("--version")
            .run()?;
        println!(
            "{:>9} bytes  {}, which says: {}",
            fs::metadata(&program)?.len(),
            program.display(),
            said.stdout_text().trim()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Puts the compiler where build scripts find it: from now on crabbox also embeds an agent for these
/// machines.
pub(crate) fn ready() -> Result<Cross> {
    packages::ensure_cross_tools()?;
    let key = sha256(format!("{VERSION} {}", packages::candidate(COMPILER)?).as_bytes());
    let parts = Cache::of_user().entry("cross", &key, |dir| {
        stage::stage("fetching a compiler for aarch64", || {
            packages::unpack(&[COMPILER], ARCHITECTURE, &[LIBRARIES], dir)?;
            for name in UNUSED {
                let path = dir.join("usr").join(name);
                let removed = if path.is_dir() {
                    fs::remove_dir_all(&path)
                } else {
                    fs::remove_file(&path)
                };
                match removed {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                    _ => {}
                }
            }
            Ok(())
        })
    })?;
    let place = Cross::place(&workspace::target_dir());
    fs::create_dir_all(&place)?;
    link(&linkers()?, &place.join("ld"))?;
    link(&parts.join("usr/lib/x86_64-linux-gnu"), &place.join("lib"))?;
    // Last, because its presence means that the others are there.
    link(&parts.join("usr/bin/rustc"), &place.join("rustc"))?;
    Cross::find(&workspace::target_dir()).context("the compiler was not unpacked")
}

/// The directory of this toolchain's linker, under the name by which a C compiler calls it.
fn linkers() -> Result<PathBuf> {
    let rustc = Path::new(env!("CARGO")).with_file_name("rustc");
    let said = Cmd::inheriting(rustc)
        .args(["--print", "target-libdir"])
        .cwd(workspace::root())
        .run()?;
    let libraries = PathBuf::from(said.stdout_text().trim());
    let dir = libraries.with_file_name("bin/gcc-ld");
    ensure!(
        dir.join("ld.lld").is_file(),
        "the toolchain has no linker in {}",
        dir.display()
    );
    Ok(dir)
}

/// A symlink that is already right is left alone: touching it would make cargo rebuild everything.
fn link(to: &Path, path: &Path) -> Result<()> {
    if fs::read_link(path).is_ok_and(|there| there == to) {
        return Ok(());
    }
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    symlink(to, &new)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("cannot put {} in place", path.display()))
}

/// The agent as crabbox embeds it.
fn agent(cross: &Cross) -> Result<PathBuf> {
    let build = Build {
        cargo: env!("CARGO").as_ref(),
        root: workspace::root(),
        target: &workspace::target_dir(),
        platform: Cross::PLATFORM,
        cross: Some(cross),
    };
    stage::stage("building crabbox-agent for aarch64", || {
        Ok(build.program("crabbox-agent")?)
    })
}

/// Tests of the agent, run on this machine: its own, which run the cross-compiled agent, and those of its
/// crates.
pub(crate) fn tests(own: Cmd) -> Result<Vec<Cmd>> {
    let cross = ready()?;
    let agent = agent(&cross)?;
    // The emulator's memory use says nothing about the agent's.
    let own = own.args(["--skip", "memory::"]).env(
        "CRABBOX_TESTED_AGENT",
        format!("{} {}", EMULATOR[0], agent.display()),
    );
    let args = [
        "test",
        "--lib",
        "--package",
        "crabbox-agent",
        "--package",
        "crabbox-agent-protocol",
    ];
    let parts = cargo(&cross, &args).env(
        "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER",
        EMULATOR.join(" "),
    );
    Ok(vec![own, parts])
}

/// The program, with the agents for these machines embedded; not for release.
fn program(cross: &Cross) -> Result<PathBuf> {
    stage::stage("building crabbox for aarch64", || {
        Ok(cargo(cross, &["build", "--package", "crabbox"]).run()?)
    })?;
    let built = workspace::target_dir()
        .join(Cross::PLATFORM)
        .join("debug/crabbox");
    ensure!(built.is_file(), "cargo built no {}", built.display());
    Ok(built)
}

fn cargo(cross: &Cross, args: &[&str]) -> Cmd {
    let cmd = workspace::cargo()
        .args(args)
        .args(["--locked", "--target", Cross::PLATFORM]);
    cross
        .environment()
        .into_iter()
        .fold(cmd, |cmd, (name, value)| cmd.env(name, value))
}
