//! What git prints: `ls-files -t --stage -z` and `status --porcelain=v2 -z`, taken apart.
//!
//! Formats: git-ls-files(1), git-status(1) "Porcelain Format Version 2" with `-z`, where paths are never quoted.
//! Pure parsing; it must never guess at a record it does not know.

use std::collections::HashSet;

/// The mode git gives a submodule.
const GITLINK: u32 = 0o160_000;

/// The tracked paths.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Each tracked path once, in git's order; submodules are not among them.
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
}

impl Tracked {
    /// What stands where the index has a submodule.
    pub(crate) fn in_place_of_submodule(path: &[u8]) -> Self {
        Self {
            path: path.to_vec(),
            mode: GITLINK,
            hidden: false,
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
    /// Untracked, not ignored files.
    pub(crate) untracked: Vec<Vec<u8>>,
    /// Untracked directories that are repositories of their own.
    pub(crate) nested: Vec<Vec<u8>>,
    /// Paths that the index no longer has and `HEAD` still has.
    pub(crate) staged_deletions: Vec<Vec<u8>>,
    /// How the index differs from `HEAD`.
    pub(crate) staged: Vec<Staged>,
}

/// One path whose index entry differs from `HEAD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    /// The path.
    pub path: Vec<u8>,
    /// Its mode in the index as git writes it (octal, `000000` when staged for deletion).
    pub mode: String,
    /// Its object in the index, as hex.
    pub object: String,
}

fn records(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|byte| *byte == 0).filter(|record| !record.is_empty())
}

fn lossy(record: &[u8]) -> String {
    String::from_utf8_lossy(record).into_owned()
}

impl Index {
    /// Reads `<tag> <mode> <object> <stage>TAB<path>` records; an unmerged path has several and is taken once.
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
        self
    }

    fn record(record: &[u8]) -> Option<(Tracked, bool)> {
        let tab = record.iter().position(|byte| *byte == b'\t')?;
        let head = std::str::from_utf8(&record[..tab]).ok()?;
        let mut words = head.split(' ');
        let (tag, mode) = (words.next()?, u32::from_str_radix(words.next()?, 8).ok()?);
        let path = record[tab + 1..].to_vec();
        Some((
            Tracked {
                path,
                mode,
                hidden: tag.eq_ignore_ascii_case("s"),
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
        self.changed = self.changed.iter().map(|path| [prefix, path].concat()).collect();
        for staged in &mut self.staged {
            staged.path.splice(..0, prefix.iter().copied());
        }
        self
    }

    /// Takes in the status of a submodule. What is staged there is in an index of its own, and stays there.
    pub(crate) fn add(&mut self, mut other: Self) {
        self.changed.extend(other.changed);
        self.untracked.append(&mut other.untracked);
        self.nested.append(&mut other.nested);
        self.staged_deletions.append(&mut other.staged_deletions);
    }

    fn record(&mut self, record: &[u8]) -> Option<()> {
        match record {
            [b'?', b' ', path @ ..] if path.ends_with(b"/") => {
                self.nested.push(path[..path.len() - 1].to_vec());
            }
            [b'?', b' ', path @ ..] => self.untracked.push(path.to_vec()),
            [b'#' | b'!', b' ', ..] => {}
            // 1 <XY> <sub> <mH> <mI> <mW> <hH> <hI> <path>
            [b'1', b' ', ..] => {
                let fields: Vec<&[u8]> = record.splitn(9, |byte| *byte == b' ').collect();
                let [_, xy, _, _, mode, _, _, object, path] = fields[..] else {
                    return None;
                };
                match xy.first()? {
                    b'.' => {}
                    staged => {
                        if *staged == b'D' {
                            self.staged_deletions.push(path.to_vec());
                        }
                        self.staged.push(Staged {
                            path: path.to_vec(),
                            mode: lossy(mode),
                            object: lossy(object),
                        });
                    }
                }
                self.changed.insert(path.to_vec());
            }
            // u <XY> <sub> <m1> <m2> <m3> <mW> <h1> <h2> <h3> <path>
            [b'u', b' ', ..] => {
                self.changed
                    .insert(record.splitn(11, |byte| *byte == b' ').nth(10)?.to_vec());
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
            b"H 100644 aa 0\ta\nb\0S 100755 bb 0\tx\0M 100644 c1 1\tm\0M 100644 c2 2\tm\0H 160000 dd 0\tsub\0",
        )
        .unwrap();
        let paths: Vec<_> = index
            .paths
            .iter()
            .map(|tracked| (tracked.path.as_slice(), tracked.hidden))
            .collect();
        assert_eq!(paths, [(b"a\nb".as_slice(), false), (b"x", true), (b"m", false)]);
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
        assert_eq!(
            status
                .staged
                .iter()
                .map(|staged| staged.mode.as_str())
                .collect::<Vec<_>>(),
            ["000000", "100644"]
        );
    }

    #[test]
    fn an_unknown_record_is_refused() {
        assert!(Status::parse(b"9 what\0").is_err());
        assert!(Index::parse(b"H nonsense\0").is_err());
    }
}
