//! Measures and empties the cache directories that package managers keep outside the tree.
//!
//! It must never follow a link out of a cache, nor remove the cache directory itself.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crabbox_agent_protocol::Reply;
use rustix::fs::{CWD, Mode, OFlags};

use crate::bytes::is_absent;
use crate::failure::{At as _, Failure};
use crate::remove::remove_tree;
use crate::talk::Conversation;

/// The unit of `st_blocks` in bytes, see inode(7).
const BLOCK: u64 = 512;

/// Sends the disk usage of a directory.
pub(crate) fn size(talk: &mut Conversation, dir: &Path) -> Result<(), Failure> {
    let (mut bytes, mut known) = (0, HashSet::new());
    // A link in place of the directory is measured as a link, since its target belongs to someone else.
    let mut todo: Vec<PathBuf> = vec![dir.to_owned()];
    while let Some(at) = todo.pop() {
        // Entries that cannot be read do not count.
        let Ok(meta) = at.symlink_metadata() else {
            continue;
        };
        if !meta.is_dir() && meta.nlink() > 1 && !known.insert((meta.dev(), meta.ino())) {
            continue;
        }
        bytes += meta.blocks() * BLOCK;
        if meta.is_dir() {
            let below = std::fs::read_dir(&at).into_iter().flatten().flatten();
            todo.extend(below.map(|entry| entry.path()));
        }
    }
    talk.say(&Reply::Sized {
        found: dir.is_dir(),
        bytes,
    })
}

/// Removes everything in a directory.
pub(crate) fn clear(talk: &mut Conversation, dir: &Path) -> Result<(), Failure> {
    match dir.symlink_metadata() {
        Ok(meta) if meta.is_dir() => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let handle = rustix::fs::openat(CWD, dir, flags, Mode::empty()).at(dir)?;
            for entry in std::fs::read_dir(dir).at(dir)? {
                let leaf = entry.at(dir)?.file_name();
                remove_tree(&handle, Path::new(&leaf))?;
            }
        }
        Err(error) if !is_absent(&error) => return Err(error).at(dir),
        _ => {}
    }
    talk.say(&Reply::Cleared {})
}
