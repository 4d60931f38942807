//! Builds our guest image: Debian packages, the Debian cloud kernel, an initrd with `crabbox-guest`, one ext4
//! base.
//!
//! The same packages and the same `crabbox-guest` give the same bytes, and so the same digest. An interrupted
//! build must never leave something that looks like an image, and an image must never contain a secret or a
//! machine's identity.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crabbox_host::clock;
use crabbox_host::clone::CloneError;
use crabbox_host::command::{Cmd, CommandError};
use crabbox_host::digest;
use crabbox_host::files::{self, FileError};
use crabbox_host::tree::Tree;

use crate::initrd::{self, InitrdError, InitrdRecipe};
use crate::kernel::{self, KernelError};
use crate::manifest::{self, GuestContract, Init, Manifest};
use crate::progress::Progress;
use crate::source::SourceError;
use crate::store::{Image, Scratch, Store, StoreError};

mod base;
mod bootstrap;
mod contract;
mod from;
mod packages;

use base::Times;
use contract::{Contract, Maker};

pub use bootstrap::TOOLS;
pub use from::{KernelOf, TreeRecipe, build_tree};

/// Free space that a build requires, in bytes: the tree, the unpacked kernel package and the image together
/// take about 700 MiB.
pub(crate) const SPACE_NEEDED: u64 = 1280 * 1024 * 1024;

/// The default time stamp of everything in an image: 2025-01-01 00:00:00 UTC.
pub const STAMP_UNIX: u32 = 1_735_689_600;

/// The label of the base file system, which the guest may check before it mounts.
pub(crate) const BASE_LABEL: &str = "crabbox-base";

/// Process 1 of the guest after its setup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OwnInit {
    /// `crabbox-guest`: the fastest way to a command.
    #[default]
    None,
    /// The image's own `/sbin/init`, which starts sshd and all other enabled services.
    Systemd,
}

/// The client agent for the image, so that clients do not have to upload it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Its SHA-256 in hex, the name under which clients look for it.
    pub digest: String,
    /// The program.
    pub program: Vec<u8>,
}

/// A recipe for a Debian image.
#[derive(Debug, Clone)]
pub struct BuildRecipe {
    /// The name that will point to the image.
    pub name: String,
    /// The Debian suite, for example `bookworm`.
    pub suite: String,
    /// Packages beyond the guest contract.
    pub extra_packages: Vec<String>,
    /// A script that is run as root inside the new tree after all packages are installed, with the network of
    /// this host.
    pub script: Option<PathBuf>,
    /// Whether systemd is installed and runs in the guest.
    pub init: OwnInit,
    /// The package source in mmdebstrap's syntax; empty for the distribution's own servers.
    pub mirrors: Vec<String>,
    /// The static `crabbox-guest` binary.
    pub guest_binary: PathBuf,
    /// The client agent to include, if any.
    pub agent: Option<Agent>,
    /// Upper limit for the times of all files, in seconds since the Unix epoch; fixed, so that builds are
    /// reproducible.
    pub stamp_unix: u32,
}

impl BuildRecipe {
    /// The default image, with `guest_binary` as its process 1.
    pub fn debian(guest_binary: &Path) -> Self {
        Self {
            name: "default".to_owned(),
            suite: "bookworm".to_owned(),
            extra_packages: Vec::new(),
            script: None,
            init: OwnInit::None,
            mirrors: Vec::new(),
            guest_binary: guest_binary.to_owned(),
            agent: None,
            stamp_unix: STAMP_UNIX,
        }
    }
}

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Programs that the build needs are not installed.
    #[error("cannot build an image without {}; run `{install}`", programs.join(", "))]
    MissingTools {
        /// The missing programs.
        programs: Vec<String>,
        /// The command that installs them.
        install: String,
    },
    /// Only root may create the device nodes and foreign owners of a root file system.
    #[error("building an image needs root; run `sudo crabbox image build`")]
    NeedsRoot,
    /// This processor architecture is not supported.
    #[error("no image recipe for {arch}; give firecracker.kernel and firecracker.rootfs instead")]
    Architecture {
        /// The architecture, as Rust names it.
        arch: &'static str,
    },
    /// The file system of the store is too full.
    #[error(
        "building an image needs {} MiB free in {}, and {} MiB are; make room, or put the store elsewhere",
        needed_bytes.div_ceil(1 << 20), dir.display(), free_bytes >> 20
    )]
    NoSpace {
        /// The store.
        dir: PathBuf,
        /// The required space, in bytes.
        needed_bytes: u64,
        /// The free space, in bytes.
        free_bytes: u64,
    },
    /// A package or suite name that could be interpreted as an option or as several names.
    #[error("bad {what} {value:?}: use letters, digits, '.', '+' and '-', beginning with a letter or digit")]
    BadWord {
        /// The kind of name.
        what: &'static str,
        /// The word as given.
        value: String,
    },
    /// A program failed.
    #[error("building the image stopped while {stage}")]
    Tool {
        /// The attempted operation.
        stage: &'static str,
        /// The failure.
        #[source]
        source: CommandError,
    },
    /// The kernel package lacks an expected file.
    #[error("the kernel package of {suite} has no {missing}")]
    KernelPackage {
        /// The suite.
        suite: String,
        /// What is missing.
        missing: String,
    },
    /// No ELF could be extracted from the package's kernel.
    #[error("cannot use the kernel {}", path.display())]
    Kernel {
        /// The compressed kernel.
        path: PathBuf,
        /// The reason.
        #[source]
        source: KernelError,
    },
    /// The initrd could not be made.
    #[error("cannot make the initrd")]
    Initrd(#[source] InitrdError),
    /// The time stamps of the new file system cannot be set.
    #[error("the file system {} is not as it was made: {unexpected}", path.display())]
    Layout {
        /// The image.
        path: PathBuf,
        /// What is unexpected.
        unexpected: &'static str,
    },
    /// A foreign tree cannot be used.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// There was not enough space.
    #[error("the file system of {} is full", dir.display())]
    Full {
        /// The store.
        dir: PathBuf,
        /// The file that could not be written.
        #[source]
        source: SourceError,
    },
    /// The guest contract is not met.
    #[error(
        "{from} has no {}: a lease needs it; install it in the tree (Debian: apt-get install -y {}); looked for {}",
        missing.join(", no "), packages.join(" "), looked.join(", ")
    )]
    Incomplete {
        /// The source.
        from: String,
        /// The missing parts.
        missing: Vec<&'static str>,
        /// Debian packages that contain them.
        packages: Vec<&'static str>,
        /// The paths at which they could have been.
        looked: Vec<&'static str>,
    },
    /// A file about users that the guest would not understand.
    #[error(
        "{from}: line {line} of {path} is not UTF-8, and a guest adds its user to the file; convert it (iconv -f latin1 -t utf8)"
    )]
    NotText {
        /// The source.
        from: String,
        /// The file.
        path: &'static str,
        /// The line, counted from 1.
        line: usize,
    },
    /// The lease's user can be neither used nor added.
    #[error("{from}: the user {user} of a lease cannot be used: {why}")]
    User {
        /// The source.
        from: String,
        /// The user.
        user: String,
        /// What is wrong, and what to do.
        why: &'static str,
    },
    /// The tree's own init would start sshd without the settings of a lease.
    #[error(
        "{from}: {path} does not include the settings of a lease{before}, and with --init systemd nothing else passes them to sshd; put `Include /etc/ssh/sshd_config.d/*.conf` at its beginning"
    )]
    NotIncluded {
        /// The source.
        from: String,
        /// The configuration.
        path: &'static str,
        /// The line before which it would have to, as words; empty if there is none.
        before: String,
    },
    /// The programs are for another processor architecture.
    #[error("{from} is for {found}, and this host is {}", std::env::consts::ARCH)]
    OtherProcessor {
        /// The source.
        from: String,
        /// Their architecture.
        found: &'static str,
    },
    /// There is no kernel for it.
    #[error(
        "{from} brings no kernel (boot/vmlinuz-RELEASE with lib/modules/RELEASE), and there is no image to take one from; run `crabbox image build` first"
    )]
    NoKernel {
        /// The source.
        from: String,
    },
    /// A path to which crabbox writes leads through a symbolic link of the tree.
    #[error("{path} of the tree is a symbolic link or no directory, and crabbox has to write there")]
    Link {
        /// The path in the tree.
        path: String,
    },
    /// A file could not be copied.
    #[error(transparent)]
    Clone(#[from] CloneError),
    /// The image store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Builds the image of `recipe` and puts it into `store` under `recipe.name`.
///
/// It holds the store's lock for the whole time and works in a scratch directory there, which is removed when
/// it returns; after a kill, the next change of the store removes it.
pub fn build_debian(
    recipe: &BuildRecipe,
    store: &Store,
    progress: &dyn Progress,
) -> Result<Image, BuildError> {
    check(recipe, store)?;
    let scratch = store.begin()?;
    let (root, staged) = (scratch.dir().join("root"), scratch.dir().join("image"));
    files::create_private_dir(&staged)?;

    progress.stage("installing packages");
    let kernel_release = bootstrap::install(recipe, &root, scratch.dir())?;
    progress.stage("extracting the kernel");
    stage_kernel(recipe, &kernel_release, &scratch, &staged)?;
    progress.stage("setting up the guest");
    let guest = GuestContract::default();
    let tree = Tree::open(&root)?;
    let contract = Contract {
        guest: &guest,
        init: recipe.init,
        agent: recipe.agent.as_ref(),
        maker: Maker::Ours,
        stamp_unix: recipe.stamp_unix,
    };
    contract::apply(&tree, &contract)?;
    let packages = packages::installed(&tree)?;
    progress.stage("making the file system");
    let base = staged.join(manifest::BASE);
    base::make(&tree, &base, recipe.stamp_unix, Times::NoLater)?;

    progress.stage("storing the image");
    let now = clock::unix_seconds();
    let record = Manifest {
        suite: recipe.suite.clone(),
        kernel_release,
        provenance: provenance(recipe)?,
        guest,
        packages,
        ..Manifest::of_staged(&staged, &manifest::FILES, Init::Ours, now)?
    };
    Ok(store.put(&scratch, &staged, &record, &recipe.name)?)
}

/// The inputs of the image besides its packages, recorded as its provenance.
fn provenance(recipe: &BuildRecipe) -> Result<BTreeMap<String, String>, FileError> {
    let mut facts = BTreeMap::new();
    if let Some(script) = &recipe.script {
        facts.insert("script_sha256".to_owned(), digest::sha256_file(script)?);
    }
    if recipe.init == OwnInit::Systemd {
        facts.insert("init".to_owned(), "systemd".to_owned());
    }
    Ok(facts)
}

/// Checks everything that can be checked before the first package is fetched.
fn check(recipe: &BuildRecipe, store: &Store) -> Result<(), BuildError> {
    if std::env::consts::ARCH != "x86_64" {
        return Err(BuildError::Architecture {
            arch: std::env::consts::ARCH,
        });
    }
    check_word("suite", &recipe.suite)?;
    for package in &recipe.extra_packages {
        check_word("package", package)?;
    }
    check_store(&recipe.name, &recipe.guest_binary, store)?;
    check_tools(&bootstrap::TOOLS)?;
    if let Some(script) = &recipe.script {
        files::open_regular(script).map_err(|source| FileError::io("read the script", script, source))?;
    }
    Ok(())
}

/// The requirements of every build: a valid name, root, the guest binary, free space.
fn check_store(name: &str, guest_binary: &Path, store: &Store) -> Result<(), BuildError> {
    crate::store::check_name(name)?;
    if !rustix::process::geteuid().is_root() {
        return Err(BuildError::NeedsRoot);
    }
    files::open_regular(guest_binary)
        .map_err(|source| FileError::io("inspect the guest's first process", guest_binary, source))?;
    let free_bytes = files::free_bytes(store.root())?;
    if free_bytes < SPACE_NEEDED {
        let dir = store.root().to_owned();
        return Err(BuildError::NoSpace {
            dir,
            needed_bytes: SPACE_NEEDED,
            free_bytes,
        });
    }
    Ok(())
}

fn check_word(what: &'static str, value: &str) -> Result<(), BuildError> {
    let plain = |c: char| c.is_ascii_alphanumeric();
    let good = value.starts_with(plain) && value.chars().all(|c| plain(c) || matches!(c, '.' | '+' | '-'));
    if good {
        Ok(())
    } else {
        Err(BuildError::BadWord {
            what,
            value: value.to_owned(),
        })
    }
}

/// Each of `tools` is a program and the Debian package that contains it. A program that cannot be started
/// counts as missing.
fn check_tools(tools: &[(&str, &str)]) -> Result<(), BuildError> {
    let missing: Vec<_> = tools
        .iter()
        .filter(|(program, _)| {
            matches!(
                Cmd::new(program).arg("--version").capture(),
                Err(CommandError::NotFound { .. })
            )
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    Err(BuildError::MissingTools {
        programs: missing.iter().map(|(program, _)| (*program).to_owned()).collect(),
        install: format!("apt-get install -y {}", packages.join(" ")),
    })
}

/// Unpacks the kernel package and makes kernel and initrd from it.
fn stage_kernel(
    recipe: &BuildRecipe,
    release: &str,
    scratch: &Scratch,
    staged: &Path,
) -> Result<(), BuildError> {
    let unpacked = bootstrap::unpack_kernel(recipe, scratch.dir())?;
    let unpacked = Tree::open(&unpacked)?;
    let compressed = PathBuf::from(format!("boot/vmlinuz-{release}"));
    let missing = |missing: String| BuildError::KernelPackage {
        suite: recipe.suite.clone(),
        missing,
    };
    let image = unpacked
        .read(&compressed, kernel::KERNEL_LIMIT as u64)
        .map_err(|source| FileError::io("read the kernel", &unpacked.shown(&compressed), source))?
        .ok_or_else(|| missing(compressed.display().to_string()))?;
    let elf = kernel::elf_from_bzimage(&image).map_err(|source| BuildError::Kernel {
        path: unpacked.shown(&compressed),
        source,
    })?;
    files::write_atomic(&staged.join(manifest::KERNEL), &elf, 0o644)?;
    // A merged /usr may put the tree in either place.
    let mut modules = None;
    for prefix in ["lib", "usr/lib"] {
        let place = Path::new(prefix).join("modules").join(release);
        let found = unpacked.below(&place);
        let found = found.map_err(|source| FileError::io("open", &unpacked.shown(&place), source))?;
        modules = modules.or(found);
    }
    let modules = modules.ok_or_else(|| missing(format!("modules for {release}")))?;
    let archive = initrd::build(&InitrdRecipe {
        guest_binary: &recipe.guest_binary,
        modules: &modules,
        kernel_version: release,
        wanted: &initrd::MODULES,
    })
    .map_err(BuildError::Initrd)?;
    files::write_atomic(&staged.join(manifest::INITRD), &archive, 0o644)?;
    Ok(())
}

#[cfg(test)]
mod tests;
