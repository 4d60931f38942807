//! Prose in the repository: the comments of sources and the text of documents, as blocks that do not break at
//! line ends.
//!
//! Sources are read line by line and not parsed: a `//` inside a string may be taken for a comment. It never
//! reads code as prose.

use std::path::Path;

/// A comment or a paragraph.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// The number of its first line, from 1.
    line: usize,
    /// Its text without comment markers; line ends as in the file.
    pub text: String,
    /// Whether it is fenced example code, not prose.
    pub example: bool,
}

impl Block {
    /// The line of the file that contains byte `at` of the text.
    pub(super) fn line_at(&self, at: usize) -> usize {
        self.line + self.text[..at].matches('\n').count()
    }

    /// The spans between backticks, with their offsets. A span may continue in the next line, as prose does.
    pub(super) fn spans(&self) -> Vec<(usize, String)> {
        let mut at = 0;
        let mut spans = Vec::new();
        for (index, piece) in self.text.split('`').enumerate() {
            if index % 2 == 1 && !piece.is_empty() {
                let words: Vec<&str> = piece.split_whitespace().collect();
                spans.push((at, words.join(" ")));
            }
            at += piece.len() + 1;
        }
        spans
    }

    /// The text with everything between backticks blanked, keeping offsets.
    pub(super) fn plain(&self) -> String {
        let mut inside = false;
        self.text
            .chars()
            .map(|c| {
                if c == '`' {
                    inside = !inside;
                    return ' ';
                }
                if !inside || c == '\n' {
                    return c;
                }
                // Keep the length in bytes.
                if c.is_ascii() { ' ' } else { c }
            })
            .collect()
    }
}

/// The comment syntax of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marks {
    /// `//`, `///`, `//!`.
    Slashes,
    /// `#`, whole lines only.
    Hash,
    /// All of it is prose.
    Markdown,
}

/// The prose of the file at `path`; empty for a file that is neither a document nor a source.
pub(super) fn blocks(path: &Path, text: &str) -> Vec<Block> {
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    let marks = match &*extension {
        "rs" => Marks::Slashes,
        "md" => Marks::Markdown,
        "sh" | "py" | "toml" | "list" => Marks::Hash,
        _ => return Vec::new(),
    };
    let mut blocks: Vec<Block> = Vec::new();
    let (mut open, mut fenced) = (false, false);
    for (index, line) in text.lines().enumerate() {
        let Some((prose, whole)) = prose(line, marks) else {
            (open, fenced) = (false, false);
            continue;
        };
        if prose.trim_start().starts_with("```") {
            (open, fenced) = (false, !fenced);
            continue;
        }
        let prose = prose.trim();
        // A paragraph ends at an empty line, a trailing comment with its line.
        if prose.is_empty() {
            open = false;
            continue;
        }
        match blocks.last_mut().filter(|_| open && whole) {
            Some(block) => {
                block.text.push('\n');
                block.text.push_str(prose);
            }
            None => blocks.push(Block {
                line: index + 1,
                text: prose.to_owned(),
                example: fenced,
            }),
        }
        open = whole;
    }
    blocks
}

/// The prose of a line and whether the line has nothing else; `None` for a line without.
fn prose(line: &str, marks: Marks) -> Option<(&str, bool)> {
    match marks {
        Marks::Markdown => Some((line, true)),
        Marks::Hash => {
            let text = line.trim_start().strip_prefix('#')?;
            Some((text, true))
        }
        Marks::Slashes => {
            let at = comment(line)?;
            let text = line[at..].trim_start_matches('/');
            Some((
                text.strip_prefix('!').unwrap_or(text),
                line[..at].trim().is_empty(),
            ))
        }
    }
}

/// Where the comment of a Rust line begins.
pub(super) fn comment(line: &str) -> Option<usize> {
    line.match_indices("//")
        .map(|(at, _)| at)
        .find(|at| line[..*at].is_empty() || line[..*at].ends_with(char::is_whitespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(name: &str, text: &str) -> Vec<(usize, String)> {
        let blocks = blocks(Path::new(name), text);
        blocks.into_iter().map(|block| (block.line, block.text)).collect()
    }

    #[test]
    fn comments_are_read_and_code_is_not() {
        let text = "//! a `b\n//! c` d\nuse x;\n/// e\nlet u = \"http://x\"; // f\n// g\n";
        let expected = [(1, "a `b\nc` d"), (4, "e"), (5, "f"), (6, "g")];
        let expected = expected.map(|(line, text)| (line, text.to_owned()));
        assert_eq!(texts("a.rs", text), expected);
        assert_eq!(texts("a.sh", "# a\nb # c\n"), [(1, "a".to_owned())]);
        assert_eq!(texts("a.bin", "# a\n"), []);
    }

    #[test]
    fn a_span_goes_on_in_the_next_line_and_keeps_its_line() {
        let block = &blocks(Path::new("a.md"), "x\n\nsee `crabbox\n  list` and `y`\n")[1];
        assert_eq!(
            block.spans(),
            [(5, "crabbox list".to_owned()), (24, "y".to_owned())]
        );
        assert_eq!((block.line_at(5), block.line_at(24)), (3, 4));
        assert_eq!(block.plain().len(), block.text.len());
        assert!(!block.plain().contains("list"));
    }

    #[test]
    fn what_stands_in_fences_is_an_example() {
        let blocks = blocks(Path::new("a.md"), "a\n```sh\nb\n```\nc\n");
        let examples: Vec<_> = blocks
            .iter()
            .map(|block| (block.text.as_str(), block.example))
            .collect();
        assert_eq!(examples, [("a", false), ("b", true), ("c", false)]);
    }
}
