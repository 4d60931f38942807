//! Files of the lease for its client: which there are, and their contents.
//!
//! Only regular files are sent, and no link is followed in the last place of a path. What cannot be read is named, and must never cost the rest.

use std::fs::Metadata;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use crabbox_agent_protocol::{PIECE, Reply, Stream};
use rustix::fs::OFlags;

use crate::bytes::{listed, path, push, show};
use crate::copy::at_home;
use crate::failure::{At as _, Failure, said};
use crate::seen::{Seen, Time};
use crate::talk::Talk;

/// A list is sent when it has grown to this, in bytes.
const LIST: usize = PIECE - 8192;

/// The most that is read of a file that says it has nothing, in bytes.
const UNSIZED: u64 = 1 << 20;

/// The number of a problem that is none of a list's.
const NO_NUMBER: u32 = u32::MAX;

/// Gives all below `start` that is no directory to `take`, by its path seen from the current directory and what is known of it; what cannot
/// be looked at goes to `problem`. Links are not followed.
pub(crate) fn walk(
    start: &[u8],
    skipped: &[&[u8]],
    take: &mut dyn FnMut(Vec<u8>, &Metadata),
    problem: &mut dyn FnMut(String),
) {
    let mut todo = vec![start.to_vec()];
    while let Some(dir) = todo.pop() {
        let at = if dir.is_empty() {
            Path::new(".")
        } else {
            path(&dir)
        };
        let entries = match std::fs::read_dir(at) {
            Ok(entries) => entries,
            Err(error) => {
                problem(format!("{}: {}", show(at), said(&error)));
                continue;
            }
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    problem(format!("{}: {}", show(at), said(&error)));
                    break;
                }
            };
            let leaf = entry.file_name();
            let mut name = dir.clone();
            if !name.is_empty() {
                name.push(b'/');
            }
            name.extend_from_slice(leaf.as_bytes());
            // One that has gone meanwhile is no problem.
            let Ok(meta) = path(&name).symlink_metadata() else {
                continue;
            };
            if !meta.is_dir() {
                take(name, &meta);
            } else if !skipped.contains(&leaf.as_bytes()) {
                todo.push(name);
            }
        }
    }
}

/// Which files are listed.
#[derive(Debug)]
pub(crate) struct Choice {
    /// Directories of these names are left out.
    pub(crate) skipped: Vec<String>,
    /// Whether only what was written since the last command began is wanted, and when that was.
    pub(crate) written: bool,
    pub(crate) since: Option<Time>,
    /// Only files whose name begins and ends so; all of them where there are none.
    pub(crate) named: Vec<(String, String)>,
}

impl Choice {
    fn takes(&self, name: &[u8], meta: &Metadata) -> bool {
        let leaf = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let is_named = |(start, end): &(String, String)| {
            leaf.starts_with(start.as_bytes()) && leaf.ends_with(end.as_bytes())
        };
        let is_late = || self.since.is_some_and(|since| Seen::of(meta).modified > since);
        meta.is_file()
            && (self.named.is_empty() || self.named.iter().any(is_named))
            && (!self.written || is_late())
    }
}

/// Sends the regular files below `dir`.
pub(crate) fn list(talk: &mut Talk, dir: &str, choice: &Choice) -> Result<(), Failure> {
    std::env::set_current_dir(dir).at(Path::new(dir))?;
    let skipped: Vec<&[u8]> = choice.skipped.iter().map(String::as_bytes).collect();
    let (mut list, mut problems, mut sent) = (Vec::new(), Vec::new(), Ok(()));
    walk(
        b"",
        &skipped,
        &mut |name, meta| {
            if choice.takes(&name, meta) {
                push(&mut list, &name);
            }
            if list.len() >= LIST && sent.is_ok() {
                sent = talk.send(Stream::Data, &list);
                list.clear();
            }
        },
        &mut |text| problems.push(text),
    );
    sent?;
    for text in problems {
        talk.say(&Reply::Problem {
            number: NO_NUMBER,
            text,
            lost: true,
        })?;
    }
    talk.send_list(&list)
}

/// Which files the client takes.
#[derive(Debug)]
pub(crate) struct Taste {
    /// Those that a link in the last place of a path leads to.
    pub(crate) follow: bool,
    /// Those of so many bytes at most.
    pub(crate) limit: Option<u64>,
}

/// Sends the files that the client names.
pub(crate) fn fetch(talk: &mut Talk, dir: &str, taste: &Taste) -> Result<(), Failure> {
    let names = talk.list()?;
    let dir = at_home(dir)?;
    std::env::set_current_dir(&dir).at(&dir)?;
    for (number, name) in (0_u32..).zip(listed(&names)) {
        if let Err(failure) = send(talk, number, name, taste) {
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

/// Sends a file that says it has nothing: those of `/proc` and of some file systems of programs have something all the same.
fn send_unsized(
    talk: &mut Talk,
    number: u32,
    at: &Path,
    file: &mut std::fs::File,
    meta: &Metadata,
) -> Result<(), Failure> {
    let mut content = Vec::new();
    // One byte more tells a file that ends there from one that would be cut.
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

fn send(talk: &mut Talk, number: u32, name: &[u8], taste: &Taste) -> Result<(), Failure> {
    let at = path(name);
    let irregular = || Failure::Refused(format!("{}: is not a regular file", show(at)));
    // A pipe in the place of a file would hold us up, and a terminal would be ours.
    let mut flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    if !taste.follow {
        if at.symlink_metadata().at(at)?.is_symlink() {
            return Err(irregular());
        }
        flags |= OFlags::NOFOLLOW;
    }
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    let mut file = std::fs::File::options()
        .read(true)
        .custom_flags(flags)
        .open(at)
        .at(at)?;
    let meta = file.metadata().at(at)?;
    if !meta.is_file() {
        return Err(irregular());
    }
    let size = meta.len();
    if let Some(limit) = taste.limit.filter(|limit| size > *limit) {
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
            // As many bytes as were promised, whatever became of the file.
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
