//! Patterns of paths, as both sides read them: `*`, `?`, `[a-z]`, `[!a-z]`, `\x` and `**`.
//!
//! The side that walks a tree must never read a directory in which nothing can match. The other side checks
//! the results against the same pattern. Time is bounded by the product of the lengths, whatever the pattern.

mod component;

pub use component::component;

/// How a pattern reaches a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Not at all.
    No,
    /// By `**`, or because a directory above it matches: as one of many.
    Wide,
    /// Component by component.
    Named,
}

/// A pattern. It matches a file whose path, or a directory above it, it describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(Vec<Vec<u8>>);

impl Glob {
    /// Parses a pattern; any text is valid.
    pub fn of(text: &[u8]) -> Self {
        Self(parts(text).into_iter().map(<[u8]>::to_vec).collect())
    }

    /// Whether it matches the file at this path.
    pub fn file(&self, path: &[u8]) -> Reach {
        let path = parts(path);
        // A pattern that is used up early has matched a directory above the file, but the root itself does
        // not count.
        if !self.rows(&path, Stars::Take).begins {
            Reach::No
        } else if self.rows(&path, Stars::Skip).all_of_it {
            Reach::Named
        } else {
            Reach::Wide
        }
    }

    /// Whether it can match anything below the directory at this path; the path is empty for the root.
    pub fn below(&self, path: &[u8]) -> Reach {
        let path = parts(path);
        let wide = self.rows(&path, Stars::Take);
        if !wide.arrives && !wide.begins {
            Reach::No
        } else if self.rows(&path, Stars::Skip).arrives {
            Reach::Named
        } else {
            Reach::Wide
        }
    }

    fn rows(&self, path: &[&[u8]], stars: Stars) -> Rows {
        // For each prefix of the path, whether the pattern read so far matches it.
        let mut reached = vec![false; path.len() + 1];
        reached[0] = true;
        let mut arrives = path.is_empty();
        for want in &self.0 {
            if want != b"**" {
                for at in (0..path.len()).rev() {
                    reached[at + 1] = reached[at] && segment(want, path[at]);
                }
                reached[0] = false;
            } else if stars == Stars::Take {
                let first = reached.iter().position(|at| *at).unwrap_or(reached.len());
                reached[first..].fill(true);
            }
            arrives |= reached[path.len()];
        }
        Rows {
            arrives,
            begins: reached[1..].contains(&true),
            all_of_it: !path.is_empty() && reached[path.len()],
        }
    }
}

/// Whether `**` stands for any number of parts, or for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stars {
    Take,
    Skip,
}

struct Rows {
    /// Whether the whole path is matched by a prefix of the pattern (or all of it).
    arrives: bool,
    /// Whether the whole pattern matches the path or a prefix of it.
    begins: bool,
    /// Whether the whole pattern matches the whole path.
    all_of_it: bool,
}

/// The components of a path, without empty ones and `.`.
fn parts(path: &[u8]) -> Vec<&[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .collect()
}

/// Matches one component. A file may have a bracket in its name, so a pattern matches itself too.
fn segment(want: &[u8], part: &[u8]) -> bool {
    want == part || component(want, part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_one_byte_of_its_members() {
        for (text, part, matches) in [
            ("[ab]", "a", true),
            ("[ab]", "ab", false),
            ("[a-c]x", "bx", true),
            ("[a-c]x", "dx", false),
            ("[!a-c]", "d", true),
            ("[^a-c]", "a", false),
            ("[]x]", "]", true),
            ("[!]x]", "]", false),
            ("[a-]", "-", true),
            ("*[0-9].xml", "r12.xml", true),
            ("*[0-9].xml", "r.xml", false),
            ("[[]a]", "[a]", true),
            // What is not closed stands for itself.
            ("[a", "[a", true),
            ("x[*", "x[y", true),
            ("[", "a", false),
            ("[]", "[]", true),
            ("[ab]", "[ab]", true),
            (r"\[ab]", "[ab]", true),
            (r"\[ab]", "a", false),
        ] {
            let found = Glob::of(text.as_bytes()).file(part.as_bytes()) != Reach::No;
            assert_eq!(found, matches, "{text} {part}");
        }
    }

    #[test]
    fn only_where_something_can_match_is_anything_below() {
        use Reach::{Named, No, Wide};
        for (text, dir, reach) in [
            ("out/*.xml", "", Named),
            ("out/*.xml", "out", Named),
            ("out/*.xml", "pg", No),
            ("out/*.xml", "out/deep", No),
            ("*/r.xml", "pg", Named),
            ("*/r.xml", "pg/deep", No),
            ("./a//b/r.xml", "a/b", Named),
            ("**", "", Named),
            ("**/r.xml", "pg", Wide),
            ("**/pg/r.xml", "pg", Named),
            ("out/**/r.xml", "out", Named),
            ("out/**/r.xml", "out/a/b", Wide),
            ("out/**/r.xml", "pg", No),
            ("out", "out", Named),
            ("out", "out/a", Wide),
            ("out", "outer", No),
        ] {
            assert_eq!(
                Glob::of(text.as_bytes()).below(dir.as_bytes()),
                reach,
                "{text} {dir}"
            );
        }
        for (text, file, reach) in [
            ("out/*.xml", "out/r.xml", Named),
            ("out/*.xml", "r.xml", No),
            ("**/*.xml", "r.xml", Named),
            ("**/*.xml", "d/r.xml", Wide),
            ("out", "out", Named),
            ("out", "out/r.xml", Wide),
        ] {
            assert_eq!(
                Glob::of(text.as_bytes()).file(file.as_bytes()),
                reach,
                "{text} {file}"
            );
        }
    }
}
