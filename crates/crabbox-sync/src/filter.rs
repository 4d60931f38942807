//! Which paths of the repository are in scope: the ordered rules of built-ins, configuration,
//! `.crabboxignore`, protected names, and the include list.
//!
//! A pure matcher over path bytes: it opens no files and does not use git. It must never let a rule bring a
//! protected path back, nor let an ambiguous built-in (`dist`, `target` …) drop a file that the user has
//! committed.

use std::collections::HashMap;

use crabbox_agent_protocol::is_below;

use crate::glob;

mod judge;

/// Names that are excluded unless a later rule brings them back (in the format of the Go program's list).
const BUILT_IN: [&str; 30] = [
    ".git",
    "._*",
    "node_modules",
    ".ignored",
    ".turbo",
    ".next",
    ".vite",
    ".parcel-cache",
    ".rollup.cache",
    "dist",
    "dist-runtime",
    "coverage",
    "playwright-report",
    "test-results",
    ".cache",
    ".tmp",
    ".local",
    ".swiftpm",
    ".build",
    "apps/*/.build",
    ".pnpm-store",
    ".npm",
    ".yarn/cache",
    ".venv",
    "__pycache__",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".gradle",
    "target",
];

/// Built-ins that are also ordinary directory names: they never drop a tracked regular file.
const AMBIGUOUS: [&str; 8] = [
    "dist",
    "dist-runtime",
    "coverage",
    "playwright-report",
    "test-results",
    ".build",
    "apps/*/.build",
    "target",
];

/// What crabbox itself keeps in a working tree: never synced, whatever the rules, and matched
/// case-insensitively.
const PROTECTED: [&str; 5] = [
    ".crabbox/env",
    ".crabbox/scripts",
    ".crabbox/logs",
    ".crabbox/captures",
    ".crabbox/runs",
];

/// The patterns that always apply, for display: built-ins, then the protected paths.
pub fn built_in() -> impl Iterator<Item = &'static str> {
    BUILT_IN.into_iter().chain(PROTECTED)
}

/// Where a rule comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Part of the program.
    BuiltIn,
    /// `sync.exclude` of the configuration.
    Config,
    /// The file `.crabboxignore` in the root.
    IgnoreFile,
}

#[derive(Debug, Clone)]
struct Rule {
    pattern: Pattern,
    negated: bool,
    ambiguous: bool,
    text: Vec<u8>,
}

/// One pattern, prepared for matching.
#[derive(Debug, Clone)]
enum Pattern {
    /// No slash: any one component, by name or glob.
    Component(Vec<u8>),
    /// With a slash: the path itself or a directory above it, by name or glob, from the root.
    Path(Vec<u8>),
}

/// The filter's decision about a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// In scope.
    Keep,
    /// In scope only because it is tracked: otherwise this built-in rule would have dropped it.
    KeepTracked(&'a [u8]),
    /// Out of scope.
    Drop,
}

/// The rules of one sync.
#[derive(Debug, Clone)]
pub struct Filter {
    rules: Vec<Rule>,
    /// Rules whose pattern is a plain component name, by that name.
    literals: HashMap<Vec<u8>, Vec<usize>>,
    /// All other rules.
    others: Vec<usize>,
    includes: Vec<Vec<u8>>,
}

impl Filter {
    /// The rules in their order: built-ins, `exclude`, the lines of `.crabboxignore`; then the whitelist
    /// `include`.
    pub fn new(exclude: &[String], ignore_file: &[u8], include: &[String]) -> Self {
        let mut filter = Self {
            rules: Vec::new(),
            literals: HashMap::new(),
            others: Vec::new(),
            includes: Vec::new(),
        };
        for text in BUILT_IN {
            filter.push(text.as_bytes(), Origin::BuiltIn);
        }
        for text in exclude {
            filter.push(text.as_bytes(), Origin::Config);
        }
        for line in ignore_file.split(|byte| *byte == b'\n') {
            let line = line.trim_ascii();
            if !line.starts_with(b"#") {
                filter.push(
                    line.strip_prefix(b"\\")
                        .filter(|rest| rest.starts_with(b"#"))
                        .unwrap_or(line),
                    Origin::IgnoreFile,
                );
            }
        }
        filter.includes = include
            .iter()
            .map(|text| rooted(text.as_bytes()).to_vec())
            .filter(|text| !text.is_empty())
            .collect();
        filter
    }

    fn push(&mut self, text: &[u8], origin: Origin) {
        let (negated, body) = match text {
            [b'!', rest @ ..] => (true, rest),
            [b'\\', b'!', ..] => (false, &text[1..]),
            _ => (false, text),
        };
        let anchored = body.starts_with(b"/") || body.starts_with(b"./");
        let body = rooted(body);
        if body.is_empty() {
            return;
        }
        let at = self.rules.len();
        let pattern = if anchored || body.contains(&b'/') {
            self.others.push(at);
            Pattern::Path(body.to_vec())
        } else {
            if glob::is_glob(body) {
                self.others.push(at);
            } else {
                self.literals.entry(body.to_vec()).or_default().push(at);
            }
            Pattern::Component(body.to_vec())
        };
        let ambiguous = origin == Origin::BuiltIn && AMBIGUOUS.iter().any(|name| name.as_bytes() == body);
        self.rules.push(Rule {
            pattern,
            negated,
            ambiguous,
            text: body.to_vec(),
        });
    }

    /// Judges `path`, relative to the root, with `/` between components; `tracked` means that git tracks it
    /// as a regular file.
    pub fn judge(&self, path: &[u8], tracked: bool) -> Verdict<'_> {
        if is_protected(path)
            || !(self.includes.is_empty() || self.includes.iter().any(|text| path_matches(text, path)))
        {
            return Verdict::Drop;
        }
        let mut hits: Vec<usize> = path
            .split(|byte| *byte == b'/')
            .filter_map(|component| self.literals.get(component))
            .flatten()
            .copied()
            .collect();
        hits.extend(
            self.others
                .iter()
                .filter(|at| self.rules[**at].pattern.matches(path)),
        );
        hits.sort_unstable_by(|a, b| b.cmp(a));
        self.verdict(&hits, tracked)
    }

    /// The verdict of the matching rules, given with the last rule first.
    fn verdict(&self, hits: &[usize], tracked: bool) -> Verdict<'_> {
        let mut spared = None;
        for rule in hits.iter().map(|at| &self.rules[*at]) {
            if rule.negated {
                break;
            }
            if !(rule.ambiguous && tracked) {
                return Verdict::Drop;
            }
            spared.get_or_insert(rule.text.as_slice());
        }
        spared.map_or(Verdict::Keep, Verdict::KeepTracked)
    }
}

impl Pattern {
    fn matches(&self, path: &[u8]) -> bool {
        match self {
            Self::Component(text) => path
                .split(|byte| *byte == b'/')
                .any(|component| glob::matches(text, component)),
            Self::Path(text) => path_matches(text, path),
        }
    }
}

/// Whether `text` names `path` or a directory above it, literally or as a glob.
fn path_matches(text: &[u8], path: &[u8]) -> bool {
    if is_below(path, text) {
        return true;
    }
    glob::is_glob(text)
        && (0..=path.len())
            .filter(|at| *at == path.len() || path[*at] == b'/')
            .any(|at| glob::matches(text, &path[..at]))
}

fn is_protected(path: &[u8]) -> bool {
    PROTECTED.iter().any(|name| {
        let name = name.as_bytes();
        path.len() >= name.len()
            && path[..name.len()].eq_ignore_ascii_case(name)
            && path.get(name.len()).is_none_or(|next| *next == b'/')
    })
}

/// A pattern without the parts that only mean "from the root" or "a directory".
fn rooted(mut text: &[u8]) -> &[u8] {
    while let Some(rest) = text.strip_prefix(b"./").or_else(|| text.strip_prefix(b"/")) {
        text = rest;
    }
    while let Some(rest) = text.strip_suffix(b"/") {
        text = rest;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn filter(exclude: &[&str], ignore_file: &str, include: &[&str]) -> Filter {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Filter::new(&owned(exclude), ignore_file.as_bytes(), &owned(include))
    }

    fn kept(filter: &Filter, path: &str) -> bool {
        filter.judge(path.as_bytes(), false) == Verdict::Keep
    }

    #[test]
    fn every_built_in_drops_its_untracked_path_anywhere() {
        let filter = filter(&[], "", &[]);
        for name in BUILT_IN {
            let path = name.replace('*', "x");
            assert!(!kept(&filter, &path), "{path}");
            assert!(!kept(&filter, &format!("{path}/inside")), "{path}/inside");
            if !name.contains('/') {
                assert!(!kept(&filter, &format!("deep/er/{path}/inside")), "{path}");
            }
        }
        assert!(kept(&filter, "src/main.rs"));
        assert!(kept(&filter, "targets/x"));
    }

    #[test]
    fn an_ambiguous_built_in_spares_tracked_files_and_names_itself() {
        let filter = filter(&[], "", &[]);
        assert_eq!(filter.judge(b"dist/a.js", true), Verdict::KeepTracked(b"dist"));
        assert_eq!(filter.judge(b"dist/a.js", false), Verdict::Drop);
        assert_eq!(filter.judge(b"node_modules/a.js", true), Verdict::Drop);
        assert_eq!(filter.judge(b"node_modules/dist/a.js", true), Verdict::Drop);
    }

    #[test]
    fn a_configured_rule_drops_tracked_files_too() {
        assert_eq!(
            filter(&["dist"], "", &[]).judge(b"dist/a.js", true),
            Verdict::Drop
        );
    }

    #[test]
    fn the_last_match_wins_across_the_sources() {
        let filter = filter(&["*.log", "!keep.log"], "keep.log\n!build.log\n", &[]);
        assert!(!kept(&filter, "a/x.log"));
        assert!(!kept(&filter, "keep.log"));
        assert!(kept(&filter, "a/build.log"));
    }

    #[test]
    fn a_negated_rule_brings_a_built_in_back() {
        assert!(kept(&filter(&["!target"], "", &[]), "target/x"));
    }

    #[test]
    fn an_escaped_mark_is_part_of_the_name() {
        let filter = filter(&[r"\!odd"], "\\#odd\n# comment\n\n  \nspaced  \r\n", &[]);
        assert!(!kept(&filter, "!odd"));
        assert!(!kept(&filter, "#odd"));
        assert!(!kept(&filter, "spaced"));
        assert!(kept(&filter, "comment"));
    }

    #[test]
    fn a_pattern_with_a_slash_is_a_prefix_or_a_glob_from_the_root() {
        let filter = filter(&["docs/api", "pkg/*/out", "/top", "logs/"], "", &[]);
        for dropped in [
            "docs/api",
            "docs/api/x",
            "pkg/a/out",
            "pkg/a/out/deep",
            "top/x",
            "a/logs/x",
        ] {
            assert!(!kept(&filter, dropped), "{dropped}");
        }
        for in_scope in ["docs/apis", "a/docs/api", "pkg/a/b/out", "a/top"] {
            assert!(kept(&filter, in_scope), "{in_scope}");
        }
    }

    #[test]
    fn protected_paths_cannot_be_brought_back_in_any_case() {
        let filter = filter(
            &["!.crabbox", "!.crabbox/env", "!.CRABBOX/Env"],
            "!.crabbox/env\n",
            &[".crabbox"],
        );
        for path in [
            ".crabbox/env",
            ".crabbox/env/run.env",
            ".CrabBox/ENV/x",
            ".crabbox/scripts/a",
            ".crabbox/runs",
        ] {
            assert!(!kept(&filter, path), "{path}");
        }
        assert!(kept(&filter, ".crabbox/environment"));
    }

    #[test]
    fn the_include_list_is_a_whitelist_from_the_root() {
        let filter = filter(&["*.tmp"], "", &["src", "./docs/*.md"]);
        assert!(kept(&filter, "src/a/b"));
        assert!(kept(&filter, "docs/a.md"));
        assert!(!kept(&filter, "docs/a.txt"));
        assert!(!kept(&filter, "a/src/b"));
        assert!(!kept(&filter, "src/x.tmp"));
    }
}
