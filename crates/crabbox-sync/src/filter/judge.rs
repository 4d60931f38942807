//! The filter for many paths: results that hold for a whole directory are computed once.
//!
//! It must never give another verdict than [`Filter::judge`], which does not use it.

use super::{Filter, Pattern, Verdict, is_protected, path_matches};
use crate::glob;

impl Filter {
    /// A judge for many paths, which is fast if paths of one directory follow each other.
    pub(crate) fn judge_of_many(&self) -> Judge<'_> {
        Judge {
            filter: self,
            dir: None,
            above: Above::default(),
            hits: Vec::new(),
        }
    }

    fn above(&self, dir: &[u8]) -> Above {
        let literal = dir
            .split(|byte| *byte == b'/')
            .filter_map(|component| self.literals.get(component))
            .flatten();
        let other = self
            .others
            .iter()
            .filter(|at| self.rules[**at].pattern.matches(dir));
        Above {
            protected: is_protected(dir),
            included: self.includes.iter().any(|text| path_matches(text, dir)),
            hits: literal.chain(other).copied().collect(),
        }
    }
}

/// Judges paths like [`Filter::judge`], and remembers what holds for all paths of a directory.
#[derive(Debug)]
pub(crate) struct Judge<'a> {
    filter: &'a Filter,
    /// The directory of the last path; `None` for the root.
    dir: Option<Vec<u8>>,
    above: Above,
    /// A buffer that is kept to avoid allocations.
    hits: Vec<usize>,
}

/// What the path of a directory alone decides for everything in it.
#[derive(Debug, Default)]
struct Above {
    protected: bool,
    included: bool,
    /// The rules that match it or a directory above it.
    hits: Vec<usize>,
}

impl<'a> Judge<'a> {
    /// Like [`Filter::judge`]: a rule matches a path if it matches its directory, or the path itself by its
    /// last component.
    pub(crate) fn judge(&mut self, path: &[u8], tracked: bool) -> Verdict<'a> {
        let filter = self.filter;
        let cut = path.iter().rposition(|byte| *byte == b'/');
        let dir = cut.map(|cut| &path[..cut]);
        let leaf = cut.map_or(path, |cut| &path[cut + 1..]);
        if dir != self.dir.as_deref() {
            self.above = dir.map(|dir| filter.above(dir)).unwrap_or_default();
            self.dir = dir.map(<[u8]>::to_vec);
        }
        let included = filter.includes.is_empty()
            || self.above.included
            || filter.includes.iter().any(|text| path_is(text, path));
        if self.above.protected || !included || is_protected(path) {
            return Verdict::Drop;
        }
        self.hits.clear();
        self.hits.extend(filter.literals.get(leaf).into_iter().flatten());
        self.hits.extend(
            filter
                .others
                .iter()
                .filter(|at| match &filter.rules[**at].pattern {
                    Pattern::Component(text) => glob::matches(text, leaf),
                    Pattern::Path(text) => path_is(text, path),
                }),
        );
        if self.hits.is_empty() && self.above.hits.is_empty() {
            return Verdict::Keep;
        }
        self.hits.extend(&self.above.hits);
        self.hits.sort_unstable_by(|a, b| b.cmp(a));
        filter.verdict(&self.hits, tracked)
    }
}

/// Whether `text` names `path` itself, literally or as a glob.
fn path_is(text: &[u8], path: &[u8]) -> bool {
    text == path || glob::is_glob(text) && glob::matches(text, path)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::tests::filter;

    #[test]
    fn a_judge_of_many_says_what_the_filter_says_of_each() {
        let filters = [
            filter(&[], "", &[]),
            filter(
                &["*.log", "!keep.log", "pkg/*/out", "a/**/x", "/top", "!apps"],
                "!target\n[dt]*\na/b\n!a/b/c\n",
                &[],
            ),
            filter(
                &["a/b/*", "!dist"],
                "x",
                &["apps", "a/*/c", "**/x", ".crabbox", "top"],
            ),
        ];
        let names: [&str; 18] = [
            "a", "b", "c", "x", "dist", "target", "apps", ".build", "._x", "top", "pkg", "out", "keep.log",
            "y.log", ".crabbox", "ENV", "runs", ".yarn",
        ];
        let mut paths: Vec<String> = Vec::new();
        for one in names {
            paths.push(one.to_owned());
            for two in names {
                paths.push(format!("{one}/{two}"));
                paths.extend(names.iter().map(|three| format!("{one}/{two}/{three}")));
                paths.extend(names.iter().map(|last| format!("{one}/x/{two}/{last}")));
            }
        }
        let seen: Vec<HashMap<String, usize>> = filters
            .iter()
            .map(|filter| {
                let mut many = filter.judge_of_many();
                let mut seen = HashMap::new();
                for (path, tracked) in paths.iter().flat_map(|path| [(path, true), (path, false)]) {
                    let said = many.judge(path.as_bytes(), tracked);
                    assert_eq!(said, filter.judge(path.as_bytes(), tracked), "{path} {tracked}");
                    *seen.entry(format!("{said:?}")).or_default() += 1;
                }
                seen
            })
            .collect();
        // The first filter has produced every kind of verdict, and no filter only one.
        assert!(
            seen[0].len() >= 3 && seen.iter().all(|seen| seen.len() >= 2),
            "{seen:?}"
        );
    }
}
