//! Out of a lease. The archive comes from a machine that may be hostile.

use std::io::{self, PipeReader};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crabbox_host::archive::{ArchiveError, MemberKind, Reader};
use crabbox_host::beneath::{Beneath, Existing};
use crabbox_host::budget::Budget;
use crabbox_host::entry_path::{EntryPath, EntryPathError};
use crabbox_host::place::{Access, Place};
use crabbox_host::{files, random};
use crabbox_ssh::exec::{ExecError, Stdin};
use crabbox_ssh::target::Target;
use rustix::fs::{FileType, RenameFlags};

use super::{CopyError, checked, judge, name_of, remote_path};
use crate::stream::{budget, stream};

/// Permission bits of new files and directories, less the umask; a program gets those to run it, too.
const FILE: u32 = 0o666;
const DIRECTORY: u32 = 0o777;
/// Permission bits of the directory that the copy is made in.
const PRIVATE: u32 = 0o700;
/// What the copy is called there.
const COPY: &[u8] = b"c";

/// Copies `remote` to `local`, following symbolic links of the lease if `follow`; without that a link is refused. A directory
/// that is there gets the copy under its own name; one that would be the copy gets the files added. Below `repository` no link
/// of this side is followed. Modes are those of new files here, but a program stays one. Stops when `cancel` becomes readable.
pub fn download(
    target: &Target,
    remote: &str,
    local: &Path,
    repository: &Path,
    follow: bool,
    cancel: BorrowedFd<'_>,
) -> Result<(), CopyError> {
    let to = destination(checked(remote)?, local)?;
    let (dir, leaf) = Place::new(repository, &to, Access::Shared)?.directory()?;
    let failed = |source| CopyError::Local {
        attempt: "write to",
        path: dir.path().to_owned(),
        source,
    };
    let stage = Stage::new(&dir)?;
    let budget = budget(target, &dir).map_err(failed)?;
    let into = &stage.dir;
    let streamed = stream(
        target,
        script(remote, follow),
        Stdin::Null,
        Some(cancel),
        |pipe| take(pipe, into, budget),
    )
    .map_err(failed)?;
    let taken = streamed.taken;
    match (streamed.status, &taken) {
        // We stopped reading, and why is said below.
        (Err(ExecError::Output { .. }), Err(_)) => {}
        // The other side's own words say more than an archive that is not there.
        (status, Ok(()) | Err(CopyError::Garbled(_))) => {
            judge(status?, "from", remote, &streamed.said)?;
        }
        _ => {}
    }
    taken?;
    let copy = entry(COPY)?;
    // All of it is looked at first, so that what is in the way leaves everything as it was.
    fits(&stage.dir, &copy, &dir, &leaf)?;
    put(&stage.dir, &copy, &dir, &leaf)
}

/// What the copy will be called.
fn destination(remote: &str, local: &Path) -> Result<PathBuf, CopyError> {
    let inside = local.as_os_str().as_bytes().ends_with(b"/") || local.is_dir();
    if inside {
        Ok(local.join(name_of(remote)?))
    } else {
        Ok(local.to_owned())
    }
}

/// A private directory beside the destination; it goes with all that is left in it.
struct Stage {
    dir: Beneath,
}

impl Stage {
    fn new(beside: &Beneath) -> Result<Self, CopyError> {
        let failed = |source| CopyError::Local {
            attempt: "write to",
            path: beside.path().to_owned(),
            source,
        };
        let word = u64::from_ne_bytes(random::bytes::<8>().map_err(failed)?);
        let name = entry(format!(".crabbox-cp-{word:016x}").as_bytes())?;
        let dir = beside.make_dirs(Some(&name), PRIVATE)?;
        Ok(Self { dir })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // What stays is private and has a name that says what it is.
        files::remove_tree(self.dir.path()).ok();
    }
}

fn entry(path: &[u8]) -> Result<EntryPath, CopyError> {
    EntryPath::exact(path).map_err(|why| CopyError::Refused {
        name: String::from_utf8_lossy(path).into_owned(),
        what: why.to_string(),
    })
}

/// The other side's part: an archive of `.` for a directory, of one name for a file.
fn script(remote: &str, follow: bool) -> String {
    let src = remote_path(remote);
    let (links, check) = if follow {
        ("-h", "")
    } else {
        (
            "",
            "[ ! -L \"$src\" ] || fail \"$src is a symbolic link; -L copies what it leads to\"",
        )
    };
    format!(
        r#"set -eu
src={src}
fail() {{ echo "$1" >&2; exit 3; }}
[ -e "$src" ] || [ -L "$src" ] || fail "$src does not exist"
{check}
hard=--hard-dereference
tar -c $hard -f /dev/null -T /dev/null 2>/dev/null || hard=
if [ -d "$src" ]; then
  cd "$src"
  exec tar -c $hard {links} -f - .
fi
cd "${{src%/*}}/"
exec tar -c $hard {links} -f - "./${{src##*/}}"
"#
    )
}

/// Unpacks what the lease sends as [`COPY`] in `stage`, which is empty.
fn take(pipe: PipeReader, stage: &Beneath, mut budget: Budget) -> Result<(), CopyError> {
    let mut archive = Reader::new(io::BufReader::with_capacity(64 * 1024, pipe));
    let top = entry(COPY)?;
    let mut taken = Taken::Nothing;
    while let Some(member) = archive.next_member().map_err(CopyError::Garbled)? {
        let refused = |what: &str| CopyError::Refused {
            name: String::from_utf8_lossy(&member.path).into_owned(),
            what: what.to_owned(),
        };
        let below = match EntryPath::normal(&member.path) {
            Ok(below) => Some(below),
            Err(EntryPathError::Empty) => None,
            Err(why) => return Err(refused(&why.to_string())),
        };
        match (member.kind, &taken, below) {
            (MemberKind::Directory, Taken::Nothing, None) => {
                taken = Taken::Directory(stage.make_dirs(Some(&top), DIRECTORY)?);
            }
            (MemberKind::Directory, Taken::Directory(dir), Some(below)) => {
                dir.make_dirs(Some(&below), DIRECTORY)?;
            }
            (MemberKind::File, Taken::Directory(dir), Some(below)) => {
                let mut placing = dir.begin(&below, FILE)?;
                let path = placing.path();
                let done = archive.extract(&member, placing.file(), &mut budget);
                done.map_err(|error| blame(error, path))?;
                finish(placing, member.mode)?;
            }
            // A single file; what it is called there says nothing here.
            (MemberKind::File, Taken::Nothing, _) => {
                let mut placing = stage.begin(&top, FILE)?;
                let path = placing.path();
                let done = archive.extract(&member, placing.file(), &mut budget);
                done.map_err(|error| blame(error, path))?;
                finish(placing, member.mode)?;
                taken = Taken::File;
            }
            (MemberKind::File | MemberKind::Directory, ..) => return Err(refused("not where it belongs")),
            (kind, ..) => return Err(refused(kind.describe())),
        }
    }
    if matches!(taken, Taken::Nothing) {
        let cut = io::ErrorKind::UnexpectedEof.into();
        return Err(CopyError::Garbled(ArchiveError::Read(cut)));
    }
    // What follows the archive's end is padding, and a writer without a reader would fail.
    archive.finish().map_err(CopyError::Garbled)?;
    Ok(())
}

fn finish(placing: crabbox_host::beneath::Placing, mode: u32) -> Result<(), CopyError> {
    if mode & 0o111 != 0 {
        placing.make_executable()?;
    }
    placing.commit(Existing::Refuse)?;
    Ok(())
}

/// Whose fault it is that a member is not at `path`.
fn blame(error: ArchiveError, path: PathBuf) -> CopyError {
    match error {
        ArchiveError::Write { source, .. } => CopyError::Local {
            attempt: "write",
            path,
            source,
        },
        ArchiveError::Over { path, over } => CopyError::Over {
            name: String::from_utf8_lossy(&path).into_owned(),
            over,
        },
        error => CopyError::Garbled(error),
    }
}

/// What has been taken so far.
enum Taken {
    Nothing,
    File,
    Directory(Beneath),
}

/// Whether [`put`] will find nothing in its way.
fn fits(from: &Beneath, name: &EntryPath, dir: &Beneath, leaf: &EntryPath) -> Result<(), CopyError> {
    let in_the_way = |what| {
        Err(CopyError::InTheWay {
            path: dir.full(leaf),
            what,
        })
    };
    let is_directory = from.kind(name)? == Some(FileType::Directory);
    match (is_directory, dir.kind(leaf)?) {
        (_, None) | (false, Some(FileType::RegularFile | FileType::Symlink)) => Ok(()),
        (true, Some(FileType::Directory)) => {
            let (from, dir) = (from.dir(name)?, dir.dir(leaf)?);
            for child in from.names()? {
                fits(&from, &child, &dir, &child)?;
            }
            Ok(())
        }
        (true, Some(_)) => in_the_way("not a directory"),
        (false, Some(FileType::Directory)) => in_the_way("a directory"),
        (false, Some(_)) => in_the_way("not a regular file"),
    }
}

/// Puts the copy in place. Directories are merged; a file replaces a file or a link; nothing else gives way.
fn put(from: &Beneath, name: &EntryPath, dir: &Beneath, leaf: &EntryPath) -> Result<(), CopyError> {
    match dir.kind(leaf)? {
        None => Ok(from.rename(name, dir, leaf, RenameFlags::NOREPLACE)?),
        Some(FileType::Directory) => {
            let (from, dir) = (from.dir(name)?, dir.dir(leaf)?);
            for child in from.names()? {
                put(&from, &child, &dir, &child)?;
            }
            Ok(())
        }
        Some(_) => Ok(from.rename(name, dir, leaf, RenameFlags::empty())?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write as _;

    use crabbox_host::budget::Bound;

    /// What [`take`] makes of an archive.
    fn taken(archive: &[u8]) -> (tempfile::TempDir, Result<(), CopyError>) {
        let dir = tempfile::tempdir().unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        let archive = archive.to_vec();
        let writing = std::thread::spawn(move || writer.write_all(&archive).ok());
        let stage = Beneath::open(dir.path()).unwrap();
        let outcome = take(reader, &stage, Budget::of(1 << 20, Bound::Lease));
        writing.join().unwrap();
        (dir, outcome)
    }

    /// An archive of these entries; names go in as they are, however bad.
    fn archive(entries: &[(tar::EntryType, &str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (kind, name, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o6777);
            header.set_size(content.len() as u64);
            if kind.is_symlink() || kind.is_hard_link() {
                header.set_link_name("/etc").unwrap();
            }
            header.set_cksum();
            builder.append(&header, content.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    /// One file of mode 0640.
    fn plain() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o640);
        header.set_size(1);
        builder.append_data(&mut header, "f", &b"x"[..]).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_file_larger_than_there_is_room_for_is_refused_and_leaves_nothing() {
        let mut header = tar::Header::new_gnu();
        header.set_path("f").unwrap();
        header.set_size(1 << 40);
        header.set_cksum();
        let (dir, outcome) = taken(&[header.as_bytes().as_slice(), &[1; 4096]].concat());
        assert!(matches!(outcome, Err(CopyError::Over { .. })), "{outcome:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    const DIR: tar::EntryType = tar::EntryType::Directory;
    const FILE: tar::EntryType = tar::EntryType::Regular;

    #[test]
    fn files_and_directories_are_taken_with_modes_of_our_own() {
        use std::os::unix::fs::PermissionsExt as _;
        let (dir, outcome) = taken(&archive(&[
            (DIR, "./", ""),
            (DIR, "./d/", ""),
            (FILE, "./d/f", "x"),
        ]));
        outcome.unwrap();
        let file = dir.path().join("c/d/f");
        assert_eq!(fs::read(&file).unwrap(), b"x");
        // A program stays one; set-id bits and what the umask keeps back do not come along.
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!((mode(&file) & 0o7000, mode(&file) & 0o700), (0, 0o700));
        let (dir, outcome) = taken(&plain());
        outcome.unwrap();
        assert_eq!(mode(&dir.path().join("c")) & 0o7711, 0o600);
    }

    #[test]
    fn what_could_leave_the_copy_is_refused() {
        let bad: &[&[(tar::EntryType, &str, &str)]] = &[
            &[(DIR, "./", ""), (FILE, "../evil", "x")],
            &[(DIR, "./", ""), (FILE, "a/../../evil", "x")],
            &[(DIR, "./", ""), (FILE, "/evil", "x")],
            &[(FILE, "../evil", "x")],
            &[
                (DIR, "./", ""),
                (tar::EntryType::Symlink, "./l", ""),
                (FILE, "./l/evil", "x"),
            ],
            &[(DIR, "./", ""), (tar::EntryType::Link, "./l", "")],
            &[(DIR, "./", ""), (tar::EntryType::Fifo, "./p", "")],
            &[(DIR, "./", ""), (tar::EntryType::Char, "./p", "")],
            &[(FILE, "f", "x"), (FILE, "g", "y")],
            &[(FILE, "f", "x"), (DIR, "./", "")],
            &[(DIR, "./d/", "")],
        ];
        for entries in bad {
            let (dir, outcome) = taken(&archive(entries));
            assert!(
                matches!(outcome, Err(CopyError::Refused { .. })),
                "{entries:?}: {outcome:?}"
            );
            assert!(!dir.path().join("evil").exists() && !Path::new("/evil").exists());
        }
    }

    #[test]
    fn an_archive_that_is_cut_short_or_empty_is_no_copy() {
        let whole = archive(&[(DIR, "./", ""), (FILE, "./f", &"x".repeat(3000))]);
        for length in [0, 100, 512 + 512 + 1000] {
            let (_dir, outcome) = taken(&whole[..length]);
            assert!(
                matches!(outcome, Err(CopyError::Garbled(_))),
                "{length}: {outcome:?}"
            );
        }
        let (_dir, outcome) = taken(&archive(&[]));
        assert!(matches!(outcome, Err(CopyError::Garbled(_))), "{outcome:?}");
    }

    #[test]
    fn directories_are_merged_and_nothing_else_gives_way() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("from/d")).unwrap();
        fs::create_dir_all(at("to/d")).unwrap();
        fs::write(at("from/d/new"), "new").unwrap();
        fs::write(at("from/d/both"), "new").unwrap();
        fs::write(at("to/d/both"), "old").unwrap();
        fs::write(at("to/d/own"), "own").unwrap();
        let here = Beneath::open(dir.path()).unwrap();
        let name = |name: &str| entry(name.as_bytes()).unwrap();
        let put = |from: &str, to: &str| {
            fits(&here, &name(from), &here, &name(to))?;
            super::put(&here, &name(from), &here, &name(to))
        };
        put("from", "to").unwrap();
        let read = |name: &str| fs::read_to_string(at(name)).unwrap();
        assert_eq!(
            (read("to/d/new"), read("to/d/both"), read("to/d/own")),
            ("new".into(), "new".into(), "own".into())
        );
        fs::write(at("file"), "").unwrap();
        assert!(matches!(put("from", "file"), Err(CopyError::InTheWay { .. })));
        assert!(matches!(put("file", "to"), Err(CopyError::InTheWay { .. })));
        // What is in the way of one keeps all others as they were.
        for made in ["more/d/clash", "more/a"] {
            fs::create_dir_all(at(made)).unwrap();
        }
        fs::write(at("to/d/clash"), "old").unwrap();
        assert!(matches!(put("more", "to"), Err(CopyError::InTheWay { .. })));
        assert!(!at("to/a").exists());
        // A link is replaced, not followed.
        std::os::unix::fs::symlink(at("to/d/own"), at("link")).unwrap();
        put("file", "link").unwrap();
        assert_eq!(read("to/d/own"), "own");
    }
}
