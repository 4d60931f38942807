//! Where to write a file whose path comes from a user or a repository: inside the repository without
//! following links, elsewhere as the user specified.
//!
//! A repository may contain committed links, so a path that leads into it is resolved by [`Beneath`] from its
//! root on. A path outside is the user's own choice, and so are links in it. The file itself must never be
//! written through a link in either case, and an existing file stays intact until the new one is complete.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::FileType;

use crate::beneath::{self, Beneath, BeneathError, Existing, Placing};
use crate::entry_path::{EntryPath, EntryPathError};
use crate::files::{self, FileError};

/// Why a file cannot be written at its path.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// It cannot be reached, or something blocks it.
    #[error(transparent)]
    Beneath(#[from] BeneathError),
    /// Its directory cannot be created.
    #[error(transparent)]
    File(#[from] FileError),
    /// The path names no file.
    #[error("{} is {why}, not the path of a file", path.display())]
    Name {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: EntryPathError,
    },
    /// The path exists and is not a file.
    #[error("{} is a device, a pipe or a socket, or leads to one; name a file", path.display())]
    Node {
        /// The path.
        path: PathBuf,
    },
}

/// Permission bits of new files and directories; the umask is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Readable for others, as with other programs: 0666 and 0777.
    Shared,
    /// Private: 0600 and 0700, whatever the umask is.
    Private,
}

impl Access {
    fn file(self) -> u32 {
        match self {
            Self::Shared => 0o666,
            Self::Private => 0o600,
        }
    }

    fn directory(self) -> u32 {
        match self {
            Self::Shared => 0o777,
            Self::Private => 0o700,
        }
    }
}

/// How a file will be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// It gets its name once it is complete: [`Place::begin`], [`Place::write`].
    Whole,
    /// It has its name from the start: [`Place::stream`].
    Stream,
    /// At the end of the existing file: [`Place::append`].
    Append,
}

/// The path of one file, prepared for writing.
#[derive(Debug)]
pub struct Place {
    base: PathBuf,
    below: EntryPath,
    access: Access,
    /// Whether it is in a repository, or in a directory of ours inside one.
    is_inside: bool,
}

impl Place {
    /// The place for the absolute path `path`. Inside `repository` no component may be a link.
    pub fn new(repository: &Path, path: &Path, access: Access) -> Result<Self, PlaceError> {
        let named = |why| PlaceError::Name {
            path: path.to_owned(),
            why,
        };
        let path = by_text(path);
        let entered = entrance(repository, &path);
        let is_inside = entered.is_some();
        let base = match entered {
            Some(base) => base,
            // Outside the repository, the user has chosen every component but the file itself.
            None => path
                .parent()
                .ok_or_else(|| named(EntryPathError::Empty))?
                .to_owned(),
        };
        let below = path.strip_prefix(&base).unwrap_or(&path);
        let below = EntryPath::exact(below.as_os_str().as_bytes()).map_err(named)?;
        Ok(Self {
            base,
            below,
            access,
            is_inside,
        })
    }

    /// The place for `name` in the directory `base`, which is ours: no component of `name` may be a link.
    pub fn below(base: &Path, name: &Path, access: Access) -> Result<Self, PlaceError> {
        let below = EntryPath::normal(name.as_os_str().as_bytes()).map_err(|why| PlaceError::Name {
            path: base.join(name),
            why,
        })?;
        Ok(Self {
            base: base.to_owned(),
            below,
            access,
            is_inside: true,
        })
    }

    /// The whole path.
    pub fn path(&self) -> PathBuf {
        self.base.join(self.below.as_path())
    }

    /// Starts the file; missing directories are created. It gets its name at [`Placing::commit`].
    pub fn begin(&self) -> Result<Placing, PlaceError> {
        let (dir, leaf) = self.directory()?;
        Ok(dir.begin(&leaf, self.access.file())?)
    }

    /// Writes the whole file at once and replaces an existing one.
    pub fn write(&self, bytes: &[u8], existing: Existing) -> Result<(), PlaceError> {
        let mut placing = self.begin()?;
        let path = self.path();
        let written = io::Write::write_all(&mut placing, bytes);
        written.map_err(|source| FileError::io("write", &path, source))?;
        placing.commit(existing)?;
        Ok(())
    }

    /// An empty file that has its name from the start, for a stream that a user may want to watch. A pipe or
    /// a device outside the repository is written to directly, because the user named it.
    pub fn stream(&self) -> Result<File, PlaceError> {
        if self.is_node() {
            return self.as_user(File::options().write(true));
        }
        Ok(self.begin()?.commit(Existing::Replace)?)
    }

    /// Opens the file for appending.
    pub fn append(&self) -> Result<File, PlaceError> {
        if !self.is_inside && self.path().exists() {
            return self.as_user(File::options().append(true));
        }
        let (dir, leaf) = self.directory()?;
        Ok(dir.append(&leaf, self.access.file())?)
    }

    /// Checks whether the file could be written in this manner, without creating anything, so that obstacles
    /// are reported before any work is done for the file.
    pub fn look(&self, manner: Manner) -> Result<(), PlaceError> {
        if self.is_node() {
            return match manner {
                Manner::Whole => Err(PlaceError::Node { path: self.path() }),
                Manner::Stream | Manner::Append => Ok(()),
            };
        }
        let in_the_way = |kind| {
            Err(PlaceError::Beneath(BeneathError::InTheWay {
                path: self.path(),
                what: beneath::describe(kind),
            }))
        };
        // Outside a repository, a link is followed to the file that will be appended to.
        if manner == Manner::Append && !self.is_inside && self.path().exists() {
            return if self.path().is_dir() {
                in_the_way(FileType::Directory)
            } else {
                Ok(())
            };
        }
        // Outside a repository, missing directories will be created.
        let is_there = |dir: &&Path| dir.symlink_metadata().is_ok();
        let base = self.base.ancestors().find(is_there).unwrap_or(Path::new("/"));
        let at = Beneath::open(base)?;
        if base != self.base {
            return Ok(());
        }
        let (parent, leaf) = self.below.split();
        let dir = match parent.map(|parent| at.dir(&parent)).transpose() {
            Err(error) if error.is_absent() => return Ok(()),
            dir => dir?.unwrap_or(at),
        };
        let leaf = EntryPath::exact(leaf).map_err(|why| PlaceError::Name {
            path: self.path(),
            why,
        })?;
        match dir.kind(&leaf)? {
            None | Some(FileType::RegularFile) => Ok(()),
            // A link is replaced by the file, but cannot be appended to.
            Some(FileType::Symlink) if manner != Manner::Append => Ok(()),
            Some(FileType::Symlink) => Err(BeneathError::Link { path: self.path() }.into()),
            Some(kind) => in_the_way(kind),
        }
    }

    /// Whether the path, outside the repository, is not a file or is a link to something without a lasting
    /// path: `/dev/null`, a named pipe, `/dev/stdout`. Replacing it by a file would destroy it for all users.
    fn is_node(&self) -> bool {
        let path = self.path();
        let is_special = |facts: std::fs::Metadata| !facts.is_file() && !facts.is_dir();
        let leads_there = |to: PathBuf| to.starts_with("/proc");
        !self.is_inside
            && (std::fs::metadata(&path).is_ok_and(is_special)
                || std::fs::read_link(&path).is_ok_and(leads_there))
    }

    fn as_user(&self, options: &std::fs::OpenOptions) -> Result<File, PlaceError> {
        let path = self.path();
        let opened = options.open(&path);
        Ok(opened.map_err(|source| FileError::io("open", &path, source))?)
    }

    /// The open directory of the file, and its name in it.
    pub fn directory(&self) -> Result<(Beneath, EntryPath), PlaceError> {
        if self.is_node() {
            return Err(PlaceError::Node { path: self.path() });
        }
        let missing = !self.base.is_dir();
        if missing {
            // This happens only outside a repository, because the root of a repository exists.
            files::make_dirs(&self.base, self.access.directory())?;
        }
        Ok(Beneath::open(&self.base)?.parent_of(&self.below, self.access.directory())?)
    }
}

/// The resolved `path`: links are followed as far as components exist, the rest is taken as text. Two paths
/// of the same file give the same result, whether it exists or not; two hard links do not, since we never
/// write into a file that has another name.
pub fn straight(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        // A dangling link: a file written to it appears at its target.
        let Ok(target) = std::fs::read_link(&path) else {
            break;
        };
        if path.exists() {
            break;
        }
        path = path.parent().unwrap_or(Path::new("/")).join(target);
    }
    let real = |above: &Path| Some((std::fs::canonicalize(above).ok()?, path.strip_prefix(above).ok()?));
    let led = path.ancestors().find_map(real);
    let led = led.map(|(above, below)| by_text(&above.join(below)));
    led.unwrap_or_else(|| by_text(&path))
}

/// Maximum number of links followed, as in the kernel (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// `path` without `.` and `..`, computed from its text.
fn by_text(path: &Path) -> PathBuf {
    let mut kept = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                kept.pop();
            }
            part => kept.push(part),
        }
    }
    kept
}

/// The directory in which `path` enters the repository: the first of its directories that is the root or
/// inside it.
fn entrance(repository: &Path, path: &Path) -> Option<PathBuf> {
    if path.starts_with(repository) {
        return Some(repository.to_owned());
    }
    let root = std::fs::canonicalize(repository).ok()?;
    let above: Vec<&Path> = path.ancestors().skip(1).collect();
    let entered = |dir: &&&Path| std::fs::canonicalize(dir).is_ok_and(|real| real.starts_with(&root));
    above.iter().rev().find(entered).map(|dir| (*dir).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    #[test]
    fn two_names_of_one_place_come_out_alike_whether_it_is_there_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let at = |name: &str| root.join(name);
        std::fs::create_dir_all(at("real/sub")).unwrap();
        std::fs::write(at("real/key"), "k").unwrap();
        for (link, target) in [
            ("dir", "real"),
            ("deep", "dir/sub"),
            ("key", "real/key"),
            ("ahead", "real/proof"),
            ("chain", "ahead"),
            ("ring", "ring"),
        ] {
            symlink(target, at(link)).unwrap();
        }
        for (name, place) in [
            ("real/key", "real/key"),
            ("dir/key", "real/key"),
            ("key", "real/key"),
            ("deep/../key", "real/key"),
            ("dir/./new/../proof", "real/proof"),
            ("ahead", "real/proof"),
            ("chain", "real/proof"),
            ("nowhere/a/../b", "nowhere/b"),
            ("ring", "ring"),
        ] {
            assert_eq!(straight(&at(name)), at(place), "{name}");
        }
    }

    struct World {
        dir: tempfile::TempDir,
    }

    impl World {
        /// A repository with committed links, a foreign directory, and a link to the repository.
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name);
            for name in ["repo/.git", "repo/sub", "victim", "user"] {
                std::fs::create_dir_all(at(name)).unwrap();
            }
            symlink("../victim", at("repo/out")).unwrap();
            symlink(".git", at("repo/git")).unwrap();
            symlink("../repo", at("user/work")).unwrap();
            symlink("../victim", at("user/big")).unwrap();
            Self { dir }
        }

        fn place(&self, path: &str, access: Access) -> Result<Place, PlaceError> {
            Place::new(&self.dir.path().join("repo"), &self.dir.path().join(path), access)
        }

        fn write(&self, path: &str) -> Result<(), PlaceError> {
            self.place(path, Access::Shared)?
                .write(b"guest", Existing::Replace)
        }

        fn is_there(&self, path: &str) -> bool {
            self.dir.path().join(path).symlink_metadata().is_ok()
        }
    }

    #[test]
    fn no_file_takes_the_place_of_a_pipe_or_of_a_link_to_a_device() {
        let world = World::new();
        let pipe = world.dir.path().join("user/pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        for (name, to) in [("null", "/dev/null"), ("out", "/proc/self/fd/1")] {
            symlink(to, world.dir.path().join("user").join(name)).unwrap();
        }
        for name in ["user/pipe", "user/null", "user/out"] {
            let error = world.write(name).unwrap_err();
            assert!(matches!(error, PlaceError::Node { .. }), "{name}: {error}");
            let place = world.place(name, Access::Shared).unwrap();
            assert!(
                matches!(place.directory(), Err(PlaceError::Node { .. })),
                "{name}"
            );
            let there = world.dir.path().join(name).symlink_metadata().unwrap();
            assert!(!there.is_file(), "{name}");
        }
        world.write("user/file").unwrap();
    }

    #[test]
    fn links_of_the_repository_are_followed_by_no_way_into_it() {
        let world = World::new();
        for path in [
            "repo/out/key",
            "repo/sub/../out/key",
            "repo/git/config",
            "user/work/out/key",
            "user/../repo/out/key",
            "repo/out/new/key",
        ] {
            let error = world.write(path).unwrap_err();
            assert!(error.to_string().contains("symbolic link"), "{path}: {error}");
        }
        for name in ["victim/key", "victim/new", "repo/.git/config"] {
            assert!(!world.is_there(name), "{name}");
        }
        world.write("repo/new/deep/f").unwrap();
        world.write("user/work/sub/g").unwrap();
        assert!(world.is_there("repo/new/deep/f") && world.is_there("repo/sub/g"));
    }

    #[test]
    fn a_look_tells_what_writing_would_and_makes_nothing() {
        let world = World::new();
        std::fs::write(world.dir.path().join("user/file"), "old").unwrap();
        symlink("sub", world.dir.path().join("repo/link")).unwrap();
        let rows = [
            ("repo/new/deep/f", true, true),
            ("user/fresh/deep/f", true, true),
            ("user/file", true, true),
            ("repo/link", true, false),
            ("repo/out/key", false, false),
            ("repo/sub", false, false),
            ("user/big", true, false),
            ("user/file/f", false, false),
            ("user/file/deep/f", false, false),
        ];
        let place = |path| world.place(path, Access::Shared).unwrap();
        for (path, whole, append) in rows {
            let look = |manner| place(path).look(manner).is_ok();
            let all = [Manner::Whole, Manner::Stream, Manner::Append].map(look);
            assert_eq!(all, [whole, whole, append], "{path}");
        }
        assert!(!world.is_there("repo/new") && !world.is_there("user/fresh"));
        for (path, whole, append) in rows {
            assert_eq!(place(path).append().is_ok(), append, "{path}");
            assert_eq!(place(path).stream().is_ok(), whole, "{path}");
        }
        let null = Place::new(
            &world.dir.path().join("repo"),
            Path::new("/dev/null"),
            Access::Shared,
        )
        .unwrap();
        let look = |manner| null.look(manner).is_ok();
        assert_eq!(
            [Manner::Whole, Manner::Stream, Manner::Append].map(look),
            [false, true, true]
        );
    }

    #[test]
    fn elsewhere_links_are_the_users_own_but_for_the_file_itself() {
        let world = World::new();
        world.write("user/big/f").unwrap();
        world.write("user/fresh/deep/f").unwrap();
        assert!(world.is_there("victim/f") && world.is_there("user/fresh/deep/f"));
        symlink("../victim/f", world.dir.path().join("user/link")).unwrap();
        world
            .place("user/link", Access::Shared)
            .unwrap()
            .stream()
            .unwrap();
        assert_eq!(
            std::fs::read(world.dir.path().join("victim/f")).unwrap(),
            b"guest"
        );
    }

    #[test]
    fn a_pipe_is_written_to_where_the_user_named_it_and_not_where_the_repository_has_it() {
        let world = World::new();
        for name in ["user/pipe", "repo/pipe"] {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mkfifoat(rustix::fs::CWD, world.dir.path().join(name), mode).unwrap();
        }
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
        let reader = rustix::fs::open(
            world.dir.path().join("user/pipe"),
            flags,
            rustix::fs::Mode::empty(),
        );
        let mut reader = File::from(reader.unwrap());
        let mut stream = world
            .place("user/pipe", Access::Private)
            .unwrap()
            .stream()
            .unwrap();
        io::Write::write_all(&mut stream, b"text").unwrap();
        let mut text = [0; 4];
        io::Read::read_exact(&mut reader, &mut text).unwrap();
        assert_eq!(text, *b"text");
        assert!(
            world
                .place("repo/pipe", Access::Private)
                .unwrap()
                .stream()
                .is_err()
        );
    }

    #[test]
    fn what_is_private_is_so_whatever_the_umask() {
        let world = World::new();
        let place = world.place("repo/.crabbox/runs/r/file", Access::Private).unwrap();
        drop(place.stream().unwrap());
        let mode = |path: &str| std::fs::metadata(world.dir.path().join(path)).unwrap().mode() & 0o777;
        assert_eq!(
            (mode("repo/.crabbox/runs"), mode("repo/.crabbox/runs/r/file")),
            (0o700, 0o600)
        );
        io::Write::write_all(&mut place.append().unwrap(), b"more").unwrap();
        assert_eq!(std::fs::read(place.path()).unwrap(), b"more");
    }

    #[test]
    fn a_path_that_names_no_file_is_refused() {
        let world = World::new();
        assert!(matches!(
            world.place("repo", Access::Shared),
            Err(PlaceError::Name { .. })
        ));
        for refused in [
            Place::new(Path::new("/repo"), Path::new("/"), Access::Shared),
            Place::below(Path::new("/repo"), Path::new("../x"), Access::Shared),
        ] {
            assert!(matches!(refused, Err(PlaceError::Name { .. })), "{refused:?}");
        }
    }
}
