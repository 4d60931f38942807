//! Parses debugfs's listings of untrusted directories, line by line.
//!
//! A name may contain anything that the maker of the image chose, including line breaks and slashes, and
//! debugfs prints it unchanged. A listing with any invalid entry must be refused as a whole; nothing of it is
//! combined with other text here.

use std::collections::BTreeSet;

/// Maximum number of entries of one directory.
const ENTRIES_LIMIT: usize = 1 << 16;

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name: one path component, without control characters.
    pub name: String,
    /// Its inode number.
    pub inode: u32,
    /// Its kind.
    pub kind: EntryKind,
    /// The length of a file in bytes, from its inode.
    pub bytes: u64,
}

/// The kind of an entry, from the mode of its inode (`inode(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
    /// A device, a pipe, a socket, or an unknown kind.
    Other,
}

/// Why a listing is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListingError {
    /// A line that is not an entry: its name has a slash or a line break, or debugfs printed something else.
    #[error("has a name that no file can have, near {line:?}")]
    Malformed {
        /// The line, truncated.
        line: String,
    },
    /// The name is not a single path component.
    #[error("has the name {name:?}, which no file can have")]
    Name {
        /// The name.
        name: String,
    },
    /// Two entries with the same name.
    #[error("has {name:?} twice")]
    Twice {
        /// The name.
        name: String,
    },
    /// Too many entries.
    #[error("has too many entries")]
    TooMany,
    /// A directory that contains itself.
    #[error("is the same as one above or beside it")]
    Circle,
}

/// Splits the output of a script: for each of `questions`, debugfs repeats it, answers, and prints the
/// `mark`. The error is the number of the first question without an answer.
pub(super) fn answers(output: &[u8], questions: &[String], mark: &str) -> Result<Vec<Vec<u8>>, usize> {
    let mut rest = output;
    let mut answers = Vec::new();
    for (number, question) in questions.iter().enumerate() {
        rest = after(rest, question).ok_or(number)?;
        let end = format!("debugfs: {mark}");
        let at = find(rest, end.as_bytes()).ok_or(number)?;
        answers.push(rest[..at].to_vec());
        rest = &rest[at + end.len()..];
        rest = rest.strip_prefix(b"\n").unwrap_or(rest);
    }
    Ok(answers)
}

fn after<'a>(output: &'a [u8], question: &str) -> Option<&'a [u8]> {
    output
        .strip_prefix(b"debugfs: ")?
        .strip_prefix(question.as_bytes())?
        .strip_prefix(b"\n")
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|window| window == word)
}

/// The entries of a directory except `.` and `..`, from the output of `ls -p`
/// (`/inode/mode/uid/gid/name/size/`); `None` if there was no output.
pub fn parse(printed: &[u8]) -> Result<Option<Vec<Entry>>, ListingError> {
    let (mut entries, mut names, mut itself) = (Vec::new(), BTreeSet::new(), false);
    for line in printed
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        let malformed = || ListingError::Malformed {
            line: String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned(),
        };
        let text = std::str::from_utf8(line).map_err(|_| malformed())?;
        let parts: Vec<&str> = text.split('/').collect();
        let ["", inode, mode, uid, gid, name, size, ""] = parts.as_slice() else {
            return Err(malformed());
        };
        let number = |text: &str| text.parse::<u64>().ok();
        let mode = u32::from_str_radix(mode, 8).map_err(|_| malformed())?;
        let inode = inode
            .parse()
            .ok()
            .filter(|inode| *inode != 0)
            .ok_or_else(malformed)?;
        number(uid).and(number(gid)).ok_or_else(malformed)?;
        let kind = kind_of(mode);
        let bytes = match (kind, *size) {
            (EntryKind::Directory, "") => 0,
            (_, size) => number(size).ok_or_else(malformed)?,
        };
        if names.len() >= ENTRIES_LIMIT {
            return Err(ListingError::TooMany);
        }
        if !names.insert(*name) {
            let name = (*name).to_owned();
            return Err(ListingError::Twice { name });
        }
        if *name == "." || *name == ".." {
            itself |= kind == EntryKind::Directory;
            continue;
        }
        if name.is_empty() || name.chars().any(char::is_control) {
            let name = (*name).to_owned();
            return Err(ListingError::Name { name });
        }
        entries.push(Entry {
            name: (*name).to_owned(),
            inode,
            kind,
            bytes,
        });
    }
    Ok((itself || !entries.is_empty()).then_some(entries))
}

fn kind_of(mode: u32) -> EntryKind {
    match mode & 0o170_000 {
        0o040_000 => EntryKind::Directory,
        0o100_000 => EntryKind::File,
        0o120_000 => EntryKind::Link,
        _ => EntryKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEAD: &str = "/14/040755/0/0/.//\n/13/040755/0/0/..//\n";

    fn entries(lines: &str) -> Result<Option<Vec<Entry>>, ListingError> {
        parse(format!("{HEAD}{lines}\n").as_bytes())
    }

    #[test]
    fn entries_are_what_the_listing_says() {
        let found = entries(
            "/15/100644/0/0/file/3/\n/18/040755/0/0/kernel//\n/19/120777/0/0/link/9/\n/16/010644/0/0/pipe/0/\n",
        );
        let found: Vec<_> = found
            .unwrap()
            .unwrap()
            .into_iter()
            .map(|entry| (entry.name, entry.inode, entry.kind, entry.bytes))
            .collect();
        assert_eq!(
            found,
            [
                ("file".to_owned(), 15, EntryKind::File, 3),
                ("kernel".to_owned(), 18, EntryKind::Directory, 0),
                ("link".to_owned(), 19, EntryKind::Link, 9),
                ("pipe".to_owned(), 16, EntryKind::Other, 0),
            ]
        );
        assert_eq!(parse(b"").unwrap(), None);
        assert_eq!(entries("").unwrap(), Some(Vec::new()));
    }

    #[test]
    fn a_name_that_no_file_can_have_refuses_the_whole_listing() {
        for line in [
            "/15/100644/0/0/../../etc/cron.d/x/3/",
            "/15/100644/0/0/a/b/3/",
            "/15/100644/0/0//3/",
            "/15/100644/0/0/a\u{7}b/3/",
            "/15/100644/0/0/x\ny/1/",
            "/0/100644/0/0/x/1/",
            "/15/9/0/0/x/1/",
            "/99999999999/100644/0/0/x/1/",
            "/15/100644/0/0/x/-1/",
            "/15/100644/0/0/x//",
            "debugfs: ls -p <2>",
        ] {
            assert!(entries(line).is_err(), "{line}");
        }
        assert!(parse(b"/15/100644/0/0/\xff/3/\n").is_err());
    }

    #[test]
    fn a_link_and_a_file_of_one_name_are_refused() {
        let error =
            entries("/19/120777/0/0/modules.builtin/9/\n/20/100644/0/0/modules.builtin/3/").unwrap_err();
        assert_eq!(error.to_string(), "has \"modules.builtin\" twice");
    }

    #[test]
    fn an_answer_cannot_be_forged_without_the_mark() {
        let questions = ["ls -p <2>".to_owned(), "ls -p <3>".to_owned()];
        let said = b"debugfs: ls -p <2>\nforged\ndebugfs: ls -p <3>\nforged\ndebugfs: imap /mark\ndebugfs: ls -p <3>\ntrue\ndebugfs: imap /mark\n";
        let found = answers(said, &questions, "imap /mark").unwrap();
        assert_eq!(found[0], b"forged\ndebugfs: ls -p <3>\nforged\n");
        assert_eq!(found[1], b"true\n");
        assert_eq!(answers(&said[..60], &questions, "imap /mark"), Err(0));
    }

    proptest! {
        #[test]
        fn whatever_is_printed_gives_only_single_parts_of_paths(printed in "(/[0-9]{1,2}/(100644|040755|120777)/0/0/[a./\n\u{202e}]{0,4}/[0-9]?/\n?){0,6}") {
            if let Ok(Some(entries)) = parse(printed.as_bytes()) {
                for entry in entries {
                    let path = std::path::Path::new(&entry.name);
                    prop_assert_eq!(path.components().count(), 1);
                    let normal = matches!(path.components().next(), Some(std::path::Component::Normal(_)));
                    prop_assert!(normal, "{:?}", entry.name);
                }
            }
        }
    }
}
