//! Brings a working tree to a lease: lists it, checks the limits, compares, transfers.
//!
//! Problems with the tree are found before a machine is leased ([`look`]), and nothing here may run a user's
//! command. If the connection is open already, a tree without changes takes a single remote execution, which
//! compares.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crabbox_core::config::settings::SyncSettings;
use crabbox_core::fault::{Connectivity, Fault, Kind};
use crabbox_host::process::{self, Signal};
use crabbox_host::signals::Interrupts;
use crabbox_ssh::master;
use crabbox_ssh::target::Target;
use crabbox_sync::Channel;
pub use crabbox_sync::guardrail::GuardrailError;
use crabbox_sync::guardrail::{self, Judgement, Limits};
use crabbox_sync::manifest::{Manifest, ManifestError, Scope};
use crabbox_sync::memory::Memory;
pub use crabbox_sync::repo::Repo;
use crabbox_sync::repo::RepoError;
use crabbox_sync::transfer::{self, GitSeed, Options, TransferError};
pub use crabbox_sync::transfer::{Begun, Destination, Outcome};
pub use crabbox_sync::{Progress, Stage, SyncEvents};

use crate::owner::{Owner, connectivity, far_hints};

/// Why the tree could not be synced.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The repository could not be examined.
    #[error("build sync file list")]
    Repo(#[from] RepoError),
    /// Its files could not be listed.
    #[error("build sync file list: {0}")]
    Manifest(ManifestError),
    /// It exceeds the limits.
    #[error(transparent)]
    Guardrail(#[from] GuardrailError),
    /// The user interrupted.
    #[error("interrupted while the tree was sent")]
    Interrupted,
    /// It did not arrive.
    #[error(transparent)]
    Transfer(#[from] TransferError),
}

impl From<ManifestError> for SyncError {
    fn from(error: ManifestError) -> Self {
        Self::Manifest(error)
    }
}

impl SyncError {
    /// Whether the connection to the lease broke.
    pub fn lost_connection(&self) -> bool {
        matches!(self, Self::Transfer(error) if error.lost_connection())
    }
}

impl Fault for SyncError {
    fn kind(&self) -> Kind {
        match self {
            Self::Transfer(error) if error.is_remote() => Kind::Remote,
            // 128 plus the number of SIGINT, as in shells.
            Self::Interrupted => Kind::Passthrough(130),
            _ => Kind::Sync,
        }
    }

    fn connectivity(&self) -> Option<Connectivity> {
        connectivity(self)
    }

    fn hints(&self) -> Vec<String> {
        far_hints(self)
    }
}

/// What the command line says about a sync, beyond the settings.
#[derive(Debug, Clone, Copy, Default)]
pub struct SyncChoice {
    /// `--full-resync`.
    pub full_resync: bool,
    /// `CRABBOX_ALLOW_MASS_DELETIONS=1`.
    pub allow_mass_deletions: bool,
}

/// The tree around `cwd`.
pub fn look(cwd: &Path) -> Result<Repo, SyncError> {
    Ok(Repo::discover(cwd)?)
}

/// The root of the working tree around `cwd`, or `cwd` itself if there is none.
pub fn root(cwd: &Path) -> PathBuf {
    crabbox_sync::repo::root(cwd)
}

/// Checks whether the tree can be synced at all; called before a machine is leased.
pub fn check(repo: &Repo) -> Result<(), SyncError> {
    Ok(repo.check_syncable()?)
}

/// The part of the tree to sync, after the limits were checked.
#[derive(Debug)]
pub struct Load {
    manifest: Manifest,
    /// The line with its size, then warnings.
    pub lines: Vec<String>,
    /// How long listing took.
    pub took: Duration,
}

/// Lists the tree and checks the limits. `trees` is the directory of remembered trees, `config` our own
/// configuration directory, beside which git has its own. The lines are returned even if the limits forbid
/// the sync.
pub fn load(
    repo: &Repo,
    settings: &SyncSettings,
    trees: &Path,
    config: &Path,
) -> Result<(Load, Result<(), GuardrailError>), SyncError> {
    let started = Instant::now();
    // git's default ignore file if the user has set no other; both follow the XDG directories.
    let rules = config.with_file_name("git").join("ignore");
    let memory = Memory::of(trees, &repo.root, vec![rules]);
    let manifest = Manifest::build_remembering(repo, &scope(settings), &memory)?;
    let judgement = held_against(&manifest, settings);
    let mut lines = vec![guardrail::candidate_line(&manifest)];
    lines.extend(guardrail::protected_line(&manifest));
    lines.extend(guardrail::apart_lines(&manifest));
    lines.extend(judgement.warnings());
    let verdict = judgement.check();
    if verdict.is_err() || !judgement.warnings().is_empty() {
        lines.push(guardrail::top_dirs_line(&manifest, judgement.counted));
    }
    Ok((
        Load {
            manifest,
            lines,
            took: started.elapsed(),
        },
        verdict,
    ))
}

/// The tree, and the result of checking the limits of the configuration.
pub(crate) fn judge(repo: &Repo, settings: &SyncSettings) -> Result<(Manifest, Judgement), SyncError> {
    let manifest = Manifest::build(repo, &scope(settings))?;
    let judgement = held_against(&manifest, settings);
    Ok((manifest, judgement))
}

fn held_against(manifest: &Manifest, settings: &SyncSettings) -> Judgement {
    let limit = |value: i64| u64::try_from(value).unwrap_or(0);
    let limits = Limits {
        warn_files: limit(settings.warn_files.value),
        warn_bytes: limit(settings.warn_bytes.value),
        fail_files: limit(settings.fail_files.value),
        fail_bytes: limit(settings.fail_bytes.value),
    };
    guardrail::judge(manifest, limits, settings.allow_large.value)
}

/// The part of a tree that is in scope.
pub(crate) fn scope(settings: &SyncSettings) -> Scope {
    Scope {
        exclude: settings.exclude.value.clone(),
        include: settings.include.value.clone(),
    }
}

/// The patterns that exclude files from the sync, without those of the tree's own `.crabboxignore`.
pub fn excludes(settings: &SyncSettings) -> Vec<String> {
    let built_in = crabbox_sync::built_in_excludes().map(str::to_owned);
    built_in.chain(settings.exclude.value.iter().cloned()).collect()
}

/// Where the tree of `repo` goes: below `work_root`, in the directory of the lease `id`.
pub fn destination(work_root: &str, id: &str, repo: &Repo) -> Destination {
    Destination {
        work_root: work_root.to_owned(),
        lease_id: id.to_owned(),
        name: repo.name.clone(),
    }
}

/// Whether traffic to `host` leaves this machine only through a tunnel, if at all.
fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether the shared connection of `target` is open, so that a further session needs no new connection.
pub fn is_connected(target: &Target) -> bool {
    let control = target.control.as_deref();
    control.is_some_and(|control| master::check(control).is_some())
}

/// Begins the lease's side of a sync. It checks the lease's tree while [`load`] lists the local one, until
/// [`sync`] is called.
pub fn begin(
    owner: &mut Owner,
    target: &Target,
    destination: &Destination,
    settings: &SyncSettings,
    choice: SyncChoice,
) -> Begun {
    let options = Options {
        delete: settings.delete.value,
        checksum: settings.checksum.value,
        full_resync: choice.full_resync,
        fingerprint: settings.fingerprint.value,
        allow_mass_deletions: choice.allow_mass_deletions,
        // On this host, compression would only cost time.
        compress: !(target.on_this_machine || is_loopback(&target.host)),
        timeout: Some(settings.timeout.value.to_std()),
        git_seed: if settings.git_seed.value {
            GitSeed::Shallow
        } else {
            GitSeed::Off
        },
        base_ref: settings.base_ref.value.clone(),
    };
    transfer::begin(owner.far(), &Channel::ssh(target), destination, &options)
}

/// How often to check for an interrupt during a sync.
const LOOK: Duration = Duration::from_millis(50);

/// Syncs the tree until `interrupts` fires, which ends the processes that work on it, here and thereby in the
/// lease. A partly synced tree has no record, so the next sync compares all of it.
pub fn sync(
    owner: &mut Owner,
    begun: Begun,
    load: &Load,
    events: &dyn SyncEvents,
    interrupts: &Interrupts,
) -> Result<Outcome, SyncError> {
    let (working, done) = mpsc::channel::<()>();
    let outcome = std::thread::scope(|scope| {
        scope.spawn(move || {
            while done.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                if interrupts.caught().is_some() {
                    end_children();
                }
            }
        });
        let outcome = begun.finish(owner.far(), &load.manifest, events);
        drop(working);
        outcome
    });
    match outcome {
        // Even if the sync succeeded: the signal may have ended an optional part of it, and a command must
        // not start after an interrupt.
        _ if interrupts.caught().is_some() => Err(SyncError::Interrupted),
        outcome => Ok(outcome?),
    }
}

/// Sends SIGTERM to every child: ssh, git or rsync, which are all that this process has during a sync. A
/// child that has already ended needs no signal.
fn end_children() {
    for child in process::children().unwrap_or_default() {
        if let Ok(Some(handle)) = process::open(&child) {
            handle.signal(Signal::TERM).ok();
        }
    }
}
