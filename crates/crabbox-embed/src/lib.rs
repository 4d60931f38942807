//! Builds the programs that crabbox carries inside itself and runs elsewhere: the guest's first process and the agent. For build
//! scripts and developers' tasks only.
//!
//! It is another cargo's work, in a target directory of its own, so that every way of building crabbox carries the same programs and
//! they are built once. It must never leave a path of this machine in what it builds, nor look at what the cargo around it builds for
//! but the processor: they are static and small whatever that is.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Error, Result, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The programs, each a crate of that name. Both are always built together: alone each would have its dependencies compiled with
/// features of its own.
const PROGRAMS: [&str; 2] = ["crabbox-agent", "crabbox-guest"];

/// The crates that are in them.
const SOURCES: [&str; 4] = [
    "crabbox-agent",
    "crabbox-agent-protocol",
    "crabbox-guest",
    "crabbox-guest-protocol",
];

/// What of a crate makes another program of it when it changes.
const PARTS: [&str; 3] = ["src", "build.rs", "Cargo.toml"];

/// rustc's flags: static, and without what only a debugger would use, because they travel.
const FLAGS: [&str; 3] = [
    "-Ctarget-feature=+crt-static",
    "-Crelocation-model=static",
    "-Cforce-unwind-tables=no",
];

/// What only the linker that rustc brings for x86_64 knows.
const FOLDED: &str = "-Clink-arg=-Wl,--icf=all";

/// Where a program is built, and for what.
#[derive(Debug)]
pub struct Build<'a> {
    /// The cargo that does it.
    pub cargo: &'a OsStr,
    /// The root of the workspace.
    pub root: &'a Path,
    /// The workspace's target directory, below which it is built.
    pub target: &'a Path,
    /// The target triple. Naming it keeps the flags away from build scripts.
    pub platform: &'a str,
}

impl Build<'_> {
    /// Builds the program `name`, and says where it is.
    ///
    /// # Errors
    /// When cargo fails, whose words are on standard error.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let dir = self.target.join("agent");
        #[expect(
            clippy::disallowed_methods,
            reason = "cargo, for build scripts, which must wait for none of our crates"
        )]
        let mut command = Command::new(self.cargo);
        command
            .args(["build", "--quiet", "--locked", "--profile", "guest"])
            .args(["--target", self.platform])
            .args(PROGRAMS.iter().flat_map(|program| ["--package", program]))
            .arg("--target-dir")
            .arg(&dir)
            .current_dir(self.root)
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags())
            // The bytes are the same whatever a developer prefers.
            .env("CARGO_INCREMENTAL", "0");
        // What the cargo around this one is about: it may be checking, or measuring.
        for variable in [
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_WRAPPER",
            "RUSTFLAGS",
            "CARGO_BUILD_TARGET",
        ] {
            command.env_remove(variable);
        }
        let status = command.status()?;
        let path = dir.join(self.platform).join("guest").join(name);
        if !status.success() || !path.is_file() {
            return Err(Error::other(format!("{name} was not built: {status}")));
        }
        Ok(path)
    }

    /// All flags as cargo takes them in one variable: a path may have blanks.
    fn flags(&self) -> OsString {
        let mut all: Vec<OsString> = FLAGS.iter().map(OsString::from).collect();
        if self.platform.starts_with("x86_64-") {
            all.push(FOLDED.into());
        }
        let home = optional("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(optional("HOME")?).join(".cargo")));
        for (from, to) in [(Some(self.root), "=/crabbox"), (home.as_deref(), "=/cargo")] {
            let Some(from) = from else { continue };
            let mut flag = OsString::from("--remap-path-prefix=");
            flag.push(from);
            flag.push(to);
            all.push(flag);
        }
        all.join(OsStr::new("\x1f"))
    }
}

/// What a build script of a crate in `crates/` does: has `name` built again when its sources change, and writes it compressed into the
/// script's own directory as `<name>.gz`. The bytes, as they will run.
///
/// # Errors
/// When it is not built, or not written.
pub fn for_build_script(name: &str) -> Result<Vec<u8>> {
    let here = PathBuf::from(of_cargo("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(of_cargo("OUT_DIR")?);
    let (Some(crates), Some(root)) = (here.parent(), here.ancestors().nth(2)) else {
        return Err(Error::other(format!("{} is in no workspace", here.display())));
    };
    let sources = SOURCES
        .iter()
        .flat_map(|source| PARTS.map(|part| crates.join(source).join(part)));
    // Of one that is not there cargo would think that it changes all the time.
    for path in sources
        .chain([root.join("Cargo.lock")])
        .filter(|path| path.exists())
    {
        say(&format!("rerun-if-changed={}", path.display()))?;
    }
    // <target>/[<triple>/]<profile>/build/<this crate>/out
    let is_root = |dir: &&Path| dir.join("CACHEDIR.TAG").is_file();
    let target = out.ancestors().skip(4).find(is_root);
    let (cargo, platform) = (of_cargo("CARGO")?, of_cargo("TARGET")?);
    let build = Build {
        cargo: &cargo,
        root,
        target: target.or(out.ancestors().nth(4)).unwrap_or(&out),
        platform: &platform.to_string_lossy(),
    };
    let bytes = std::fs::read(build.program(name)?)?;
    // Half the size; the whole program has to stay small.
    let mut file = out.join(name).into_os_string();
    file.push(".gz");
    let mut encoder = flate2::write::GzEncoder::new(File::create(file)?, flate2::Compression::best());
    encoder.write_all(&bytes)?;
    encoder.finish()?;
    Ok(bytes)
}

/// The machine that is built for, as `uname -m` has it there.
///
/// # Errors
/// When it is no build script that asks.
pub fn machine() -> Result<String> {
    Ok(of_cargo("CARGO_CFG_TARGET_ARCH")?.to_string_lossy().into_owned())
}

fn of_cargo(name: &str) -> Result<OsString> {
    optional(name).ok_or_else(|| Error::other(format!("cargo sets no {name}")))
}

#[expect(
    clippy::disallowed_methods,
    reason = "cargo speaks to build scripts through the environment"
)]
fn optional(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// An instruction for cargo.
///
/// # Errors
/// When cargo has gone away.
pub fn say(instruction: &str) -> Result<()> {
    writeln!(std::io::stdout(), "cargo::{instruction}")
}
