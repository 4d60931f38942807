//! Paths as bytes, in the form in which both sides name them: relative, with `/` between names.

/// Whether `path` is `dir` or below it.
pub fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir)
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_name_is_not_below_a_shorter_one() {
        for path in ["a/b", "a/b/c", "a/b/"] {
            assert!(is_below(path.as_bytes(), b"a/b"), "{path}");
        }
        for path in ["a/bc", "a", "b/a/b", ""] {
            assert!(!is_below(path.as_bytes(), b"a/b"), "{path}");
        }
    }
}
