//! The record of an image, stored with its files.
//!
//! With it a reader can verify every byte, and knows the guest's properties without booting it. Version 1 is the only one; a
//! newer version is refused. Nothing in it may depend on the machine that built the image.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crabbox_host::digest;
use crabbox_host::files::{self, FileError};

/// The version of the format that this program writes and reads.
pub const VERSION: u32 = 1;

/// The name of the record in an image's directory.
pub const FILE: &str = "manifest.json";

/// The guest kernel, an uncompressed ELF.
pub const KERNEL: &str = "vmlinux";

/// The archive that holds the first process and the kernel's modules.
pub const INITRD: &str = "initrd.img";

/// The read-only root file system that all leases share.
pub const BASE: &str = "base.ext4";

/// The files of an image that we build.
pub const FILES: [&str; 3] = [KERNEL, INITRD, BASE];

/// The record of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Manifest {
    /// Version of this format: [`VERSION`].
    pub version: u32,
    /// The image's identity: SHA-256 over the digests of its files, see [`image_digest`].
    pub digest: String,
    /// When it was put together, in seconds since the unix epoch; not part of the identity.
    pub created_unix: i64,
    /// The processor it is for, as `uname -m` says it.
    pub arch: String,
    /// The distribution's suite, for example `bookworm`.
    pub suite: String,
    /// The kernel's release, as `uname -r` says it.
    pub kernel_release: String,
    /// Who sets the guest up.
    #[serde(default, skip_serializing_if = "Init::is_ours")]
    pub init: Init,
    /// Where the content comes from beyond the suite's packages; empty for a plain build.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub provenance: BTreeMap<String, String>,
    /// What a lease can count on.
    pub guest: GuestContract,
    /// Digest and length of each file, by name.
    pub files: BTreeMap<String, FileFacts>,
    /// The installed packages, by name, with their versions.
    pub packages: BTreeMap<String, String>,
}

impl Manifest {
    /// The record of an image with the files `names` in `staged`, for this machine's architecture, without a description of
    /// the contents, which the builder adds.
    pub fn of_staged(
        staged: &Path,
        names: &[&str],
        init: Init,
        created_unix: i64,
    ) -> Result<Self, FileError> {
        let facts = |name: &&str| Ok(((*name).to_owned(), FileFacts::of(&staged.join(name))?));
        let files: BTreeMap<_, _> = names.iter().map(facts).collect::<Result<_, FileError>>()?;
        Ok(Self {
            version: VERSION,
            digest: image_digest(&files),
            created_unix,
            arch: std::env::consts::ARCH.to_owned(),
            suite: String::new(),
            kernel_release: String::new(),
            init,
            provenance: BTreeMap::new(),
            guest: GuestContract::default(),
            files,
            packages: BTreeMap::new(),
        })
    }
}

/// Who sets the guest up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// Our first process, from the initrd, above a shared read-only base.
    #[default]
    Ours,
    /// The image's own init, configured by cloud-init's seed, on a private copy of the whole file system.
    CloudInit,
}

impl Init {
    /// Whether these are exactly the files of an image of this kind. An image with its own init has an initrd only if its
    /// kernel needs one.
    pub(crate) fn has_files<'a>(self, names: impl Iterator<Item = &'a str>) -> bool {
        let names: Vec<_> = names.collect();
        let needed: &[&str] = match self {
            Self::Ours => &FILES,
            Self::CloudInit => &[KERNEL, BASE],
        };
        needed.iter().all(|name| names.contains(name)) && names.iter().all(|name| FILES.contains(name))
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    fn is_ours(&self) -> bool {
        *self == Self::Ours
    }
}

/// What the guest offers once it is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GuestContract {
    /// The user who logs in; sudo asks this user for no password.
    pub user: String,
    /// The numeric id of user and group.
    pub uid: u32,
    /// The directory that the working tree is synced into; the user owns it.
    pub work_root: String,
    /// Where sshd listens.
    pub ssh_port: u16,
}

impl Default for GuestContract {
    fn default() -> Self {
        Self {
            user: "crabbox".to_owned(),
            uid: 1000,
            work_root: "/work/crabbox".to_owned(),
            ssh_port: 22,
        }
    }
}

/// What one file must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileFacts {
    /// SHA-256, 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// Length in bytes.
    pub bytes: u64,
}

impl FileFacts {
    /// Computes the entry for the file at `path`.
    pub fn of(path: &Path) -> Result<Self, FileError> {
        let facts = files::open_regular(path)
            .and_then(|file| file.metadata())
            .map_err(|source| FileError::io("inspect", path, source))?;
        Ok(Self {
            sha256: digest::sha256_file(path)?,
            bytes: facts.len(),
        })
    }
}

/// The identity of an image with `files`: SHA-256 over one line `<sha256>  <name>\n` per file, sorted by name.
pub(crate) fn image_digest(files: &BTreeMap<String, FileFacts>) -> String {
    let lines: String = files
        .iter()
        .flat_map(|(name, facts)| [facts.sha256.as_str(), "  ", name.as_str(), "\n"])
        .collect();
    digest::sha256(lines.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_the_files_of_its_kind() {
        for (init, names, fits) in [
            (Init::Ours, &[KERNEL, INITRD, BASE][..], true),
            (Init::Ours, &[KERNEL, BASE], false),
            (Init::CloudInit, &[KERNEL, BASE], true),
            (Init::CloudInit, &[KERNEL, INITRD, BASE], true),
            (Init::CloudInit, &[BASE], false),
            (Init::Ours, &[KERNEL, INITRD, BASE, "more"], false),
        ] {
            assert_eq!(init.has_files(names.iter().copied()), fits, "{init:?} {names:?}");
        }
    }

    #[test]
    fn the_identity_is_what_sha256sum_prints_hashed_again() {
        let facts = |sha256: &str| FileFacts {
            sha256: sha256.to_owned(),
            bytes: 1,
        };
        let files = BTreeMap::from([("b".to_owned(), facts("22")), ("a".to_owned(), facts("11"))]);
        assert_eq!(image_digest(&files), digest::sha256(b"11  a\n22  b\n"));
        let other = BTreeMap::from([("b".to_owned(), facts("23")), ("a".to_owned(), facts("11"))]);
        assert_ne!(image_digest(&files), image_digest(&other));
    }
}
