//! An image, and the programs that run it, in one file: an image is built once, and every host of a site is
//! set up from the bundle.
//!
//! ```text
//! bundle.json         first: version, the image's record, digests of the programs
//! image/<file>        vmlinux, initrd.img, base.ext4
//! bin/<program>       firecracker and jailer, when they are in it
//! ```
//!
//! It is a tar archive, compressed with gzip if its name ends in `.gz` or `.tgz`. Its contents are verified
//! while they are written to a scratch directory, and only a complete bundle is installed. A bundle must
//! never decide what runs on a host: its programs are accepted only with the digests pinned in this program.

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

/// Maximum size of the record in bytes; a real one has some 20 KiB.
const RECORD_LIMIT: u64 = 4 << 20;

/// The record of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: u32,
    image: Manifest,
    /// The programs by name; empty if the bundle has none.
    #[serde(default)]
    programs: BTreeMap<String, FileFacts>,
}

/// The programs that a bundle may contain, each with its required digest.
const PROGRAMS: [(&str, &str); 2] = [
    ("firecracker", fetch::FIRECRACKER_SHA256),
    ("jailer", fetch::JAILER_SHA256),
];

/// Why a bundle could not be written or used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It is not a tar archive, or cannot be read.
    #[error("cannot read the bundle {}", bundle.display())]
    Archive {
        /// The bundle.
        bundle: PathBuf,
        /// The reader's error.
        #[source]
        source: std::io::Error,
    },
    /// It does not have the expected digest.
    #[error("refusing {}: its SHA-256 is {found}, expected {expected}", bundle.display())]
    WrongDigest {
        /// The bundle.
        bundle: PathBuf,
        /// The expected digest.
        expected: String,
        /// The actual digest.
        found: String,
    },
    /// It is truncated.
    #[error("the bundle {} is cut short: {member} has {got} of {expected} bytes; copy or download it again", bundle.display())]
    Truncated {
        /// The bundle.
        bundle: PathBuf,
        /// The member.
        member: String,
        /// Actual length, in bytes.
        got: u64,
        /// Expected length, in bytes.
        expected: u64,
    },
    /// Its first member is not our record.
    #[error("{} is no crabbox bundle: {problem}; `crabbox image export` makes one", bundle.display())]
    NotABundle {
        /// The file.
        bundle: PathBuf,
        /// The first member.
        problem: &'static str,
    },
    /// The record is invalid.
    #[error("cannot understand {RECORD} in the bundle {}", bundle.display())]
    Record {
        /// The bundle.
        bundle: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// It was written by a newer version of the program.
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
        /// The part.
        problem: &'static str,
    },
    /// The image is for another processor architecture.
    #[error("the image in {} is for {found}, and this host is {}", bundle.display(), std::env::consts::ARCH)]
    Architecture {
        /// The bundle.
        bundle: PathBuf,
        /// Its architecture.
        found: String,
    },
    /// A member that the record does not name, or that is not a regular file.
    #[error("refusing the bundle {}: {member:?} {problem}", bundle.display())]
    Member {
        /// The bundle.
        bundle: PathBuf,
        /// Its name in the archive.
        member: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The content does not match the record.
    #[error("the bundle {} is damaged: {member} has SHA-256 {found}, expected {expected}; copy or download it again", bundle.display())]
    Damaged {
        /// The bundle.
        bundle: PathBuf,
        /// The member.
        member: String,
        /// The expected value.
        expected: String,
        /// The actual value.
        found: String,
    },
    /// A program whose digest is not the pinned one.
    #[error("refusing {program} from the bundle {}: its SHA-256 is {found}, and this program runs only {expected}", bundle.display())]
    Unpinned {
        /// The bundle.
        bundle: PathBuf,
        /// Which program.
        program: String,
        /// The pinned digest.
        expected: &'static str,
        /// The digest in the bundle.
        found: String,
    },
    /// The image store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

#[cfg(test)]
mod tests;
