//! Guest images: made, brought here, listed, checked, taken away.
//!
//! What a lease runs from is known from its record and from the image's own file, whichever says so. It must never remove an
//! image from under a lease, nor build one from anything that a repository chose.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crabbox_core::fault::{Fault, Kind};
use crabbox_host::clock;
use crabbox_host::digest;
use crabbox_host::files::{self, FileError};
pub use crabbox_image::build::OwnInit;
use crabbox_image::build::{
    Agent, BuildError, BuildRecipe, STAMP_UNIX, TreeRecipe, build_debian, build_tree,
};
pub use crabbox_image::bundle::Imported;
use crabbox_image::bundle::{self, BundleError};
use crabbox_image::guest_binary;
use crabbox_image::import::{ImportError, ImportRecipe, import_ready};
pub use crabbox_image::manifest::{BASE, Init, Manifest};
pub use crabbox_image::progress::Progress;
use crabbox_image::source::Source as TreeSource;
pub use crabbox_image::store::gc::{Policy, Reason};
pub use crabbox_image::store::{Broken, Image};
use crabbox_image::store::{Listing, Store, StoreError, gc};
use crabbox_machine::lifecycle::pool;
use crabbox_ssh::far::agent;
use crabbox_store::leases::{self, RecordError};
use crabbox_store::places::Places;

use crate::host::prepare::{self, DEFAULT_IMAGE};

/// Why something could not be done with images.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An image could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A ready image could not be taken.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A bundle could not be read or written.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A bundle could not be brought here.
    #[cfg(feature = "download")]
    #[error(transparent)]
    Download(#[from] crabbox_host::download::DownloadError),
    /// A bundle is elsewhere, and this program cannot fetch.
    #[error("cannot download {url}: this crabbox was built without downloads")]
    NoDownloads {
        /// Where it is.
        url: String,
    },
    /// The content is not what was asked for.
    #[error("refusing {}: its SHA-256 is {found}, expected {expected}", path.display())]
    WrongDigest {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A kernel of an image that is not ours.
    #[error("image {image} has an init of its own: its kernel need not boot another tree")]
    ForeignKernel {
        /// The image, as it was named.
        image: String,
    },
    /// The guest's first process that this program carries is damaged.
    #[error("this crabbox is damaged: its crabbox-guest cannot be unpacked")]
    Guest(#[source] std::io::Error),
    /// The agent that this program carries is damaged.
    #[error("this crabbox is damaged: its agent cannot be unpacked")]
    Agent(#[source] std::io::Error),
    /// Leases run from the image.
    #[error("image {image} is in use by {}", leases.join(", "))]
    InUse {
        /// The image, as it was named.
        image: String,
        /// The leases.
        leases: Vec<String>,
        /// Whether some of them are nobody's, and wait in a pool.
        pooled: bool,
    },
    /// The leases cannot be listed, so that nobody knows what is in use.
    #[error(transparent)]
    Leases(#[from] RecordError),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Fault for ImagesError {
    fn kind(&self) -> Kind {
        match self {
            Self::Store(StoreError::NotFound { .. } | StoreError::Ambiguous { .. }) => Kind::NotFound,
            Self::Store(StoreError::Damaged { .. }) => Kind::Problems,
            #[cfg(feature = "download")]
            Self::Download(_) => Kind::Unavailable,
            _ => Kind::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::NoDownloads { .. } => "download it yourself and name the file",
            Self::InUse { pooled: true, .. } => {
                "end those that wait with `crabbox pool drain` and stop the others, or add --force: running leases keep their disks"
            }
            Self::InUse { .. } => "stop them first, or add --force: running leases keep their disks",
            #[cfg(feature = "download")]
            Self::Download(crabbox_host::download::DownloadError::Interrupted { .. }) => {
                "run the same command again: it goes on where this stopped"
            }
            _ => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

/// An image and who runs from it.
#[derive(Debug)]
pub struct Listed {
    /// The image.
    pub image: Image,
    /// The leases that run from it.
    pub leases: Vec<String>,
    /// Whether a new lease would use it.
    pub default: bool,
}

/// All images, newest first, and what should be one and is not. A host that was never set up has none.
pub fn list(places: &Places) -> Result<(Vec<Listed>, Vec<Broken>), ImagesError> {
    let Listing { images, broken } = listing(places)?;
    let default = default_digest(places);
    let listed = images
        .into_iter()
        .map(|image| {
            Ok(Listed {
                leases: leases_of(places, &image)?,
                default: default.as_deref() == Some(&image.manifest.digest),
                image,
            })
        })
        .collect::<Result<_, ImagesError>>()?;
    Ok((listed, broken))
}

/// The image that `reference` names: a name, a digest or its first digits.
pub fn get(places: &Places, reference: &str) -> Result<Listed, ImagesError> {
    let image = existing(places, reference)?.get(reference)?;
    Ok(Listed {
        leases: leases_of(places, &image)?,
        default: default_digest(places).as_deref() == Some(&image.manifest.digest),
        image,
    })
}

/// Reads every byte of the image and compares it with its record.
pub fn verify(places: &Places, reference: &str) -> Result<Image, ImagesError> {
    let store = existing(places, reference)?;
    let image = store.get(reference)?;
    store.verify(&image)?;
    Ok(image)
}

/// Removes an image; one that leases run from only with `force`.
pub fn remove(places: &Places, reference: &str, force: bool) -> Result<Image, ImagesError> {
    let store = existing(places, reference)?;
    let image = store.get(reference)?;
    let leases = leases_of(places, &image)?;
    if !leases.is_empty() && !force {
        let members = pool::members(places)?;
        return Err(ImagesError::InUse {
            image: reference.to_owned(),
            pooled: members
                .iter()
                .any(|member| leases.contains(&member.stored.record.lease_id)),
            leases,
        });
    }
    Ok(store.remove(&image.manifest.digest)?)
}

/// One decision of [`gc`].
#[derive(Debug)]
pub struct Decided {
    /// The image.
    pub image: Image,
    /// Why it stays or goes.
    pub reason: Reason,
}

/// Removes the images that `policy` lets go, or only tells which with `dry_run`.
pub fn gc(places: &Places, policy: Policy, dry_run: bool) -> Result<Vec<Decided>, ImagesError> {
    if !dry_run && places.images().is_dir() {
        Store::open(&places.images())?.sweep()?;
    }
    let images = listing(places)?.images;
    // Asked before anything is decided: who cannot be asked may be in use.
    let pins = images
        .iter()
        .map(|image| Ok((image.manifest.digest.clone(), leases_of(places, image)?)))
        .collect::<Result<std::collections::BTreeMap<_, _>, ImagesError>>()?;
    let pinned = |image: &Image| pins.get(&image.manifest.digest).cloned().unwrap_or_default();
    let default = default_digest(places);
    let plan = gc::plan(
        &images,
        default.as_deref(),
        &pinned,
        policy,
        clock::unix_seconds(),
    );
    let mut decided = Vec::new();
    for (image, reason) in plan {
        if reason.goes() && !dry_run {
            Store::open(&places.images())?.remove(&image.manifest.digest)?;
        }
        decided.push(Decided {
            image: image.clone(),
            reason,
        });
    }
    Ok(decided)
}

/// What to build from Debian packages.
#[derive(Debug, Clone)]
pub struct Build {
    /// The name that will point at it.
    pub name: String,
    /// The suite; none for the usual one.
    pub suite: Option<String>,
    /// Packages beyond the guest contract.
    pub packages: Vec<String>,
    /// A script to run in it, chosen on the command line.
    pub script: Option<PathBuf>,
    /// A tree to take instead of packages, as the command line names it, and the directory that it is relative to.
    pub from: Option<(String, PathBuf)>,
    /// Whether the image's own init runs in the guest.
    pub init: OwnInit,
    /// The image whose kernel a tree without one gets; none for the usual image.
    pub kernel_of: Option<String>,
    /// The guest's first process; none for the one that this program carries.
    pub guest_binary: Option<PathBuf>,
}

impl Build {
    /// The image that a host is set up with.
    pub fn usual() -> Self {
        Self {
            name: DEFAULT_IMAGE.to_owned(),
            suite: None,
            packages: Vec::new(),
            script: None,
            from: None,
            init: OwnInit::None,
            kernel_of: None,
            guest_binary: None,
        }
    }
}

/// The agent of this program, so that a lease of the image need not get it first.
fn agent() -> Result<Agent, ImagesError> {
    Ok(Agent {
        digest: agent::DIGEST.to_owned(),
        program: agent::program().map_err(ImagesError::Agent)?,
    })
}

/// The first process of a guest, as a file of its own or the one that this program carries.
enum FirstProcess {
    Given(PathBuf),
    /// Removed when it is dropped.
    Carried(tempfile::NamedTempFile),
}

impl FirstProcess {
    fn new(given: Option<&Path>, store: &Store) -> Result<Self, ImagesError> {
        if let Some(path) = given {
            return Ok(Self::Given(path.to_owned()));
        }
        let bytes = guest_binary::bytes().map_err(ImagesError::Guest)?;
        let carried = tempfile::Builder::new()
            .prefix(".crabbox-guest-")
            .tempfile_in(store.root())
            .map_err(|source| FileError::io("write in", store.root(), source))?;
        std::fs::write(carried.path(), bytes)
            .map_err(|source| FileError::io("write", carried.path(), source))?;
        Ok(Self::Carried(carried))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Given(path) => path,
            Self::Carried(file) => file.path(),
        }
    }
}

/// Builds an image.
pub fn build(places: &Places, wanted: &Build, progress: &dyn Progress) -> Result<Image, ImagesError> {
    let store = open(places)?;
    let guest = FirstProcess::new(wanted.guest_binary.as_deref(), &store)?;
    if let Some((from, cwd)) = &wanted.from {
        let recipe = TreeRecipe {
            name: wanted.name.clone(),
            source: TreeSource::named(from, cwd).map_err(BuildError::from)?,
            init: wanted.init,
            kernel_of: kernel_of(places, wanted.kernel_of.as_deref())?,
            guest_binary: guest.path().to_owned(),
            agent: Some(agent()?),
            stamp_unix: STAMP_UNIX,
        };
        return Ok(build_tree(&recipe, &store, progress)?);
    }
    let mut recipe = BuildRecipe::debian(guest.path());
    recipe.agent = Some(agent()?);
    recipe.name.clone_from(&wanted.name);
    if let Some(suite) = &wanted.suite {
        recipe.suite.clone_from(suite);
    }
    recipe.extra_packages.clone_from(&wanted.packages);
    recipe.script.clone_from(&wanted.script);
    recipe.init = wanted.init;
    Ok(build_debian(&recipe, &store, progress)?)
}

/// The image whose kernel and modules a tree without a kernel gets: the one that is named, else the usual one when it is ours.
fn kernel_of(places: &Places, named: Option<&str>) -> Result<Option<Image>, ImagesError> {
    let image = match prepare::stored_image(&places.images(), named.unwrap_or_default()) {
        Ok(image) => image,
        Err(StoreError::NotFound { .. }) if named.is_none() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if image.manifest.init == Init::Ours {
        return Ok(Some(image));
    }
    // An image with an init of its own may be the usual one; any of ours has a kernel that serves.
    match named {
        Some(named) => Err(ImagesError::ForeignKernel {
            image: named.to_owned(),
        }),
        None => Ok(listing(places)?
            .images
            .into_iter()
            .find(|image| image.manifest.init == Init::Ours)),
    }
}

/// Takes a ready kernel and root file system as the image `name`.
pub fn import(
    places: &Places,
    name: &str,
    kernel: &Path,
    rootfs: &Path,
    progress: &dyn Progress,
) -> Result<Image, ImagesError> {
    let store = open(places)?;
    // Only a kernel with its disk drivers as modules needs it; such an import says so when it is not there.
    let guest = FirstProcess::new(None, &store).ok();
    let recipe = ImportRecipe {
        name: name.to_owned(),
        kernel: kernel.to_owned(),
        rootfs: rootfs.to_owned(),
        guest_binary: guest.as_ref().map(|guest| guest.path().to_owned()),
    };
    Ok(import_ready(&recipe, &store, progress)?)
}

/// Writes an image, and our own Firecracker when it is here, into one file; returns its length in bytes.
pub fn export(
    places: &Places,
    reference: &str,
    to: &Path,
    progress: &dyn Progress,
) -> Result<u64, ImagesError> {
    let image = existing(places, reference)?.get(reference)?;
    let programs = places.firecracker();
    let complete = ["firecracker", "jailer"]
        .iter()
        .all(|name| programs.join(name).is_file());
    Ok(bundle::export(
        &image,
        complete.then_some(programs.as_path()),
        to,
        progress,
    )?)
}

/// Takes the image of a bundle, a file or a URL, as `name`; its programs too, with `programs`.
pub fn import_bundle(
    places: &Places,
    from: &Source,
    name: &str,
    programs: bool,
    progress: &dyn Progress,
) -> Result<Imported, ImagesError> {
    let store = open(places)?;
    let bin = places.firecracker();
    let bin = programs.then_some(bin.as_path());
    match from {
        Source::File { path, sha256 } => {
            if let Some(expected) = sha256 {
                let found = digest::sha256_file(path)?;
                if !found.eq_ignore_ascii_case(expected) {
                    let (path, expected) = (path.clone(), expected.clone());
                    return Err(ImagesError::WrongDigest {
                        path,
                        expected,
                        found,
                    });
                }
            }
            Ok(bundle::import(path, &store, name, bin, progress)?)
        }
        Source::Url { url, sha256 } => {
            let file = download(places, url, sha256.as_deref(), progress).inspect_err(|_| {
                // With the beginning of a file in it, it stays.
                std::fs::remove_dir(downloads(places)).ok();
            })?;
            let imported = bundle::import(&file, &store, name, bin, progress);
            // Good or bad, it is not read again; a bad one must not be taken for a beginning of the next.
            files::remove_tree(&file)?;
            // Another download may be at work there.
            std::fs::remove_dir(downloads(places)).ok();
            Ok(imported?)
        }
    }
}

/// Where a bundle is, and what it must be when that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file of this host.
    File {
        /// Its path.
        path: PathBuf,
        /// Its SHA-256.
        sha256: Option<String>,
    },
    /// A file elsewhere.
    Url {
        /// Where.
        url: String,
        /// Its SHA-256.
        sha256: Option<String>,
    },
}

impl Source {
    /// What the words of the command line name: a URL with `http://` or `https://`, else a file, relative to `cwd`.
    pub fn named(from: &str, cwd: &Path, sha256: Option<String>) -> Self {
        if ["http://", "https://"]
            .iter()
            .any(|scheme| from.starts_with(scheme))
        {
            let url = from.to_owned();
            return Self::Url { url, sha256 };
        }
        let path = cwd.join(from);
        Self::File { path, sha256 }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File { path, .. } => path.display().fmt(f),
            Self::Url { url, .. } => f.write_str(url),
        }
    }
}

/// Where bundles and their beginnings are while they are being brought here.
pub(crate) fn downloads(places: &Places) -> PathBuf {
    places.cache.join("downloads")
}

#[cfg(feature = "download")]
fn download(
    places: &Places,
    url: &str,
    sha256: Option<&str>,
    progress: &dyn Progress,
) -> Result<PathBuf, ImagesError> {
    let dir = downloads(places);
    files::create_private_dir(&dir)?;
    // The same URL finds the beginning that an interrupted download left.
    let to = dir.join(&digest::sha256(url.as_bytes())[..16]);
    progress.stage("downloading the bundle");
    crabbox_host::download::fetch(url, &to, sha256, &mut |done, total| progress.bytes(done, total))?;
    Ok(to)
}

#[cfg(not(feature = "download"))]
fn download(_: &Places, url: &str, _: Option<&str>, _: &dyn Progress) -> Result<PathBuf, ImagesError> {
    Err(ImagesError::NoDownloads { url: url.to_owned() })
}

/// The store, made when it is missing: for what puts something into it.
fn open(places: &Places) -> Result<Store, StoreError> {
    Store::open(&places.images())
}

/// The store of a host that has one; a look must not make one.
fn existing(places: &Places, reference: &str) -> Result<Store, StoreError> {
    if places.images().is_dir() {
        return open(places);
    }
    let reference = reference.to_owned();
    Err(StoreError::NotFound { reference })
}

fn listing(places: &Places) -> Result<Listing, ImagesError> {
    if places.images().is_dir() {
        Ok(open(places)?.list()?)
    } else {
        Ok(Listing::default())
    }
}

fn default_digest(places: &Places) -> Option<String> {
    places.images().is_dir().then_some(())?;
    prepare::our_image(&places.images())
        .ok()
        .map(|image| image.manifest.digest)
}

/// Which leases run from `image`: those whose base is the same file, linked or mounted; and `another name` when the file has a
/// name that no record explains.
pub(crate) fn leases_of(places: &Places, image: &Image) -> Result<Vec<String>, RecordError> {
    let Ok(base) = std::fs::metadata(image.base()) else {
        return Ok(Vec::new());
    };
    let same = |path: &Path| {
        std::fs::metadata(path).is_ok_and(|facts| (facts.dev(), facts.ino()) == (base.dev(), base.ino()))
    };
    let mut found = Vec::new();
    for lease in leases::list(&places.leases())?.leases {
        let disk = Path::new(&lease.record.rootfs_path);
        if disk.parent().is_some_and(|home| same(&home.join(BASE))) {
            found.push(lease.record.lease_id.clone());
        }
    }
    if found.is_empty() && base.nlink() > 1 {
        found.push("another name of its file".to_owned());
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
