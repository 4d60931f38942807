//! The repository in the lease: gets the local commit, branch and staged changes, from local objects only.
//!
//! It needs no internet and no credentials in the lease: a pack of the commit's tree is sent over the sync's
//! own conversation. Hooks and configuration stay here, except for the origin's URL without credentials and
//! the settings that decide whether a file counts as unchanged. It must never fail a sync, never write to the
//! local repository, and never send anything that would make git run a program.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::{Read, Write as _};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread::JoinHandle;

use crabbox_agent_protocol as wire;
use crabbox_agent_protocol::{Reply, Request};
use crabbox_core::id::hex;
use crabbox_host::command::{Cmd, CommandError};
use crabbox_ssh::agent_client::{AgentClient, AgentError};
use sha2::{Digest as _, Sha256};

use crate::base::{Base, Span};
use crate::git::unreplaced_git;
use crate::listing::Staged;
use crate::manifest::Manifest;
use crate::mark;

/// What the repository in the lease already has.
#[derive(Debug, Default)]
pub(crate) struct SeedState {
    /// The commit that it has from the last seed, hex, or empty.
    pub(crate) have: String,
    /// The base that it was given then, hex, or empty.
    pub(crate) have_base: String,
}

/// The state that the repository in the lease is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seed {
    /// Identifies all of it; if it is unchanged, the lease's repository needs nothing.
    pub(crate) id: String,
    /// The commit, hex; empty on an unborn branch.
    head: String,
    /// The branch; empty when detached.
    branch: String,
    /// The URL of the origin without secrets; empty when there is none.
    origin: String,
    /// What the branch is based on, with the history up to there.
    base: Option<Base>,
}

/// Why the repository could not be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeedError {
    /// A local git failed.
    #[error("cannot pack the commit {head}")]
    Pack {
        head: String,
        #[source]
        source: CommandError,
    },
    /// The pack could not be read.
    #[error("cannot read the pack of the commit {head}")]
    Read {
        head: String,
        #[source]
        source: std::io::Error,
    },
    /// The lease did not answer.
    #[error("no answer from the lease")]
    Answer {
        #[source]
        source: AgentError,
    },
}

impl Seed {
    pub(crate) fn of(manifest: &Manifest, base: Option<Base>) -> Self {
        let repo = &manifest.repo;
        let origin = repo.origin.as_ref().map(ToString::to_string).unwrap_or_default();
        let mut seed = Self {
            id: String::new(),
            head: repo.head.clone().unwrap_or_default(),
            branch: repo.branch.clone().unwrap_or_default(),
            origin,
            // A branch without a commit has no base.
            base: base.filter(|_| repo.head.is_some()),
        };
        let mut hash = Sha256::new();
        for part in [&seed.head, &seed.branch, &seed.origin] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        for part in Self::parts(manifest) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        if let Some(base) = &seed.base {
            hash.update(b"base\0");
            for part in base.refs.iter().chain([&base.id]) {
                hash.update(part.as_bytes());
                hash.update([0]);
            }
        }
        seed.id = hex(&hash.finalize()[..16]);
        seed
    }

    /// What is sent before the pack: the staged changes, the flags of the index, the settings and the
    /// attributes.
    fn parts(manifest: &Manifest) -> [Cow<'_, [u8]>; 4] {
        [
            index_info(manifest).into(),
            mark::encode(&manifest.marks).into(),
            manifest.settings.as_slice().into(),
            manifest.attributes.as_slice().into(),
        ]
    }

    /// Begins to pack the objects that the lease lacks, given the commits it has.
    pub(crate) fn pack(&self, manifest: &Manifest, state: &SeedState) -> Packing {
        // A submodule's commit is an object of another repository, and the object of an empty file need not
        // exist.
        let packed = |staged: &&Staged| !(staged.is_removal() || staged.intended || staged.mode == "160000");
        let staged = manifest.staged.iter().filter(packed);
        let wish = Wish {
            root: manifest.root.clone(),
            head: self.head.clone(),
            base: self.base.as_ref().map(|base| base.id.clone()),
            have: state.have.clone(),
            have_base: state.have_base.clone(),
            staged: staged.map(|staged| staged.object.clone()).collect(),
        };
        Packing {
            packer: Some(std::thread::spawn(move || wish.pack())),
        }
    }

    /// Sends it, and returns the reply.
    pub(crate) fn send(
        &self,
        manifest: &Manifest,
        packing: Packing,
        far: &mut AgentClient,
    ) -> Result<Reply, SeedError> {
        let Packed { packer, roots } = packing.begun()?;
        let answer = |source| SeedError::Answer { source };
        far.ask(&Request::Pack {}).map_err(answer)?;
        for part in Self::parts(manifest) {
            far.send_list(&part).map_err(answer)?;
        }
        far.send_list(&lines(&roots)).map_err(answer)?;
        // Once the agent waits for a pack, it must get the end of it, whatever happens here.
        let packed = packer.map_or(Ok(()), |packer| self.stream(packer, far));
        far.ask(&Request::End {}).map_err(answer)?;
        let reply = far.reply().map_err(answer)?;
        packed.map(|()| reply)
    }

    /// The form that is sent to the lease.
    pub(crate) fn wire(&self) -> wire::Seed {
        wire::Seed {
            id: self.id.clone(),
            head: self.head.clone(),
            branch: self.branch.clone(),
            origin: self.origin.clone(),
            base: self.base.as_ref().map(|base| wire::Base {
                id: base.id.clone(),
                refs: base.refs.clone(),
            }),
        }
    }

    /// Sends a pack in chunks.
    fn stream(&self, mut packer: Packer, far: &mut AgentClient) -> Result<(), SeedError> {
        let read = |source| SeedError::Read {
            head: self.head.clone(),
            source,
        };
        let mut frame = vec![0; wire::PIECE];
        if let Some(mut stream) = packer.child.stdout.take() {
            loop {
                match stream.read(&mut frame).map_err(read)? {
                    0 => break,
                    count => far
                        .send(&frame[..count])
                        .map_err(|source| SeedError::Answer { source })?,
                }
            }
        }
        let status = packer.child.wait().map_err(read)?;
        if status.success() {
            return Ok(());
        }
        Err(SeedError::Pack {
            head: self.head.clone(),
            source: CommandError::Failed {
                program: "git".to_owned(),
                args: std::mem::take(&mut packer.argv),
                status,
                stderr: String::new(),
            },
        })
    }
}

/// A pack that is made while files are sent, so that it is ready (up to the size of a pipe) when it is
/// needed.
#[derive(Debug)]
pub(crate) struct Packing {
    packer: Option<JoinHandle<Result<Packed, SeedError>>>,
}

/// What goes to the lease.
#[derive(Debug, Default)]
struct Packed {
    /// The git that packs, unless there is nothing to pack.
    packer: Option<Packer>,
    /// Commits that are to have no parents in the lease.
    roots: BTreeSet<String>,
}

impl Packing {
    fn begun(mut self) -> Result<Packed, SeedError> {
        match self.packer.take() {
            Some(packer) => packer
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            None => Ok(Packed::default()),
        }
    }
}

impl Drop for Packing {
    /// No git process may outlive its sync.
    fn drop(&mut self) {
        // The result no longer matters, because the sync has failed.
        drop(self.packer.take().map(JoinHandle::join));
    }
}

/// The git that packs.
#[derive(Debug)]
struct Packer {
    child: Child,
    argv: Vec<std::ffi::OsString>,
}

impl Drop for Packer {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What is to be packed.
struct Wish {
    root: PathBuf,
    head: String,
    base: Option<String>,
    /// The commits that the lease has from the last sync; empty if it has none.
    have: String,
    have_base: String,
    /// Objects of staged changes.
    staged: Vec<String>,
}

impl Wish {
    fn pack(&self) -> Result<Packed, SeedError> {
        let (objects, roots) = self.objects()?;
        if objects.is_empty() {
            return Ok(Packed { packer: None, roots });
        }
        let objects = lines(&objects);
        let cmd =
            unreplaced_git(&self.root).args(["pack-objects", "--stdout", "--quiet", "--delta-base-offset"]);
        let mut command = cmd.to_std();
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let child = cmd.spawn(&mut command).map_err(|source| self.failed(source))?;
        let mut packer = Packer {
            child,
            argv: cmd.argv(),
        };
        if let Some(mut pipe) = packer.child.stdin.take() {
            // If git ends early, its exit code shows it.
            std::thread::spawn(move || pipe.write_all(&objects).ok());
        }
        Ok(Packed {
            packer: Some(packer),
            roots,
        })
    }

    /// The objects of commits and staged changes that the lease does not have, and the commits that are to
    /// have no parents there.
    fn objects(&self) -> Result<(BTreeSet<String>, BTreeSet<String>), SeedError> {
        let span = match &self.base {
            Some(base) => self.span(&self.head, base)?,
            None => Span::default(),
        };
        let mut wanted = span.commits;
        if !self.head.is_empty() && self.head != self.have {
            wanted.insert(self.head.clone());
        }
        let known: Vec<&String> = [&self.have, &self.have_base]
            .into_iter()
            .filter(|commit| self.has(commit))
            .collect();
        if self.base.is_some()
            && let [have, have_base] = known.as_slice()
        {
            // The lease has the history of these two commits, as this repository does.
            let theirs = self.span(have, have_base)?;
            wanted.retain(|commit| !theirs.commits.contains(commit));
        }
        if !wanted.is_empty() {
            let trees = wanted.iter().map(|commit| format!("{commit}^{{tree}}\n"));
            let not = known.iter().map(|commit| format!("^{commit}^{{tree}}\n"));
            let list = unreplaced_git(&self.root)
                .args(["rev-list", "--objects", "--no-object-names", "--stdin"])
                .stdin(trees.chain(not).collect::<String>());
            let listed = self.run(&list)?;
            wanted.extend(String::from_utf8_lossy(&listed).lines().map(str::to_owned));
        }
        wanted.extend(self.staged.iter().cloned());
        Ok((wanted, span.roots))
    }

    fn span(&self, head: &str, base: &str) -> Result<Span, SeedError> {
        Span::of(&self.root, head, base).map_err(|source| self.failed(source))
    }

    /// Whether this repository also has `commit`, which the lease reported.
    fn has(&self, commit: &str) -> bool {
        !commit.is_empty()
            && commit.bytes().all(|byte| byte.is_ascii_hexdigit())
            && self
                .run(&unreplaced_git(&self.root).args(["cat-file", "-e", &format!("{commit}^{{tree}}")]))
                .is_ok()
    }

    fn run(&self, cmd: &Cmd) -> Result<Vec<u8>, SeedError> {
        Ok(cmd.run().map_err(|source| self.failed(source))?.stdout)
    }

    fn failed(&self, source: CommandError) -> SeedError {
        SeedError::Pack {
            head: self.head.clone(),
            source,
        }
    }
}

/// Ids, one per line.
fn lines(ids: &BTreeSet<String>) -> Vec<u8> {
    ids.iter()
        .flat_map(|id| [id.as_str(), "\n"])
        .collect::<String>()
        .into_bytes()
}

/// The staged changes as `git update-index -z --index-info` reads them:
/// `<mode> SP <object> SP <stage> TAB <path>`.
fn index_info(manifest: &Manifest) -> Vec<u8> {
    let mut info = Vec::new();
    for staged in &manifest.staged {
        let mode = if staged.is_removal() { "0" } else { &staged.mode };
        let (object, stage) = (&staged.object, staged.stage);
        info.extend_from_slice(format!("{mode} {object} {stage}\t").as_bytes());
        info.extend_from_slice(&staged.path);
        info.push(0);
    }
    info
}

#[cfg(test)]
mod tests {
    use crabbox_host::clock::poll_until;

    use super::*;

    #[test]
    fn a_pack_that_nobody_wants_any_more_leaves_no_git_behind() {
        let dir = tempfile::tempdir().unwrap();
        let script = "git init -q --template= .; head -c 2000000 /dev/urandom > big; git add big; git -c user.name=t -c user.email=t@t commit -qm x";
        Cmd::new("sh")
            .args(["-ec", script])
            .cwd(dir.path())
            .run()
            .unwrap();
        let repo = crate::repo::Repo::discover(dir.path()).unwrap();
        let manifest = Manifest::build(&repo, &crate::manifest::Scope::default()).unwrap();
        let packers = || {
            let processes = std::fs::read_dir("/proc").unwrap().flatten();
            let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
            let here = repo.root.to_str().unwrap();
            let ours = lines.filter(|line| String::from_utf8_lossy(line).contains(here));
            ours.filter(|line| String::from_utf8_lossy(line).contains("pack-objects"))
                .count()
        };
        let seed = Seed::of(&manifest, None);
        // The pack is larger than a pipe, so git blocks. Its command line shows up a moment after it was
        // started.
        let begun = seed.pack(&manifest, &SeedState::default()).begun().unwrap();
        let there = || (packers() == 1).then_some(());
        poll_until(std::time::Duration::from_secs(10), there).unwrap();
        drop(begun);
        assert_eq!(packers(), 0);
        drop(seed.pack(&manifest, &SeedState::default()));
        assert_eq!(packers(), 0);
    }
}
