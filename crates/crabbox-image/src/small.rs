//! A small file system for tests, which can be filled up at a chosen moment.

use std::cell::Cell;
use std::fs::File;
use std::path::{Path, PathBuf};

use crabbox_host::command::Cmd;
use crabbox_host::files;

use crate::progress::Progress;

/// An ext4 in a sparse file, mounted as long as this lives. Needs root and a loop device.
pub(crate) struct Small {
    dir: tempfile::TempDir,
}

impl Small {
    /// A file system of `mib` MiB.
    pub(crate) fn new(mib: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let small = Self { dir };
        let disk = small.dir.path().join("disk");
        File::create(&disk).unwrap().set_len(mib << 20).unwrap();
        Cmd::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-m", "0"])
            .arg(&disk)
            .run()
            .unwrap();
        std::fs::create_dir(small.path()).unwrap();
        Cmd::new("mount")
            .args(["-o", "loop"])
            .args([&disk, &small.path()])
            .run()
            .unwrap();
        small
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// Uses up all free space.
    pub(crate) fn fill(&self) {
        let filler = File::create(self.filler()).unwrap();
        let mut length = 0;
        // Recently freed space may become available with a delay, so repeat.
        for _ in 0..20 {
            let mut piece = files::free_bytes(&self.path()).unwrap();
            while piece >= 1024 {
                let flags = rustix::fs::FallocateFlags::empty();
                match rustix::fs::fallocate(&filler, flags, length, piece) {
                    Ok(()) => length += piece,
                    Err(_) => piece /= 2,
                }
            }
            if files::free_bytes(&self.path()).unwrap() == 0 {
                return;
            }
        }
        assert_eq!(files::free_bytes(&self.path()).unwrap(), 0);
    }

    /// Frees it again, even if a process that another test is starting still has the file open.
    pub(crate) fn empty(&self) {
        drop(File::create(self.filler()).unwrap());
        std::fs::remove_file(self.filler()).unwrap();
    }

    /// The names in `dir`, in order.
    pub(crate) fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(Cmd::new("umount").arg(self.path()).run());
    }
}

/// Fills it when progress has been reported `left` times.
pub(crate) struct FillAt<'a> {
    pub(crate) small: &'a Small,
    pub(crate) left: Cell<u32>,
}

impl FillAt<'_> {
    fn told(&self) {
        match self.left.get() {
            0 => {}
            1 => {
                self.small.fill();
                self.left.set(0);
            }
            left => self.left.set(left - 1),
        }
    }

    /// Whether the work ended before it could be filled.
    pub(crate) fn was_spared(&self) -> bool {
        self.left.get() > 0
    }
}

impl Progress for FillAt<'_> {
    fn stage(&self, _: &str) {
        self.told();
    }

    fn bytes(&self, _: u64, _: Option<u64>) {
        self.told();
    }

    fn warn(&self, _: &str) {}
}
