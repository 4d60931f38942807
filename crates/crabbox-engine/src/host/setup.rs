//! Making a bare host able to lease: Firecracker, an image, a network, a configuration; and taking all of it away again.
//!
//! The plan is made from what is there and shown before anything is done; what is there already is left as it is, so that a
//! second run has nothing to do. Everything made is on record before it is made, and only what is on record and unchanged is
//! ever removed. It must never replace a file of the user's, nor change a group, a service or a kernel setting.

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

pub use record::{Made, RecordError};
pub use remove::{Part, Removal, remove};
pub use serve::{
    ACCOUNT, Barrier, Ground, ServeSetupError, ServeStep, WantedServe, barriers, check_home, served_home,
};

/// What the user asked for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// A bundle to start from; none builds the image here.
    pub from: Option<Source>,
    /// Whether leases are to come of a template from then on. It takes longer than a lease, so nobody gets it who only wants to run
    /// something.
    pub template: bool,
    /// Whether, and for whom, owners who come over SSH are to be served.
    pub serve: Option<WantedServe>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Take the image, and Firecracker where `programs`, from a bundle.
    Bundle {
        /// Where it is.
        from: Source,
        /// Whether the image is wanted.
        image: bool,
        /// Whether the programs are wanted.
        programs: bool,
    },
    /// Build the image from Debian packages.
    BuildImage {
        /// The image store.
        store: PathBuf,
    },
    /// Fetch Firecracker and its jailer, unless a bundle brought them.
    Programs {
        /// Where they go.
        dir: PathBuf,
    },
    /// Write a CNI network.
    Network {
        /// The new file.
        path: PathBuf,
        /// Its content.
        text: String,
        /// Where the plugins will keep the addresses that they gave out.
        addresses: PathBuf,
    },
    /// Choose the provider, for a user who has no configuration.
    Configuration {
        /// The new file.
        path: PathBuf,
    },
    /// Serve owners who come over SSH.
    Serve(ServeStep),
    /// Freeze a machine that leases can come of; the last step, for which [`template`] is called.
    Template {
        /// How much memory it has, in MiB, all of which is written once.
        memory_mib: u32,
    },
}

/// What is to be done, and what the user should know.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// What only the user or root can do, each with its command.
    pub advice: Vec<String>,
    /// For whom its steps of serving are.
    serve: Option<WantedServe>,
}

impl Plan {
    /// Whether a template is to be made, once all else is there.
    pub fn makes_template(&self) -> bool {
        let is_template = |step: &Step| matches!(step, Step::Template { .. });
        self.steps.iter().any(is_template)
    }
}

/// Why the host could not be set up, or not be put back.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The configuration describes no lease.
    #[error(transparent)]
    Settings(#[from] InvalidFirecracker),
    /// The configuration names something that is not there.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// No image could be had.
    #[error(transparent)]
    Images(#[from] ImagesError),
    /// No Firecracker could be had.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// What setup made is not known.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Leases still need it.
    #[error("cannot take the set-up away: {} still here", leases.join(", "))]
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
    /// Owners from afar cannot be served.
    #[error(transparent)]
    Serve(#[from] ServeSetupError),
    /// No template was made, or one could not be removed.
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
            Self::InUse { .. } => {
                vec![
                    "stop those that `crabbox list` shows, or `crabbox cleanup --provider firecracker`"
                        .to_owned(),
                ]
            }
            _ => Vec::new(),
        }
    }
}

/// Whether `error` means that a host was never set up, rather than that it is set up wrongly.
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

/// What is missing for owners from afar to be served.
fn serving_steps(engine: &Engine, wanted: &WantedServe) -> Result<Vec<Step>, SetupError> {
    if !crabbox_host::process::is_root() {
        return Err(ServeSetupError::NotRoot.into());
    }
    let record = record::Record::read(&engine.places)?;
    let steps = serve::plan(engine, &Ground::of(engine), &record, wanted)?;
    Ok(steps.into_iter().map(Step::Serve).collect())
}

/// Looks at the host and tells what has to be done.
pub fn plan(
    engine: &Engine,
    settings: &Settings,
    lease: &FirecrackerPlan,
    wanted: &Wanted,
) -> Result<Plan, SetupError> {
    // Who is only shut out waits for nothing else: no image, no download, nothing that may fail.
    let shut_out = |wanted: &&WantedServe| wanted.owners.is_empty() && !wanted.removed.is_empty();
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

/// A template, where leases may come of one, whoever asks can make leases, and there is none; always where the image is only `coming`.
fn template_step(engine: &Engine, lease: &FirecrackerPlan, coming: bool) -> Option<Step> {
    let can_lease = rustix::process::geteuid().is_root();
    let gives_tap = prepare::network_request(lease)
        .is_ok_and(|network| crabbox_machine::resource::network::gives_tap(&network));
    let wanted = lease.warm && can_lease && !gives_tap && (coming || warm::is_missing(engine, lease));
    wanted.then_some(Step::Template {
        memory_mib: lease.memory_mib,
    })
}

/// A network of the host's own plugins, where `cni` was asked for, root may write one and everything that it needs is there. `nat`,
/// which is built in, needs nothing, and a lease with it costs the host less; so nobody gets plugins who did not name them.
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
    // ptp masquerades with it.
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

/// What stands between this user and `/dev/kvm`.
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

/// Does what `plan` says, in its order; `began` hears each step before it is done.
pub fn apply(
    engine: &Engine,
    plan: &Plan,
    progress: &dyn Progress,
    began: &mut dyn FnMut(&Step),
) -> Result<(), SetupError> {
    if plan.steps.is_empty() {
        return Ok(());
    }
    let (mut record, lock) = match &plan.serve {
        None => record::Record::open(&engine.places, &lock::wait)?,
        Some(wanted) => {
            let opened = record::Record::open(&engine.places, &lock::now)?;
            // Whoever was at work before us may have done some of it, or brought another owner.
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
        // Another setup may have made one while this one waited for it.
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
        // Without it the host is set up all the same, so it is no step that could fail here.
        Step::Template { .. } => {}
    }
    Ok(())
}

/// Makes the template that a plan has as its last step. Whatever goes wrong with it, leases can be made.
pub fn template(
    engine: &Engine,
    lease: &FirecrackerPlan,
    interrupts: &Interrupts,
    progress: &dyn Progress,
) -> Result<warm::Made, SetupError> {
    let made = warm::make(engine, lease, interrupts, progress)?;
    // Until here whatever is left of it is nobody's, and goes with the store.
    let (mut record, lock) = record::Record::open(&engine.places, &lock::wait)?;
    record.template(&engine.places, &made.template.key)?;
    lock.remove_while_held().map_err(ServeSetupError::from)?;
    Ok(made)
}

/// What a user without a configuration gets.
const CONFIGURATION: &str = "# Written by `crabbox setup`; yours to change.\nprovider: firecracker\n";

/// Whether the image that is built is there.
fn has_image(store: &Path) -> bool {
    Store::open(store).is_ok_and(|store| store.get(DEFAULT_IMAGE).is_ok())
}

/// Writes a file that was not there when this was planned; one that has come since is somebody's, and stays.
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
