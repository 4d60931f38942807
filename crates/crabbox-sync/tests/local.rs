//! The real sync code against a shell on this machine: what a workdir looks like after each kind of change.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the clippy exception for tests does not reach their fixtures"
)]

use std::path::{Path, PathBuf};

use crabbox_host::command::Cmd;
use crabbox_sync::manifest::{Manifest, Scope};
use crabbox_sync::repo::Repo;
use crabbox_sync::transfer::{Destination, Options, Outcome, TransferError, sync};
use crabbox_sync::{Channel, Silent};

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        world.local("git init -q -b main . && git config user.name t && git config user.email t@t");
        world
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("w")
    }

    fn workdir(&self) -> PathBuf {
        self.dir.path().join("leases/cbx_000000000001/w")
    }

    fn local(&self, script: &str) {
        std::fs::create_dir_all(self.source()).unwrap();
        Cmd::new("sh")
            .args(["-ec", script])
            .cwd(self.source())
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .run()
            .unwrap();
    }

    fn guest(&self, script: &str) {
        Cmd::new("sh")
            .args(["-ec", script])
            .cwd(self.workdir())
            .run()
            .unwrap();
    }

    fn manifest(&self) -> Manifest {
        Manifest::build(&Repo::discover(&self.source()).unwrap(), &Scope::default()).unwrap()
    }

    fn try_sync(&self, options: &Options) -> Result<Outcome, TransferError> {
        let destination = Destination {
            work_root: self.dir.path().join("leases").to_str().unwrap().to_owned(),
            lease_id: "cbx_000000000001".to_owned(),
            name: "w".to_owned(),
        };
        sync(
            &Channel::local(),
            &destination,
            &self.manifest(),
            options,
            &Silent,
        )
    }

    fn sync(&self) -> Outcome {
        let outcome = self.try_sync(&Options::default()).unwrap();
        self.assert_equal();
        outcome
    }

    /// Every path of the manifest is there as it is here, and no deleted path is.
    fn assert_equal(&self) {
        let manifest = self.manifest();
        for entry in &manifest.entries {
            let path = bytes_path(&entry.path);
            assert_eq!(
                picture(&self.source().join(path)),
                picture(&self.workdir().join(path)),
                "{}",
                path.display()
            );
        }
        for path in &manifest.deleted {
            let there = self.workdir().join(bytes_path(path));
            assert!(
                !there.is_file() && !there.is_symlink(),
                "{} should be gone",
                there.display()
            );
        }
    }

    /// Lets the change times of all files grow old enough to be trusted.
    fn settle() {
        let started = std::time::Instant::now();
        while started.elapsed() < std::time::Duration::from_millis(150) {
            crabbox_host::clock::nap(std::time::Duration::from_millis(50));
        }
    }
}

fn bytes_path(bytes: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt as _;
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

/// Kind, mode, times and content.
fn picture(path: &Path) -> String {
    use std::os::unix::fs::MetadataExt as _;
    let meta = path
        .symlink_metadata()
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let content = if meta.is_symlink() {
        format!("-> {:?}", path.read_link().unwrap())
    } else {
        format!("{:?}", String::from_utf8_lossy(&std::fs::read(path).unwrap()))
    };
    format!(
        "{:o} {} {}.{} {content}",
        meta.mode(),
        meta.len(),
        meta.mtime(),
        meta.mtime_nsec()
    )
}

#[test]
fn a_fresh_tree_arrives_whole_and_is_then_skipped() {
    let world = World::new();
    world.local(
        "printf 'target\nout\n' > .gitignore; mkdir -p src out; echo a > src/a; echo b > b; chmod 755 b; ln -s src/a link; \
         ln -s nowhere dangling; git add -A; git commit -qm x; echo new > new; echo o > out/o; echo dirty >> src/a",
    );
    World::settle();
    let first = world.sync();
    assert!(!first.skipped);
    assert_eq!(first.sent, 6);
    assert!(!world.workdir().join("out").exists());
    let second = world.sync();
    assert!(second.skipped, "{second:?}");
}

#[test]
fn what_the_guest_did_is_undone_where_it_is_ours_and_kept_where_it_is_not() {
    let world = World::new();
    world.local("mkdir -p a/b; echo 1 > a/b/f; echo 2 > g; echo 3 > h; git add -A; git commit -qm x");
    World::settle();
    world.sync();
    // Same size, same mtime: only the change time can tell.
    world.guest(
        "touch -r g stamp; echo 9 > g; touch -r stamp g; mkdir -p node_modules; echo kept > node_modules/k",
    );
    assert_eq!(world.sync().sent, 1);
    assert!(world.workdir().join("node_modules/k").exists());
    world.guest("rm -rf a; ln -s ../.. a; rm h; mkdir -p h/sub; echo x > h/sub/x");
    assert_eq!(world.sync().sent, 2);
    assert!(world.sync().skipped);
}
