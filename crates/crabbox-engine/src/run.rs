//! Running a command in a lease: the working tree brought over, the command run, its streams and exit code handed through.
//!
//! What can be wrong with the tree is found out before a machine is leased ([`look`]). On a lease that is entered already, a
//! run with nothing to bring takes three remote executions: one that owns the tree, one that compares, one that is the command.

pub mod bundle;
pub mod collect;
pub mod junit;
pub mod owner;
pub mod pattern;
pub mod preflight;

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crabbox_core::config::settings::SyncSettings;
use crabbox_core::fault::{Fault, Kind};
use crabbox_ssh::capture;
pub use crabbox_ssh::command::Form;
use crabbox_ssh::command::{UserCommand, UserCommandError};
use crabbox_ssh::exec::{self, Exec, ExecError, Stdin};
pub use crabbox_ssh::exec::{RemoteStatus, Sink};
use crabbox_ssh::master;
use crabbox_store::places::Places;
use crabbox_sync::Channel;
pub use crabbox_sync::guardrail::GuardrailError;
use crabbox_sync::guardrail::{self, Judgement, Limits};
use crabbox_sync::manifest::{Manifest, ManifestError, Scope};
use crabbox_sync::memory::Memory;
pub use crabbox_sync::repo::Repo;
use crabbox_sync::repo::RepoError;
use crabbox_sync::transfer::{self, GitSeed, Options, TransferError};
pub use crabbox_sync::transfer::{Begun, Destination, Opened, Outcome};
pub use crabbox_sync::{Progress, Stage, SyncEvents};

use crate::lease::{Lease, Target};

/// How long making the directory of a run without a sync may take.
const MKDIR_LIMIT: Duration = Duration::from_mins(2);

/// Why the tree could not be brought over.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The repository could not be looked at.
    #[error("build sync file list")]
    Repo(#[from] RepoError),
    /// Its files could not be listed.
    #[error("build sync file list: {0}")]
    Manifest(ManifestError),
    /// It is too much.
    #[error(transparent)]
    Guardrail(#[from] GuardrailError),
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
            _ => Kind::Sync,
        }
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

/// Whether the tree can be synced at all; asked before a machine is leased.
pub fn check(repo: &Repo) -> Result<(), SyncError> {
    Ok(repo.check_syncable()?)
}

/// What of the tree is to be brought, after the limits were looked at.
#[derive(Debug)]
pub struct Load {
    manifest: Manifest,
    /// The line that says how much it is, then warnings.
    pub lines: Vec<String>,
    /// How long looking took.
    pub took: Duration,
}

/// Lists the tree and holds it against the limits. The lines are there even when the limits forbid the sync.
pub fn load(
    repo: &Repo,
    settings: &SyncSettings,
    places: &Places,
) -> Result<(Load, Result<(), GuardrailError>), SyncError> {
    let started = Instant::now();
    // Where git looks for the rules of a user who has set no other file; both keep to the XDG directories.
    let rules = places.config.with_file_name("git").join("ignore");
    let memory = Memory::of(&places.trees(), &repo.root, vec![rules]);
    let manifest = Manifest::build_remembering(repo, &scope(settings), &memory)?;
    let judgement = held_against(&manifest, settings);
    let mut lines = vec![guardrail::candidate_line(&manifest)];
    lines.extend(guardrail::protected_line(&manifest));
    lines.extend(guardrail::apart_lines(&manifest));
    lines.extend(judgement.warnings());
    let verdict = judgement.check();
    if verdict.is_err() || !judgement.warnings().is_empty() {
        lines.push(guardrail::top_dirs_line(&manifest));
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

/// The tree held against the limits of the configuration.
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

/// What of a tree is in scope.
pub(crate) fn scope(settings: &SyncSettings) -> Scope {
    Scope {
        exclude: settings.exclude.value.clone(),
        include: settings.include.value.clone(),
    }
}

/// Where the tree of `repo` goes in `lease`.
pub fn destination(lease: &Lease, repo: &Repo) -> Destination {
    Destination {
        work_root: lease.work_root.clone(),
        lease_id: lease.id.clone(),
        name: repo.name.clone(),
    }
}

/// Whether bytes to `host` leave this machine only through a tunnel, if at all.
fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether the shared connection of `target` is open, so that one more session opens no other.
pub fn is_connected(target: &Target) -> bool {
    let control = target.control.as_deref();
    control.is_some_and(|control| master::check(control).is_some())
}

/// Starts the lease's side of a sync. Between [`Opened::begin`] and [`sync`] it looks at what it has, and [`load`] at what is here.
pub fn open(
    target: &Target,
    destination: &Destination,
    settings: &SyncSettings,
    choice: SyncChoice,
) -> Opened {
    let options = Options {
        delete: settings.delete.value,
        checksum: settings.checksum.value,
        full_resync: choice.full_resync,
        fingerprint: settings.fingerprint.value,
        allow_mass_deletions: choice.allow_mass_deletions,
        // On this host compressing would only cost time.
        compress: !(target.on_this_machine || is_loopback(&target.host)),
        timeout: Some(settings.timeout.value.to_std()),
        git_seed: if settings.git_seed.value {
            GitSeed::Shallow
        } else {
            GitSeed::Off
        },
    };
    transfer::open(&Channel::ssh(target), destination, &options)
}

/// Brings the tree over.
pub fn sync(begun: Begun, load: &Load, events: &dyn SyncEvents) -> Result<Outcome, SyncError> {
    Ok(begun.finish(&load.manifest, events)?)
}

/// Why a command could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The command cannot be written down.
    #[error(transparent)]
    Command(#[from] UserCommandError),
    /// It could not be started.
    #[error("cannot run the command in the lease")]
    Exec(#[from] ExecError),
    /// The directory for it could not be made.
    #[error("cannot make {workdir} in the lease: {said}")]
    Workdir {
        /// The directory.
        workdir: String,
        /// What the lease said.
        said: String,
    },
    /// A file could not be uploaded or fetched.
    #[error("cannot {attempt} {path} in the lease: {said}")]
    File {
        /// What was tried.
        attempt: &'static str,
        /// The remote path.
        path: String,
        /// What the lease said.
        said: String,
    },
    /// A local file could not be written.
    #[error("cannot write {}", path.display())]
    Local {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl Fault for RunError {
    fn kind(&self) -> Kind {
        match self {
            Self::Command(_) | Self::Local { .. } => Kind::Usage,
            Self::Exec(_) | Self::Workdir { .. } | Self::File { .. } => Kind::Remote,
        }
    }
}

/// A command and its surroundings.
#[derive(Debug)]
pub struct Job<'a> {
    /// Where to run it.
    pub workdir: String,
    /// Variables to export; their values never stand in an argument vector.
    pub env: Vec<(String, String)>,
    /// Shell lines that run before anything else, for example those that mark the command for the owner of the tree.
    pub before: String,
    /// The command.
    pub form: Form,
    /// Where its standard output goes.
    pub stdout: Sink<'a>,
    /// Where its standard error goes.
    pub stderr: Sink<'a>,
    /// Readable when it shall be stopped.
    pub cancel: BorrowedFd<'a>,
}

/// Runs the command.
pub fn command(target: &Target, job: Job<'_>) -> Result<RemoteStatus, RunError> {
    let command = UserCommand {
        workdir: job.workdir,
        env_file: None,
        env: job.env,
        form: job.form,
    };
    let exec = Exec {
        script: format!("{}\n{}", job.before, command.script()?),
        stdin: Stdin::Null,
        stdout: job.stdout,
        stderr: job.stderr,
        cancel: Some(job.cancel),
        limit: None,
    };
    Ok(exec::run(target, exec)?)
}

/// Makes the directory of a run that brings nothing.
pub fn make_workdir(target: &Target, workdir: &str) -> Result<(), RunError> {
    let script = format!("mkdir -p -- {}", crabbox_ssh::quote::single(workdir));
    let made = capture::capture(target, &script, Stdin::Null, Some(MKDIR_LIMIT))?;
    if made.success() {
        Ok(())
    } else {
        Err(RunError::Workdir {
            workdir: workdir.to_owned(),
            said: made.stderr_text(),
        })
    }
}

/// Uploads a script; answers its path relative to the workdir.
pub fn upload_script(target: &Target, workdir: &str, name: &str, content: &[u8]) -> Result<String, RunError> {
    let digest = crabbox_host::digest::sha256(content);
    let kept = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = name
        .chars()
        .map(|c| if kept(c) { c } else { '-' })
        .take(64)
        .collect();
    let path = format!(".crabbox/scripts/{}-{name}", &digest[..12]);
    let (dir, file) = (
        crabbox_ssh::quote::single(workdir),
        crabbox_ssh::quote::single(&path),
    );
    let script =
        format!("cd {dir} && mkdir -p .crabbox/scripts && umask 077 && cat > {file} && chmod 700 {file}");
    let done = capture::capture(target, &script, Stdin::Bytes(content), Some(MKDIR_LIMIT))?;
    if done.success() {
        Ok(path)
    } else {
        Err(RunError::File {
            attempt: "upload",
            path,
            said: done.stderr_text(),
        })
    }
}

/// Fetches one file of the workdir; answers how many bytes it had.
pub fn download(target: &Target, workdir: &str, remote: &str, local: &Path) -> Result<u64, RunError> {
    let (dir, file) = (
        crabbox_ssh::quote::single(workdir),
        crabbox_ssh::quote::single(remote),
    );
    let failed = |source| RunError::Local {
        path: local.to_owned(),
        source,
    };
    let parent = local
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(failed)?;
    let mut kept = tempfile::NamedTempFile::new_in(parent).map_err(failed)?;
    let mut said = Vec::new();
    let exec = Exec {
        // A regular file and nothing else: a guest may put anything under the name.
        script: format!("cd {dir} && test -f {file} && exec cat -- {file}"),
        stdin: Stdin::Null,
        stdout: Sink::Writer(&mut kept),
        stderr: Sink::Writer(&mut said),
        cancel: None,
        limit: None,
    };
    if exec::run(target, exec)? != RemoteStatus::Exited(0) {
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        let said = if said.is_empty() {
            "it is not a regular file".to_owned()
        } else {
            said
        };
        return Err(RunError::File {
            attempt: "fetch",
            path: remote.to_owned(),
            said,
        });
    }
    let bytes = kept.as_file().metadata().map_err(failed)?.len();
    kept.persist(local).map_err(|error| failed(error.error))?;
    Ok(bytes)
}
