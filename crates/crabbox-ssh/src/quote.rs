//! Quotes words for a POSIX shell and for `rsync -e`.
//!
//! A quoted word reads back as exactly the same bytes. Nothing here may try to be clever about words that
//! look harmless to one shell but not to another.

use std::fmt::Write as _;

pub use crabbox_core::shell::single_quoted as single;

/// All of `words`, each one single-quoted, joined by spaces.
pub fn join<S: AsRef<str>>(words: impl IntoIterator<Item = S>) -> String {
    words
        .into_iter()
        .map(|word| single(word.as_ref()))
        .collect::<Vec<_>>()
        .join(" ")
}

/// `word` on one line in the `$'a\\nb'` form of bash, zsh, ksh and POSIX 2024. Older shells do not know it,
/// but quoting the raw control characters would not show them on a terminal either.
fn escaped(word: &str) -> String {
    let mut quoted = "$'".to_owned();
    for letter in word.chars() {
        match letter {
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            '\'' | '\\' => quoted.extend(['\\', letter]),
            // Always three digits, so that a following digit is not taken for part of it.
            letter if letter.is_control() => {
                let mut bytes = [0; 4];
                for byte in letter.encode_utf8(&mut bytes).bytes() {
                    write!(quoted, "\\{byte:03o}").expect("a string takes all that is written to it");
                }
            }
            letter => quoted.push(letter),
        }
    }
    quoted.push('\'');
    quoted
}

/// `words` as a line to read and to paste into a shell: a word is left unquoted if every shell reads it
/// literally.
pub fn line<S: AsRef<str>>(words: impl IntoIterator<Item = S>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,@%+=".contains(c);
    // zsh replaces `=ls` by the path of `ls`.
    let is_bare = |word: &str| !word.is_empty() && !word.starts_with('=') && word.chars().all(plain);
    words
        .into_iter()
        .map(|word| match word.as_ref() {
            word if is_bare(word) => word.to_owned(),
            word if word.chars().any(char::is_control) => escaped(word),
            word => single(word),
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// `word` quoted as `rsync -e` splits its argument: a quote inside single quotes is doubled, a backslash is
/// literal.
pub(crate) fn rsync_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,@+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crabbox_host::command::Cmd;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_word_survives_a_real_shell(words in prop::collection::vec("[^\0]{0,40}", 1..6)) {
            let script = format!("printf '%s\\0' {}", join(&words));
            let printed = Cmd::new("sh").args(["-c", &script]).run().unwrap().stdout;
            let mut expected: Vec<u8> = words.join("\0").into_bytes();
            expected.push(0);
            prop_assert_eq!(&printed, &expected);
            let script = format!("printf '%s\\0' {}", line(&words));
            prop_assert!(!script.contains(char::is_control), "{}", script);
            let printed = Cmd::new("bash").args(["-c", &script]).run().unwrap().stdout;
            prop_assert_eq!(printed, expected);
        }
    }

    #[test]
    fn a_line_to_paste_is_quoted_only_where_it_must_be() {
        assert_eq!(
            line(["--provider", "ssh", "--x=/a/b", "it's", "$HOME", "", "~", "=ls"]),
            r"--provider ssh --x=/a/b 'it'\''s' '$HOME' '' '~' '=ls'"
        );
    }

    #[test]
    fn a_line_to_paste_is_one_line() {
        assert_eq!(
            line(["sh", "-c", "a 'b'\n\tc\\d \u{1b}1"]),
            r"sh -c $'a \'b\'\n\tc\\d \0331'"
        );
    }

    #[test]
    fn rsync_words_are_quoted_only_when_they_must_be() {
        assert_eq!(rsync_word("ConnectTimeout=10"), "ConnectTimeout=10");
        assert_eq!(rsync_word("a b"), "'a b'");
        assert_eq!(rsync_word("it's"), "'it''s'");
        assert_eq!(rsync_word(""), "''");
    }
}
