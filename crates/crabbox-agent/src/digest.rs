//! Sends digests of files, so that the client need not fetch files that it already has.
//!
//! No link is followed, neither in the last component of a path nor before it.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::bytes::{BUFFER, leaf, listed, parent, push};
use crate::failure::{At as _, Failure};
use crate::seed::hex;
use crate::seen::Dirs;
use crate::talk::Conversation;

/// Longer files are not hashed, because the client waits; no tree is expected to need more. In bytes.
const LONGEST: u64 = 1 << 30;

/// Sends the digests of the paths that the client names.
pub(crate) fn digest(talk: &mut Conversation, dir: &str) -> Result<(), Failure> {
    let names = talk.list()?;
    std::env::set_current_dir(dir).at(Path::new(dir))?;
    let (mut list, mut dirs) = (Vec::new(), Dirs::default());
    for name in listed(&names) {
        let told = of(&mut dirs, name).ok().flatten();
        push(&mut list, told.as_deref().unwrap_or("-").as_bytes());
    }
    talk.send_list(&list)
}

/// The digest of the file or link at a path; `None` for anything else.
fn of(dirs: &mut Dirs, name: &[u8]) -> std::io::Result<Option<String>> {
    let stat = dirs.stat(name)?;
    let within = dirs.enter(parent(name))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(within, leaf(name), Vec::new())?;
            Ok(Some(format!("l{}", hex(&Sha256::digest(target.as_bytes())))))
        }
        FileType::RegularFile => {
            // A pipe or terminal that took its place since must not block us.
            let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let file: File = rustix::fs::openat(within, leaf(name), flags, Mode::empty())?.into();
            let facts = file.metadata()?;
            if !facts.is_file() || facts.len() > LONGEST {
                return Err(Errno::INVAL.into());
            }
            Ok(Some(format!("f{}", content(file)?)))
        }
        _ => Ok(None),
    }
}

fn content(mut file: File) -> std::io::Result<String> {
    let (mut hash, mut chunk) = (Sha256::new(), vec![0; BUFFER]);
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(hex(&hash.finalize())),
            Ok(count) => hash.update(&chunk[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
