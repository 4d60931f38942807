//! The images on this host, each under its digest, and names that point at them.
//!
//! ```text
//! <store>/images/<digest>/{manifest.json, vmlinux, initrd.img, base.ext4}
//! <store>/names/<name>        one line: the digest
//! <store>/scratch-*/          a build or removal at work; swept by the next one
//! <store>/lock                held while something is built, put or removed
//! ```
//!
//! An image appears whole or not at all and is never changed afterwards. It must never hide readable images because
//! one is damaged, nor resolve a name to an image whose record does not match its place.

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

/// Shortest beginning of a digest that stands for it, in digits.
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
    /// The names that point at it, in order.
    pub names: Vec<String>,
}

impl Image {
    /// Length of its files together, in bytes.
    pub fn bytes(&self) -> u64 {
        self.manifest.files.values().map(|facts| facts.bytes).sum()
    }

    /// The guest kernel.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join(manifest::KERNEL)
    }

    /// The initrd, without a seed; an image with an init of its own has none.
    pub fn initrd(&self) -> PathBuf {
        self.dir.join(manifest::INITRD)
    }

    /// The read-only root file system.
    pub fn base(&self) -> PathBuf {
        self.dir.join(manifest::BASE)
    }
}

/// All that the store holds.
#[derive(Debug, Default)]
pub struct Listing {
    /// The images that can be used, newest first.
    pub images: Vec<Image>,
    /// Those that cannot, each with the reason.
    pub broken: Vec<Broken>,
}

/// A directory that should be an image.
#[derive(Debug)]
pub struct Broken {
    /// Where it is.
    pub dir: PathBuf,
    /// Why it is none.
    pub error: StoreError,
}

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No image has that name or digest.
    #[error(
        "no image {reference:?}; `crabbox image list` shows what there is, `crabbox image build` makes one"
    )]
    NotFound {
        /// What was asked for.
        reference: String,
    },
    /// Several images begin with those digits.
    #[error("{reference:?} stands for {count} images; give more digits of the digest")]
    Ambiguous {
        /// What was asked for.
        reference: String,
        /// How many begin so.
        count: usize,
    },
    /// A name that cannot be a file name of ours.
    #[error("bad image name {name:?}: use 1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter")]
    BadName {
        /// The name as given.
        name: String,
    },
    /// A record cannot be understood.
    #[error("cannot understand the image record {}", path.display())]
    Record {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A record was written by a newer program.
    #[error("the image record {} has version {found}, this program reads {}; update crabbox", path.display(), manifest::VERSION)]
    Version {
        /// Its file.
        path: PathBuf,
        /// The version in it.
        found: u32,
    },
    /// A record speaks of other content than its directory's name.
    #[error("the image in {} is not what its name says: its record has the digest {found}", dir.display())]
    Misplaced {
        /// The image's directory.
        dir: PathBuf,
        /// The digest in the record.
        found: String,
    },
    /// A file is not what the record says.
    #[error("image file {} is damaged: SHA-256 {found}, expected {expected}; build the image again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The digest in the record.
        expected: String,
        /// The digest of the file.
        found: String,
    },
    /// Another process builds, puts or removes.
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
    /// Opens the store at `root`, making it (private, mode 0700) when it is missing.
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

    /// Every image, and every directory that should be one and is not. Reads the records only, not the files.
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

    /// The image that `reference` names: a name, a digest, or at least eight first digits of one.
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

    /// Every name with the digest it points at, in order of the names.
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

/// The names in `dir`, sorted. Temporary files of a write at work begin with a dot and are left out, and so is a name that is
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
        // A newer format may well not parse as this one: its version is the better error.
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
