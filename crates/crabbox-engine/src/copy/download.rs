//! Out of a lease. The archive comes from a machine that may be hostile.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, PipeReader, Read as _};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use crabbox_ssh::exec::{self, Exec, ExecError, Sink, Stdin};
use crabbox_ssh::target::Target;

use super::{CopyError, Words, judge, name_of, remote_path};

/// Copies `remote` to `local`, following symbolic links of the lease if `follow`; without that a link is refused. A directory
/// that is there gets the copy under its own name; one that would be the copy gets the files added. Modes are those of new
/// files here, whatever they are there. Stops when `cancel` becomes readable.
pub fn download(
    target: &Target,
    remote: &str,
    local: &Path,
    follow: bool,
    cancel: BorrowedFd<'_>,
) -> Result<(), CopyError> {
    let to = destination(remote, local)?;
    let beside = to
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let failed = |source| CopyError::Local {
        attempt: "write to",
        path: beside.to_owned(),
        source,
    };
    fs::create_dir_all(beside).map_err(failed)?;
    let stage = tempfile::Builder::new()
        .prefix(".crabbox-cp-")
        .tempdir_in(beside)
        .map_err(failed)?;
    let top = stage.path().join("c");
    let (reader, mut writer) = io::pipe().map_err(failed)?;
    let mut words = Words::default();
    let (taken, status) = std::thread::scope(|scope| {
        let taking = scope.spawn(|| take(reader, &top));
        let status = exec::run(
            target,
            Exec {
                script: script(remote, follow),
                stdin: Stdin::Null,
                stdout: Sink::Writer(&mut writer),
                stderr: Sink::Writer(&mut words),
                cancel: Some(cancel),
                limit: None,
            },
        );
        drop(writer);
        (
            taking
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            status,
        )
    });
    match (status, &taken) {
        // We stopped reading, and why is told below.
        (Err(ExecError::Output { .. }), Err(_)) => {}
        // The other side's own words say more than an archive that is not there.
        (status, taken) if !matches!(taken, Err(CopyError::Refused { .. } | CopyError::Local { .. })) => {
            judge(status?, "from", remote, &words.0)?;
        }
        _ => {}
    }
    taken?;
    put(&top, &to)
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

/// Unpacks what the lease sends as `top`. Only directories and files that this call itself has made are ever written to.
fn take(pipe: PipeReader, top: &Path) -> Result<(), CopyError> {
    let mut archive = tar::Archive::new(io::BufReader::with_capacity(64 * 1024, pipe));
    let mut taken = Taken::Nothing;
    for entry in archive.entries().map_err(CopyError::Garbled)? {
        let mut entry = entry.map_err(CopyError::Garbled)?;
        let name = entry.path_bytes().into_owned();
        let shown = || String::from_utf8_lossy(&name).into_owned();
        let refused = |what| CopyError::Refused { name: shown(), what };
        let below = inside(&name).ok_or_else(|| refused("not a name inside the copy"))?;
        let kind = entry.header().entry_type();
        let path = top.join(&below);
        let local = |source| CopyError::Local {
            attempt: "write",
            path: path.clone(),
            source,
        };
        match kind {
            tar::EntryType::Directory => match (&taken, below.as_os_str().is_empty()) {
                (Taken::Nothing, true) => {
                    taken = Taken::Directory;
                    make_dir(top).map_err(local)?;
                }
                (Taken::Directory, false) => make_dir(&path).map_err(local)?,
                _ => return Err(refused("not where it belongs")),
            },
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let path = match taken {
                    // A single file; what it is called there says nothing here.
                    Taken::Nothing => top,
                    Taken::Directory if !below.as_os_str().is_empty() => path.as_path(),
                    _ => return Err(refused("not where it belongs")),
                };
                let mut file = make_file(path).map_err(local)?;
                let size = entry.size();
                let copied = io::copy(&mut entry, &mut file).map_err(CopyError::Garbled)?;
                if copied != size {
                    return Err(CopyError::Garbled(io::ErrorKind::UnexpectedEof.into()));
                }
                if matches!(taken, Taken::Nothing) {
                    taken = Taken::File;
                }
            }
            tar::EntryType::Symlink => return Err(refused("a symbolic link")),
            tar::EntryType::Link => return Err(refused("a hard link")),
            _ => return Err(refused("neither a file nor a directory")),
        }
    }
    if matches!(taken, Taken::Nothing) {
        return Err(CopyError::Garbled(io::ErrorKind::UnexpectedEof.into()));
    }
    // What follows the archive's end is padding, and a writer without a reader would fail.
    let mut rest = archive.into_inner();
    let mut chunk = vec![0; 64 * 1024];
    while rest.read(&mut chunk).map_err(CopyError::Garbled)? > 0 {}
    Ok(())
}

/// What has been taken so far.
enum Taken {
    Nothing,
    File,
    Directory,
}

/// The path below the top; `None` for one that could lead anywhere else.
fn inside(name: &[u8]) -> Option<PathBuf> {
    let mut below = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(name)).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(part) => below.push(part),
            Component::Prefix(_) | Component::RootDir | Component::ParentDir => return None,
        }
    }
    Some(below)
}

fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o755).create(path)
}

fn make_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)
}

/// Puts the copy in place. Directories are merged; a file replaces a file or a link; nothing else gives way.
fn put(from: &Path, to: &Path) -> Result<(), CopyError> {
    let failed = |source| CopyError::Local {
        attempt: "write",
        path: to.to_owned(),
        source,
    };
    let directory = fs::symlink_metadata(from).map_err(failed)?.is_dir();
    let standing = match fs::symlink_metadata(to) {
        Ok(facts) => Some(facts.is_dir()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    match (directory, standing) {
        (_, None) | (false, Some(false)) => fs::rename(from, to).map_err(failed),
        (true, Some(true)) => {
            for child in fs::read_dir(from).map_err(failed)? {
                let child = child.map_err(failed)?;
                put(&child.path(), &to.join(child.file_name()))?;
            }
            Ok(())
        }
        (true, Some(false)) => Err(CopyError::InTheWay {
            path: to.to_owned(),
            what: "not a directory",
        }),
        (false, Some(true)) => Err(CopyError::InTheWay {
            path: to.to_owned(),
            what: "a directory",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    /// What [`take`] makes of an archive.
    fn taken(archive: &[u8]) -> (tempfile::TempDir, Result<(), CopyError>) {
        let dir = tempfile::tempdir().unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        let archive = archive.to_vec();
        let writing = std::thread::spawn(move || writer.write_all(&archive).ok());
        let outcome = take(reader, &dir.path().join("c"));
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
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7133, 0);
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
        put(&at("from"), &at("to")).unwrap();
        let read = |name: &str| fs::read_to_string(at(name)).unwrap();
        assert_eq!(
            (read("to/d/new"), read("to/d/both"), read("to/d/own")),
            ("new".into(), "new".into(), "own".into())
        );
        fs::write(at("file"), "").unwrap();
        assert!(matches!(
            put(&at("from"), &at("file")),
            Err(CopyError::InTheWay { .. })
        ));
        assert!(matches!(
            put(&at("file"), &at("to")),
            Err(CopyError::InTheWay { .. })
        ));
        // A link is replaced, not followed.
        std::os::unix::fs::symlink(at("to/d/own"), at("link")).unwrap();
        put(&at("file"), &at("link")).unwrap();
        assert_eq!(read("to/d/own"), "own");
    }
}
