//! Builds the programs that crabbox embeds and runs elsewhere: the guest's first process and the agent. Only
//! for build scripts and developers' tasks.
//!
//! A separate cargo builds them in its own target directory, so that every build of crabbox embeds the same
//! programs and they are built once. The result must never contain a path of this machine, nor depend on the
//! settings of the surrounding cargo build, apart from its processor: the programs are always static and
//! small.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Error, Result, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The programs, each named like its crate. Both are built together: built separately, their dependencies
/// would be compiled twice with different features. For machines of another kind only [`FOREIGN`] is built,
/// as a rule.
const PROGRAMS: [&str; 2] = ["crabbox-agent", "crabbox-guest"];

/// The crates that they consist of.
const SOURCES: [&str; 4] = [
    "crabbox-agent",
    "crabbox-agent-protocol",
    "crabbox-guest",
    "crabbox-guest-protocol",
];

/// The parts of a crate that affect the built program.
const PARTS: [&str; 3] = ["src", "build.rs", "Cargo.toml"];

/// rustc's flags: static, and without data that only a debugger uses, because the programs are copied over
/// the network.
const FLAGS: [&str; 3] = [
    "-Ctarget-feature=+crt-static",
    "-Crelocation-model=static",
    "-Cforce-unwind-tables=no",
];

/// An option of the linker bundled with rustc, which is the one used for x86_64 and for [`Cross`].
const FOLDED: &str = "-Clink-arg=-Wl,--icf=all";

/// The program that is also built for machines of other kinds, because any host can be leased by its address.
const FOREIGN: &str = "crabbox-agent";

/// A cross compiler, put together by `cargo xtask cross`: `rustc`, its libraries in `lib`, and in `ld` the
/// linker of this machine's toolchain, which supports all targets. The C library comes from Debian's cross
/// compiler.
#[derive(Debug, Clone)]
pub struct Cross {
    dir: PathBuf,
}

impl Cross {
    /// The target machine, as `uname -m` reports it.
    pub const MACHINE: &'static str = "aarch64";

    /// Its target triple.
    pub const PLATFORM: &'static str = "aarch64-unknown-linux-gnu";

    /// Debian's name of the C compiler for it, which calls the linker.
    const COMPILER: &'static str = "aarch64-linux-gnu-gcc";

    /// Its directory below a target directory.
    pub fn place(target: &Path) -> PathBuf {
        target.join("cross").join(Self::MACHINE)
    }

    /// The one below a target directory, if it exists.
    pub fn find(target: &Path) -> Option<Self> {
        let dir = Self::place(target);
        dir.join("rustc").exists().then_some(Self { dir })
    }

    /// The environment in which cargo builds with it.
    pub fn environment(&self) -> [(&'static str, OsString); 3] {
        [
            ("RUSTC", self.dir.join("rustc").into()),
            ("LD_LIBRARY_PATH", self.dir.join("lib").into()),
            (
                "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER",
                Self::COMPILER.into(),
            ),
        ]
    }

    /// rustc's flags for the linker.
    fn flags(&self) -> [OsString; 2] {
        let mut dir = OsString::from("-Clink-arg=-B");
        dir.push(self.dir.join("ld"));
        ["-Clink-arg=-fuse-ld=lld".into(), dir]
    }
}

/// How and where to build a program.
#[derive(Debug)]
pub struct Build<'a> {
    /// The cargo to run.
    pub cargo: &'a OsStr,
    /// The root of the workspace.
    pub root: &'a Path,
    /// The workspace's target directory; the build goes below it.
    pub target: &'a Path,
    /// The target triple. Passing it explicitly keeps the flags from applying to build scripts.
    pub platform: &'a str,
    /// The cross compiler, to build for another kind of machine.
    pub cross: Option<&'a Cross>,
}

impl Build<'_> {
    /// Builds the program `name`, and returns its path.
    ///
    /// # Errors
    /// When cargo fails; its messages are on standard error.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let dir = match self.cross {
            None => self.target.join("agent"),
            // Separate, because build scripts are compiled by a different compiler there.
            Some(_) => self.target.join("cross/build"),
        };
        let programs = match self.cross {
            None => &PROGRAMS[..],
            Some(_) => &[name],
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "cargo, for build scripts, which must wait for none of our crates"
        )]
        let mut command = Command::new(self.cargo);
        command
            .args(["build", "--quiet", "--locked", "--profile", "guest"])
            .args(["--target", self.platform])
            .args(programs.iter().flat_map(|program| ["--package", program]))
            .arg("--target-dir")
            .arg(&dir)
            .current_dir(self.root)
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags())
            // Keeps the output independent of a developer's preference.
            .env("CARGO_INCREMENTAL", "0");
        // Set by the surrounding cargo for its own purpose, such as checking or coverage.
        for variable in [
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_WRAPPER",
            "RUSTFLAGS",
            "CARGO_BUILD_TARGET",
        ] {
            command.env_remove(variable);
        }
        command.envs(self.cross.into_iter().flat_map(Cross::environment));
        let status = command.status()?;
        let path = dir.join(self.platform).join("guest").join(name);
        if !status.success() || !path.is_file() {
            return Err(Error::other(format!("{name} was not built: {status}")));
        }
        Ok(path)
    }

    /// All flags in the encoding that allows blanks in paths.
    fn flags(&self) -> OsString {
        let mut all: Vec<OsString> = FLAGS.iter().map(OsString::from).collect();
        if self.platform.starts_with("x86_64-") || self.cross.is_some() {
            all.push(FOLDED.into());
        }
        all.extend(self.cross.into_iter().flat_map(Cross::flags));
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

/// An embedded program.
#[derive(Debug)]
pub struct Carried {
    /// The target machine, as `uname -m` reports it.
    pub machine: String,
    /// The executable.
    pub bytes: Vec<u8>,
    /// The file with the executable compressed.
    pub packed: PathBuf,
}

/// For the build script of a crate in `crates/`: builds `name` again when its sources change, and writes it
/// compressed into the script's output directory. The first one is for the machine that is built for; one for
/// another kind of machine follows, if there is a [`Cross`].
///
/// # Errors
/// When it cannot be built or written.
pub fn for_build_script(name: &str) -> Result<Vec<Carried>> {
    let here = PathBuf::from(of_cargo("CARGO_MANIFEST_DIR")?);
    let out = out_dir()?;
    let (Some(crates), Some(root)) = (here.parent(), here.ancestors().nth(2)) else {
        return Err(Error::other(format!("{} is in no workspace", here.display())));
    };
    // The layout is <target>/[<triple>/]<profile>/build/<this crate>/out; cargo marks the target directory
    // and that of the triple.
    let is_root = |dir: &&Path| dir.join("CACHEDIR.TAG").is_file();
    let target = out.ancestors().skip(4).take(2).filter(is_root).last();
    let target = target.or(out.ancestors().nth(4)).unwrap_or(&out);
    let sources = SOURCES
        .iter()
        .flat_map(|source| PARTS.map(|part| crates.join(source).join(part)));
    // Skip missing paths: cargo would treat them as always changed.
    for path in sources
        .chain([root.join("Cargo.lock")])
        .filter(|path| path.exists())
    {
        say(&format!("rerun-if-changed={}", path.display()))?;
    }
    let (cargo, platform) = (of_cargo("CARGO")?, of_cargo("TARGET")?);
    let cross = Cross::find(target);
    let machine = of_cargo("CARGO_CFG_TARGET_ARCH")?.to_string_lossy().into_owned();
    let foreign = platform != of_cargo("HOST")? && machine == Cross::MACHINE;
    let build = Build {
        cargo: &cargo,
        root,
        target,
        platform: &platform.to_string_lossy(),
        cross: cross.as_ref().filter(|_| foreign),
    };
    let mut all = vec![pack(&out, name, machine, &build)?];
    if name == FOREIGN && all[0].machine != Cross::MACHINE {
        // The directory is empty until the cross compiler is made; the script must then run again.
        let place = Cross::place(target);
        std::fs::create_dir_all(&place)?;
        say(&format!("rerun-if-changed={}", place.display()))?;
        if cross.is_some() {
            let build = Build {
                platform: Cross::PLATFORM,
                cross: cross.as_ref(),
                ..build
            };
            all.push(pack(&out, name, Cross::MACHINE.to_owned(), &build)?);
        }
    }
    Ok(all)
}

/// Compressed to half its size, to keep the whole program small.
fn pack(out: &Path, name: &str, machine: String, build: &Build<'_>) -> Result<Carried> {
    let bytes = std::fs::read(build.program(name)?)?;
    let packed = out.join(format!("{name}-{machine}.gz"));
    let mut encoder = flate2::write::GzEncoder::new(File::create(&packed)?, flate2::Compression::best());
    encoder.write_all(&bytes)?;
    encoder.finish()?;
    Ok(Carried {
        machine,
        bytes,
        packed,
    })
}

/// The output directory of a build script.
///
/// # Errors
/// When not called from a build script.
pub fn out_dir() -> Result<PathBuf> {
    of_cargo("OUT_DIR").map(PathBuf::from)
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

/// Prints an instruction for cargo.
///
/// # Errors
/// When cargo no longer reads.
pub fn say(instruction: &str) -> Result<()> {
    writeln!(std::io::stdout(), "cargo::{instruction}")
}
