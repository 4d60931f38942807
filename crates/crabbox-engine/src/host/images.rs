//! Guest images: building, importing, listing, verifying, removing.
//!
//! A lease uses an image if its record says so or if it has a link to the image's file. It must never remove
//! an image from under a lease, or build one from anything that a repository chose.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crabbox_core::fault::{Fault, Kind};
use crabbox_host::clock;
use crabbox_host::files::{self, FileError};
pub use crabbox_image::build::OwnInit;
use crabbox_image::build::{
    Agent, BuildError, BuildRecipe, KernelOf, STAMP_UNIX, TreeRecipe, build_debian, build_tree,
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
use crabbox_ssh::agent_client::agent;
use crabbox_store::leases::{self, RecordError};
use crabbox_store::places::Places;

use crate::host::prepare::{self, DEFAULT_IMAGE};

/// Why an operation on images failed.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An image could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A ready-made image could not be imported.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A bundle could not be read or written.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A bundle could not be downloaded.
    #[cfg(feature = "download")]
    #[error(transparent)]
    Download(#[from] crabbox_host::download::DownloadError),
    /// The bundle is at a URL, but this program cannot download.
    #[error("cannot download {url}: this crabbox was built without downloads")]
    NoDownloads {
        /// The URL.
        url: String,
    },
    /// The chosen kernel belongs to an image that is not ours.
    #[error("image {image} has its own init: its kernel may not boot another tree")]
    ForeignKernel {
        /// The image, as it was named.
        image: String,
    },
    /// The init that this program carries is damaged.
    #[error("this crabbox is damaged: its crabbox-guest cannot be unpacked")]
    Guest(#[source] std::io::Error),
    /// The agent that this program carries is damaged.
    #[error("this crabbox is damaged: its agent cannot be unpacked")]
    Agent(#[source] std::io::Error),
    /// Leases use the image.
    #[error("image {image} is in use by {}", leases.join(", "))]
    InUse {
        /// The image, as it was named.
        image: String,
        /// The leases.
        leases: Vec<String>,
        /// Whether some of them are unclaimed pool members.
        pooled: bool,
    },
    /// The leases cannot be listed, so it is unknown which images are in use.
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
                "end the pool members with `crabbox pool drain` and stop the others, or add --force: running leases keep their disks"
            }
            Self::InUse { .. } => "stop them first, or add --force: running leases keep their disks",
            #[cfg(feature = "download")]
            Self::Download(crabbox_host::download::DownloadError::Interrupted { .. }) => {
                "run the same command again: it continues where this stopped"
            }
            _ => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

/// An image and the leases that use it.
#[derive(Debug)]
pub struct Listed {
    /// The image.
    pub image: Image,
    /// The leases that use it.
    pub leases: Vec<String>,
    /// Whether a new lease would use it.
    pub default: bool,
}

/// All images, newest first, and the broken entries of the store. A host that was never set up has none.
/// `configured` is the image that leases are to use (`firecracker.image`); empty for the default one.
pub fn list(places: &Places, configured: &str) -> Result<(Vec<Listed>, Vec<Broken>), ImagesError> {
    let Listing { images, broken } = listing(places)?;
    let default = digest_in_use(places, configured).unwrap_or_default();
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

/// The image that `reference` names: a name, a digest or its first digits. `configured` as for [`list`].
pub fn get(places: &Places, configured: &str, reference: &str) -> Result<Listed, ImagesError> {
    let image = existing(places, reference)?.get(reference)?;
    let default = digest_in_use(places, configured).unwrap_or_default();
    Ok(Listed {
        leases: leases_of(places, &image)?,
        default: default.as_deref() == Some(&image.manifest.digest),
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

/// Removes an image. An image in use is only removed with `force`.
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
    /// Why it is kept or removed.
    pub reason: Reason,
}

/// Removes the images that `policy` does not keep. With `dry_run`, only reports which. `configured` as for
/// [`list`]; where there is no such image, the default one is kept.
pub fn gc(
    places: &Places,
    configured: &str,
    policy: Policy,
    dry_run: bool,
) -> Result<Vec<Decided>, ImagesError> {
    if !dry_run && places.images().is_dir() {
        Store::open(&places.images())?.sweep()?;
    }
    let images = listing(places)?.images;
    // Find all users before deciding anything: if leases cannot be listed, any image may be in use.
    let pins = images
        .iter()
        .map(|image| Ok((image.manifest.digest.clone(), leases_of(places, image)?)))
        .collect::<Result<std::collections::BTreeMap<_, _>, ImagesError>>()?;
    let pinned = |image: &Image| pins.get(&image.manifest.digest).cloned().unwrap_or_default();
    let default = match digest_in_use(places, configured)? {
        None if !configured.is_empty() => digest_in_use(places, "")?,
        found => found,
    };
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

/// What to build from Debian packages or a tree.
#[derive(Debug, Clone)]
pub struct Build {
    /// The name of the new image.
    pub name: String,
    /// The Debian suite; `None` for the default.
    pub suite: Option<String>,
    /// Packages beyond the guest contract.
    pub packages: Vec<String>,
    /// A script to run in the image, chosen on the command line.
    pub script: Option<PathBuf>,
    /// A tree to use instead of packages, as given on the command line, and the directory that it is relative
    /// to.
    pub from: Option<(String, PathBuf)>,
    /// Whether the image's own init runs in the guest.
    pub init: OwnInit,
    /// The image whose kernel is used, even if the tree has one.
    pub kernel_of: Option<String>,
    /// The image that leases are to use (`firecracker.image`), whose kernel is used for a tree without one;
    /// empty for the default one.
    pub configured: String,
    /// The guest's init; `None` for the one that this program carries.
    pub guest_binary: Option<PathBuf>,
}

impl Build {
    /// The default image, which set-up builds.
    pub fn usual() -> Self {
        Self {
            name: DEFAULT_IMAGE.to_owned(),
            suite: None,
            packages: Vec::new(),
            script: None,
            from: None,
            init: OwnInit::None,
            kernel_of: None,
            configured: String::new(),
            guest_binary: None,
        }
    }
}

/// The agent that this program carries. With it in the image, leases need not upload it first.
fn agent() -> Result<Agent, ImagesError> {
    Ok(Agent {
        digest: agent::DIGEST.to_owned(),
        program: agent::program().map_err(ImagesError::Agent)?,
    })
}

/// The guest's init: a given file, or the one that this program carries.
enum FirstProcess {
    Given(PathBuf),
    /// A temporary file, removed on drop.
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
            kernel_of: kernel_of(places, wanted)?,
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

/// The image that provides kernel and modules: the chosen one, or else, for a tree without a kernel, the one
/// that leases use if it is ours.
fn kernel_of(places: &Places, wanted: &Build) -> Result<KernelOf, ImagesError> {
    if let Some(chosen) = &wanted.kernel_of {
        let image = existing(places, chosen)?.get(chosen)?;
        return if image.manifest.init == Init::Ours {
            Ok(KernelOf::Chosen(image))
        } else {
            let image = chosen.clone();
            Err(ImagesError::ForeignKernel { image })
        };
    }
    let ours = |image: &Image| image.manifest.init == Init::Ours;
    let image = match prepare::stored_image(&places.images(), &wanted.configured) {
        Ok(image) if ours(&image) => Some(image),
        // An image with an init of its own, or none: the kernel of any other image of ours does.
        Ok(_) | Err(StoreError::NotFound { .. }) => listing(places)?.images.into_iter().find(ours),
        Err(error) => return Err(error.into()),
    };
    Ok(image.map_or(KernelOf::Nobody, KernelOf::Otherwise))
}

/// Imports a ready-made kernel and root file system as the image `name`.
pub fn import(
    places: &Places,
    name: &str,
    kernel: &Path,
    rootfs: &Path,
    progress: &dyn Progress,
) -> Result<Image, ImagesError> {
    let store = open(places)?;
    // Only a kernel with modular disk drivers needs our init; without it, such an import fails with its own
    // message.
    let guest = FirstProcess::new(None, &store).ok();
    let recipe = ImportRecipe {
        name: name.to_owned(),
        kernel: kernel.to_owned(),
        rootfs: rootfs.to_owned(),
        guest_binary: guest.as_ref().map(|guest| guest.path().to_owned()),
    };
    Ok(import_ready(&recipe, &store, progress)?)
}

/// Writes an image, and our own Firecracker if it is installed, to one bundle. Returns the bundle's length in
/// bytes.
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

/// Imports the image of a bundle from a file or a URL as `name`; with `programs` also its programs.
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
        Source::File { path, sha256 } => Ok(bundle::import(
            path,
            sha256.as_deref(),
            &store,
            name,
            bin,
            progress,
        )?),
        Source::Url { url, sha256 } => {
            let file = download(places, url, sha256.as_deref(), progress).inspect_err(|_| {
                // This fails, as intended, if the directory holds a partial download to resume.
                std::fs::remove_dir(downloads(places)).ok();
            })?;
            let imported = bundle::import(&file, None, &store, name, bin, progress);
            // The bundle is not needed any more. A bad one must not be taken for a partial download of the
            // next one.
            files::remove_tree(&file)?;
            // Fails if another download is using the directory.
            std::fs::remove_dir(downloads(places)).ok();
            Ok(imported?)
        }
    }
}

/// The location of a bundle, and its digest if known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file of this host.
    File {
        /// Its path.
        path: PathBuf,
        /// Its SHA-256.
        sha256: Option<String>,
    },
    /// A URL.
    Url {
        /// The URL.
        url: String,
        /// Its SHA-256.
        sha256: Option<String>,
    },
}

impl Source {
    /// Parses the command line's argument: a URL with `http://` or `https://`, otherwise a file relative to
    /// `cwd`.
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

/// The directory for downloads, complete or partial.
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
    // Named by the URL's digest, so that an interrupted download of the same URL is found and resumed.
    let to = dir.join(&crabbox_host::digest::sha256(url.as_bytes())[..16]);
    progress.stage("downloading the bundle");
    crabbox_host::download::fetch(url, &to, sha256, &mut |done, total| progress.bytes(done, total))?;
    Ok(to)
}

#[cfg(not(feature = "download"))]
fn download(_: &Places, url: &str, _: Option<&str>, _: &dyn Progress) -> Result<PathBuf, ImagesError> {
    Err(ImagesError::NoDownloads { url: url.to_owned() })
}

/// Opens the store and creates it if missing, for writing operations.
fn open(places: &Places) -> Result<Store, StoreError> {
    Store::open(&places.images())
}

/// Opens an existing store; a read-only operation must not create one.
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

/// The digests of all images.
pub(crate) fn digests(places: &Places) -> Result<Vec<String>, ImagesError> {
    let images = listing(places)?.images.into_iter();
    Ok(images.map(|image| image.manifest.digest).collect())
}

/// The image that a new lease uses where `configured` is `firecracker.image`; `None` if there is no such
/// image.
fn digest_in_use(places: &Places, configured: &str) -> Result<Option<String>, StoreError> {
    match prepare::stored_image(&places.images(), configured) {
        Ok(image) => Ok(Some(image.manifest.digest)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The leases that use `image`, recognised by a base with the same inode (linked or mounted). Includes
/// `another name` if the file has a link that no record explains.
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
