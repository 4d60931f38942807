//! Words of a POSIX shell. The one place that knows how text is made a word that no shell interprets.

/// `word` between single quotes, whatever it contains: `it's` becomes `'it'\''s'`. It reads back as exactly
/// the same bytes.
pub fn single_quoted(word: &str) -> String {
    let mut quoted = String::with_capacity(word.len() + 2);
    quoted.push('\'');
    for (index, part) in word.split('\'').enumerate() {
        if index > 0 {
            quoted.push_str(r"'\''");
        }
        quoted.push_str(part);
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_quoted_whatever_it_contains() {
        for (word, quoted) in [
            ("", "''"),
            ("a b$(c)\n", "'a b$(c)\n'"),
            ("it's", r"'it'\''s'"),
            ("'", r"''\'''"),
        ] {
            assert_eq!(single_quoted(word), quoted);
        }
    }
}
