//! A local repository, a workdir in a lease, and the sync between them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crabbox_host::command::Cmd;
use crabbox_ssh::agent_client::{AgentClient, AgentError};
use crabbox_ssh::target::{ArgvOptions, Target};
use crabbox_sync::manifest::{Manifest, Scope};
use crabbox_sync::memory::Memory;
use crabbox_sync::repo::Repo;
use crabbox_sync::transfer::{Destination, GitSeed, Options, Outcome, TransferError, sync};
use crabbox_sync::{Channel, Silent, SyncEvents};
use crabbox_testkit::sshd::Sshd;
use crabbox_testkit::trees::inside;

pub const LEASE: &str = "cbx_000000000001";

/// The warnings of a sync.
#[derive(Default)]
pub struct Heard(std::sync::Mutex<Vec<String>>);

impl SyncEvents for Heard {
    fn warning(&self, line: &str) {
        self.0.lock().unwrap().push(line.to_owned());
    }
}

impl Heard {
    pub fn warnings(self) -> Vec<String> {
        self.0.into_inner().unwrap()
    }
}

pub struct World {
    dir: tempfile::TempDir,
    reach: Option<Target>,
    memory: Memory,
    pub git_seed: GitSeed,
    /// Sync by rsync with checksums.
    pub checksum: bool,
}

impl World {
    /// An empty repository, synced through a shell on this machine.
    pub fn new() -> Self {
        Self::reached(None)
    }

    /// An empty repository, synced over SSH.
    pub fn over(target: &Target) -> Self {
        Self::reached(Some(target.clone()))
    }

    fn reached(reach: Option<Target>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("w");
        std::fs::create_dir_all(&source).unwrap();
        run(
            &source,
            "git init -q --template= -b main . && printf '[user]\nname=t\nemail=t@t\n' >> .git/config",
        );
        Self {
            memory: Memory::of(&dir.path().join("trees"), &source, Vec::new()),
            dir,
            reach,
            git_seed: GitSeed::Shallow,
            checksum: false,
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn source(&self) -> PathBuf {
        self.dir.path().join("w")
    }

    pub fn workdir(&self) -> PathBuf {
        self.dir.path().join("leases").join(LEASE).join("w")
    }

    /// Runs a script in the local working tree.
    pub fn local(&self, script: &str) {
        run(&self.source(), script);
    }

    /// Runs a script in the lease's workdir.
    pub fn guest(&self, script: &str) {
        run(&self.workdir(), script);
    }

    /// The manifest, from memory if that is trusted; checks that it equals the one from git.
    pub fn manifest(&self) -> Manifest {
        let (repo, scope) = (Repo::discover(&self.source()).unwrap(), Scope::default());
        let manifest = Manifest::build_remembering(&repo, &scope, &self.memory).unwrap();
        // Ignore identities: recently touched files get theirs only a moment later.
        let ageless = |mut manifest: Manifest| {
            manifest
                .entries
                .iter_mut()
                .for_each(|entry| entry.identity = None);
            Manifest {
                fingerprint: String::new(),
                since: None,
                ..manifest
            }
        };
        let asked = Manifest::build(&repo, &scope).unwrap();
        assert_eq!(ageless(manifest.clone()), ageless(asked));
        manifest
    }

    pub fn destination(&self) -> Destination {
        Destination {
            work_root: self.dir.path().join("leases").to_str().unwrap().to_owned(),
            lease_id: LEASE.to_owned(),
            name: "w".to_owned(),
        }
    }

    /// Starts the agent.
    pub fn far(&self) -> Result<AgentClient, AgentError> {
        match &self.reach {
            Some(target) => AgentClient::open(target, None),
            None => AgentClient::local(),
        }
    }

    pub fn channel(&self) -> Channel {
        self.reach.as_ref().map_or_else(Channel::local, Channel::ssh)
    }

    pub fn sync_as(
        &self,
        manifest: &Manifest,
        options: &Options,
        events: &dyn SyncEvents,
    ) -> Result<Outcome, TransferError> {
        let mut far = self.far().map_err(|source| TransferError::Compare {
            workdir: self.destination().workdir(),
            source,
        })?;
        sync(
            &mut far,
            &self.channel(),
            &self.destination(),
            manifest,
            options,
            events,
        )
    }

    pub fn try_sync(&self, options: &Options) -> Result<Outcome, TransferError> {
        self.sync_as(&self.manifest(), options, &Silent)
    }

    /// Syncs, and compares the workdir with the working tree.
    pub fn sync(&self) -> Outcome {
        self.sync_manifest(&self.manifest())
    }

    /// The same, with this manifest.
    pub fn sync_manifest(&self, manifest: &Manifest) -> Outcome {
        let options = Options {
            git_seed: self.git_seed,
            checksum: self.checksum,
            ..Options::default()
        };
        let outcome = self
            .sync_as(manifest, &options, &Silent)
            .unwrap_or_else(|error| panic!("{error:?}"));
        assert_eq!(outcome.unsettled, 0, "{outcome:?}");
        self.assert_equal(manifest);
        outcome
    }

    /// Syncs, and returns the warnings.
    pub fn warned(&self) -> Vec<String> {
        let heard = Heard::default();
        self.sync_telling(&heard);
        heard.warnings()
    }

    pub fn sync_telling(&self, events: &dyn SyncEvents) -> Outcome {
        self.sync_as(&self.manifest(), &Options::default(), events)
            .unwrap()
    }

    /// Checks that every path of the manifest is equal on both sides, and that no deleted path exists there.
    pub fn assert_equal(&self, manifest: &Manifest) {
        for entry in &manifest.entries {
            let path = bytes_path(&entry.path);
            assert_eq!(
                picture(&self.source().join(path)),
                picture(&self.workdir().join(path)),
                "{}",
                path.display()
            );
            for dir in path.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()) {
                let there = self.workdir().join(dir);
                assert!(
                    there.symlink_metadata().unwrap().is_dir(),
                    "{} is a link",
                    there.display()
                );
            }
        }
        for path in &manifest.deleted {
            // A file that is only reached through a link in place of a directory does not count.
            let there = self.workdir().join(bytes_path(path));
            let is_there =
                inside(&self.workdir(), &there) && there.symlink_metadata().is_ok_and(|meta| !meta.is_dir());
            assert!(!is_there, "{} should be gone", bytes_path(path).display());
        }
    }

    /// All files and links in the workdir, without those of git.
    pub fn files_there(&self) -> BTreeSet<Vec<u8>> {
        let mut found = BTreeSet::new();
        let mut todo = vec![self.workdir()];
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.symlink_metadata().unwrap().is_dir() {
                    if path != self.workdir().join(".git") {
                        todo.push(path);
                    }
                } else {
                    found.insert(
                        path.strip_prefix(self.workdir())
                            .unwrap()
                            .as_os_str()
                            .as_bytes()
                            .to_vec(),
                    );
                }
            }
        }
        found
    }
}

/// The server as a target, with one connection per command.
pub fn target(sshd: &Sshd) -> Target {
    let mut target = Target::new(sshd.user(), "127.0.0.1", sshd.port(), &sshd.known_hosts()).unwrap();
    target.key = Some(sshd.client_key());
    target.host_key_pinned = true;
    target.connection_attempts = 1;
    target
}

/// A target with a shared connection, whose master is ended on drop.
pub struct Shared(pub Target);

impl Shared {
    pub fn new(sshd: &Sshd) -> Self {
        Self(Target {
            control: Some(sshd.dir().join("ctl")),
            ..target(sshd)
        })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let argv = self.0.ssh_argv(ArgvOptions::default());
        Cmd::new(&argv[0])
            .args(["-O", "exit"])
            .args(&argv[1..])
            .capture()
            .unwrap();
    }
}

/// Waits until the change times of all files are old enough to be trusted.
pub fn settle() {
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(130) {
        crabbox_host::clock::nap(Duration::from_millis(50));
    }
}

pub fn run(dir: &Path, script: &str) {
    Cmd::new("sh")
        .args(["-ec", script])
        .cwd(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .run()
        .unwrap();
}

pub fn bytes_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// The kind, mode, times and content of a file.
pub fn picture(path: &Path) -> String {
    let meta = path
        .symlink_metadata()
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let content = if meta.is_symlink() {
        path.read_link()
            .unwrap()
            .as_os_str()
            .as_bytes()
            .escape_ascii()
            .to_string()
    } else {
        std::fs::read(path).unwrap().escape_ascii().to_string()
    };
    format!(
        "{:o} {} {}.{} {content}",
        meta.mode(),
        meta.len(),
        meta.mtime(),
        meta.mtime_nsec()
    )
}
