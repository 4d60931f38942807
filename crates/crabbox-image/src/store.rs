//! The images on this host, each stored under its digest, and the names that point to them.
//!
//! ```text
//! <store>/images/<digest>/{manifest.json, vmlinux, initrd.img, base.ext4}
//! <store>/names/<name>        one line: the digest
//! <store>/scratch-*/          a build or removal in progress; leftovers are removed by the next one
//! <store>/lock                held while an image is built, added or removed
//! ```
//!
//! An image appears complete or not at all and is never changed afterwards. A damaged image must never hide
//! others, and a name must never resolve to an image whose record does not match its directory.

#![expect(
    clippy::disallowed_methods,
    reason = "the store's directory is ours alone, and nothing foreign has a name in it"
)]

use std::path::{Path, PathBuf};

use crabbox_host::files::{self, FileError};

use crate::manifest::{self, FileFacts, Manifest};

mod change;
pub mod gc;

pub use change::Scratch;
pub(crate) use change::check_name;

/// Minimum length of a digest prefix that identifies an image, in digits.
const SHORT_DIGEST: usize = 8;

/// A directory of images.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its directory.
    pub dir: PathBuf,
    /// Its record.
    pub manifest: Manifest,
    /// The names that point to it, sorted.
    pub names: Vec<String>,
}

impl Image {
    /// Total length of its files, in bytes.
    pub fn bytes(&self) -> u64 {
        self.manifest.files.values().map(|facts| facts.bytes).sum()
    }

    /// The guest kernel.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join(manifest::KERNEL)
    }

    /// The initrd, without a seed; an image with its own init may have none.
    pub fn initrd(&self) -> PathBuf {
        self.dir.join(manifest::INITRD)
    }

    /// The read-only root file system.
    pub fn base(&self) -> PathBuf {
        self.dir.join(manifest::BASE)
    }
}

/// The contents of the store.
#[derive(Debug, Default)]
pub struct Listing {
    /// The usable images, newest first.
    pub images: Vec<Image>,
    /// The unusable ones, each with the reason.
    pub broken: Vec<Broken>,
}

/// An unusable image directory.
#[derive(Debug)]
pub struct Broken {
    /// Its path.
    pub dir: PathBuf,
    /// The reason.
    pub error: StoreError,
}

/// Why an operation of the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No image has that name or digest.
    #[error(
        "no image {reference:?}; `crabbox image list` shows what there is, `crabbox image build` makes one"
    )]
    NotFound {
        /// The requested name or digest.
        reference: String,
    },
    /// Several images have that digest prefix.
    #[error("{reference:?} stands for {count} images; give more digits of the digest")]
    Ambiguous {
        /// The requested prefix.
        reference: String,
        /// The number of matches.
        count: usize,
    },
    /// A name that cannot be used as a file name.
    #[error("bad image name {name:?}: use 1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter")]
    BadName {
        /// The name as given.
        name: String,
    },
    /// A record is invalid.
    #[error("cannot understand the image record {}", path.display())]
    Record {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A record was written by a newer version of the program.
    #[error("the image record {} has version {found}, this program reads {}; update crabbox", path.display(), manifest::VERSION)]
    Version {
        /// Its file.
        path: PathBuf,
        /// The version in it.
        found: u32,
    },
    /// The digest in a record differs from its directory's name.
    #[error("the image in {} does not match its name: its record has the digest {found}", dir.display())]
    Misplaced {
        /// The image's directory.
        dir: PathBuf,
        /// The digest in the record.
        found: String,
    },
    /// A file differs from its record.
    #[error("image file {} is damaged: SHA-256 {found}, expected {expected}; build the image again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The digest in the record.
        expected: String,
        /// The digest of the file.
        found: String,
    },
    /// Another process is building, adding or removing an image.
    #[error("another crabbox is building or removing an image in {}; try again when it is done", root.display())]
    Busy {
        /// The store.
        root: PathBuf,
    },
    /// A file could not be read, written or removed.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Store {
    /// Opens the store at `root`, and creates it (private, mode 0700) if it is missing.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        files::create_private_dir(root)?;
        let store = Self {
            root: root.to_owned(),
        };
        files::create_private_dir(&store.images())?;
        files::create_private_dir(&store.names())?;
        Ok(store)
    }

    /// The directory of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    fn names(&self) -> PathBuf {
        self.root.join("names")
    }

    /// Every image, and every directory that should be one but is unusable. Reads only the records, not the
    /// files.
    pub fn list(&self) -> Result<Listing, StoreError> {
        let names = self.all_names()?;
        let mut listing = Listing::default();
        for digest in entries(&self.images())? {
            let dir = self.images().join(&digest);
            match read_image(&dir, &digest, &names) {
                Ok(image) => listing.images.push(image),
                Err(error) => listing.broken.push(Broken { dir, error }),
            }
        }
        listing
            .images
            .sort_by_key(|image| std::cmp::Reverse(image.manifest.created_unix));
        Ok(listing)
    }

    /// The image that `reference` identifies: a name, a digest, or at least the first eight digits of one.
    pub fn get(&self, reference: &str) -> Result<Image, StoreError> {
        let names = self.all_names()?;
        let digest = match names.iter().find(|(name, _)| name == reference) {
            Some((_, digest)) => digest.clone(),
            None => self.complete(reference)?,
        };
        let dir = self.images().join(&digest);
        if !dir.is_dir() {
            return Err(StoreError::NotFound {
                reference: reference.to_owned(),
            });
        }
        read_image(&dir, &digest, &names)
    }

    fn complete(&self, reference: &str) -> Result<String, StoreError> {
        let not_found = || StoreError::NotFound {
            reference: reference.to_owned(),
        };
        if reference.len() < SHORT_DIGEST {
            return Err(not_found());
        }
        let mut found: Vec<String> = entries(&self.images())?
            .into_iter()
            .filter(|digest| digest.starts_with(reference))
            .collect();
        match found.len() {
            0 | 1 => found.pop().ok_or_else(not_found),
            count => Err(StoreError::Ambiguous {
                reference: reference.to_owned(),
                count,
            }),
        }
    }

    /// Reads every file of `image` and compares it with the record; the first difference is the error.
    pub fn verify(&self, image: &Image) -> Result<(), StoreError> {
        verify_files(&image.dir, &image.manifest)
    }

    /// Every name with its digest, sorted by name.
    fn all_names(&self) -> Result<Vec<(String, String)>, StoreError> {
        let mut names = Vec::new();
        for name in entries(&self.names())? {
            let path = self.names().join(&name);
            let digest =
                std::fs::read_to_string(&path).map_err(|source| FileError::io("read", &path, source))?;
            names.push((name, digest.trim_end().to_owned()));
        }
        Ok(names)
    }
}

/// The names in `dir`, sorted. Temporary files begin with a dot and are left out, and so are names that are
/// not UTF-8, which we never write.
fn entries(dir: &Path) -> Result<Vec<String>, FileError> {
    let fail = |source| FileError::io("list", dir, source);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        if let Ok(name) = entry.map_err(fail)?.file_name().into_string()
            && !name.starts_with('.')
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn read_image(dir: &Path, digest: &str, names: &[(String, String)]) -> Result<Image, StoreError> {
    let path = dir.join(manifest::FILE);
    let text = std::fs::read(&path).map_err(|source| FileError::io("read", &path, source))?;
    let record: Manifest = serde_json::from_slice(&text).map_err(|source| {
        // A newer format may not parse as this one; then its version is the better error.
        match serde_json::from_slice::<VersionOnly>(&text) {
            Ok(newer) if newer.version != manifest::VERSION => StoreError::Version {
                path: path.clone(),
                found: newer.version,
            },
            _ => StoreError::Record {
                path: path.clone(),
                source,
            },
        }
    })?;
    if record.version != manifest::VERSION {
        return Err(StoreError::Version {
            path,
            found: record.version,
        });
    }
    if record.digest != digest || manifest::image_digest(&record.files) != digest {
        return Err(StoreError::Misplaced {
            dir: dir.to_owned(),
            found: record.digest,
        });
    }
    let names = names
        .iter()
        .filter(|(_, to)| to == digest)
        .map(|(name, _)| name.clone())
        .collect();
    Ok(Image {
        dir: dir.to_owned(),
        manifest: record,
        names,
    })
}

#[derive(serde::Deserialize)]
struct VersionOnly {
    version: u32,
}

fn verify_files(dir: &Path, record: &Manifest) -> Result<(), StoreError> {
    for (name, expected) in &record.files {
        let path = dir.join(name);
        let found = FileFacts::of(&path)?;
        if found != *expected {
            let (expected, found) = (expected.sha256.clone(), found.sha256);
            return Err(StoreError::Damaged {
                path,
                expected,
                found,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
