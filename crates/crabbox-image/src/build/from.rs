//! An image from a foreign tree: a directory, a tar archive or an OCI image, with our kernel or its own.
//!
//! The tree is untrusted: it is read as its guest would read it, and what crabbox writes into it must never
//! go through one of its links.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crabbox_host::clock;
use crabbox_host::clone;
use crabbox_host::files::{self, FileError};
use crabbox_host::tree::Tree;

use crabbox_guest_protocol::accounts::{self, Account};
use crabbox_guest_protocol::image::SSHD;
use rustix::fs::FileType;

use super::base::Times;
use super::contract::{Contract, Maker, below_root};
use super::{Agent, BuildError, OwnInit, base, check_store, check_tools, contract, packages};
use crate::import;
use crate::initrd::{self, InitrdRecipe};
use crate::kernel;
use crate::manifest::{self, GuestContract, Init, Manifest};
use crate::programs::{self, Check, Program};
use crate::progress::Progress;
use crate::source::Source;
use crate::store::{Image, Scratch, Store};

/// Programs of the host that this build needs, each with its Debian package.
const TOOLS: [(&str, &str); 1] = [("mke2fs", "e2fsprogs")];

/// Maximum size of a text file read from a tree, in bytes: user list and description of the distribution.
const TEXT_LIMIT: u64 = 1 << 20;

/// Maximum size of another image's initrd, in bytes.
const INITRD_LIMIT: u64 = 1 << 30;

/// Keywords of sshd's configuration that may not come before the settings of a lease: of most the first one
/// counts, and everything after the last is conditional.
const BEFORE_NONE: [&str; 6] = [
    "authorizedkeysfile",
    "pubkeyauthentication",
    "authenticationmethods",
    "passwordauthentication",
    "permitrootlogin",
    "match",
];

/// Paths at which a kernel finds systemd or another init.
const INIT: &str = "sbin/init";

/// The image that gives its kernel to a tree.
#[derive(Debug, Clone)]
pub enum KernelOf {
    /// This one, whether the tree has a kernel or not.
    Chosen(Image),
    /// This one if the tree has no kernel.
    Otherwise(Image),
    /// None: the tree must have a kernel.
    Nobody,
}

/// An image built from a tree.
#[derive(Debug, Clone)]
pub struct TreeRecipe {
    /// The name that will point to the image.
    pub name: String,
    /// The source of the tree.
    pub source: Source,
    /// Whether the tree's own init runs in the guest.
    pub init: OwnInit,
    /// The image whose kernel is used.
    pub kernel_of: KernelOf,
    /// The static `crabbox-guest` binary.
    pub guest_binary: PathBuf,
    /// The client agent to include, if any.
    pub agent: Option<Agent>,
    /// The time of all files that are not the tree's own, in seconds since the Unix epoch.
    pub stamp_unix: u32,
}

/// Builds the image of `recipe` and puts it into `store` under `recipe.name`; otherwise like
/// [`super::build_debian`].
pub fn build_tree(recipe: &TreeRecipe, store: &Store, progress: &dyn Progress) -> Result<Image, BuildError> {
    check_store(&recipe.name, &recipe.guest_binary, store)?;
    check_tools(&TOOLS)?;
    let scratch = store.begin()?;
    let staged = scratch.dir().join("image");
    files::create_private_dir(&staged)?;

    progress.stage("unpacking the tree");
    let tree = Tree::create(&scratch.dir().join("root"))?;
    let origin = recipe
        .source
        .unpack(&tree, scratch.dir())
        .map_err(|error| out_of_room(error, store))?;
    progress.stage("checking the tree");
    let checked = Checked {
        tree: &tree,
        name: recipe.source.display(),
    };
    checked.contract(recipe.init, progress)?;
    let guest = GuestContract {
        uid: checked.uid()?,
        ..GuestContract::default()
    };
    progress.stage("making kernel and initrd");
    let release = checked.kernel(recipe, &staged)?;
    progress.stage("setting up the guest");
    let contract = Contract {
        guest: &guest,
        init: recipe.init,
        agent: recipe.agent.as_ref(),
        maker: Maker::Others,
        stamp_unix: recipe.stamp_unix,
    };
    contract::apply(&tree, &contract)?;
    let packages = packages::installed(&tree)?;
    progress.stage("making the file system");
    tree.settle_times(i64::from(recipe.stamp_unix))
        .map_err(|source| FileError::io("set the times in", tree.path(), source))?;
    let base = staged.join(manifest::BASE);
    base::make(&tree, &base, recipe.stamp_unix, Times::OfTree)?;
    let suite = checked.suite()?;
    store_image(
        recipe,
        store,
        &scratch,
        &staged,
        Facts {
            origin,
            guest,
            release,
            packages,
            suite,
        },
        progress,
    )
}

struct Facts {
    origin: Vec<(&'static str, String)>,
    guest: GuestContract,
    release: String,
    packages: BTreeMap<String, String>,
    suite: String,
}

fn store_image(
    recipe: &TreeRecipe,
    store: &Store,
    scratch: &Scratch,
    staged: &Path,
    facts: Facts,
    progress: &dyn Progress,
) -> Result<Image, BuildError> {
    progress.stage("storing the image");
    let init = (recipe.init == OwnInit::Systemd).then(|| ("init", "systemd".to_owned()));
    let provenance = facts
        .origin
        .into_iter()
        .chain(init)
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    let now = clock::unix_seconds();
    let record = Manifest {
        suite: facts.suite,
        kernel_release: facts.release,
        provenance,
        guest: facts.guest,
        packages: facts.packages,
        ..Manifest::of_staged(staged, &manifest::FILES, Init::Ours, now)?
    };
    Ok(store.put(scratch, staged, &record, &recipe.name)?)
}

/// Reports a tree that filled the disk as such.
fn out_of_room(error: crate::source::SourceError, store: &Store) -> BuildError {
    if error.is_out_of_space() {
        return BuildError::Full {
            dir: store.root().to_owned(),
            source: error,
        };
    }
    error.into()
}

struct Checked<'a> {
    tree: &'a Tree,
    name: String,
}

impl Checked<'_> {
    fn has(&self, path: &str) -> Result<bool, BuildError> {
        Ok(self.open(path)?.is_some())
    }

    fn open(&self, path: &str) -> Result<Option<std::fs::File>, BuildError> {
        let opened = self.tree.file(Path::new(path));
        Ok(opened.map_err(|source| self.failed("open", path, source))?)
    }

    /// The whole content of a file of the tree; empty if it does not exist.
    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, BuildError> {
        let read = self.tree.read(Path::new(path), limit);
        Ok(read
            .map_err(|source| self.failed("read", path, source))?
            .unwrap_or_default())
    }

    /// A small text file of the tree; empty if it does not exist.
    fn text(&self, path: &str) -> Result<String, BuildError> {
        Ok(String::from_utf8_lossy(&self.read(path, TEXT_LIMIT)?).into_owned())
    }

    fn failed(&self, attempt: &'static str, path: &str, source: std::io::Error) -> FileError {
        FileError::io(attempt, &self.tree.shown(Path::new(path)), source)
    }

    fn contract(&self, init: OwnInit, progress: &dyn Progress) -> Result<(), BuildError> {
        let (mut missing, mut packages, mut looked) = (Vec::new(), Vec::new(), Vec::new());
        for program in programs::of(Check::Tree) {
            if !self.has_program(program, progress)? {
                missing.push(program.name);
                packages.push(program.package);
                looked.extend(program.places);
            }
        }
        if init == OwnInit::Systemd && !self.has(INIT)? {
            missing.push("/sbin/init");
            packages.push("systemd-sysv");
        }
        if missing == [programs::BASH] {
            // Such an image is useful only if no command is to run in it, which the user must judge.
            progress.warn(&format!(
                "{} has no bash, and without it no command runs in a lease; install it in the tree (Debian: apt-get install -y bash); looked for {}",
                self.name,
                looked.join(", ")
            ));
        } else if !missing.is_empty() {
            return Err(BuildError::Incomplete {
                from: self.name.clone(),
                missing,
                packages,
                looked,
            });
        }
        self.processor()?;
        match init {
            OwnInit::Systemd => self.sshd_includes_settings(),
            OwnInit::None => Ok(()),
        }
    }

    /// Whether the tree has `program`. Warns if nobody could run it, or if it is a sudo that makes nobody root.
    fn has_program(&self, program: &Program, progress: &dyn Progress) -> Result<bool, BuildError> {
        let mut not_executable = None;
        for place in program.places {
            let Some(file) = self.open(below_root(place))? else {
                continue;
            };
            let facts = file
                .metadata()
                .map_err(|source| self.failed("look at", below_root(place), source))?;
            // A shell goes on to the next directory of `PATH`, too.
            if facts.mode() & 0o111 == 0 {
                not_executable.get_or_insert(place);
                continue;
            }
            if program.name == programs::SUDO && (facts.uid() != 0 || facts.mode() & 0o4000 == 0) {
                progress.warn(&format!(
                    "{} has {place} with owner {} and mode {:04o}; unless it is set-uid root (owner 0, mode 4755), the lease's user cannot become root: if the tree was unpacked as an ordinary user, unpack it as root or name the archive itself",
                    self.name,
                    facts.uid(),
                    facts.mode() & 0o7777
                ));
            }
            return Ok(true);
        }
        if let Some(place) = not_executable {
            progress.warn(&format!(
                "{} has {place}, which is not executable; make it so in the tree (chmod 755)",
                self.name
            ));
        }
        Ok(not_executable.is_some())
    }

    /// Refuses programs of another processor.
    fn processor(&self) -> Result<(), BuildError> {
        let mut head = Vec::new();
        let sshd = below_root(SSHD);
        if let Some(program) = self.open(sshd)? {
            let read = std::io::Read::read_to_end(&mut std::io::Read::take(program, 64), &mut head);
            read.map_err(|source| self.failed("read", sshd, source))?;
        }
        match import::other_processor(&head) {
            Some(found) => Err(BuildError::OtherProcessor {
                from: self.name.clone(),
                found,
            }),
            None => Ok(()),
        }
    }

    /// The uid of the lease's user: the guest adds the user if the image has none.
    fn uid(&self) -> Result<u32, BuildError> {
        // The guest reads all three as text.
        let (passwd, group) = (self.users("etc/passwd")?, self.users("etc/group")?);
        self.users("etc/shadow")?;
        let user = GuestContract::default().user;
        let refused = |why| BuildError::User {
            from: self.name.clone(),
            user: user.clone(),
            why,
        };
        // Neither root, nor the id that means "no user": the lease's user must be able to own files.
        let usable = |account: &Account| (1..u32::MAX).contains(&account.uid);
        // The first line of that name counts, even if it is unusable.
        let named = |line: &&str| line.split(':').next() == Some(&user);
        if let Some(line) = passwd.lines().find(named) {
            let account = accounts::find(line, &user).filter(usable);
            return account
                .map(|account| account.uid)
                .ok_or_else(|| refused("its line in etc/passwd needs seven fields, an id above 0 and an absolute home; correct the line or remove it"));
        }
        accounts::new(&passwd, &group, &user)
            .map(|account| account.uid)
            .ok_or_else(|| {
                refused("every id for people, from 1000 to 60000, is taken; remove a user or group")
            })
    }

    /// The users or groups in a file of the tree; empty if it does not exist.
    fn users(&self, path: &'static str) -> Result<String, BuildError> {
        String::from_utf8(self.read(path, TEXT_LIMIT)?).map_err(|error| {
            let (good, bytes) = (error.utf8_error().valid_up_to(), error.into_bytes());
            BuildError::NotText {
                from: self.name.clone(),
                path,
                line: bytes[..good].split(|byte| *byte == b'\n').count(),
            }
        })
    }

    /// Refuses a configuration of sshd that would not read the settings of a lease, or only behind a
    /// condition. Our own init gives them to sshd as arguments.
    fn sshd_includes_settings(&self) -> Result<(), BuildError> {
        // The second one is read where there is no first, in distributions that leave /etc to the owner.
        let mut path = "etc/ssh/sshd_config";
        let mut text = self.text(path)?;
        if text.is_empty() {
            path = "usr/etc/ssh/sshd_config";
            text = self.text(path)?;
        }
        let mut first = None;
        for line in text.lines().map(|line| line.trim().to_ascii_lowercase()) {
            let keyword = line.split([' ', '\t', '=']).next().unwrap_or_default();
            if keyword == "include" && line.contains("sshd_config.d/") && line.contains(".conf") {
                return Ok(());
            }
            if BEFORE_NONE.contains(&keyword) {
                first = Some(line);
                break;
            }
        }
        Err(BuildError::NotIncluded {
            from: self.name.clone(),
            path,
            before: first
                .map(|line| format!(" before its line {line:?}"))
                .unwrap_or_default(),
        })
    }

    /// Makes kernel and initrd: from the chosen image's, or the tree's own kernel if it has one with its
    /// modules, or another image's.
    fn kernel(&self, recipe: &TreeRecipe, staged: &Path) -> Result<String, BuildError> {
        let own = match recipe.kernel_of {
            KernelOf::Chosen(_) => None,
            KernelOf::Otherwise(_) | KernelOf::Nobody => self.own_kernel()?,
        };
        if let Some((release, modules)) = own {
            let place = format!("boot/vmlinuz-{release}");
            let path = self.tree.shown(Path::new(&place));
            let image = self.read(&place, kernel::KERNEL_LIMIT as u64)?;
            let elf =
                kernel::elf_from_bzimage(&image).map_err(|source| BuildError::Kernel { path, source })?;
            files::write_atomic(&staged.join(manifest::KERNEL), &elf, 0o644)?;
            let archive = initrd::build(&InitrdRecipe {
                guest_binary: &recipe.guest_binary,
                modules: &modules,
                kernel_version: &release,
                wanted: &initrd::MODULES,
            })
            .map_err(BuildError::Initrd)?;
            files::write_atomic(&staged.join(manifest::INITRD), &archive, 0o644)?;
            return Ok(release);
        }
        let (KernelOf::Chosen(other) | KernelOf::Otherwise(other)) = &recipe.kernel_of else {
            return Err(BuildError::NoKernel {
                from: self.name.clone(),
            });
        };
        clone::clone_file(&other.kernel(), &staged.join(manifest::KERNEL))?;
        let from = other.initrd();
        let archive = files::read_regular(&from, INITRD_LIMIT);
        let archive = archive.map_err(|source| FileError::io("read", &from, source))?;
        let archive =
            initrd::with_guest(&archive, &from, &recipe.guest_binary).map_err(BuildError::Initrd)?;
        files::write_atomic(&staged.join(manifest::INITRD), &archive, 0o644)?;
        Ok(other.manifest.kernel_release.clone())
    }

    /// The newest kernel of the tree whose modules exist too: its release, and its modules.
    fn own_kernel(&self) -> Result<Option<(String, Tree)>, BuildError> {
        let mut found: Vec<(String, PathBuf)> = Vec::new();
        for place in ["usr/lib/modules", "lib/modules"] {
            let names = self.tree.names(Path::new(place));
            for name in names.map_err(|source| self.failed("list", place, source))? {
                let Ok(release) = name.into_string() else { continue };
                let modules = Path::new(place).join(&release);
                let looked = self.tree.look(&modules);
                let is_dir = looked.is_ok_and(|found| FileType::from_raw_mode(found.st_mode).is_dir());
                if is_dir && self.has(&format!("boot/vmlinuz-{release}"))? {
                    found.push((release, modules));
                }
            }
        }
        found.sort_by_key(|(release, _)| numbers(release));
        let Some((release, modules)) = found.pop() else {
            return Ok(None);
        };
        let place = modules.to_string_lossy().into_owned();
        let modules = self.tree.below(&modules);
        let modules = modules.map_err(|source| self.failed("open", &place, source))?;
        Ok(modules.map(|modules| (release, modules)))
    }

    /// The distribution's name according to `os-release(5)`.
    fn suite(&self) -> Result<String, BuildError> {
        let mut text = self.text("etc/os-release")?;
        if text.is_empty() {
            text = self.text("usr/lib/os-release")?;
        }
        let value = |key: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.map(|value| value.trim_matches(['"', '\'']).to_owned())
        };
        let plain = |text: &String| {
            text.chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        let named = value("VERSION_CODENAME")
            .or_else(|| Some([value("ID")?, value("VERSION_ID").unwrap_or_default()].join("-")));
        Ok(named.filter(plain).unwrap_or_default())
    }
}

/// The numbers in a kernel release, for an order in which 6.10 follows 6.9.
fn numbers(release: &str) -> Vec<u64> {
    release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests;
