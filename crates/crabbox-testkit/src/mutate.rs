//! Damaged texts for property tests of parsers of untrusted bytes: good samples with a few edits, as a fuzzer
//! makes them.
//!
//! A random text rarely gets past the first token of a parser. These mostly do.

use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Tokens that trip up parsers: other types, extreme numbers, nesting, unfinished and foreign tokens.
const TOKENS: [&[u8]; 34] = [
    b"null",
    b"true",
    b"[]",
    b"{}",
    b"\"\"",
    b"0",
    b"-1",
    b"4294967295",
    b"4294967296",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"18446744073709551615",
    b"18446744073709551616",
    b"1e400",
    b"0.5",
    b"\"\\u0000\"",
    b"\"\\ud800\"",
    b"\"",
    b"\\",
    b"\n",
    b"\n\n",
    b"\r\n",
    b"\t",
    b"\0",
    b"\xff\xfe",
    b"\xc3",
    b"[[[[[[[[[[",
    b"{\"a\":{\"a\":",
    b": ",
    b"- ",
    b"&a ",
    b"*a",
    b"../../",
    b"\xf0\x9f\xa6\x80",
];

/// One edit; positions count from the beginning and wrap around the length.
#[derive(Debug, Clone)]
enum Edit {
    Put(Index, Vec<u8>),
    Cut(Index, usize),
    Again(Index, usize),
    End(Index),
    /// Replaces the number at or after the position.
    Number(Index, &'static [u8]),
}

impl Edit {
    fn apply(&self, text: &mut Vec<u8>) {
        let place = |index: &Index, text: &[u8]| index.index(text.len() + 1);
        match self {
            Self::Put(at, bytes) => {
                let at = place(at, text);
                text.splice(at..at, bytes.iter().copied());
            }
            Self::Cut(at, length) => {
                let at = place(at, text);
                text.drain(at..(at + length).min(text.len()));
            }
            Self::Again(at, length) => {
                let at = place(at, text);
                let piece = text[at..(at + length).min(text.len())].to_vec();
                text.splice(at..at, piece);
            }
            Self::End(at) => text.truncate(place(at, text)),
            Self::Number(at, value) => {
                let from = place(at, text);
                let Some(start) = text[from..].iter().position(u8::is_ascii_digit) else {
                    return;
                };
                let start = from + start;
                let digits = text[start..]
                    .iter()
                    .take_while(|byte| byte.is_ascii_digit())
                    .count();
                text.splice(start..start + digits, value.iter().copied());
            }
        }
    }
}

fn edit() -> impl Strategy<Value = Edit> {
    let number = select(&TOKENS[5..15]);
    prop_oneof![
        4 => (any::<Index>(), select(&TOKENS[..])).prop_map(|(at, token)| Edit::Put(at, token.to_vec())),
        1 => (any::<Index>(), prop::collection::vec(any::<u8>(), 1..8)).prop_map(|(at, bytes)| Edit::Put(at, bytes)),
        3 => (any::<Index>(), 1_usize..24).prop_map(|(at, length)| Edit::Cut(at, length)),
        2 => (any::<Index>(), 1_usize..48).prop_map(|(at, length)| Edit::Again(at, length)),
        1 => any::<Index>().prop_map(Edit::End),
        4 => (any::<Index>(), number).prop_map(|(at, value)| Edit::Number(at, value)),
    ]
}

/// One of the samples with up to four edits.
pub fn damaged(samples: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (select(samples), prop::collection::vec(edit(), 0..5)).prop_map(|(mut text, edits)| {
        for edit in edits {
            edit.apply(&mut text);
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;

    use super::*;

    #[test]
    fn damage_is_of_many_kinds_and_sometimes_none() {
        let sample = br#"{"a": 12, "b": ["x"]}"#.to_vec();
        let strategy = damaged(vec![sample.clone()]);
        let mut runner = TestRunner::deterministic();
        let made: std::collections::BTreeSet<Vec<u8>> = (0..500)
            .map(|_| {
                strategy
                    .new_tree(&mut runner)
                    .map(|tree| tree.current())
                    .unwrap_or_default()
            })
            .collect();
        assert!(made.len() > 300 && made.contains(&sample));
        let has = |needle: &[u8]| {
            made.iter()
                .any(|text| text.windows(needle.len()).any(|part| part == needle))
        };
        assert!(has(b"4294967295") && has(b"[[[[") && has(b"\xff"));
    }
}
