//! Parses the output of git: `ls-files -v --stage -z` and `status --porcelain=v2 -z`.
//!
//! Formats: git-ls-files(1), git-status(1) "Porcelain Format Version 2" with `-z`, where paths are never
//! quoted. Pure parsing; it must never guess at a record it does not know.

use std::collections::HashSet;

/// The mode git gives a submodule.
const GITLINK: u32 = 0o160_000;

/// The object id of an empty file, in each object format. git knows it without storing it.
const EMPTY: [&str; 2] = [
    "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
    "473a0f4c3be8a93681a267e3b1e9a7dcda1185436fe141f7749120a303721813",
];

/// The tracked paths.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Each tracked path once, in git's order, without submodules.
    pub(crate) paths: Vec<Tracked>,
    /// Paths of submodules.
    pub(crate) gitlinks: Vec<Vec<u8>>,
}

/// One tracked path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tracked {
    pub(crate) path: Vec<u8>,
    /// git's mode: 100644, 100755 or 120000.
    pub(crate) mode: u32,
    /// Whether git was told not to check it out (skip-worktree).
    pub(crate) hidden: bool,
    /// Whether git assumes that it is unchanged (assume-unchanged).
    pub(crate) assumed: bool,
    /// Whether it is in the index of a submodule.
    pub(crate) below: bool,
}

impl Tracked {
    /// A file or link in place of a submodule of the index.
    pub(crate) fn in_place_of_submodule(path: &[u8]) -> Self {
        Self {
            path: path.to_vec(),
            mode: GITLINK,
            hidden: false,
            assumed: false,
            below: false,
        }
    }

    pub(crate) fn is_regular(&self) -> bool {
        self.mode & 0o170_000 == 0o100_000
    }
}

/// What differs from `HEAD` or is untracked.
#[derive(Debug, Default)]
pub(crate) struct Status {
    /// Tracked paths that differ from `HEAD` in the index or the working tree.
    pub(crate) changed: HashSet<Vec<u8>>,
    /// Tracked paths whose file differs from the index.
    pub(crate) unlike: HashSet<Vec<u8>>,
    /// Untracked, not ignored files.
    pub(crate) untracked: Vec<Vec<u8>>,
    /// Untracked directories that are repositories of their own.
    pub(crate) nested: Vec<Vec<u8>>,
    /// Paths that are in `HEAD` but no longer in the index.
    pub(crate) staged_deletions: Vec<Vec<u8>>,
    /// How the index differs from `HEAD`.
    pub(crate) staged: Vec<Staged>,
}

/// One path whose index entry differs from `HEAD`; an unmerged path has several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    /// The path.
    pub path: Vec<u8>,
    /// Its mode in the index as git writes it (octal, `000000` when staged for deletion).
    pub mode: String,
    /// Its object in the index, as hex.
    pub object: String,
    /// Its merge stage from 1 to 3 (gitrevisions(7), `:<n>:<path>`); 0 when merged.
    pub stage: u8,
    /// Whether it was added with intent-to-add only, without its content.
    pub intended: bool,
}

/// The mode that means "no entry".
const NO_MODE: &str = "000000";

impl Staged {
    /// A path added with intent-to-add: git stores it with the object id of an empty file, which has `digits`
    /// digits.
    fn intended(path: &[u8], mode: &[u8], digits: usize) -> Option<Self> {
        let object = EMPTY.into_iter().find(|object| object.len() == digits)?;
        Some(Self {
            path: path.to_vec(),
            mode: lossy(mode),
            object: object.to_owned(),
            stage: 0,
            intended: true,
        })
    }

    /// The existing stages of an unmerged path, which replace the entry of `HEAD`.
    fn unmerged<'a>(path: &'a [u8], versions: [(&'a [u8], &'a [u8]); 3]) -> impl Iterator<Item = Self> + 'a {
        let version = |stage: u8, mode: &[u8], object: &[u8]| Self {
            path: path.to_vec(),
            mode: lossy(mode),
            object: lossy(object),
            stage,
            intended: false,
        };
        let none = version(0, NO_MODE.as_bytes(), &vec![b'0'; versions[0].1.len()]);
        let existing = (1..)
            .zip(versions)
            .filter(|(_, (mode, _))| *mode != NO_MODE.as_bytes());
        std::iter::once(none).chain(existing.map(move |(stage, (mode, object))| version(stage, mode, object)))
    }

    /// Whether it only removes the entry of `HEAD`.
    pub(crate) fn is_removal(&self) -> bool {
        self.mode == NO_MODE
    }
}

fn records(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|byte| *byte == 0).filter(|record| !record.is_empty())
}

fn lossy(record: &[u8]) -> String {
    String::from_utf8_lossy(record).into_owned()
}

/// Checks a path from the index. git writes only valid paths, but it reads an index that another program
/// wrote, and `../` in such an index would name files outside the tree or in the repository itself.
fn inside(path: &[u8]) -> Option<Vec<u8>> {
    let mut parts = path.split(|byte| *byte == b'/');
    parts
        .all(|part| !matches!(part, b"" | b"." | b"..") && !part.eq_ignore_ascii_case(b".git"))
        .then(|| path.to_vec())
}

impl Index {
    /// Reads `<tag> <mode> <object> <stage>TAB<path>` records; an unmerged path has several and is taken
    /// once.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut index = Self::default();
        for record in records(bytes) {
            let (tracked, gitlink) = Self::record(record).ok_or_else(|| lossy(record))?;
            if gitlink {
                index.gitlinks.push(tracked.path);
            } else if index.paths.last().is_none_or(|last| last.path != tracked.path) {
                index.paths.push(tracked);
            }
        }
        Ok(index)
    }

    /// The same with `prefix` before each path.
    pub(crate) fn below(mut self, prefix: &[u8]) -> Self {
        if prefix.is_empty() {
            return self;
        }
        for path in self
            .paths
            .iter_mut()
            .map(|tracked| &mut tracked.path)
            .chain(&mut self.gitlinks)
        {
            path.splice(..0, prefix.iter().copied());
        }
        self.paths.iter_mut().for_each(|tracked| tracked.below = true);
        self
    }

    fn record(record: &[u8]) -> Option<(Tracked, bool)> {
        let tab = record.iter().position(|byte| *byte == b'\t')?;
        let head = std::str::from_utf8(&record[..tab]).ok()?;
        let mut words = head.split(' ');
        let (tag, mode) = (words.next()?, u32::from_str_radix(words.next()?, 8).ok()?);
        let path = inside(&record[tab + 1..])?;
        Some((
            Tracked {
                path,
                mode,
                hidden: tag.eq_ignore_ascii_case("s"),
                assumed: tag.starts_with(|tag: char| tag.is_ascii_lowercase()),
                below: false,
            },
            mode == GITLINK,
        ))
    }
}

impl Status {
    /// Reads the records of a status without rename detection.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut status = Self::default();
        for record in records(bytes) {
            status.record(record).ok_or_else(|| lossy(record))?;
        }
        Ok(status)
    }

    /// The same with `prefix` before each path.
    pub(crate) fn below(mut self, prefix: &[u8]) -> Self {
        if prefix.is_empty() {
            return self;
        }
        let lists = [&mut self.untracked, &mut self.nested, &mut self.staged_deletions];
        for path in lists.into_iter().flatten() {
            path.splice(..0, prefix.iter().copied());
        }
        for paths in [&mut self.changed, &mut self.unlike] {
            *paths = paths.iter().map(|path| [prefix, path].concat()).collect();
        }
        for staged in &mut self.staged {
            staged.path.splice(..0, prefix.iter().copied());
        }
        self
    }

    /// Adds the status of a submodule, except for staged changes, which belong to the submodule's own index.
    pub(crate) fn add(&mut self, mut other: Self) {
        self.changed.extend(other.changed);
        self.unlike.extend(other.unlike);
        self.untracked.append(&mut other.untracked);
        self.nested.append(&mut other.nested);
        self.staged_deletions.append(&mut other.staged_deletions);
    }

    fn record(&mut self, record: &[u8]) -> Option<()> {
        match record {
            [b'?', b' ', path @ ..] if path.ends_with(b"/") => {
                self.nested.push(path[..path.len() - 1].to_vec());
            }
            [b'?', b' ', path @ ..] => self.untracked.push(inside(path)?),
            [b'#' | b'!', b' ', ..] => {}
            // 1 <XY> <sub> <mH> <mI> <mW> <hH> <hI> <path>
            [b'1', b' ', ..] => {
                let fields: Vec<&[u8]> = record.splitn(9, |byte| *byte == b' ').collect();
                let [_, [staged, here], _, _, mode, mode_here, _, object, path] = fields[..] else {
                    return None;
                };
                let path = inside(path)?;
                if *staged == b'D' {
                    self.staged_deletions.push(path.clone());
                }
                if (*staged, *here) == (b'.', b'A') {
                    self.staged
                        .push(Staged::intended(&path, mode_here, object.len())?);
                } else if *staged != b'.' {
                    self.staged.push(Staged {
                        path: path.clone(),
                        mode: lossy(mode),
                        object: lossy(object),
                        stage: 0,
                        intended: false,
                    });
                }
                if *here != b'.' {
                    self.unlike.insert(path.clone());
                }
                self.changed.insert(path);
            }
            // u <XY> <sub> <m1> <m2> <m3> <mW> <h1> <h2> <h3> <path>
            [b'u', b' ', ..] => {
                let fields: Vec<&[u8]> = record.splitn(11, |byte| *byte == b' ').collect();
                let [_, _, _, m1, m2, m3, _, h1, h2, h3, path] = fields[..] else {
                    return None;
                };
                let path = inside(path)?;
                self.staged
                    .extend(Staged::unmerged(&path, [(m1, h1), (m2, h2), (m3, h3)]));
                self.unlike.insert(path.clone());
                self.changed.insert(path);
            }
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_has_each_path_once_and_sets_submodules_aside() {
        let index = Index::parse(
            b"h 100644 aa 0\ta\nb\0S 100755 bb 0\tx\0M 100644 c1 1\tm\0M 100644 c2 2\tm\0H 160000 dd 0\tsub\0",
        )
        .unwrap();
        let paths: Vec<_> = index
            .paths
            .iter()
            .map(|tracked| (tracked.path.as_slice(), tracked.hidden, tracked.assumed))
            .collect();
        assert_eq!(
            paths,
            [
                (b"a\nb".as_slice(), false, true),
                (b"x", true, false),
                (b"m", false, false)
            ]
        );
        assert_eq!(index.gitlinks, [b"sub"]);
    }

    #[test]
    fn a_status_tells_changed_untracked_nested_and_staged_apart() {
        let status = Status::parse(
            b"1 .M N... 100644 100644 100644 aa aa a b\0\
              1 D. N... 100644 000000 000000 aa 00 gone\0\
              1 A. N... 000000 100644 100644 00 bb new\0\
              u UU N... 100644 100644 100644 100644 a b c both ways\0\
              ? loose\0? other/\0",
        )
        .unwrap();
        for path in [&b"a b"[..], b"gone", b"new", b"both ways"] {
            assert!(status.changed.contains(path), "{}", lossy(path));
        }
        assert_eq!(status.untracked, [b"loose"]);
        assert_eq!(status.nested, [b"other"]);
        assert_eq!(status.staged_deletions, [b"gone"]);
        let unlike: Vec<_> = [&b"a b"[..], b"gone", b"new", b"both ways"]
            .map(|path| status.unlike.contains(path))
            .into();
        assert_eq!(unlike, [true, false, false, true]);
        let staged: Vec<_> = status
            .staged
            .iter()
            .map(|staged| (staged.mode.as_str(), staged.object.as_str(), staged.stage))
            .collect();
        assert_eq!(
            staged,
            [
                ("000000", "00", 0),
                ("100644", "bb", 0),
                ("000000", "0", 0),
                ("100644", "a", 1),
                ("100644", "b", 2),
                ("100644", "c", 3)
            ]
        );
    }

    #[test]
    fn what_is_only_to_be_added_has_the_object_of_an_empty_file() {
        let none = "0".repeat(40);
        let line = format!("1 .A N... 000000 000000 100755 {none} {none} later\0");
        let status = Status::parse(line.as_bytes()).unwrap();
        assert_eq!(status.staged.len(), 1);
        let staged = &status.staged[0];
        assert!(staged.intended && status.unlike.contains(&b"later"[..]));
        assert_eq!(
            (staged.mode.as_str(), staged.object.as_str()),
            ("100755", EMPTY[0])
        );
        // No object id is this short.
        assert!(Status::parse(b"1 .A N... 000000 000000 100755 00 00 later\0").is_err());
    }

    #[test]
    fn an_unknown_record_is_refused() {
        assert!(Status::parse(b"9 what\0").is_err());
        assert!(Index::parse(b"H nonsense\0").is_err());
    }

    #[test]
    fn a_path_outside_the_tree_is_refused() {
        for path in [
            "../x",
            "a/../../x",
            "/etc/shadow",
            "a//b",
            ".git/config",
            "a/.GIT/x",
            ".",
        ] {
            let tracked = format!("H 100644 aa 0\t{path}\0");
            assert!(Index::parse(tracked.as_bytes()).is_err(), "{path}");
            let changed = format!("1 .M N... 100644 100644 100644 aa aa {path}\0");
            assert!(Status::parse(changed.as_bytes()).is_err(), "{path}");
        }
        assert!(Index::parse(b"H 100644 aa 0\ta/..b\0").is_ok());
    }
}
