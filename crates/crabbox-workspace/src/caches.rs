//! The caches of a lease: what package managers and Docker keep in it outside the working tree. They are
//! measured and emptied in the lease.
//!
//! Their paths are the Go program's convention. Nothing here may follow a link out of a cache, or remove the
//! cache's own directory, which belongs to the machine's setup.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use crabbox_agent_protocol::{Command, Reply, Request};
use crabbox_ssh::agent_client::{AgentClient, AgentError, Ran, Streams};
use crabbox_ssh::exec::RemoteStatus;
use crabbox_ssh::target::Target;

use crate::command::{Kept, RemoteError};
use crate::stream::Words;

/// The directory of the caches in a lease.
const ROOT: &str = "/var/cache/crabbox";

/// The name in messages of the cache without a known directory.
const DOCKER: &str = "what Docker keeps";

/// How long measuring may take; a large cache has millions of files.
const MEASURE_LIMIT: Duration = Duration::from_mins(10);

/// A kind of cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheKind {
    /// pnpm's store.
    Pnpm,
    /// npm's cache.
    Npm,
    /// Shared git objects.
    Git,
    /// Docker's images, containers and layers.
    Docker,
}

impl CacheKind {
    /// All kinds, in display order.
    pub const ALL: [Self; 4] = [Self::Pnpm, Self::Npm, Self::Git, Self::Docker];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pnpm => "pnpm",
            Self::Npm => "npm",
            Self::Git => "git",
            Self::Docker => "docker",
        }
    }

    /// The kind with this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// One cache of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEntry {
    /// Its name.
    pub kind: String,
    /// Its directory; empty if it has none.
    pub path: String,
    /// Its disk usage in bytes; `None` if that is unknown.
    pub bytes: Option<u64>,
    /// What its own program reports about it; empty for a directory.
    pub note: String,
}

/// Measures `kinds` in the lease; absent caches are left out.
pub fn measure(
    target: &Target,
    kinds: &[CacheKind],
    cancel: BorrowedFd<'_>,
) -> Result<Vec<CacheEntry>, RemoteError> {
    if kinds.is_empty() {
        return Ok(Vec::new());
    }
    let mut far = AgentClient::open(target, Some(cancel))?;
    far.limit(Some(MEASURE_LIMIT));
    let mut found = Vec::new();
    for kind in kinds {
        let name = kind.name().to_owned();
        if *kind == CacheKind::Docker {
            let ran = docker(&mut far, DISK_USE, cancel)?;
            if matches!(ran.status, RemoteStatus::Exited(code) if code != ABSENT) {
                found.push(CacheEntry {
                    kind: name,
                    path: String::new(),
                    bytes: None,
                    note: note(&ran.output),
                });
            }
            continue;
        }
        let path = format!("{ROOT}/{name}");
        let asked = far.ask(&Request::Size { dir: path.clone() });
        match asked.and_then(|()| far.reply()) {
            Ok(Reply::Sized { found: false, .. }) => {}
            Ok(Reply::Sized { found: true, bytes }) => found.push(CacheEntry {
                kind: name,
                path,
                bytes: Some(bytes),
                note: String::new(),
            }),
            Ok(other) => return Err(far.out_of_order(&other).into()),
            Err(error) => return Err(failed("measure", ROOT, error)),
        }
    }
    far.leave();
    Ok(found)
}

/// Empties `kinds` in the lease. Stops at the first failure.
pub fn purge(target: &Target, kinds: &[CacheKind], cancel: BorrowedFd<'_>) -> Result<(), RemoteError> {
    if kinds.is_empty() {
        return Ok(());
    }
    let mut far = AgentClient::open(target, Some(cancel))?;
    for kind in kinds {
        if *kind == CacheKind::Docker {
            let ran = docker(&mut far, PRUNE, cancel)?;
            if matches!(ran.status, RemoteStatus::Exited(0 | ABSENT)) {
                continue;
            }
            let why = ran.errors;
            return Err(failed("empty", DOCKER, AgentError::Failed { why }));
        }
        let dir = format!("{ROOT}/{}", kind.name());
        let asked = far.ask(&Request::Clear { dir });
        match asked.and_then(|()| far.reply()) {
            Ok(Reply::Cleared {}) => {}
            Ok(other) => return Err(far.out_of_order(&other).into()),
            Err(error) => return Err(failed("empty", ROOT, error)),
        }
    }
    far.leave();
    Ok(())
}

/// The exit code of our scripts if there is no Docker.
const ABSENT: u8 = 71;

/// Prints Docker's disk usage, one `type=size` line each.
const DISK_USE: &str = "command -v docker >/dev/null 2>&1 || exit 71; docker system df --format '{{.Type}}={{.Size}}' 2>/dev/null";

/// Removes what Docker does not use.
const PRUNE: &str = "command -v docker >/dev/null 2>&1 || exit 71; docker system prune -af >/dev/null";

/// How a Docker script ended.
struct DockerRun {
    status: RemoteStatus,
    output: Vec<u8>,
    /// The end of its standard error.
    errors: String,
}

/// Runs a Docker script.
fn docker(far: &mut AgentClient, script: &str, cancel: BorrowedFd<'_>) -> Result<DockerRun, RemoteError> {
    let command = Command {
        workdir: "/".to_owned(),
        words: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: Vec::new(),
        tells: String::new(),
        input: false,
        noted: false,
    };
    let (mut printed, mut stderr) = (Kept::default(), Words::default());
    let streams = Streams {
        out: &mut printed,
        err: &mut stderr,
    };
    match far.run(command, None, streams, Some(cancel))? {
        Ran::Ended {
            status: RemoteStatus::Cancelled { .. },
            ..
        } => Err(RemoteError::Cancelled),
        Ran::Ended { status, .. } => Ok(DockerRun {
            status,
            output: printed.0,
            errors: stderr.text(),
        }),
        Ran::Unstarted { why, .. } => Err(RemoteError::Unstarted { why }),
    }
}

/// The lines of a text, joined with commas.
fn note(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    lines.join(",")
}

fn failed(attempt: &'static str, what: &str, error: AgentError) -> RemoteError {
    match error {
        AgentError::Failed { why } => RemoteError::File {
            attempt,
            path: what.to_owned(),
            said: why,
        },
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use crabbox_host::command::Cmd;

    /// Runs `script` with a fake Docker if `any`, which records its arguments.
    fn run(script: &str, any: bool) -> (Option<i32>, String, String) {
        let dir = tempfile::tempdir().unwrap();
        let asked = dir.path().join("asked");
        if any {
            let said = format!(
                "#!/bin/sh\necho \"$*\" >> {}\n[ \"$2\" = prune ] || printf 'Images=2GB\\nContainers=0B\\n'\n",
                asked.display()
            );
            let docker = dir.path().join("docker");
            fs::write(&docker, said).unwrap();
            fs::set_permissions(&docker, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let done = Cmd::new("/bin/sh")
            .args(["-c", script])
            .env("PATH", dir.path())
            .capture()
            .unwrap();
        let asked = fs::read_to_string(asked).unwrap_or_default();
        (done.status.code(), note(&done.stdout), asked)
    }

    #[test]
    fn a_failure_names_the_cache_that_it_is_of() {
        let why = "Cannot connect to the Docker daemon".to_owned();
        assert_eq!(
            failed("empty", DOCKER, AgentError::Failed { why }).to_string(),
            "cannot empty what Docker keeps in the lease: Cannot connect to the Docker daemon"
        );
    }

    #[test]
    fn docker_is_asked_where_there_is_one() {
        assert_eq!(
            run(DISK_USE, false),
            (Some(ABSENT.into()), String::new(), String::new())
        );
        assert_eq!(
            run(PRUNE, false),
            (Some(ABSENT.into()), String::new(), String::new())
        );
        let (code, said, _) = run(DISK_USE, true);
        assert_eq!((code, said.as_str()), (Some(0), "Images=2GB,Containers=0B"));
        let (code, said, asked) = run(PRUNE, true);
        assert_eq!(
            (code, said.as_str(), asked.as_str()),
            (Some(0), "", "system prune -af\n")
        );
    }
}
