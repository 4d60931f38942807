//! A user's command in a workspace: its directory, its uploaded script, its streams and exit status, the files it leaves.
//!
//! It runs where it is told to and hands through what comes; it must never decide whether the tree is up to date or whose it is.

use std::io::Read as _;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

use crabbox_core::fault::{Fault, Kind};
use crabbox_host::beneath::{BeneathError, Existing};
use crabbox_host::budget::{FillError, OverBudget, fill};
use crabbox_host::place::{Place, PlaceError};
use crabbox_ssh::capture::{self, Captured};
pub use crabbox_ssh::command::Form;
use crabbox_ssh::command::{UserCommand, UserCommandError};
use crabbox_ssh::exec::{self, Exec, ExecError, Stdin};
pub use crabbox_ssh::exec::{RemoteStatus, Sink};
use crabbox_ssh::target::Target;

use crate::stream::{budget, stream};

/// How long making the directory of a run without a sync may take.
const MKDIR_LIMIT: Duration = Duration::from_mins(2);

/// Why a command could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
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
    /// A file has no place here, or could not be put there.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// More came than may be kept here.
    #[error("{} was not written", path.display())]
    Over {
        /// The file.
        path: PathBuf,
        /// The limit.
        #[source]
        over: OverBudget,
    },
    /// The user interrupted while a file came.
    #[error("interrupted; {} was not written", path.display())]
    Interrupted {
        /// The file.
        path: PathBuf,
    },
    /// The user interrupted while the lease was asked for something.
    #[error("interrupted while the lease was asked")]
    Cancelled,
}

/// Runs a call of ours that a user waits for; stops when `cancel` becomes readable.
pub(crate) fn ask(
    target: &Target,
    script: &str,
    stdin: Stdin<'_>,
    limit: Option<Duration>,
    cancel: BorrowedFd<'_>,
) -> Result<Captured, RemoteError> {
    let answer = capture::capture_until(target, script, stdin, limit, Some(cancel))?;
    match answer.status {
        RemoteStatus::Cancelled { .. } => Err(RemoteError::Cancelled),
        _ => Ok(answer),
    }
}

impl From<BeneathError> for RemoteError {
    fn from(error: BeneathError) -> Self {
        Self::Place(error.into())
    }
}

impl Fault for RemoteError {
    fn kind(&self) -> Kind {
        match self {
            Self::Command(_) | Self::Local { .. } | Self::Place(_) => Kind::Usage,
            Self::Exec(_) | Self::Workdir { .. } | Self::File { .. } | Self::Over { .. } => Kind::Remote,
            Self::Interrupted { .. } | Self::Cancelled => Kind::Passthrough(130),
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
pub fn command(target: &Target, job: Job<'_>) -> Result<RemoteStatus, RemoteError> {
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
pub fn make_workdir(target: &Target, workdir: &str, cancel: BorrowedFd<'_>) -> Result<(), RemoteError> {
    let script = format!("mkdir -p -- {}", crabbox_ssh::quote::single(workdir));
    let made = ask(target, &script, Stdin::Null, Some(MKDIR_LIMIT), cancel)?;
    if made.success() {
        Ok(())
    } else {
        Err(RemoteError::Workdir {
            workdir: workdir.to_owned(),
            said: made.stderr_text(),
        })
    }
}

/// Uploads a script; returns its path relative to the workdir.
pub fn upload_script(
    target: &Target,
    workdir: &str,
    name: &str,
    content: &[u8],
    cancel: BorrowedFd<'_>,
) -> Result<String, RemoteError> {
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
    let done = ask(target, &script, Stdin::Bytes(content), Some(MKDIR_LIMIT), cancel)?;
    if done.success() {
        Ok(path)
    } else {
        Err(RemoteError::File {
            attempt: "upload",
            path,
            said: done.stderr_text(),
        })
    }
}

/// Fetches one file of the workdir into its place; returns how many bytes it had. A program stays one.
///
/// What was there before stays whole unless all of the file came. Stops when `cancel` becomes readable.
pub fn download(
    target: &Target,
    workdir: &str,
    remote: &str,
    place: &Place,
    cancel: BorrowedFd<'_>,
) -> Result<u64, RemoteError> {
    let (dir, file) = (
        crabbox_ssh::quote::single(workdir),
        crabbox_ssh::quote::single(remote),
    );
    let path = place.path();
    let failed = |source| RemoteError::Local {
        path: path.clone(),
        source,
    };
    let mut placing = place.begin()?;
    let mut budget = budget(target, placing.file()).map_err(failed)?;
    // A regular file and nothing else: a guest may put anything under the name. The first byte says whether it is a program.
    let script = format!(
        "cd {dir} && test -f {file} && if test -x {file}; then printf x; else printf r; fi && exec cat -- {file}"
    );
    let to = &*placing.file();
    let streamed = stream(target, script, Stdin::Null, Some(cancel), |mut from| {
        let mut first = [0];
        from.read_exact(&mut first).map_err(FillError::Read)?;
        fill(&mut from, to, 0, &mut budget).map(|bytes| (bytes, first == *b"x"))
    })
    .map_err(failed)?;
    match (streamed.taken, streamed.status) {
        (Err(FillError::Write(source)), _) => Err(failed(source)),
        (Err(FillError::Over(over)), _) => Err(RemoteError::Over { path, over }),
        (_, Ok(RemoteStatus::Cancelled { .. })) => Err(RemoteError::Interrupted { path }),
        (Ok((bytes, is_program)), Ok(RemoteStatus::Exited(0))) => {
            if is_program {
                placing.make_executable()?;
            }
            placing.commit(Existing::Replace)?;
            Ok(bytes)
        }
        (_, Err(error)) => Err(error.into()),
        (_, Ok(status)) => {
            let said = streamed.said.text();
            let said = match status {
                RemoteStatus::ConnectionLost => "the connection was lost".to_owned(),
                _ if said.is_empty() => "it is not a regular file".to_owned(),
                _ => said,
            };
            Err(RemoteError::File {
                attempt: "fetch",
                path: remote.to_owned(),
                said,
            })
        }
    }
}
