//! Where the root tree of an image may come from beside Debian's packages: a directory, a tar archive, an OCI image on disk.
//!
//! What is unpacked was made by others: no entry may reach outside the tree, become a device of this host, or be taken when its
//! digest is not the one that its manifest names. Nothing is fetched here.

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

/// What the files of a tree may be long in all, holes included, in bytes: an image is read from its start to its end for its digest.
const SPAN_LIMIT: u64 = 256 << 30;

/// Where a tree comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A root tree.
    Directory(PathBuf),
    /// A tar archive of one, plain or compressed.
    Tar(PathBuf),
    /// An OCI image layout, as a directory or a tar archive of it (`skopeo copy … oci:DIR`, `oci-archive:FILE`).
    Oci {
        /// The layout.
        path: PathBuf,
        /// The image's name in its index; none when there is only one.
        tag: Option<String>,
    },
    /// What `docker save` and `skopeo copy … docker-archive:FILE` write.
    Docker {
        /// The archive.
        path: PathBuf,
        /// The image's name in it; none when there is only one.
        tag: Option<String>,
    },
}

/// Why a source is no root tree.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It is neither of the things that can be taken.
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
    /// An entry would be a device.
    #[error(
        "refusing {archive}: its entry {entry:?} is a device node; only those below dev/ are left out, which every guest makes anew"
    )]
    Device {
        /// The archive, or a layer of one.
        archive: String,
        /// The name in it.
        entry: String,
    },
    /// An entry is of a kind that no file system has.
    #[error("{archive} has the entry {entry:?} of an unknown kind")]
    Kind {
        /// The archive, or a layer of one.
        archive: String,
        /// The name in it.
        entry: String,
    },
    /// An archive ends too early or is damaged.
    #[error("cannot read {archive}: it is damaged or cut short")]
    Read {
        /// The archive, or a layer of one.
        archive: String,
        /// What was wrong.
        #[source]
        source: std::io::Error,
    },
    /// An entry could not be made.
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
    /// A file is larger than there is room for.
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
    /// An archive has more entries than any tree.
    #[error("refusing {archive}: it has more than {limit} entries")]
    TooMany {
        /// The archive, or a layer of one.
        archive: String,
        /// How many it may have.
        limit: u64,
    },
    /// An entry belongs to somebody who cannot be.
    #[error("refusing {archive}: its entry {entry:?} belongs to {id}, which is no user or group of Linux")]
    Owner {
        /// The archive, or a layer of one.
        archive: String,
        /// The name in it.
        entry: String,
        /// The owner or group.
        id: u64,
    },
    /// A part of an image is not what its manifest says.
    #[error("refusing {archive}: {blob} has the SHA-256 {found}")]
    Digest {
        /// The image.
        archive: String,
        /// The digest that it should have.
        blob: String,
        /// The one that it has.
        found: String,
    },
    /// A part of an image is not there.
    #[error("{archive} is not complete: it has no {blob}")]
    NoBlob {
        /// The image.
        archive: String,
        /// What is missing.
        blob: String,
    },
    /// A digest that this program cannot check, or no digest at all.
    #[error("{archive} names its parts by {digest:?}, which is no SHA-256 digest")]
    BadDigest {
        /// The image.
        archive: String,
        /// The digest as given.
        digest: String,
    },
    /// A manifest or an index cannot be understood.
    #[error("cannot understand {blob} of {archive}")]
    Json {
        /// The image.
        archive: String,
        /// Which document.
        blob: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Several images, or none of that name.
    #[error("{archive} has no image {wanted}; it has: {}", have.join(", "))]
    NoTag {
        /// The layout or archive.
        archive: String,
        /// What was asked for.
        wanted: String,
        /// What there is.
        have: Vec<String>,
    },
    /// It is for another processor or system.
    #[error("{archive} is for {found}, and this host is linux/{}", oci::ARCHITECTURE)]
    Platform {
        /// The image.
        archive: String,
        /// What it is for.
        found: String,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl SourceError {
    /// Whether the file system had no room.
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
    /// Understands what the command line named; a path is relative to `cwd`. Looks at the file to distinguish a directory, a layout and
    /// an archive apart.
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
                layout.map_err(|source| FileError::io("look at", &path.join(oci::LAYOUT), source))?;
            return Ok(if layout.is_some() {
                Self::Oci { path, tag: None }
            } else {
                Self::Directory(path)
            });
        }
        if is_archive(&path)? {
            Ok(Self::Tar(path))
        } else {
            Err(SourceError::Unknown { path })
        }
    }

    /// Its name in messages.
    pub fn display(&self) -> String {
        let (Self::Directory(path) | Self::Tar(path) | Self::Oci { path, .. } | Self::Docker { path, .. }) =
            self;
        path.display().to_string()
    }

    /// Fills the new `tree`; returns what it is made of, for the image's provenance.
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

/// `PATH[:TAG]`, where a path that is there as it stands has no tag.
fn split_tag(text: &str, cwd: &Path) -> (PathBuf, Option<String>) {
    let whole = cwd.join(text);
    match text.split_once(':') {
        Some((path, tag)) if !whole.exists() => (cwd.join(path), Some(tag.to_owned())),
        _ => (whole, None),
    }
}

/// Whether the file is a tar archive or compressed, which only an archive would be.
fn is_archive(path: &Path) -> Result<bool, SourceError> {
    let mut head = Vec::new();
    open(path)?
        .take(512)
        .read_to_end(&mut head)
        .map_err(|source| FileError::io("read", path, source))?;
    Ok(compression::is_compressed(&head) || head.get(257..262) == Some(b"ustar".as_slice()))
}

/// What went wrong while `entry` was copied out of `archive`.
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

/// The directory at `path`; `None` when something else is there.
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
