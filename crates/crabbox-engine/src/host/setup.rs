//! Prepares a bare host for leases: Firecracker, an image, a network, a configuration. Also removes all of
//! that again.
//!
//! The plan is made from the state of the host and shown before anything is done. Whatever exists stays as it
//! is, so a second run has nothing to do. Everything is recorded before it is made, and only recorded and
//! unchanged things are ever removed. It must never replace a file of the user's, nor change a group, a
//! service or a kernel setting.

use std::path::{Path, PathBuf};

use crabbox_core::config::Settings;
use crabbox_core::config::firecracker::{FirecrackerPlan, InvalidFirecracker};
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::network::NetworkMode;
use crabbox_host::command::find_on_path;
use crabbox_host::digest;
use crabbox_host::files::{self, FileError};
use crabbox_host::signals::Interrupts;
use crabbox_image::fetch::{self, FetchError};
use crabbox_image::store::{Store, StoreError};
use crabbox_machine::context::Engine;
use crabbox_machine::resource::network::DEBIAN_CNI;

use crate::host::images::{self, Build, ImagesError, Progress, Source};
use crate::host::prepare::{self, DEFAULT_IMAGE, PrepareError};
use crate::host::warm::{self, WarmError};

mod lock;
mod network;
mod record;
mod remove;
mod serve;

pub use crabbox_image::fetch::WHEEL as PROGRAMS_FROM;
pub use record::{Made, RecordError};
pub use remove::{Part, Removal, remove};
pub use serve::{
    ACCOUNT, Barrier, Ground, ServeRequest, ServeSetupError, ServeStep, barriers, check_home, served_home,
};

/// What the user requested.
#[derive(Debug, Clone, Default)]
pub struct SetupRequest {
    /// A bundle to start from; without one the image is built here.
    pub from: Option<Source>,
    /// Whether to make a template for future leases. It takes longer than a lease, so it is not made for a
    /// user who only wants to run something.
    pub template: bool,
    /// Whether to serve owners over SSH, and which ones.
    pub serve: Option<ServeRequest>,
}

/// One step of a set-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Import the image from a bundle, and Firecracker if `programs` is set.
    Bundle {
        /// The bundle.
        from: Source,
        /// Whether to import the image.
        image: bool,
        /// Whether to import the programs.
        programs: bool,
    },
    /// Build the image from Debian packages.
    BuildImage {
        /// The image store.
        store: PathBuf,
    },
    /// Download Firecracker and its jailer, unless a bundle brought them.
    Programs {
        /// Their directory.
        dir: PathBuf,
    },
    /// Write a CNI network.
    Network {
        /// The new file.
        path: PathBuf,
        /// Its content.
        text: String,
        /// Where the plugins will store allocated addresses.
        addresses: PathBuf,
    },
    /// Choose the provider for a user who has no configuration.
    Configuration {
        /// The new file.
        path: PathBuf,
    },
    /// Serve owners over SSH.
    Serve(ServeStep),
    /// Make a template for warm leases. Always the last step; [`template`] performs it.
    Template {
        /// The memory of its machine in MiB, all of which is written once.
        memory_mib: u32,
    },
}

/// The steps to do, and advice for the user.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// Things that only the user or root can do, each with its command.
    pub advice: Vec<String>,
    /// Debian packages with programs that the steps call and the host lacks.
    missing: Vec<&'static str>,
    /// Whom its serving steps are for.
    serve: Option<ServeRequest>,
}

impl Plan {
    /// Refuses a plan whose steps would fail, before anybody is asked whether to go ahead.
    pub fn check(&self) -> Result<(), SetupError> {
        if self.missing.is_empty() {
            return Ok(());
        }
        Err(SetupError::Packages {
            packages: self.missing.join(" "),
        })
    }

    /// Whether to make a template after everything else.
    pub fn makes_template(&self) -> bool {
        let is_template = |step: &Step| matches!(step, Step::Template { .. });
        self.steps.iter().any(is_template)
    }
}

/// Why the host could not be set up, or the set-up could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The configuration does not describe a valid lease.
    #[error(transparent)]
    Settings(#[from] InvalidFirecracker),
    /// Something that the configuration names is missing.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// The host lacks programs that the steps call.
    #[error(
        "this host lacks what the set-up runs: `apt-get install -y {packages}` installs it, and with --from a bundle nothing is built"
    )]
    Packages {
        /// The Debian packages that have them.
        packages: String,
    },
    /// No image could be obtained.
    #[error(transparent)]
    Images(#[from] ImagesError),
    /// Firecracker could not be obtained.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The record of what setup made cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Some leases still need it.
    #[error("cannot remove the set-up: it is in use by {}", leases.join(", "))]
    InUse {
        /// The leases.
        leases: Vec<String>,
    },
    /// The leases cannot be listed.
    #[error(transparent)]
    Leases(#[from] crabbox_store::leases::RecordError),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file could not be read, written or removed.
    #[error(transparent)]
    File(#[from] FileError),
    /// Remote owners cannot be served.
    #[error(transparent)]
    Serve(#[from] ServeSetupError),
    /// The template could not be made or removed.
    #[error(transparent)]
    Warm(#[from] WarmError),
    /// The host's registry of leases cannot be used.
    #[error(transparent)]
    Registry(#[from] crabbox_store::registry::RegistryError),
}

impl Fault for SetupError {
    fn kind(&self) -> Kind {
        match self {
            Self::Settings(error) => error.kind(),
            Self::Images(error) => error.kind(),
            Self::Fetch(FetchError::Download { .. }) => Kind::Unavailable,
            Self::Warm(error) => error.kind(),
            Self::Serve(error) => error.kind(),
            _ => Kind::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Settings(error) => error.hints(),
            Self::Prepare(error) => error.hints(),
            Self::Images(error) => error.hints(),
            Self::Warm(error) => error.hints(),
            Self::Serve(error) => error.hints(),
            Self::Registry(error) => error.hints(),
            Self::InUse { .. } => {
                vec![
                    "`crabbox list --provider firecracker --all` shows them: stop the leases, end the members of a pool with `crabbox pool drain`, \
                     and run `crabbox cleanup --provider firecracker` for what is left"
                        .to_owned(),
                ]
            }
            _ => Vec::new(),
        }
    }
}

/// Whether `error` means that the host was never set up, as opposed to set up wrongly.
pub(crate) fn is_missing(error: &PrepareError) -> bool {
    matches!(
        error,
        PrepareError::NoImage(StoreError::NotFound { .. })
            | PrepareError::Program {
                key: "firecracker.binary",
                ..
            }
            | PrepareError::NoJailer { ours: true, .. }
    )
}

/// The steps that are missing for serving remote owners.
fn serving_steps(engine: &Engine, wanted: &ServeRequest) -> Result<Vec<Step>, SetupError> {
    if !crabbox_host::process::is_root() {
        return Err(ServeSetupError::NotRoot.into());
    }
    let record = record::Record::read(&engine.places)?;
    let steps = serve::plan(engine, &Ground::of(engine), &record, wanted)?;
    Ok(steps.into_iter().map(Step::Serve).collect())
}

/// Inspects the host and plans the steps.
pub fn plan(
    engine: &Engine,
    settings: &Settings,
    lease: &FirecrackerPlan,
    wanted: &SetupRequest,
) -> Result<Plan, SetupError> {
    // Revoking access must not depend on anything else, such as an image or a download, that could fail.
    let shut_out = |wanted: &&ServeRequest| wanted.owners.is_empty() && !wanted.removed.is_empty();
    if let Some(wanted) = wanted.serve.as_ref().filter(shut_out) {
        return Ok(Plan {
            steps: serving_steps(engine, wanted)?,
            serve: Some(wanted.clone()),
            ..Plan::default()
        });
    }
    let mut plan = Plan::default();
    let programs = match prepare::programs(engine, lease) {
        Ok(_) => false,
        Err(error) if is_missing(&error) && lease.binary.as_path() == Path::new("firecracker") => true,
        Err(error) => return Err(error.into()),
    };
    let image = match prepare::guest(engine, lease) {
        Ok(_) => false,
        Err(error) if is_missing(&error) => true,
        Err(error) => return Err(error.into()),
    };
    let bundle = wanted.from.clone().filter(|_| image || programs);
    let store = engine.places.images();
    match bundle {
        Some(from) => plan.steps.push(Step::Bundle {
            from,
            image,
            programs,
        }),
        None if image => plan.steps.push(Step::BuildImage { store }),
        None => {}
    }
    plan.missing = missing_packages(
        engine,
        image && wanted.from.is_none(),
        programs && wanted.from.is_none(),
    );
    if programs {
        let dir = engine.places.firecracker();
        plan.steps.push(Step::Programs { dir });
    }
    plan.steps.extend(network_step(engine, lease));
    let path = engine.places.config.join("config.yaml");
    if settings.provider().is_err() && settings.provider.is_default() && !path.exists() {
        plan.steps.push(Step::Configuration { path });
    }
    if let Some(wanted) = &wanted.serve {
        plan.steps.extend(serving_steps(engine, wanted)?);
        plan.serve = Some(wanted.clone());
    }
    let advice = kvm_advice();
    if wanted.template && advice.is_none() {
        plan.steps.extend(template_step(engine, lease, image));
    }
    plan.advice.extend(advice);
    Ok(plan)
}

/// The packages that are missing for an image to be built and Firecracker to be fetched.
fn missing_packages(engine: &Engine, builds: bool, fetches: bool) -> Vec<&'static str> {
    let lacks = |program: &str| find_on_path(program.as_ref(), &engine.path).is_none();
    let tools = crabbox_image::build::TOOLS.into_iter().filter(|_| builds);
    let mut packages: Vec<_> = tools
        .filter(|(program, _)| lacks(program))
        .map(|(_, package)| package)
        .collect();
    if fetches {
        packages.extend(fetch::missing_installer());
    }
    packages
}

/// The step that makes a template, if leases can be restored from one, this user can make leases, and there
/// is none yet. With a `coming` image, there cannot be one yet.
fn template_step(engine: &Engine, lease: &FirecrackerPlan, coming: bool) -> Option<Step> {
    let can_lease = rustix::process::geteuid().is_root();
    let gives_tap = prepare::network_request(lease)
        .is_ok_and(|network| crabbox_machine::resource::network::gives_tap(&network));
    let wanted = lease.warm && can_lease && !gives_tap && (coming || warm::is_missing(engine, lease));
    wanted.then_some(Step::Template {
        memory_mib: lease.memory_mib,
    })
}

/// The step that writes a network for the host's own CNI plugins: only if `cni` was requested, root may write
/// it, and all prerequisites exist. The built-in `nat` needs nothing and costs the host less per lease, so
/// plugins are only used on request.
fn network_step(engine: &Engine, lease: &FirecrackerPlan) -> Option<Step> {
    let (dir, name) = (lease.cni_conf_dir.as_path(), lease.cni_network.as_str());
    if lease.network != Some(NetworkMode::Cni)
        || !rustix::process::geteuid().is_root()
        || crabbox_cni::load(dir, name).is_ok()
    {
        return None;
    }
    let plugins = [lease.cni_bin_dir.as_path(), Path::new(DEBIAN_CNI)];
    let has = |plugin: &&str| {
        plugins
            .iter()
            .any(|dir| find_on_path(dir.join(plugin).as_os_str(), "".as_ref()).is_some())
    };
    // ptp needs it for masquerading.
    find_on_path("iptables".as_ref(), &engine.path)?;
    let path = dir.join("10-crabbox.conflist");
    if !network::PLUGINS.iter().all(has) || path.exists() {
        return None;
    }
    let routes = std::fs::read_to_string("/proc/net/route").ok()?;
    let text = network::conflist(name, network::free(&routes)?);
    let addresses = Path::new(network::ADDRESSES).join(name);
    Some(Step::Network {
        path,
        text,
        addresses,
    })
}

/// What keeps this user from using `/dev/kvm`.
fn kvm_advice() -> Option<String> {
    let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    match kvm.err()?.kind() {
        std::io::ErrorKind::PermissionDenied => Some(
            "you may not use /dev/kvm: leases are made as root, who has an image and a configuration of its own; set up as root".to_owned(),
        ),
        _ => Some(
            "there is no /dev/kvm: switch virtualization on in the firmware (or nested virtualization in the cloud), \
             and load kvm_intel or kvm_amd"
                .to_owned(),
        ),
    }
}

/// Performs the steps of `plan` in order; `began` is called before each.
pub fn apply(
    engine: &Engine,
    plan: &Plan,
    progress: &dyn Progress,
    began: &mut dyn FnMut(&Step),
) -> Result<(), SetupError> {
    if plan.steps.is_empty() {
        return Ok(());
    }
    plan.check()?;
    let (mut record, lock) = match &plan.serve {
        None => record::Record::open(&engine.places, &lock::wait)?,
        Some(wanted) => {
            let opened = record::Record::open(&engine.places, &lock::now)?;
            // The process that held the lock before us may have done some of it, or added another owner.
            let is_serving = |step: &&Step| matches!(step, Step::Serve(_));
            let planned = plan.steps.iter().filter(is_serving);
            if !planned.eq(serving_steps(engine, wanted)?.iter()) {
                return Err(ServeSetupError::Moved.into());
            }
            opened
        }
    };
    for step in &plan.steps {
        began(step);
        do_step(engine, step, &mut record, progress)?;
    }
    lock.remove_while_held().map_err(ServeSetupError::from)?;
    Ok(())
}

fn do_step(
    engine: &Engine,
    step: &Step,
    record: &mut record::Record,
    progress: &dyn Progress,
) -> Result<(), SetupError> {
    let places = &engine.places;
    match step {
        Step::Bundle {
            from,
            image,
            programs,
        } => {
            record.image(places, *image)?;
            record.programs(places, *programs)?;
            let imported = images::import_bundle(places, from, DEFAULT_IMAGE, *programs, progress)?;
            if *image {
                record.made_image(&imported.image.manifest.digest)?;
            }
        }
        // Another setup may have built one while this one waited for the lock.
        Step::BuildImage { store } if has_image(store) => {}
        Step::BuildImage { .. } => {
            record.image(places, true)?;
            let image = images::build(places, &Build::usual(), progress)?;
            record.made_image(&image.manifest.digest)?;
        }
        Step::Programs { dir } => {
            record.programs(places, true)?;
            files::create_private_dir(dir)?;
            fetch::ensure_firecracker(dir, progress)?;
        }
        Step::Network {
            path,
            text,
            addresses,
        } => {
            record.add(
                Made::Addresses {
                    dir: addresses.clone(),
                },
                addresses,
            )?;
            new_file(record, path, text, 0o644)?;
        }
        Step::Configuration { path } => new_file(record, path, CONFIGURATION, 0o600)?,
        Step::Serve(step) => serve::apply(engine, &Ground::of(engine), record, step)?,
        // The host is set up even without a template, so it must not fail here.
        Step::Template { .. } => {}
    }
    Ok(())
}

/// Makes the template that is the last step of a plan. If it fails, leases can be made anyway.
pub fn template(
    engine: &Engine,
    lease: &FirecrackerPlan,
    interrupts: &Interrupts,
    progress: &dyn Progress,
) -> Result<warm::Made, SetupError> {
    let made = warm::make(engine, lease, interrupts, progress)?;
    // Until it is recorded, a left-over template belongs to nobody and is removed with the store.
    let (mut record, lock) = record::Record::open(&engine.places, &lock::wait)?;
    record.template(&engine.places, &made.template.key)?;
    lock.remove_while_held().map_err(ServeSetupError::from)?;
    Ok(made)
}

/// The configuration for a user who has none.
const CONFIGURATION: &str = "# Written by `crabbox setup`; yours to change.\nprovider: firecracker\n";

/// Whether the default image exists.
fn has_image(store: &Path) -> bool {
    Store::open(store).is_ok_and(|store| store.get(DEFAULT_IMAGE).is_ok())
}

/// Writes a file that did not exist when this was planned. If it exists now, somebody else made it, and it
/// stays.
fn new_file(record: &mut record::Record, path: &Path, text: &str, mode: u32) -> Result<(), SetupError> {
    if std::fs::symlink_metadata(path).is_ok() {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    record.add(
        Made::File {
            path: path.to_owned(),
            sha256: digest::sha256(text.as_bytes()),
        },
        parent,
    )?;
    std::fs::create_dir_all(parent).map_err(|source| FileError::io("create directory", parent, source))?;
    files::write_atomic(path, text.as_bytes(), mode)?;
    Ok(())
}

#[cfg(test)]
mod tests;
