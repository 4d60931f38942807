//! The repository in the lease: the local commit, branch and staged changes, from local objects only.
//!
//! It needs no internet and no credentials in the lease: a pack of the commit's tree goes through the sync's own
//! conversation. Hooks and configuration stay here, except for the origin's URL without credentials. It must never fail a
//! sync, and never write to the local repository.

use std::collections::BTreeSet;
use std::io::{Read, Write as _};
use std::process::Stdio;

use crabbox_host::command::{Cmd, CommandError};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::agent::{AgentError, Reply, Session};
use crate::entry::hex;
use crate::git::git;
use crate::manifest::Manifest;

/// What the repository in the lease is to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Seed {
    /// Stands for all of it; equal means the lease's repository needs nothing.
    pub(crate) id: String,
    /// The commit, hex; empty on an unborn branch.
    head: String,
    /// The branch; empty when detached.
    branch: String,
    /// The origin's URL; empty when there is none or it carries credentials.
    origin: String,
}

/// Why the repository could not be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeedError {
    /// A git of ours failed.
    #[error("cannot pack the commit {head}")]
    Pack {
        head: String,
        #[source]
        source: CommandError,
    },
    /// It could not be read.
    #[error("cannot read the pack of the commit {head}")]
    Read {
        head: String,
        #[source]
        source: std::io::Error,
    },
    /// The far side gave no answer.
    #[error("no answer from the lease")]
    Answer {
        #[source]
        source: AgentError,
    },
}

/// An error and what caused it, on one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl Seed {
    pub(crate) fn of(manifest: &Manifest) -> Self {
        let repo = &manifest.repo;
        let origin = repo
            .origin
            .clone()
            .filter(|url| !has_credentials(url))
            .unwrap_or_default();
        let mut seed = Self {
            id: String::new(),
            head: repo.head.clone().unwrap_or_default(),
            branch: repo.branch.clone().unwrap_or_default(),
            origin,
        };
        let mut hash = Sha256::new();
        for part in [&seed.head, &seed.branch, &seed.origin] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        hash.update(index_info(manifest));
        seed.id = hex(&hash.finalize()[..16]);
        seed
    }

    /// Sends what the lease lacks, given the commit it has, and gets its answer.
    pub(crate) fn send(
        &self,
        manifest: &Manifest,
        have: &str,
        session: &mut Session,
    ) -> Result<Reply, SeedError> {
        let objects = self.objects(manifest, have)?;
        session.send(b"seed\n");
        session.send_counted(&index_info(manifest));
        // Once the far side waits for frames it must get the last one, whatever happens here.
        let packed = if objects.is_empty() {
            Ok(())
        } else {
            self.pack(manifest, &objects, session)
        };
        session.send(b"0\n");
        let reply = session.reply().map_err(|source| SeedError::Answer { source })?;
        packed.map(|()| reply)
    }

    /// The objects of the commit and of the staged changes that the commit `have` does not bring, one a line.
    fn objects(&self, manifest: &Manifest, have: &str) -> Result<Vec<u8>, SeedError> {
        let mut wanted = BTreeSet::new();
        if !self.head.is_empty() && self.head != have {
            let known = !have.is_empty()
                && have.bytes().all(|byte| byte.is_ascii_hexdigit())
                && self
                    .run(&git(&manifest.root).args(["cat-file", "-e", &format!("{have}^{{tree}}")]))
                    .is_ok();
            let mut list = git(&manifest.root).args(["rev-list", "--objects", "--no-object-names"]);
            list = list.arg(format!("{}^{{tree}}", self.head));
            if known {
                list = list.arg(format!("^{have}^{{tree}}"));
            }
            wanted.insert(self.head.clone());
            let listed = self.run(&list)?;
            wanted.extend(String::from_utf8_lossy(&listed).lines().map(str::to_owned));
        }
        let staged = manifest.staged.iter().filter(|staged| staged.mode != "000000");
        wanted.extend(staged.map(|staged| staged.object.clone()));
        Ok(wanted
            .into_iter()
            .flat_map(|object| [object, "\n".to_owned()])
            .collect::<String>()
            .into_bytes())
    }

    fn run(&self, cmd: &Cmd) -> Result<Vec<u8>, SeedError> {
        let done = cmd.run().map_err(|source| SeedError::Pack {
            head: self.head.clone(),
            source,
        })?;
        Ok(done.stdout)
    }

    /// Streams a pack of `objects` in counted frames.
    fn pack(&self, manifest: &Manifest, objects: &[u8], session: &mut Session) -> Result<(), SeedError> {
        let cmd = git(&manifest.root).args(["pack-objects", "--stdout", "--quiet", "--delta-base-offset"]);
        let mut command = cmd.to_std();
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let failed = |source| SeedError::Pack {
            head: self.head.clone(),
            source,
        };
        let mut child = cmd.spawn(&mut command).map_err(failed)?;
        let read = |source| SeedError::Read {
            head: self.head.clone(),
            source,
        };
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let sent = std::thread::scope(|scope| {
            if let Some(mut pipe) = stdin {
                // If git ends early its exit code tells.
                scope.spawn(move || pipe.write_all(objects).ok());
            }
            let Some(mut stream) = stdout else { return Ok(()) };
            let mut frame = vec![0; 256 * 1024];
            loop {
                match stream.read(&mut frame).map_err(read)? {
                    0 => return Ok(()),
                    count => session.send_counted(&frame[..count]),
                }
            }
        });
        let status = child.wait().map_err(read)?;
        sent?;
        if status.success() {
            return Ok(());
        }
        Err(failed(CommandError::Failed {
            program: "git".to_owned(),
            args: cmd.argv(),
            status,
            stderr: String::new(),
        }))
    }
}

/// The staged changes as `git update-index -z --index-info` reads them: `<mode> SP <object> TAB <path>`.
fn index_info(manifest: &Manifest) -> Vec<u8> {
    let mut info = Vec::new();
    for staged in &manifest.staged {
        let mode = if staged.mode == "000000" {
            "0"
        } else {
            &staged.mode
        };
        info.extend_from_slice(format!("{mode} {}\t", staged.object).as_bytes());
        info.extend_from_slice(&staged.path);
        info.push(0);
    }
    info
}

/// Whether a URL holds a user's secret: `https://user:token@host` or `https://token@host`.
fn has_credentials(url: &str) -> bool {
    url.split_once("://")
        .and_then(|(scheme, rest)| rest.split('/').next().map(|host| (scheme, host)))
        .and_then(|(scheme, host)| host.rsplit_once('@').map(|(user, _)| (scheme, user)))
        .is_some_and(|(scheme, user)| user.contains(':') || scheme.starts_with("http"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_with_a_secret_is_known() {
        for secret in [
            "https://me:token@h.invalid/x",
            "https://token@h.invalid/x",
            "ssh://me:pw@h.invalid/x",
        ] {
            assert!(has_credentials(secret), "{secret}");
        }
        for plain in [
            "https://h.invalid/x@y",
            "ssh://git@h.invalid/x",
            "git@h.invalid:x",
            "/srv/x",
        ] {
            assert!(!has_credentials(plain), "{plain}");
        }
    }
}
