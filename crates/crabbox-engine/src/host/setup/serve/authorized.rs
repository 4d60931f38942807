//! The lines of an `authorized_keys` file, ours and others'.
//!
//! Lines that are not setup's are kept byte for byte. Of a key given by the user, only the key itself is
//! written to the file.

use std::path::Path;

use super::ACCOUNT;

/// The prefixes of the key types that OpenSSH knows (sshd(8), AUTHORIZED_KEYS FILE FORMAT).
const KINDS: [&str; 3] = ["ssh-", "ecdsa-sha2-", "sk-"];

/// The line that lets `key`, an OpenSSH public key, run the program at `exe` as a server for `owner`, and
/// nothing else.
pub(super) fn line(exe: &Path, owner: &str, key: &str) -> String {
    format!(r#"restrict,command="{}" {key}"#, command(exe, owner))
}

/// The command that a key of `owner` runs.
pub(super) fn command(exe: &Path, owner: &str) -> String {
    format!("sudo -n {} __serve --as {owner}", exe.display())
}

/// Whether `line` serves `owner`, with any program.
pub(super) fn serves(line: &str, owner: &str) -> bool {
    line.contains(&format!(" __serve --as {owner}\""))
}

/// Rewrites `line`, one of ours, for the program at `exe`.
pub(super) fn moved(line: &str, exe: &Path, owner: &str) -> Option<String> {
    let mut words = words(line).into_iter();
    let kind = words.by_ref().find(|word| is_kind(word))?;
    let key = format!("{kind} {} {}", words.next()?, comment(owner));
    Some(self::line(exe, owner, &key))
}

/// The comment of a key of `owner`, which tells a reader of the file whose it is.
pub(super) fn comment(owner: &str) -> String {
    format!("{ACCOUNT}-owner-{owner}")
}

/// Whether `word` is the name of a key type.
pub(super) fn is_kind(word: &str) -> bool {
    KINDS.iter().any(|kind| word.starts_with(kind))
}

/// The base64 part of the key in a line, whatever options precede it.
pub(super) fn key_of(line: &str) -> Option<&str> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let mut words = words(line).into_iter();
    words.by_ref().find(|word| is_kind(word))?;
    words.next()
}

/// The words of a line; blanks inside quotes do not separate words.
fn words(line: &str) -> Vec<&str> {
    let (mut words, mut begin, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, c) in line.char_indices() {
        match c {
            '"' if !escaped => quoted = !quoted,
            c if c.is_ascii_whitespace() && !quoted => {
                words.push(&line[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
        escaped = c == '\\' && !escaped;
    }
    words.push(&line[begin..]);
    words.retain(|word| !word.is_empty());
    words
}

/// The file as lines with their line ends, so that joining them restores the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lines(Vec<String>);

/// A line that was added to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Added {
    /// Whether a missing newline was added to the line before it.
    pub(super) ended: bool,
}

impl Lines {
    pub(super) fn of(text: &str) -> Self {
        Self(text.split_inclusive('\n').map(str::to_owned).collect())
    }

    pub(super) fn text(&self) -> String {
        self.0.concat()
    }

    /// The 1-based number and the text of the first line with this key.
    pub(super) fn with_key(&self, key: &str) -> Option<(usize, &str)> {
        let is_it = |(_, line): &(usize, &String)| key_of(line) == Some(key);
        let found = self.0.iter().enumerate().find(is_it);
        found.map(|(at, line)| (at + 1, line.trim_end_matches('\n')))
    }

    /// The 1-based number of the first line that serves `owner` and that is not `known`.
    pub(super) fn serving(&self, owner: &str, known: &dyn Fn(&str) -> bool) -> Option<usize> {
        let is_it = |line: &String| {
            let line = line.trim_end_matches('\n');
            !line.trim_start().starts_with('#') && serves(line, owner) && !known(line)
        };
        self.0.iter().position(is_it).map(|at| at + 1)
    }

    /// Whether exactly this line exists.
    pub(super) fn has(&self, line: &str) -> bool {
        self.0.iter().any(|found| found.trim_end_matches('\n') == line)
    }

    /// Whether the last line lacks a newline.
    pub(super) fn is_cut(&self) -> bool {
        self.0.last().is_some_and(|last| !last.ends_with('\n'))
    }

    /// Adds a line at the end.
    pub(super) fn add(&mut self, line: &str) -> Added {
        let ended = self.is_cut();
        if let Some(last) = self.0.last_mut().filter(|_| ended) {
            last.push('\n');
        }
        self.0.push(format!("{line}\n"));
        Added { ended }
    }

    /// Removes exactly this line. If it was the last line, also removes the newline that was added to the
    /// line before it.
    pub(super) fn take_out(&mut self, line: &str, added: Added) {
        let Some(at) = self
            .0
            .iter()
            .position(|found| found.trim_end_matches('\n') == line)
        else {
            return;
        };
        self.0.remove(at);
        let was_last = at == self.0.len();
        if let Some(last) = self.0.last_mut().filter(|_| added.ended && was_last) {
            last.pop();
        }
    }

    /// Replaces exactly this line by `new`.
    pub(super) fn replace(&mut self, old: &str, new: &str) {
        for line in self
            .0
            .iter_mut()
            .filter(|line| line.trim_end_matches('\n') == old)
        {
            *line = format!("{new}{}", &line[old.len()..]);
        }
    }

    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_behind_any_options_and_in_no_comment() {
        for line in [
            "ssh-ed25519 AAAA alice",
            "  ssh-ed25519   AAAA",
            r#"restrict,command="sudo -n /x __serve --as alice" ssh-ed25519 AAAA c d"#,
            r#"command="echo \"ssh-rsa BBBB\"",from="10.0.0.0/8" ecdsa-sha2-nistp256 AAAA"#,
            "cert-authority sk-ssh-ed25519@openssh.com AAAA",
        ] {
            assert_eq!(key_of(line), Some("AAAA"), "{line}");
        }
        for line in [
            "",
            "#ssh-ed25519 AAAA",
            "  # ssh-ed25519 AAAA",
            "ssh-ed25519",
            "x y",
        ] {
            assert_eq!(key_of(line), None, "{line}");
        }
    }

    #[test]
    fn a_line_of_ours_keeps_all_but_the_program_when_that_moves() {
        let (one, two) = (Path::new("/one/crabbox"), Path::new("/two/crabbox"));
        let key = format!("ssh-ed25519 AAAA {}", comment("alice"));
        let before = line(one, "alice", &key);
        assert_eq!(moved(&before, one, "alice"), Some(before.clone()));
        let after = moved(&before, two, "alice").unwrap();
        assert_eq!(after, line(two, "alice", &key));
        let mut lines = Lines::of(&format!("# {before}\n{before}\nx"));
        lines.replace(&before, &after);
        assert_eq!(lines.text(), format!("# {before}\n{after}\nx"));
    }

    #[test]
    fn what_was_added_can_be_taken_out_to_the_last_byte() {
        for before in ["", "a\n", "a", "# c\n\na\r\n", "\n\n", "a\n\n"] {
            let mut lines = Lines::of(before);
            let first = lines.add("ours one");
            let second = lines.add("ours two");
            assert!(lines.text().ends_with("ours one\nours two\n"));
            lines.take_out("ours two", second);
            lines.take_out("ours one", first);
            assert_eq!(lines.text(), before);
        }
        // Lines that others added behind ours keep their newlines.
        let mut lines = Lines::of("a");
        let added = lines.add("ours");
        lines.add("theirs");
        lines.take_out("ours", added);
        assert_eq!(lines.text(), "a\ntheirs\n");
    }
}
