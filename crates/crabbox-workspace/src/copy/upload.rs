//! Copies into a lease.
//!
//! The files are sent in the order in which they were listed; it must never follow a link unless asked to.

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crabbox_agent_protocol::{PIECE, Reply, Request};
use crabbox_ssh::agent_client::{AgentClient, AgentError};
use crabbox_ssh::target::Target;
use rustix::fs::{Mode, OFlags};

use super::{COPY, CopyError, checked, failed, remote_path};

/// How often to check for an early reply of the agent.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Copies `local` to `remote`, following symbolic links if `follow`. The copy goes into an existing directory
/// under its own name; if that is a directory too, the files are merged into it. Stops when `cancel` becomes
/// readable.
pub fn upload(
    target: &Target,
    local: &Path,
    remote: &str,
    follow: bool,
    cancel: BorrowedFd<'_>,
) -> Result<(), CopyError> {
    let (name, remote) = (local_name(local)?, checked(remote)?);
    let mut walk = Walk {
        follow,
        items: Vec::new(),
        parents: Vec::new(),
    };
    // Everything is listed before a connection is opened, because most mistakes are local.
    walk.add(local, COPY.as_bytes())?;
    let mut far = AgentClient::open(target, Some(cancel)).map_err(|error| failed(error, "to", remote))?;
    let put = Request::Put {
        to: remote_path(remote),
        name,
        make: remote.ends_with('/'),
    };
    match send(&mut far, &put, &walk.items) {
        Ok(()) | Err(Stop::Answered) => {}
        Err(Stop::Here(error)) => {
            // The agent has half of a file; when the conversation ends, it discards the copy.
            far.give_up();
            return Err(error);
        }
        Err(Stop::Agent(error)) => return Err(failed(error, "to", remote)),
    }
    match far.reply() {
        Ok(Reply::Received {}) => {
            far.leave();
            Ok(())
        }
        Ok(other) => Err(failed(far.out_of_order(&other), "to", remote)),
        Err(error) => Err(failed(error, "to", remote)),
    }
}

/// Why sending stopped.
enum Stop {
    /// A local file cannot be read.
    Here(CopyError),
    /// The conversation failed.
    Agent(AgentError),
    /// The agent has replied early, because it takes no more.
    Answered,
}

impl From<CopyError> for Stop {
    fn from(error: CopyError) -> Self {
        Self::Here(error)
    }
}

impl From<AgentError> for Stop {
    fn from(error: AgentError) -> Self {
        Self::Agent(error)
    }
}

fn send(far: &mut AgentClient, put: &Request, items: &[Item]) -> Result<(), Stop> {
    far.ask(put)?;
    let mut names = Vec::new();
    for item in items {
        names.extend_from_slice(&item.name);
        names.push(0);
    }
    far.send_list(&names)?;
    drop(names);
    let (mut block, mut looked) = (vec![0; PIECE], Instant::now());
    for (number, item) in (0..).zip(items) {
        if looked.elapsed() >= LOOK_EVERY {
            looked = Instant::now();
            heard(far)?;
        }
        item.send(far, number, &mut block, &mut looked)?;
    }
    far.ask(&Request::Received {})?;
    Ok(())
}

/// The name of the copy in a directory.
fn local_name(local: &Path) -> Result<String, CopyError> {
    let nameless = || CopyError::Nameless {
        source_path: local.display().to_string(),
    };
    let name = if let Some(name) = local.file_name() {
        name.to_owned()
    } else {
        // For `.` and `..`, use the name of the directory they refer to.
        let full = local.canonicalize().map_err(unread(local))?;
        full.file_name().ok_or_else(nameless)?.to_owned()
    };
    name.into_string().map_err(|_| nameless())
}

fn unread(path: &Path) -> impl Fn(io::Error) -> CopyError {
    let path = path.to_owned();
    move |source| CopyError::Local {
        attempt: "read",
        path: path.clone(),
        source,
    }
}

/// Something to be copied.
struct Item {
    path: PathBuf,
    /// Its name in the staging directory.
    name: Vec<u8>,
    kind: Kind,
}

enum Kind {
    Directory {
        mode: u32,
        seconds: i64,
    },
    /// A file, reached by following links or not.
    File {
        follow: bool,
    },
    Link {
        seconds: i64,
        nanoseconds: u32,
    },
}

/// Everything to copy, in the order in which it is sent.
struct Walk {
    follow: bool,
    items: Vec<Item>,
    /// Device and inode of the directories above, to detect circular links.
    parents: Vec<(u64, u64)>,
}

impl Walk {
    fn add(&mut self, path: &Path, name: &[u8]) -> Result<(), CopyError> {
        let facts = if self.follow {
            fs::metadata(path)
        } else {
            fs::symlink_metadata(path)
        }
        .map_err(unread(path))?;
        let kind = kind_of(path, &facts, self.follow)?;
        let is_directory = facts.is_dir();
        self.items.push(Item {
            path: path.to_owned(),
            name: name.to_vec(),
            kind,
        });
        if is_directory {
            self.enter(path, name, (facts.dev(), facts.ino()))?;
        }
        Ok(())
    }

    fn enter(&mut self, path: &Path, name: &[u8], identity: (u64, u64)) -> Result<(), CopyError> {
        if self.parents.contains(&identity) {
            return Err(CopyError::Loop {
                path: path.to_owned(),
            });
        }
        self.parents.push(identity);
        let mut children: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(path).map_err(unread(path))? {
            children.push(entry.map_err(unread(path))?.path());
        }
        children.sort();
        for child in children {
            let leaf = child.file_name().unwrap_or_default().as_bytes();
            self.add(&child, &[name, b"/", leaf].concat())?;
        }
        self.parents.pop();
        Ok(())
    }
}

fn kind_of(path: &Path, facts: &Metadata, follow: bool) -> Result<Kind, CopyError> {
    let kind = facts.file_type();
    let what = match () {
        () if kind.is_dir() => {
            return Ok(Kind::Directory {
                mode: facts.mode() & 0o777,
                seconds: facts.mtime(),
            });
        }
        () if kind.is_file() => return Ok(Kind::File { follow }),
        () if kind.is_symlink() => {
            return Ok(Kind::Link {
                seconds: facts.mtime(),
                nanoseconds: nanoseconds(facts),
            });
        }
        () if kind.is_socket() => "a socket",
        () if kind.is_fifo() => "a named pipe",
        () => "a device",
    };
    Err(CopyError::Special {
        path: path.to_owned(),
        what,
    })
}

/// The nanoseconds of its modification time.
fn nanoseconds(facts: &Metadata) -> u32 {
    u32::try_from(facts.mtime_nsec()).unwrap_or(0)
}

impl Item {
    /// Sends it with this number.
    fn send(
        &self,
        far: &mut AgentClient,
        number: u32,
        block: &mut [u8],
        looked: &mut Instant,
    ) -> Result<(), Stop> {
        match self.kind {
            Kind::Directory { mode, seconds } => {
                far.ask(&Request::Directory {
                    path: self.name.clone(),
                    mode,
                    seconds: Some(seconds),
                })?;
                Ok(())
            }
            Kind::Link { seconds, nanoseconds } => {
                let target = fs::read_link(&self.path).map_err(unread(&self.path))?;
                far.ask(&Request::Link {
                    number,
                    seconds,
                    nanoseconds,
                    target: target.into_os_string().into_vec(),
                })?;
                Ok(())
            }
            Kind::File { follow } => self.send_file(far, (number, follow), block, looked),
        }
    }

    /// Sends as many bytes as the file has now: if it grows meanwhile, the rest is cut; if it shrinks, that
    /// is an error.
    fn send_file(
        &self,
        far: &mut AgentClient,
        (number, follow): (u32, bool),
        block: &mut [u8],
        looked: &mut Instant,
    ) -> Result<(), Stop> {
        let unread = unread(&self.path);
        // A named pipe in its place must not block us, and a link must not lead elsewhere.
        let mut flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if !follow {
            flags |= OFlags::NOFOLLOW;
        }
        let opened = rustix::fs::open(&self.path, flags, Mode::empty());
        let mut file = File::from(opened.map_err(|errno| unread(errno.into()))?);
        let facts = file.metadata().map_err(&unread)?;
        if !facts.is_file() {
            return Err(kind_of(&self.path, &facts, follow)
                .err()
                .map_or_else(|| unread(io::ErrorKind::IsADirectory.into()).into(), Stop::from));
        }
        far.ask(&Request::File {
            number,
            mode: facts.mode() & 0o777,
            seconds: facts.mtime(),
            nanoseconds: nanoseconds(&facts),
        })?;
        let mut left = facts.size();
        while left > 0 {
            let piece = read(&mut file, block, left).map_err(&unread)?;
            left -= piece.len() as u64;
            // A hole costs no bandwidth, and stays a hole.
            if piece.iter().all(|byte| *byte == 0) {
                far.ask(&Request::Hole {
                    bytes: piece.len() as u64,
                })?;
            } else {
                far.send(piece)?;
            }
            if looked.elapsed() >= LOOK_EVERY {
                *looked = Instant::now();
                heard(far)?;
            }
        }
        Ok(())
    }
}

/// Checks for an early reply or an interrupt: a full disk should not be sent the rest, and sending holes
/// would never wait for room in the pipe.
fn heard(far: &mut AgentClient) -> Result<(), Stop> {
    if far.answers_within(Duration::ZERO)? {
        return Err(Stop::Answered);
    }
    Ok(())
}

/// The next of `left` bytes of a file.
fn read<'b>(file: &mut File, block: &'b mut [u8], left: u64) -> io::Result<&'b [u8]> {
    let room = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
    loop {
        match file.read(&mut block[..room]) {
            Ok(0) => return Err(io::Error::other("the file became shorter while it was copied")),
            Ok(count) => return Ok(&block[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_becomes_shorter_is_an_error_and_one_that_grows_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "12345").unwrap();
        let mut block = [0; 16];
        let mut file = File::open(&path).unwrap();
        assert_eq!(read(&mut file, &mut block, 3).unwrap(), b"123");
        assert_eq!(read(&mut file, &mut block, 6).unwrap(), b"45");
        let error = read(&mut file, &mut block, 4).unwrap_err();
        assert!(error.to_string().contains("shorter"), "{error}");
    }
}
