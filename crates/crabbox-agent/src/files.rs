//! Sends the contents of files in the lease to the client.
//!
//! Only regular files are sent, and links are followed only as far as the client allows. A file that cannot
//! be read is reported, and must never prevent the others from being sent.

use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crabbox_agent_protocol::{PIECE, Reply, Stream};
use rustix::fs::{Mode, OFlags};

use crate::bytes::{leaf, listed, parent, path, show};
use crate::copy::at_home;
use crate::failure::{At as _, Failure, said};
use crate::list::within;
use crate::seen::Dirs;
use crate::talk::Conversation;

/// The most that is read of a file whose size is reported as zero, in bytes.
const UNSIZED: u64 = 1 << 20;

/// Which files the client accepts.
#[derive(Debug)]
pub(crate) struct FetchFilter {
    /// Whether to follow a link in the last component of a path.
    pub(crate) follow: bool,
    /// Whether to send only files below the directory, wherever links lead.
    pub(crate) within: bool,
    /// The largest file to send, in bytes.
    pub(crate) limit: Option<u64>,
}

/// Sends the files that the client names.
pub(crate) fn fetch(talk: &mut Conversation, dir: &str, taste: &FetchFilter) -> Result<(), Failure> {
    let names = talk.list()?;
    let dir = at_home(dir)?;
    std::env::set_current_dir(&dir).at(&dir)?;
    let mut tree = if taste.within {
        Some((std::env::current_dir().at(&dir)?, Dirs::default()))
    } else {
        None
    };
    for (number, name) in (0_u32..).zip(listed(&names)) {
        let at = path(name);
        let opened = match &mut tree {
            Some((root, dirs)) => open_within(root, dirs, name),
            None => open(at, taste.follow),
        };
        if let Err(failure) = opened.and_then(|file| send(talk, number, at, file, taste.limit)) {
            if matches!(failure, Failure::Gone) {
                return Err(failure);
            }
            let text = failure.why();
            talk.say(&Reply::Problem {
                number,
                text,
                lost: true,
            })?;
        }
    }
    talk.say(&Reply::End {})
}

/// Sends a file whose size is reported as zero: files in `/proc` and some FUSE file systems have contents
/// anyway.
fn send_unsized(
    talk: &mut Conversation,
    number: u32,
    at: &Path,
    file: &mut File,
    meta: &Metadata,
) -> Result<(), Failure> {
    let mut content = Vec::new();
    // One byte more tells a file of exactly this size from a longer one.
    file.take(UNSIZED + 1).read_to_end(&mut content).at(at)?;
    if content.len() as u64 > UNSIZED {
        return Err(Failure::Refused(format!(
            "{}: says that it is empty and has more than {} MiB",
            show(at),
            UNSIZED >> 20
        )));
    }
    talk.say(&Reply::File {
        number,
        mode: meta.mode() & 0o7777,
        seconds: meta.mtime(),
        size: content.len() as u64,
    })?;
    for piece in content.chunks(PIECE) {
        talk.send(Stream::Data, piece)?;
    }
    Ok(())
}

/// Without these, a pipe could block us and a terminal could become our controlling terminal.
const QUIET: OFlags = OFlags::NONBLOCK.union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

fn irregular(at: &Path) -> Failure {
    Failure::Refused(format!("{}: is not a regular file", show(at)))
}

/// Opens the file at a path.
fn open(at: &Path, follow: bool) -> Result<File, Failure> {
    let mut flags = QUIET;
    if !follow {
        if at.symlink_metadata().at(at)?.is_symlink() {
            return Err(irregular(at));
        }
        flags |= OFlags::NOFOLLOW;
    }
    Ok(rustix::fs::open(at, flags, Mode::empty()).at(at)?.into())
}

/// Opens the file that a path leads to inside the tree. Links that replace it or a directory above it
/// meanwhile are not followed.
fn open_within(root: &Path, dirs: &mut Dirs, name: &[u8]) -> Result<File, Failure> {
    let at = path(name);
    let real = within(root, name).map_err(|why| Failure::Refused(format!("{}: {why}", show(at))))?;
    let above = dirs.enter(parent(&real)).at(at)?;
    let opened = rustix::fs::openat(above, leaf(&real), QUIET | OFlags::NOFOLLOW, Mode::empty());
    Ok(opened.at(at)?.into())
}

fn send(
    talk: &mut Conversation,
    number: u32,
    at: &Path,
    mut file: File,
    limit: Option<u64>,
) -> Result<(), Failure> {
    let meta = file.metadata().at(at)?;
    if !meta.is_file() {
        return Err(irregular(at));
    }
    let size = meta.len();
    if let Some(limit) = limit.filter(|limit| size > *limit) {
        return Err(Failure::Refused(format!(
            "{}: is larger than {} MiB",
            show(at),
            limit >> 20
        )));
    }
    if size == 0 {
        return send_unsized(talk, number, at, &mut file, &meta);
    }
    talk.say(&Reply::File {
        number,
        mode: meta.mode() & 0o7777,
        seconds: meta.mtime(),
        size,
    })?;
    let (mut left, mut chunk, mut trouble, mut lost) = (size, vec![0; PIECE], None, false);
    while left > 0 {
        let room = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let count = if trouble.is_some() {
            0
        } else {
            match file.read(&mut chunk[..room]) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    trouble = Some(format!("{}: {}", show(at), said(&error)));
                    lost = true;
                    0
                }
            }
        };
        if count == 0 {
            // The promised number of bytes must follow, even if the file has shrunk: pad with zeros.
            trouble.get_or_insert_with(|| format!("{}: has shrunk while it was read", show(at)));
            lost = true;
            chunk[..room].fill(0);
        }
        let piece = if count == 0 { room } else { count };
        talk.send(Stream::Data, &chunk[..piece])?;
        left -= piece as u64;
    }
    if trouble.is_none() && file.metadata().at(at)?.len() > size {
        trouble = Some(format!("{}: has grown while it was read", show(at)));
    }
    match trouble {
        Some(text) => talk.say(&Reply::Problem { number, text, lost }),
        None => Ok(()),
    }
}
