//! Arguments of the commands that prepare a host: `setup` and `image`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use crabbox_core::duration::GoDuration;

use super::keys::{KeyFlags, LeaseSet};
use super::lease::duration;

/// `setup`.
#[derive(Debug, Subcommand)]
pub(crate) enum SetupCommand {
    /// Install everything that Firecracker leases need on this host, or remove it
    Firecracker(Box<SetupArgs>),
}

/// `setup firecracker`.
#[derive(Debug, Args)]
pub(crate) struct SetupArgs {
    /// Only report what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Remove only what setup installed
    #[arg(long)]
    pub(crate) remove: bool,
    /// Do not ask for confirmation
    #[arg(long)]
    pub(crate) yes: bool,
    /// Let remote owners lease here over SSH; with --remove, remove only that
    #[arg(long)]
    pub(crate) serve: bool,
    /// A remote owner with a public key or the file of one; may be repeated
    #[arg(
        long,
        value_name = "NAME=KEY|FILE",
        requires = "serve",
        conflicts_with = "remove"
    )]
    pub(crate) owner: Vec<String>,
    /// A remote owner to remove; may be repeated
    #[arg(long, value_name = "NAME", requires = "serve", conflicts_with = "remove")]
    pub(crate) remove_owner: Vec<String>,
    /// Start from this bundle instead of building the image here
    #[arg(long, value_name = "FILE|URL")]
    pub(crate) from: Option<String>,
    /// SHA-256 that the bundle must have
    #[arg(long, value_name = "HEX")]
    pub(crate) sha256: Option<String>,
    /// Print one JSON document; events go to standard error
    #[arg(long)]
    pub(crate) json: bool,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<LeaseSet>,
}

/// `image`.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Build an image from Debian packages, a directory, a tar archive or an OCI image
    Build(ImageBuildArgs),
    /// Import a kernel and an ext4 root file system, or a bundle, as an image
    Import(ImageImportArgs),
    /// Write an image to a bundle, a file from which other hosts are set up
    Export(ImageExportArgs),
    /// List the images
    #[command(alias = "ls")]
    List(ImageListArgs),
    /// Show everything about an image
    Inspect(ImageNameArgs),
    /// Read an image and compare it with its record
    Verify(ImageNameArgs),
    /// Remove an image
    #[command(alias = "remove")]
    Rm(ImageRemoveArgs),
    /// Snapshot a booted guest as a template, from which new leases are restored instead of booting
    Warm(Box<ImageWarmArgs>),
    /// Remove images that nothing needs, and leftovers of killed builds
    Gc(ImageGcArgs),
}

/// `image build`.
#[derive(Debug, Args)]
pub(crate) struct ImageBuildArgs {
    /// Name for the image; leases use the one called default
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub(crate) name: String,
    /// Use this tree instead of Debian packages: a directory, a tar archive, oci:DIR[:TAG], oci-archive:FILE[:TAG] or
    /// docker-archive:FILE[:TAG]
    #[arg(long, value_name = "SOURCE", conflicts_with_all = ["suite", "package", "script"])]
    pub(crate) from: Option<String>,
    /// Use the kernel of this image [default: the tree's own, or that of the image that leases use]
    #[arg(long, value_name = "IMAGE", requires = "from")]
    pub(crate) kernel_of: Option<String>,
    /// Which process 1 runs in the guest once it is set up
    #[arg(long, value_enum, value_name = "INIT", default_value_t = InitChoice::None)]
    pub(crate) init: InitChoice,
    /// Debian suite
    #[arg(long, value_name = "SUITE")]
    pub(crate) suite: Option<String>,
    /// Install this package too; may be repeated
    #[arg(long, value_name = "PACKAGE")]
    pub(crate) package: Vec<String>,
    /// Run this script in the image as root once all packages are installed
    #[arg(long, value_name = "PATH")]
    pub(crate) script: Option<PathBuf>,
    /// Use this static crabbox-guest instead of the embedded one
    #[arg(long, value_name = "PATH")]
    pub(crate) guest_binary: Option<PathBuf>,
    /// Print one JSON document; events go to standard error
    #[arg(long)]
    pub(crate) json: bool,
}

/// `--init`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum InitChoice {
    /// crabbox's own, the fastest way to a command
    None,
    /// systemd, or whatever the image has as /sbin/init
    Systemd,
}

/// `image import`.
#[derive(Debug, Args)]
#[command(override_usage = "crabbox image import [--name NAME] (--kernel PATH --rootfs PATH | BUNDLE)")]
pub(crate) struct ImageImportArgs {
    /// Name for the image; leases use the one called default
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub(crate) name: String,
    /// The guest kernel: vmlinux, or a bzImage
    #[arg(long, value_name = "PATH")]
    pub(crate) kernel: Option<PathBuf>,
    /// The root file system: ext4 with sshd, git, rsync and cloud-init
    #[arg(long, value_name = "PATH")]
    pub(crate) rootfs: Option<PathBuf>,
    /// SHA-256 that the bundle must have
    #[arg(long, value_name = "HEX")]
    pub(crate) sha256: Option<String>,
    /// Print one JSON document; events go to standard error
    #[arg(long)]
    pub(crate) json: bool,
    /// A bundle, as a file or URL
    #[arg(value_name = "BUNDLE")]
    pub(crate) bundle: Option<String>,
}

/// `image export`.
#[derive(Debug, Args)]
#[command(override_usage = "crabbox image export [flags] <name-or-digest> <file>")]
pub(crate) struct ImageExportArgs {
    /// Print one JSON document; events go to standard error
    #[arg(long)]
    pub(crate) json: bool,
    /// Name or digest of the image
    #[arg(value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// The new file; compressed if its name ends in .gz
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

/// `image list`.
#[derive(Debug, Args)]
pub(crate) struct ImageListArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `image inspect` and `image verify`.
#[derive(Debug, Args)]
pub(crate) struct ImageNameArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Name or digest of the image
    #[arg(value_name = "IMAGE", default_value = "default")]
    pub(crate) image: String,
}

/// `image rm`.
#[derive(Debug, Args)]
pub(crate) struct ImageRemoveArgs {
    /// Remove it even if leases run from it; they keep their disks
    #[arg(long)]
    pub(crate) force: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Name or digest of the image
    #[arg(value_name = "IMAGE")]
    pub(crate) image: Option<String>,
}

/// `image warm`.
#[derive(Debug, Args)]
pub(crate) struct ImageWarmArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<LeaseSet>,
}

/// `image gc`.
#[derive(Debug, Args)]
pub(crate) struct ImageGcArgs {
    /// Also remove named images made longer ago than this
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) older_than: Option<GoDuration>,
    /// Also remove the oldest until all have at most this many MiB
    #[arg(long, value_name = "MIB")]
    pub(crate) max_mib: Option<u64>,
    /// Only report what would be removed
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
