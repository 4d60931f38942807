//! A user's command in a workspace: its directory, its uploaded script, its streams and exit status, the
//! files it leaves.
//!
//! It runs the command in the given directory and passes its streams through; it must never decide whether
//! the tree is up to date or who owns it.

use std::io::Write;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_agent_protocol::{Command, Reply, Request};
use crabbox_core::fault::{Connectivity, Fault, Kind};
use crabbox_host::beneath::{BeneathError, Existing};
use crabbox_host::budget::OverBudget;
use crabbox_host::place::{Place, PlaceError};
use crabbox_ssh::agent_client::{AgentError, Ran, Streams};
use crabbox_ssh::capture::CAPTURE_LIMIT;
pub use crabbox_ssh::command::Form;
use crabbox_ssh::command::{Meaning, UserCommand, UserCommandError, meaning};
use crabbox_ssh::exec::ExecError;
pub use crabbox_ssh::exec::RemoteStatus;
use crabbox_ssh::target::Target;

use crate::files::{self, FetchError, FetchRequest, Fetched};
use crate::owner::{Owner, connectivity, far_hints};
use crate::stream::{Sparse, Words, budget, expect};

/// How long making the directory of a run without a sync may take.
const MKDIR_LIMIT: Duration = Duration::from_mins(2);

/// Why a command could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The command cannot be sent.
    #[error(transparent)]
    Command(#[from] UserCommandError),
    /// It could not be started.
    #[error("cannot run the command in the lease")]
    Exec(#[from] ExecError),
    /// Talking to the lease failed.
    #[error("cannot communicate with the lease")]
    Agent(#[source] AgentError),
    /// The lease could not start it.
    #[error("the command was not started in the lease: {why}")]
    Unstarted {
        /// What the lease said.
        why: String,
    },
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
    /// A file has no valid local place, or could not be put there.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// More data came than may be kept here.
    #[error("{} was not written", path.display())]
    Over {
        /// The file.
        path: PathBuf,
        /// The limit.
        #[source]
        over: OverBudget,
    },
    /// The user interrupted while a file was received.
    #[error("interrupted; {} was not written", path.display())]
    Interrupted {
        /// The file.
        path: PathBuf,
    },
    /// The user interrupted while waiting for the lease for something.
    #[error("interrupted while waiting for the lease")]
    Cancelled,
}

/// The result of one of our own scripts.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) status: RemoteStatus,
    pub(crate) stdout: Vec<u8>,
    said: Words,
}

impl Asked {
    /// The end of its standard error.
    pub(crate) fn said(&self) -> String {
        self.said.text()
    }
}

/// Runs one of our own scripts while a user waits; stops when `cancel` becomes readable. The script appears
/// in an argument vector, which all users can read, so secrets must go into `input`.
pub(crate) fn ask(
    owner: &mut Owner,
    workdir: &str,
    script: &str,
    input: &[u8],
    cancel: BorrowedFd<'_>,
) -> Result<Asked, RemoteError> {
    shell(owner, workdir, &["-c", script], input, cancel)
}

/// Runs a shell with these arguments and this standard input.
fn shell(
    owner: &mut Owner,
    workdir: &str,
    words: &[&str],
    input: &[u8],
    cancel: BorrowedFd<'_>,
) -> Result<Asked, RemoteError> {
    let (mut stdout, mut said) = (Kept::default(), Words::default());
    let command = Command {
        workdir: workdir.to_owned(),
        words: std::iter::once("sh")
            .chain(words.iter().copied())
            .map(str::to_owned)
            .collect(),
        env: Vec::new(),
        tells: String::new(),
        input: true,
        noted: false,
    };
    let streams = Streams {
        out: &mut stdout,
        err: &mut said,
    };
    match owner.far().run(command, Some(input), streams, Some(cancel))? {
        Ran::Ended {
            status: RemoteStatus::Cancelled { .. },
            ..
        } => Err(RemoteError::Cancelled),
        Ran::Ended { status, .. } => Ok(Asked {
            status,
            stdout: stdout.0,
            said,
        }),
        Ran::Unstarted { why, .. } => Err(RemoteError::Unstarted { why }),
    }
}

/// The output of one of our own scripts, up to the limit.
#[derive(Debug, Default)]
pub(crate) struct Kept(pub(crate) Vec<u8>);

impl std::io::Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let room = CAPTURE_LIMIT.saturating_sub(self.0.len());
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl From<AgentError> for RemoteError {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::Cancelled => Self::Cancelled,
            error => Self::Agent(error),
        }
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
            Self::Exec(_)
            | Self::Agent(_)
            | Self::Unstarted { .. }
            | Self::Workdir { .. }
            | Self::File { .. }
            | Self::Over { .. } => Kind::Remote,
            Self::Interrupted { .. } | Self::Cancelled => Kind::Passthrough(130),
        }
    }

    fn connectivity(&self) -> Option<Connectivity> {
        connectivity(self)
    }

    fn hints(&self) -> Vec<String> {
        far_hints(self)
    }
}

/// A command and its surroundings.
pub struct Job<'a> {
    /// Where to run it.
    pub workdir: String,
    /// Variables to export; their values never stand in an argument vector.
    pub env: Vec<(String, String)>,
    /// Shell lines that run before anything else; empty for none.
    pub before: String,
    /// The command.
    pub form: Form,
    /// Where its standard output goes.
    pub stdout: &'a mut (dyn Write + Send),
    /// Where its standard error goes.
    pub stderr: &'a mut (dyn Write + Send),
    /// Becomes readable when the command is to be stopped.
    pub cancel: BorrowedFd<'a>,
}

impl std::fmt::Debug for Job<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Job")
            .field("workdir", &self.workdir)
            .finish_non_exhaustive()
    }
}

/// Checks whether such a command with these variables can be sent, before there is a lease.
pub fn check(form: Form, env: Vec<(String, String)>) -> Result<(), RemoteError> {
    let workdir = "/".to_owned();
    Ok(UserCommand { workdir, env, form }.check()?)
}

/// Runs the command.
pub fn command(owner: &mut Owner, job: Job<'_>) -> Result<RemoteStatus, RemoteError> {
    let Job {
        workdir,
        env,
        before,
        form,
        stdout,
        stderr,
        cancel,
    } = job;
    let command = UserCommand { workdir, env, form }.prepared()?;
    if !before.is_empty() {
        // It contains values, so it is sent over standard input, not in the arguments.
        let prepared = shell(owner, &command.workdir, &["-s"], before.as_bytes(), cancel)?;
        if prepared.status != RemoteStatus::Exited(0) {
            stderr.write_all(prepared.said().as_bytes()).ok();
            return Ok(prepared.status);
        }
    }
    let streams = Streams {
        out: stdout,
        err: &mut *stderr,
    };
    match meaning(owner.far().run(command, None, streams, Some(cancel))?) {
        Meaning::Ended(status, said) => {
            if let Some(said) = said {
                // If the stream takes no more, a worse error was already reported.
                stderr.write_all(said.as_bytes()).ok();
            }
            Ok(status)
        }
        Meaning::Unstarted(why) => Err(RemoteError::Unstarted { why }),
    }
}

/// Creates the directory for a run without a sync.
pub fn make_workdir(owner: &mut Owner, workdir: &str) -> Result<(), RemoteError> {
    let is_making = owner.is_making(workdir);
    let far = owner.far();
    far.limit(Some(MKDIR_LIMIT));
    let dir = workdir.to_owned();
    let asked = if is_making {
        Ok(())
    } else {
        far.ask(&Request::Make { dir })
    };
    let made = asked.and_then(|()| far.reply());
    far.limit(None);
    match made {
        Ok(Reply::Made {}) => Ok(()),
        Ok(other) => Err(owner.far().out_of_order(&other).into()),
        Err(AgentError::Failed { why }) => Err(RemoteError::Workdir {
            workdir: workdir.to_owned(),
            said: why,
        }),
        Err(error) => Err(error.into()),
    }
}

/// Uploads a script; returns its path relative to the workdir.
pub fn upload_script(
    owner: &mut Owner,
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
    let file = crabbox_ssh::quote::single(&path);
    let script = format!("mkdir -p .crabbox/scripts && umask 077 && cat > {file} && chmod 700 {file}");
    let done = ask(owner, workdir, &script, content, cancel)?;
    if done.status == RemoteStatus::Exited(0) {
        Ok(path)
    } else {
        Err(RemoteError::File {
            attempt: "upload",
            path,
            said: done.said(),
        })
    }
}

/// The local path of a download that the user named `local`, relative to `cwd`: with a trailing slash or an
/// existing directory, the file goes into it under its own name, as with `cp`.
pub fn destination(cwd: &Path, remote: &str, local: &Path) -> PathBuf {
    let is_directory = local.as_os_str().as_bytes().ends_with(b"/") || cwd.join(local).is_dir();
    match Path::new(remote).file_name() {
        Some(name) if is_directory => local.join(name),
        _ => local.to_owned(),
    }
}

/// Fetches one file of the workdir to its place; returns its size in bytes. An executable file stays
/// executable. A path that begins with `~/` is in the home directory of the lease's user, as with `cp`.
///
/// An existing file stays intact unless the whole new file arrived.
pub fn download(
    owner: &mut Owner,
    target: &Target,
    workdir: &str,
    remote: &str,
    place: &Place,
) -> Result<u64, RemoteError> {
    let path = place.path();
    let failed = |source| RemoteError::Local {
        path: path.clone(),
        source,
    };
    let fetch = |said| RemoteError::File {
        attempt: "fetch",
        path: remote.to_owned(),
        said,
    };
    let mut placing = place.begin()?;
    let mut budget = budget(target, placing.file()).map_err(failed)?;
    let (mut came, mut problem) = (None, None);
    let (dir, name) = match remote.strip_prefix("~/").map(|name| name.trim_start_matches('/')) {
        Some(name) if !name.is_empty() => ("~", name),
        _ => (workdir, remote),
    };
    let wanted = FetchRequest {
        dir,
        names: &[name.as_bytes().to_vec()],
        follow: true,
        within: false,
        limit: None,
    };
    let mut sparse = Sparse::of(&budget);
    let file = &*placing.file();
    let fetched = files::fetch(owner.far(), &wanted, &mut |event| match event {
        Fetched::Begins(begun) => {
            came = Some(begun.clone());
            expect(&budget, begun.size)
        }
        Fetched::Piece(piece) => sparse.take(file, &mut budget, piece),
        Fetched::Problem { text, lost, .. } => {
            // A file that was still being written arrived as it was.
            if lost {
                problem = Some(text.to_owned());
            }
            Ok(())
        }
    });
    let fetched = fetched.and_then(|()| sparse.finish(file).map_err(FetchError::Sink));
    match fetched {
        Ok(()) => {}
        Err(FetchError::Agent(AgentError::Cancelled)) => return Err(RemoteError::Interrupted { path }),
        Err(FetchError::Agent(AgentError::Failed { why })) => return Err(fetch(why)),
        Err(FetchError::Agent(error)) => return Err(error.into()),
        Err(FetchError::Sink(source)) => match OverBudget::of(&source) {
            Some(over) => return Err(RemoteError::Over { path, over }),
            None => return Err(failed(source)),
        },
    }
    match (came, problem) {
        (Some(begun), None) => {
            if begun.mode & 0o111 != 0 {
                placing.make_executable()?;
            }
            placing.commit(Existing::Replace)?;
            Ok(begun.size)
        }
        (_, problem) => Err(fetch(problem.unwrap_or_else(|| "it did not come".to_owned()))),
    }
}
