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
use crate::events::SyncEvents;
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
    /// Identifies the objects that this side did not have then; empty if it had all.
    pub(crate) lacks: String,
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

    /// What is sent before the pack: the staged changes, the flags of the index, the settings, the
    /// attributes and the ignore rules.
    fn parts(manifest: &Manifest) -> [Cow<'_, [u8]>; 5] {
        [
            index_info(manifest).into(),
            mark::encode(&manifest.marks).into(),
            manifest.settings.as_slice().into(),
            manifest.attributes.as_slice().into(),
            manifest.excludes.as_slice().into(),
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
            lacks: state.lacks.clone(),
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
        events: &dyn SyncEvents,
    ) -> Result<Reply, SeedError> {
        let Packed {
            packer,
            roots,
            lacks,
            unbased,
        } = packing.begun()?;
        if let Some(error) = &unbased {
            let why = crabbox_core::fault::chain(error);
            events.warning(&format!("sync.baseRef: the lease does not get it: {why}"));
        }
        let answer = |source| SeedError::Answer { source };
        let based = self.base.is_some() && unbased.is_none();
        far.ask(&Request::Pack { lacks, based }).map_err(answer)?;
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
    /// Identifies the objects that this repository does not have; empty if it has all.
    lacks: String,
    /// Why the base is not part of it.
    unbased: Option<SeedError>,
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

/// Objects that commits lead to.
#[derive(Debug, Default)]
struct Reached {
    present: BTreeSet<String>,
    missing: BTreeSet<String>,
}

/// The objects that go to the lease.
#[derive(Debug)]
struct Wanted {
    objects: BTreeSet<String>,
    /// As in [`Packed`].
    roots: BTreeSet<String>,
    /// As in [`Packed`].
    lacks: String,
}

/// What is to be packed.
struct Wish {
    root: PathBuf,
    head: String,
    base: Option<String>,
    /// The commits that the lease has from the last sync; empty if it has none.
    have: String,
    have_base: String,
    /// What was left out of it then.
    lacks: String,
    /// Objects of staged changes.
    staged: Vec<String>,
}

impl Wish {
    fn pack(&self) -> Result<Packed, SeedError> {
        let (wanted, unbased) = match self.wanted(self.base.as_deref()) {
            // The base may be what cannot be sent; without it the repository is worth as much for the rest.
            Err(error) if self.base.is_some() => (self.wanted(None)?, Some(error)),
            wanted => (wanted?, None),
        };
        let Wanted {
            objects,
            roots,
            lacks,
        } = wanted;
        let packed = Packed {
            packer: None,
            roots,
            lacks,
            unbased,
        };
        if objects.is_empty() {
            return Ok(packed);
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
            ..packed
        })
    }

    /// What the lease does not have, of `HEAD`, this base and the staged changes.
    fn wanted(&self, base: Option<&str>) -> Result<Wanted, SeedError> {
        let span = match base {
            Some(base) => self.span(&self.head, base)?,
            None => Span::default(),
        };
        let mut commits = span.commits;
        if !self.head.is_empty() {
            commits.insert(self.head.clone());
        }
        let is_partial = self.is_partial();
        let reached = if is_partial {
            self.reached(&commits, &[], true)?
        } else {
            Reached::default()
        };
        let lacks = digest(&reached.missing);
        // What was missing may be here now, and which of it the lease got is not known.
        let is_as_before = lacks == self.lacks;
        let known: Vec<&str> = [&self.have, &self.have_base]
            .into_iter()
            .filter(|commit| is_as_before && self.has(commit))
            .map(String::as_str)
            .collect();
        let mut objects = if is_partial && known.is_empty() {
            commits.into_iter().chain(reached.present).collect()
        } else {
            self.beyond(commits, base, &known, is_partial)?
        };
        objects.extend(self.staged(is_partial)?);
        Ok(Wanted {
            objects,
            roots: span.roots,
            lacks,
        })
    }

    /// The objects of `commits` that the lease does not have, which has these known ones.
    fn beyond(
        &self,
        mut commits: BTreeSet<String>,
        base: Option<&str>,
        known: &[&str],
        is_partial: bool,
    ) -> Result<BTreeSet<String>, SeedError> {
        if base.is_none() {
            commits.retain(|commit| !known.contains(&commit.as_str()));
        } else if let [have, have_base] = known {
            // The lease has the history of these two commits, as this repository does.
            let theirs = self.span(have, have_base)?;
            commits.retain(|commit| !theirs.commits.contains(commit));
        }
        if !commits.is_empty() {
            let reached = self.reached(&commits, known, is_partial)?;
            commits.extend(reached.present);
        }
        Ok(commits)
    }

    /// The objects of the trees of `commits`, without those of the trees of `known`.
    fn reached(
        &self,
        commits: &BTreeSet<String>,
        known: &[&str],
        is_partial: bool,
    ) -> Result<Reached, SeedError> {
        let trees = commits.iter().map(|commit| format!("{commit}^{{tree}}\n"));
        let not = known.iter().map(|commit| format!("^{commit}^{{tree}}\n"));
        let list = self
            .listing(is_partial)
            .stdin(trees.chain(not).collect::<String>());
        let mut reached = Reached::default();
        for line in String::from_utf8_lossy(&self.run(&list)?).lines() {
            match line.strip_prefix('?') {
                Some(missing) => reached.missing.insert(missing.to_owned()),
                None => reached.present.insert(line.to_owned()),
            };
        }
        Ok(reached)
    }

    /// The objects of staged changes, in a partial clone those that are here.
    fn staged(&self, is_partial: bool) -> Result<BTreeSet<String>, SeedError> {
        let staged = self.staged.iter().cloned().collect();
        if !is_partial || self.staged.is_empty() {
            return Ok(staged);
        }
        let list = self.listing(true).arg("--ignore-missing").stdin(lines(&staged));
        let listed = self.run(&list)?;
        Ok(String::from_utf8_lossy(&listed)
            .lines()
            .map(str::to_owned)
            .collect())
    }

    /// Lists objects. In a partial clone those that are not here are marked with `?`, and not fetched.
    fn listing(&self, is_partial: bool) -> Cmd {
        unreplaced_git(&self.root)
            .args(["rev-list", "--objects", "--no-object-names", "--stdin"])
            .args(is_partial.then_some("--missing=print"))
    }

    /// Whether objects may be missing here that git would fetch when it needs them (`git clone --filter`).
    fn is_partial(&self) -> bool {
        unreplaced_git(&self.root)
            .args([
                "config",
                "--get-regexp",
                r"^(extensions\.partialclone|remote\..*\.promisor)$",
            ])
            .run()
            .is_ok()
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

/// Identifies a set of ids; empty for none.
fn digest(ids: &BTreeSet<String>) -> String {
    if ids.is_empty() {
        return String::new();
    }
    hex(&Sha256::digest(lines(ids))[..16])
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
