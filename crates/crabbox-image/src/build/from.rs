//! An image from a foreign tree: a directory, a tar archive or an OCI image, with our kernel or its own.
//!
//! The tree is untrusted: it is read as its guest would read it, and what crabbox writes into it must never go through one
//! of its links.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crabbox_host::clock;
use crabbox_host::clone;
use crabbox_host::files::{self, FileError};
use crabbox_host::tree::Tree;

use crabbox_guest_protocol::image::SSHD;
use rustix::fs::FileType;

use super::contract::below_root;
use super::{Agent, BuildError, OwnInit, base, check_store, check_tools, contract, packages};
use crate::import;
use crate::initrd::{self, InitrdRecipe};
use crate::kernel;
use crate::manifest::{self, GuestContract, Init, Manifest};
use crate::programs::{self, Check};
use crate::progress::Progress;
use crate::source::Source;
use crate::store::{Image, Scratch, Store};

/// Programs of the host that this build needs, each with its Debian package.
const TOOLS: [(&str, &str); 1] = [("mke2fs", "e2fsprogs")];

/// Maximum size of a text file read from a tree, in bytes: user list and description of the distribution.
const TEXT_LIMIT: u64 = 1 << 20;

/// Maximum size of another image's initrd, in bytes.
const INITRD_LIMIT: u64 = 1 << 30;

/// Paths at which a kernel finds systemd or another init.
const INIT: &str = "sbin/init";

/// An image built from a tree.
#[derive(Debug, Clone)]
pub struct TreeRecipe {
    /// The name that will point to the image.
    pub name: String,
    /// The source of the tree.
    pub source: Source,
    /// Whether the tree's own init runs in the guest.
    pub init: OwnInit,
    /// The image whose kernel is used if the tree has none.
    pub kernel_of: Option<Image>,
    /// The static `crabbox-guest` binary.
    pub guest_binary: PathBuf,
    /// The client agent to include, if any.
    pub agent: Option<Agent>,
    /// Upper limit for the times of all files, in seconds since the Unix epoch.
    pub stamp_unix: u32,
}

/// Builds the image of `recipe` and puts it into `store` under `recipe.name`; otherwise like [`super::build_debian`].
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
    checked.contract(recipe.init)?;
    let guest = GuestContract {
        uid: checked.uid()?,
        ..GuestContract::default()
    };
    progress.stage("making kernel and initrd");
    let release = checked.kernel(recipe, &staged)?;
    progress.stage("setting up the guest");
    contract::apply(&tree, &guest, recipe.init, recipe.agent.as_ref())?;
    let packages = packages::installed(&tree)?;
    progress.stage("making the file system");
    base::make(&tree, &staged.join(manifest::BASE), recipe.stamp_unix)?;
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

    fn contract(&self, init: OwnInit) -> Result<(), BuildError> {
        let (mut missing, mut packages) = (Vec::new(), Vec::new());
        for program in programs::of(Check::Tree) {
            let mut found = false;
            for place in program.places {
                found |= self.has(below_root(place))?;
            }
            if !found {
                missing.push(program.name);
                packages.push(program.package);
            }
        }
        if init == OwnInit::Systemd && !self.has(INIT)? {
            missing.push("/sbin/init");
            packages.push("systemd-sysv");
        }
        if !missing.is_empty() {
            return Err(BuildError::Incomplete {
                from: self.name.clone(),
                missing,
                packages,
            });
        }
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
        let passwd = self.text("etc/passwd")?;
        let users: Vec<_> = passwd
            .lines()
            .filter_map(|line| {
                let mut fields = line.split(':');
                Some((fields.next()?, fields.nth(1)?.parse::<u32>().ok()?))
            })
            .collect();
        let user = GuestContract::default().user;
        // Neither root, nor the id that means "no user": the lease's user must be able to own files.
        let usable = |uid: &u32| (1..u32::MAX).contains(uid);
        let there = users.iter().find(|(name, _)| *name == user).map(|(_, uid)| *uid);
        let there = there.filter(usable);
        let free = || {
            (GuestContract::default().uid..=u32::from(u16::MAX))
                .find(|uid| users.iter().all(|(_, taken)| taken != uid))
        };
        Ok(there.or_else(free).unwrap_or_default())
    }

    /// Makes kernel and initrd: from the tree's own kernel if it has one with its modules, otherwise from another image's.
    fn kernel(&self, recipe: &TreeRecipe, staged: &Path) -> Result<String, BuildError> {
        if let Some((release, modules)) = self.own_kernel()? {
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
        let other = recipe.kernel_of.as_ref().ok_or_else(|| BuildError::NoKernel {
            from: self.name.clone(),
        })?;
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
