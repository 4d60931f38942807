//! Into a lease.

use std::fs::{self, File, Metadata};
use std::io::{self, PipeWriter, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crabbox_ssh::exec::{self, Exec, Sink, Stdin};
use crabbox_ssh::quote;
use crabbox_ssh::target::Target;

use super::{CopyError, Words, checked, judge, remote_path};

/// The top of the archive: the file or directory itself, called this whatever its name is.
const TOP: &str = "c";
/// The archive's last entry. A stream that was cut short lacks it, and tar would not say so.
const DONE: &str = "done";

/// Copies `local` to `remote`, following symbolic links if `follow`. A directory that is there gets the copy under its own
/// name; one that would be the copy gets the files added. Stops when `cancel` becomes readable.
pub fn upload(
    target: &Target,
    local: &Path,
    remote: &str,
    follow: bool,
    cancel: BorrowedFd<'_>,
) -> Result<(), CopyError> {
    let (name, remote) = (local_name(local)?, checked(remote)?);
    let archive = Archive {
        follow,
        parents: Vec::new(),
    };
    // Looked at before a connection is made: most mistakes are in the name.
    archive.facts(local)?;
    let local_error = |source| CopyError::Local {
        attempt: "make a pipe for",
        path: local.to_owned(),
        source,
    };
    let (reader, writer) = io::pipe().map_err(local_error)?;
    let mut words = Words::default();
    let exec = Exec {
        script: script(remote, &name),
        stdin: Stdin::Reader(Box::new(reader)),
        stdout: Sink::Discard,
        stderr: Sink::Writer(&mut words),
        cancel: Some(cancel),
        limit: None,
    };
    let (written, status) = std::thread::scope(|scope| {
        let writer = scope.spawn(move || archive.write(local, writer));
        let status = exec::run(target, exec);
        (
            writer
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            status,
        )
    });
    match written {
        // The other side stopped reading; why is what it says.
        Err(CopyError::Local { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {}
        other => other?,
    }
    judge(status?, "to", remote, &words)
}

/// The name that the copy gets in a directory.
fn local_name(local: &Path) -> Result<String, CopyError> {
    let nameless = || CopyError::Nameless {
        source_path: local.display().to_string(),
    };
    let name = if let Some(name) = local.file_name() {
        name.to_owned()
    } else {
        // `.` and `..` have names of their own.
        let full = local.canonicalize().map_err(failed(local))?;
        full.file_name().ok_or_else(nameless)?.to_owned()
    };
    name.into_string().map_err(|_| nameless())
}

/// The other side's part. Extracts into a fresh directory beside the destination, so that a rename puts the copy in place.
fn script(remote: &str, name: &str) -> String {
    let (dst, name) = (remote_path(remote), quote::single(name));
    let make = if remote.ends_with('/') {
        "mkdir -p -- \"$dst\""
    } else {
        ""
    };
    format!(
        r#"set -eu
umask 022
dst={dst}
name={name}
fail() {{ echo "$1" >&2; exit 3; }}
{make}
if [ -d "$dst" ]; then dst=${{dst%/}}/$name; fi
parent=${{dst%/*}}/
mkdir -p -- "$parent"
stage=$(mktemp -d "${{parent}}.crabbox-cp.XXXXXX")
trap 'rm -rf -- "$stage"' EXIT
trap 'exit 1' HUP INT TERM
tar -x -p -o -f - -C "$stage"
[ -f "$stage/{DONE}" ] || fail "the copy was cut short"
if [ -d "$stage/{TOP}" ] && [ ! -L "$stage/{TOP}" ]; then
  if [ -d "$dst" ]; then
    tar -c -f - -C "$stage/{TOP}" . | tar -x -p -o -f - -C "$dst"
  elif [ -e "$dst" ] || [ -L "$dst" ]; then
    fail "$dst is there already and is not a directory"
  else
    mv -- "$stage/{TOP}" "$dst"
  fi
elif [ -d "$dst" ]; then
  fail "$dst is there already and is a directory"
else
  mv -f -- "$stage/{TOP}" "$dst"
fi
"#
    )
}

/// The archive in the making.
struct Archive {
    follow: bool,
    /// Device and inode of the directories that we are in, for links that lead back.
    parents: Vec<(u64, u64)>,
}

fn failed(path: &Path) -> impl Fn(io::Error) -> CopyError {
    let path = path.to_owned();
    move |source| CopyError::Local {
        attempt: "read",
        path: path.clone(),
        source,
    }
}

impl Archive {
    fn write(mut self, local: &Path, pipe: PipeWriter) -> Result<(), CopyError> {
        let mut tar = tar::Builder::new(io::BufWriter::with_capacity(64 * 1024, pipe));
        self.add(&mut tar, local, Path::new(TOP))?;
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o600);
        tar.append_data(&mut header, DONE, io::empty())
            .map_err(failed(local))?;
        let buffered = tar.into_inner().map_err(failed(local))?;
        buffered
            .into_inner()
            .map_err(|error| failed(local)(error.into_error()))?;
        Ok(())
    }

    fn facts(&self, path: &Path) -> Result<Metadata, CopyError> {
        if self.follow {
            fs::metadata(path)
        } else {
            fs::symlink_metadata(path)
        }
        .map_err(failed(path))
    }

    fn add<W: io::Write>(
        &mut self,
        tar: &mut tar::Builder<W>,
        path: &Path,
        name: &Path,
    ) -> Result<(), CopyError> {
        let facts = self.facts(path)?;
        let kind = facts.file_type();
        let mut header = tar::Header::new_gnu();
        header.set_mode(facts.mode() & 0o777);
        header.set_mtime(u64::try_from(facts.mtime()).unwrap_or(0));
        if kind.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_size(0);
            tar.append_data(&mut header, name, io::empty())
                .map_err(failed(path))?;
            return self.enter(tar, path, name, (facts.dev(), facts.ino()));
        }
        if kind.is_symlink() {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            let leads_to = fs::read_link(path).map_err(failed(path))?;
            return tar.append_link(&mut header, name, leads_to).map_err(failed(path));
        }
        if !kind.is_file() {
            let what = match () {
                () if kind.is_socket() => "a socket",
                () if kind.is_fifo() => "a named pipe",
                () => "a device",
            };
            return Err(CopyError::Special {
                path: path.to_owned(),
                what,
            });
        }
        let file = File::open(path).map_err(failed(path))?;
        header.set_size(facts.size());
        tar.append_data(
            &mut header,
            name,
            Exactly {
                file,
                left: facts.size(),
            },
        )
        .map_err(failed(path))
    }

    fn enter<W: io::Write>(
        &mut self,
        tar: &mut tar::Builder<W>,
        path: &Path,
        name: &Path,
        identity: (u64, u64),
    ) -> Result<(), CopyError> {
        if self.parents.contains(&identity) {
            return Err(CopyError::Loop {
                path: path.to_owned(),
            });
        }
        self.parents.push(identity);
        let mut children: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(path).map_err(failed(path))? {
            children.push(entry.map_err(failed(path))?.path());
        }
        children.sort();
        for child in children {
            let below = name.join(child.file_name().unwrap_or_default());
            self.add(tar, &child, &below)?;
        }
        self.parents.pop();
        Ok(())
    }
}

/// As many bytes of a file as its header says: one that shrinks meanwhile would shift everything behind it.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read(&mut buffer[..room])?;
        if count == 0 && room > 0 {
            return Err(io::Error::other("the file became shorter while it was copied"));
        }
        self.left -= count as u64;
        Ok(count)
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
        let read = |left| {
            let file = File::open(&path).unwrap();
            let mut text = String::new();
            Exactly { file, left }.read_to_string(&mut text).map(|_| text)
        };
        assert_eq!(read(3).unwrap(), "123");
        assert!(read(6).unwrap_err().to_string().contains("shorter"));
    }
}
