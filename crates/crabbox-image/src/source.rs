//! Sources of an image's root tree other than Debian packages: a directory, a tar archive, an OCI image on
//! disk.
//!
//! The contents are untrusted: no entry may reach outside the tree, become a device of this host, or be used
//! if its digest is not the one in its manifest. Nothing is fetched here.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crabbox_host::archive::ArchiveError;
use crabbox_host::budget::{Bound, FillError, OverBudget};
use crabbox_host::files::{self, FileError};
use crabbox_host::tree::Tree;

mod archive;
mod blobs;
mod compression;
mod directory;
mod oci;
mod packing;

use packing::Packing;

/// Maximum total length of a tree's files including holes, in bytes: the digest of an image requires reading
/// it completely.
const SPAN_LIMIT: u64 = 256 << 30;

/// Maximum number of directories above an entry. A path of the kernel has at most 2048 parts; the deepest
/// trees in use, of nested packages, have some dozens.
const DEPTH_LIMIT: usize = 256;

/// The number of characters of a refused entry's long name that are shown.
const SHOWN: usize = 100;

/// The source of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A root tree.
    Directory(PathBuf),
    /// A tar archive of a root tree, plain or compressed.
    Tar(PathBuf),
    /// An OCI image layout, as a directory or a tar archive of it (`skopeo copy … oci:DIR`,
    /// `oci-archive:FILE`).
    Oci {
        /// The layout.
        path: PathBuf,
        /// The image's name in its index; `None` if there is only one.
        tag: Option<String>,
    },
    /// An archive as written by `docker save` and `skopeo copy … docker-archive:FILE`.
    Docker {
        /// The archive.
        path: PathBuf,
        /// The image's name in it; `None` if there is only one.
        tag: Option<String>,
    },
}

/// Why a source is not a usable root tree.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It has an unknown format.
    #[error(
        "{} is neither a directory nor a tar archive; an OCI image is named as oci:DIR[:TAG], oci-archive:FILE or docker-archive:FILE",
        path.display()
    )]
    Unknown {
        /// The file.
        path: PathBuf,
    },
    /// An entry would leave the tree.
    #[error("refusing {archive}: its entry {entry:?} leaves the tree by `..`")]
    Escape {
        /// The archive, or a layer of one.
        archive: String,
        /// The name in it.
        entry: String,
    },
    /// An entry is in too many directories.
    #[error("refusing {archive}: its entry {entry:?} is more than {DEPTH_LIMIT} directories deep")]
    Deep {
        /// The archive, or a layer of one.
        archive: String,
        /// The beginning of its name.
        entry: String,
    },
    /// An entry would be a device.
    #[error(
        "refusing {archive}: its entry {entry:?} is a device node; only those below dev/ are left out, which every guest creates itself"
    )]
    Device {
        /// The archive, or a layer of one.
        archive: String,
        /// The name in it.
        entry: String,
    },
    /// An entry of an unsupported type.
    #[error("{archive} has the entry {entry:?} of an unknown kind")]
    Kind {
        /// The archive, or a layer of one.
        archive: String,
        /// The name in it.
        entry: String,
    },
    /// An archive is truncated or damaged.
    #[error("cannot read {archive}: it is damaged or cut short")]
    Read {
        /// The archive, or a layer of one.
        archive: String,
        /// What was wrong.
        #[source]
        source: std::io::Error,
    },
    /// An entry could not be created.
    #[error("cannot unpack {entry:?} of {archive}")]
    Write {
        /// The archive, or a layer of one.
        archive: String,
        /// The name in it.
        entry: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// It cannot be read as an archive.
    #[error("refusing {archive}")]
    Archive {
        /// The archive, or a layer of one.
        archive: String,
        /// What is wrong in it.
        #[source]
        source: ArchiveError,
    },
    /// A file is larger than the limit.
    #[error("refusing {archive}: {entry:?} cannot be stored")]
    Over {
        /// The source.
        archive: String,
        /// The file in it.
        entry: String,
        /// The limit.
        #[source]
        source: OverBudget,
    },
    /// An archive has too many entries.
    #[error("refusing {archive}: it has more than {limit} entries")]
    TooMany {
        /// The archive, or a layer of one.
        archive: String,
        /// The limit.
        limit: u64,
    },
    /// An entry has an impossible owner or group.
    #[error("refusing {archive}: its entry {entry:?} belongs to {id}, which is no user or group of Linux")]
    Owner {
        /// The archive, or a layer of one.
        archive: String,
        /// The name in it.
        entry: String,
        /// The owner or group.
        id: u64,
    },
    /// The digest of a part of an image differs from its manifest.
    #[error("refusing {archive}: {blob} has the SHA-256 {found}")]
    Digest {
        /// The image.
        archive: String,
        /// The expected digest.
        blob: String,
        /// The actual digest.
        found: String,
    },
    /// A part of an image is stored in a form that cannot be read in place.
    #[error(
        "{archive} has {blob} as a sparse file, which is not read; pack it again without sparse files (tar without --sparse)"
    )]
    Sparse {
        /// The image.
        archive: String,
        /// The part.
        blob: String,
    },
    /// A part of an image is missing.
    #[error("{archive} is not complete: it has no {blob}")]
    NoBlob {
        /// The image.
        archive: String,
        /// What is missing.
        blob: String,
    },
    /// A digest of an unsupported kind, or an invalid one.
    #[error("{archive} names its parts by {digest:?}, which is no SHA-256 digest")]
    BadDigest {
        /// The image.
        archive: String,
        /// The digest as given.
        digest: String,
    },
    /// A manifest or an index is invalid.
    #[error("cannot understand {blob} of {archive}")]
    Json {
        /// The image.
        archive: String,
        /// The document.
        blob: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// No image, or none with that name.
    #[error("{archive} has no image{wanted}; it has: {}", have.join(", "))]
    NoTag {
        /// The layout or archive.
        archive: String,
        /// The requested name, with the words before it; empty if any image would do.
        wanted: String,
        /// The existing names.
        have: Vec<String>,
    },
    /// Several different images, of which none is the obvious one.
    #[error(
        "{archive} has several images{wanted}: {}; name one of them (add :TAG), or copy the wanted one into a new file or directory",
        have.join(", ")
    )]
    Several {
        /// The layout or archive.
        archive: String,
        /// The requested name, with the words before it; empty if none was.
        wanted: String,
        /// Their names and digests.
        have: Vec<String>,
    },
    /// It is for another architecture or operating system.
    #[error("{archive} is for {found}, and this host is linux/{}", oci::ARCHITECTURE)]
    Platform {
        /// The image.
        archive: String,
        /// Its platform.
        found: String,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl SourceError {
    /// Whether the file system was full.
    pub fn is_out_of_space(&self) -> bool {
        match self {
            Self::Write { source, .. } => crabbox_host::files::out_of_space(source),
            Self::File(error) => error.is_out_of_space(),
            Self::Over { source, .. } => source.bound == Bound::FreeSpace,
            _ => false,
        }
    }
}

impl Source {
    /// Interprets a source from the command line; a path is relative to `cwd`. Inspects the file to
    /// distinguish a directory, a layout and an archive.
    pub fn named(text: &str, cwd: &Path) -> Result<Self, SourceError> {
        if let Some(rest) = text
            .strip_prefix("oci:")
            .or_else(|| text.strip_prefix("oci-archive:"))
        {
            let (path, tag) = split_tag(rest, cwd);
            return Ok(Self::Oci { path, tag });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (path, tag) = split_tag(rest, cwd);
            return Ok(Self::Docker { path, tag });
        }
        let path = cwd.join(text);
        if let Some(dir) = directory(&path)? {
            let layout = dir.file(Path::new(oci::LAYOUT));
            let layout =
                layout.map_err(|source| FileError::io("inspect", &path.join(oci::LAYOUT), source))?;
            return Ok(if layout.is_some() {
                Self::Oci { path, tag: None }
            } else {
                Self::Directory(path)
            });
        }
        if !is_archive(&path)? {
            return Err(SourceError::Unknown { path });
        }
        Ok(match packing::of(open(&path)?) {
            Packing::Tree => Self::Tar(path),
            Packing::Layout => Self::Oci { path, tag: None },
            Packing::Saved => Self::Docker { path, tag: None },
        })
    }

    /// Its name in messages.
    pub fn display(&self) -> String {
        let (Self::Directory(path) | Self::Tar(path) | Self::Oci { path, .. } | Self::Docker { path, .. }) =
            self;
        path.display().to_string()
    }

    /// Fills the new `tree`; returns the description of the source for the image's provenance.
    pub fn unpack(&self, tree: &Tree, scratch: &Path) -> Result<Vec<(&'static str, String)>, SourceError> {
        let fail = |source| FileError::io("measure free space at", tree.path(), source);
        let mut budget = tree.room().map_err(fail)?.at_most(SPAN_LIMIT, Bound::Span);
        let budget = &mut budget;
        match self {
            Self::Directory(path) => {
                directory::copy(path, tree, budget)?;
                Ok(vec![("source", "directory".to_owned())])
            }
            Self::Tar(path) => {
                let digest = archive::unpack(&self.display(), open(path)?, tree, budget)?;
                Ok(vec![("source", "tar".to_owned()), ("source_sha256", digest)])
            }
            Self::Oci { path, tag } => {
                let blobs = blobs::Blobs::open(path, scratch, budget)?;
                let digest = oci::unpack_layout(&blobs, tag.as_deref(), tree, budget)?;
                Ok(vec![("source", "oci".to_owned()), ("source_digest", digest)])
            }
            Self::Docker { path, tag } => {
                let blobs = blobs::Blobs::open(path, scratch, budget)?;
                let digest = oci::unpack_docker(&blobs, tag.as_deref(), tree, budget)?;
                Ok(vec![
                    ("source", "docker-archive".to_owned()),
                    ("source_digest", digest),
                ])
            }
        }
    }
}

/// Splits `PATH[:TAG]`; if the whole text is an existing path, it has no tag.
fn split_tag(text: &str, cwd: &Path) -> (PathBuf, Option<String>) {
    let whole = cwd.join(text);
    match text.split_once(':') {
        Some((path, tag)) if !whole.exists() => (cwd.join(path), Some(tag.to_owned())),
        _ => (whole, None),
    }
}

/// Whether the file is a tar archive, or compressed and therefore taken for one.
fn is_archive(path: &Path) -> Result<bool, SourceError> {
    let mut head = Vec::new();
    open(path)?
        .take(512)
        .read_to_end(&mut head)
        .map_err(|source| FileError::io("read", path, source))?;
    Ok(compression::is_compressed(&head) || crabbox_host::archive::is_archive(&head))
}

/// The error of copying `entry` from `archive`.
fn unfilled(archive: &str, entry: &Path, error: FillError) -> SourceError {
    let (archive, entry) = (archive.to_owned(), entry.display().to_string());
    match error {
        FillError::Read(source) => SourceError::Read { archive, source },
        FillError::Write(source) => SourceError::Write {
            archive,
            entry,
            source,
        },
        FillError::Over(source) => SourceError::Over {
            archive,
            entry,
            source,
        },
    }
}

/// Refuses an entry that is too deep in `archive`.
fn check_depth(archive: &str, entry: &Path) -> Result<(), SourceError> {
    if entry.components().count() <= DEPTH_LIMIT + 1 {
        return Ok(());
    }
    let shown: String = entry.to_string_lossy().chars().take(SHOWN).collect();
    Err(SourceError::Deep {
        archive: archive.to_owned(),
        entry: format!("{shown}…"),
    })
}

/// A time that the image's file system can store: 32 bits, signed.
fn stored_time(seconds: i64) -> i64 {
    seconds.clamp(i64::from(i32::MIN), i64::from(i32::MAX))
}

/// The directory at `path`; `None` if it is something else.
fn directory(path: &Path) -> Result<Option<Tree>, FileError> {
    match Tree::open(path) {
        Ok(dir) => Ok(Some(dir)),
        Err(FileError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotADirectory => Ok(None),
        Err(error) => Err(error),
    }
}

fn open(path: &Path) -> Result<File, SourceError> {
    Ok(files::open_regular(path).map_err(|source| FileError::io("open", path, source))?)
}

#[cfg(test)]
mod tests;
