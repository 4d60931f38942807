//! An image of a tree that somebody else made: a directory, a tar archive or an OCI image, with our kernel or its own.
//!
//! The tree is foreign: it is read as its guest would read it, and what crabbox writes into it goes through no link of it.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crabbox_host::clock;
use crabbox_host::clone;
use crabbox_host::files::{self, FileError};

use super::{BuildError, OwnInit, base, bootstrap, check_store, check_tools, contract};
use crate::import;
use crate::initrd::{self, InitrdRecipe};
use crate::kernel;
use crate::manifest::{self, FileFacts, GuestContract, Init, Manifest};
use crate::progress::Progress;
use crate::source::Source;
use crate::source::tree::Tree;
use crate::store::{Image, Scratch, Store};

/// What a lease needs of a tree, each with the places where distributions have it and Debian's package.
const NEEDED: [(&str, &[&str], &str); 9] = [
    ("sshd", &["usr/sbin/sshd"], "openssh-server"),
    ("git", &["usr/bin/git"], "git"),
    ("rsync", &["usr/bin/rsync"], "rsync"),
    ("tar", &["usr/bin/tar", "bin/tar"], "tar"),
    ("curl", &["usr/bin/curl"], "curl"),
    ("jq", &["usr/bin/jq"], "jq"),
    (
        "python3",
        &["usr/bin/python3", "usr/local/bin/python3"],
        "python3",
    ),
    ("sudo", &["usr/bin/sudo"], "sudo"),
    ("sh", &["bin/sh"], "dash"),
];

/// Programs of the host that this build runs, each with its Debian package.
const TOOLS: [(&str, &str); 1] = [("mke2fs", "e2fsprogs")];

/// Where systemd and its kin are found by a kernel.
const INIT: &str = "sbin/init";

/// An image of a tree.
#[derive(Debug, Clone)]
pub struct TreeRecipe {
    /// The name that will point at the image.
    pub name: String,
    /// Where the tree comes from.
    pub source: Source,
    /// Whether the tree's own init runs in the guest.
    pub init: OwnInit,
    /// The image whose kernel is used when the tree brings none of its own.
    pub kernel_of: Option<Image>,
    /// The static `crabbox-guest` binary.
    pub guest_binary: PathBuf,
    /// No file of the image is newer than this, in seconds since the unix epoch.
    pub stamp_unix: u32,
}

/// Builds the image of `recipe` and puts it into `store`, where `recipe.name` points at it afterwards; otherwise as
/// [`super::build_debian`].
pub fn build_tree(recipe: &TreeRecipe, store: &Store, progress: &dyn Progress) -> Result<Image, BuildError> {
    check_store(&recipe.name, &recipe.guest_binary, store)?;
    check_tools(&TOOLS)?;
    let scratch = store.begin()?;
    let (root, staged) = (scratch.dir().join("root"), scratch.dir().join("image"));
    files::create_private_dir(&staged)?;

    progress.stage("unpacking the tree");
    let origin = recipe
        .source
        .unpack(&root, scratch.dir())
        .map_err(|error| out_of_room(error, store))?;
    progress.stage("checking the tree");
    let tree = Tree::open(&root)?;
    let checked = Checked {
        tree: &tree,
        root: &root,
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
    contract::apply(&root, &guest, recipe.init)?;
    let packages = checked.packages();
    progress.stage("making the file system");
    base::make(&root, &staged.join(manifest::BASE), recipe.stamp_unix)?;
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
    let mut contents = BTreeMap::new();
    for name in manifest::FILES {
        contents.insert(name.to_owned(), FileFacts::of(&staged.join(name))?);
    }
    let init = (recipe.init == OwnInit::Systemd).then(|| ("init", "systemd".to_owned()));
    let provenance = facts
        .origin
        .into_iter()
        .chain(init)
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    let record = Manifest {
        version: manifest::VERSION,
        digest: manifest::image_digest(&contents),
        created_unix: clock::unix_seconds(),
        arch: std::env::consts::ARCH.to_owned(),
        suite: facts.suite,
        kernel_release: facts.release,
        init: Init::Ours,
        provenance,
        guest: facts.guest,
        files: contents,
        packages: facts.packages,
    };
    Ok(store.put(scratch, staged, &record, &recipe.name)?)
}

/// A tree that filled the disk is told as such.
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
    root: &'a Path,
    name: String,
}

impl Checked<'_> {
    fn has(&self, path: &str) -> Result<bool, BuildError> {
        Ok(self.open(path)?.is_some())
    }

    fn open(&self, path: &str) -> Result<Option<std::fs::File>, BuildError> {
        let opened = self.tree.file(Path::new(path));
        Ok(opened.map_err(|source| FileError::io("open", &self.root.join(path), source))?)
    }

    /// A small text of the tree; empty when it is not there.
    fn text(&self, path: &str) -> Result<String, BuildError> {
        let mut text = Vec::new();
        if let Some(file) = self.open(path)? {
            file.take(1 << 20)
                .read_to_end(&mut text)
                .map_err(|source| FileError::io("read", &self.root.join(path), source))?;
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn contract(&self, init: OwnInit) -> Result<(), BuildError> {
        let (mut missing, mut packages) = (Vec::new(), Vec::new());
        for (program, places, package) in NEEDED {
            let mut found = false;
            for place in places {
                found |= self.has(place)?;
            }
            if !found {
                missing.push(program);
                packages.push(package);
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
        if let Some(sshd) = self.open("usr/sbin/sshd")? {
            sshd.take(64)
                .read_to_end(&mut head)
                .map_err(|source| FileError::io("read", &self.root.join("usr/sbin/sshd"), source))?;
        }
        match import::other_processor(&head) {
            Some(found) => Err(BuildError::OtherProcessor {
                from: self.name.clone(),
                found,
            }),
            None => Ok(()),
        }
    }

    /// The uid that the lease's user has or will get: the guest adds the user where the image has none.
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
        let there = users.iter().find(|(name, _)| *name == user).map(|(_, uid)| *uid);
        let free = || {
            (GuestContract::default().uid..=u32::from(u16::MAX))
                .find(|uid| users.iter().all(|(_, taken)| taken != uid))
        };
        Ok(there.or_else(free).unwrap_or_default())
    }

    /// Makes kernel and initrd: of the tree's own kernel when it brings one with its modules, else of another image's.
    fn kernel(&self, recipe: &TreeRecipe, staged: &Path) -> Result<String, BuildError> {
        if let Some((release, modules_root)) = self.own_kernel() {
            let place = format!("boot/vmlinuz-{release}");
            let path = self.root.join(&place);
            let mut image = Vec::new();
            if let Some(mut file) = self.open(&place)? {
                file.read_to_end(&mut image)
                    .map_err(|source| FileError::io("read the kernel", &path, source))?;
            }
            let elf =
                kernel::elf_from_bzimage(&image).map_err(|source| BuildError::Kernel { path, source })?;
            files::write_atomic(&staged.join(manifest::KERNEL), &elf, 0o644)?;
            let archive = initrd::build(&InitrdRecipe {
                guest_binary: &recipe.guest_binary,
                modules_root: &modules_root,
                kernel_version: &release,
                modules: &initrd::MODULES,
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
        let archive = std::fs::read(&from).map_err(|source| FileError::io("read", &from, source))?;
        let archive =
            initrd::with_guest(&archive, &from, &recipe.guest_binary).map_err(BuildError::Initrd)?;
        files::write_atomic(&staged.join(manifest::INITRD), &archive, 0o644)?;
        Ok(other.manifest.kernel_release.clone())
    }

    /// The newest kernel of the tree whose modules are there too: its release, and where they are.
    fn own_kernel(&self) -> Option<(String, PathBuf)> {
        let mut found: Vec<(String, PathBuf)> = ["usr/lib/modules", "lib/modules"]
            .iter()
            .filter(|place| contract::is_real(self.root, place))
            .filter_map(|place| std::fs::read_dir(self.root.join(place)).ok())
            .flatten()
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
            .filter(|(release, _)| self.has(&format!("boot/vmlinuz-{release}")).unwrap_or(false))
            .collect();
        found.sort_by_key(|(release, _)| numbers(release));
        found.pop()
    }

    /// The installed packages where dpkg's list is there and this host can read it; otherwise nobody knows.
    fn packages(&self) -> BTreeMap<String, String> {
        let list = "var/lib/dpkg/status";
        if contract::is_real(self.root, list) && self.root.join(list).is_file() {
            return bootstrap::packages(self.root).unwrap_or_default();
        }
        BTreeMap::new()
    }

    /// The distribution, as `os-release(5)` names it.
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

/// The numbers in a kernel's release, for an order in which 6.10 comes behind 6.9.
fn numbers(release: &str) -> Vec<u64> {
    release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests;
