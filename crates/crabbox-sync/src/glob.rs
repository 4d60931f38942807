//! Shell globs over bytes: `*`, `?`, `[…]`, `\x`, and `**` for any number of directories.
//!
//! `*` and `?` never match a slash, as in Go's `path.Match`, whose syntax the configuration files use. Time
//! must never grow exponentially with the pattern.

use crabbox_agent_protocol::component;

/// Whether the whole of `name` matches `pattern`. A malformed pattern matches only itself.
pub(crate) fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let slash = |byte: &u8| *byte == b'/';
    if pattern.split(slash).any(|part| part == b"**") {
        return matches_across(pattern, name);
    }
    // Component by component, without allocating, because this runs for every file.
    let (mut parts, mut names) = (pattern.split(slash), name.split(slash));
    loop {
        match (parts.next(), names.next()) {
            (None, None) => return true,
            (Some(part), Some(name)) if component(part, name) => {}
            _ => return false,
        }
    }
}

/// The same for a pattern with `**` in it.
fn matches_across(pattern: &[u8], name: &[u8]) -> bool {
    let parts: Vec<&[u8]> = pattern.split(|byte| *byte == b'/').collect();
    let names: Vec<&[u8]> = name.split(|byte| *byte == b'/').collect();
    // reach[i]: the parts seen so far can end at name component i.
    let mut reach = vec![false; names.len() + 1];
    reach[0] = true;
    for part in parts {
        let mut next = vec![false; names.len() + 1];
        if part == b"**" {
            let mut seen = false;
            for (here, there) in reach.iter().zip(&mut next) {
                seen |= *here;
                *there = seen;
            }
        } else {
            for at in 0..names.len() {
                next[at + 1] = reach[at] && component(part, names[at]);
            }
        }
        reach = next;
    }
    reach[names.len()]
}

/// Whether `text` contains glob characters.
pub(crate) fn is_glob(text: &[u8]) -> bool {
    text.iter().any(|byte| matches!(byte, b'*' | b'?' | b'[' | b'\\'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_documented() {
        for (pattern, name, expected) in [
            ("*.log", "a.log", true),
            ("*.log", "a/b.log", false),
            ("a/*", "a/b", true),
            ("a/*", "a/b/c", false),
            ("a/**", "a/b/c", true),
            ("**/c", "a/b/c", true),
            ("**/c", "c", true),
            ("a/**/c", "a/c", true),
            ("?.rs", "é.rs", false),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[!a-c]x", "dx", true),
            ("[]]", "]", true),
            ("[", "[", true),
            ("[ab", "[ab", true),
            (r"\*", "*", true),
            (r"\*", "a", false),
            ("._*", "._DS", true),
            ("*a*b", "xaxxb", true),
            ("*a*b", "xaxx", false),
            ("", "", true),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), name.as_bytes()),
                expected,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn many_stars_stay_cheap() {
        let started = std::time::Instant::now();
        assert!(!matches(
            &b"*a".repeat(60),
            &b"a".repeat(5000)[..].iter().map(|_| b'b').collect::<Vec<_>>()
        ));
        assert!(!matches(
            &[&b"**/".repeat(60)[..], b"x"].concat(),
            &b"a/".repeat(2000)
        ));
        assert!(started.elapsed().as_secs() < 5);
    }
}
