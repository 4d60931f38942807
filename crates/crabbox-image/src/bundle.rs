//! An image, and the programs that run it, in one file: a site builds once, and every host starts from the bundle.
//!
//! ```text
//! bundle.json         first: version, the image's record, digests of the programs
//! image/<file>        vmlinux, initrd.img, base.ext4
//! bin/<program>       firecracker and jailer, when they are in it
//! ```
//!
//! A tar archive, compressed with gzip when its name ends so. What is read is checked byte for byte while it is written
//! beside the store, and only a whole bundle is put in place. A bundle must never decide what runs on a host: its programs
//! are taken only with the digests that this program has pinned.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crabbox_host::files::FileError;
use serde::{Deserialize, Serialize};

use crate::fetch;
use crate::manifest::{FileFacts, Manifest};
use crate::store::StoreError;

mod read;
mod write;

pub use read::{Imported, import};
pub use write::export;

/// The version of the format that this program writes and reads.
pub const VERSION: u32 = 1;

/// The first member.
const RECORD: &str = "bundle.json";

/// Largest record in bytes; a real one has some 20 KiB.
const RECORD_LIMIT: u64 = 4 << 20;

/// What is in a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: u32,
    image: Manifest,
    /// The programs by name, empty when they are not in it.
    #[serde(default)]
    programs: BTreeMap<String, FileFacts>,
}

/// The programs that a bundle may bring, each with the digest that it must have.
const PROGRAMS: [(&str, &str); 2] = [
    ("firecracker", fetch::FIRECRACKER_SHA256),
    ("jailer", fetch::JAILER_SHA256),
];

/// Why a bundle could not be written or used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It is no tar archive, or cannot be read.
    #[error("cannot read the bundle {}", bundle.display())]
    Archive {
        /// The bundle.
        bundle: PathBuf,
        /// What the reader said.
        #[source]
        source: std::io::Error,
    },
    /// It ends too early.
    #[error("the bundle {} is cut short: {member} has {got} of {expected} bytes; copy or download it again", bundle.display())]
    Truncated {
        /// The bundle.
        bundle: PathBuf,
        /// Which member.
        member: String,
        /// Bytes that are there.
        got: u64,
        /// Bytes that should be.
        expected: u64,
    },
    /// It does not begin with our record.
    #[error("{} is no crabbox bundle: {problem}; `crabbox image export` makes one", bundle.display())]
    NotABundle {
        /// The file.
        bundle: PathBuf,
        /// What it has instead.
        problem: &'static str,
    },
    /// The record cannot be understood.
    #[error("cannot understand {RECORD} in the bundle {}", bundle.display())]
    Record {
        /// The bundle.
        bundle: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// It was written by a newer program.
    #[error("the bundle {} has version {found}, this program reads {VERSION}; update crabbox", bundle.display())]
    Version {
        /// The bundle.
        bundle: PathBuf,
        /// The version in it.
        found: u32,
    },
    /// The record contradicts itself.
    #[error("refusing the bundle {}: the record's {problem}", bundle.display())]
    Inconsistent {
        /// The bundle.
        bundle: PathBuf,
        /// Which part.
        problem: &'static str,
    },
    /// The image is for another processor.
    #[error("the image in {} is for {found}, and this host is {}", bundle.display(), std::env::consts::ARCH)]
    Architecture {
        /// The bundle.
        bundle: PathBuf,
        /// What it is for.
        found: String,
    },
    /// A member that the record does not name, or something else than a file.
    #[error("refusing the bundle {}: {member:?} {problem}", bundle.display())]
    Member {
        /// The bundle.
        bundle: PathBuf,
        /// Its name in the archive.
        member: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The content is not what the record says.
    #[error("the bundle {} is damaged: {member} has SHA-256 {found}, expected {expected}; copy or download it again", bundle.display())]
    Damaged {
        /// The bundle.
        bundle: PathBuf,
        /// Which member.
        member: String,
        /// What the record says.
        expected: String,
        /// What was read.
        found: String,
    },
    /// A program with another digest than the pinned one.
    #[error("refusing {program} from the bundle {}: its SHA-256 is {found}, and this program runs only {expected}", bundle.display())]
    Unpinned {
        /// The bundle.
        bundle: PathBuf,
        /// Which program.
        program: String,
        /// The pinned digest.
        expected: &'static str,
        /// What the bundle brings.
        found: String,
    },
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

#[cfg(test)]
mod tests;
