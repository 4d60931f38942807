//! Parses YAML text to a plain tree in which every node has its line and column.
//!
//! It is the only user of the YAML library. It reads only the first document, as the Go program does, and keeps the spelling
//! of scalars so that the key registry can judge them. It must never interpret a key or expand without a limit.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A node of the tree with its position, both counted from 1, the column in characters.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    /// Its content.
    pub content: Content,
    /// The line it begins on.
    pub line: u64,
    /// The column it begins at.
    pub column: u64,
}

/// The content of a node.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Content {
    /// Nothing: `key:`, `~` or `null`.
    Null,
    /// A scalar, as spelled in the file, without its quotes.
    Scalar {
        /// The spelling.
        text: String,
        /// Its value if YAML takes it for an integer (including hexadecimal and octal).
        integer: Option<i64>,
    },
    /// A list.
    List(Vec<Node>),
    /// A mapping in file order; keys are scalars.
    Map(Vec<(Node, Node)>),
}

impl Content {
    /// A short description of the node, for an error message.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Null => "nothing".to_owned(),
            Self::Scalar { text, .. } => {
                let mut short: String = text.chars().take(40).collect();
                if short.len() < text.len() {
                    short.push('\u{2026}');
                }
                format!("{short:?}")
            }
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// Why a text is not usable YAML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SyntaxError {
    /// The line, from 1; 1 if the library does not know it.
    pub line: u64,
    /// The column, from 1.
    pub column: u64,
    /// The error, in one line.
    pub message: String,
}

/// The first document of `text`, or `None` if it is empty; the flag says whether more documents follow.
pub(super) fn parse(text: &str) -> Result<(Option<Node>, bool), SyntaxError> {
    let documents: Vec<Spanned<Raw>> =
        serde_saphyr::from_multiple_with_options(text, options()).map_err(|error| describe(&error))?;
    let more = documents.len() > 1;
    let node = documents
        .into_iter()
        .next()
        .map(|document| settle(text, document))
        .transpose()?;
    Ok((node.filter(|node| node.content != Content::Null), more))
}

/// Limits that keep time and memory negligible for any file of a hostile repository.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 32,
            max_nodes: 50_000,
            max_events: 200_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_documents: 16,
            max_merge_keys: 1_000,
        },
        legacy_octal_numbers: true,
        with_snippet: false,
    }
}

fn describe(error: &serde_saphyr::Error) -> SyntaxError {
    let error = error.without_snippet();
    let (line, column) = error
        .location()
        .map_or((1, 1), |location| (location.line(), location.column()));
    let message = error.to_string();
    let first = message.lines().next().unwrap_or("not valid YAML");
    // The library ends its message with the position, which our own already gives.
    let message = first.split(" at line ").next().unwrap_or(first).to_owned();
    SyntaxError {
        line: line.max(1),
        column: column.max(1),
        message,
    }
}

/// A node from the library; spans are resolved afterwards, because only then is the text available.
enum Raw {
    Null,
    /// A scalar that the library did not take for a text: its spelling is in the file.
    Typed(Option<i64>),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<Raw>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E>(self, _value: bool) -> Result<Raw, E> {
        Ok(Raw::Typed(None))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Typed(Some(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Typed(i64::try_from(value).ok()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Typed(i64::try_from(value).ok()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Raw, E> {
        Ok(Raw::Typed(i64::try_from(value).ok()))
    }

    fn visit_f64<E>(self, _value: f64) -> Result<Raw, E> {
        Ok(Raw::Typed(None))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}

/// Takes the spelling of typed scalars from the file and converts library positions.
fn settle(source: &str, raw: Spanned<Raw>) -> Result<Node, SyntaxError> {
    let place = raw.referenced;
    let content = match raw.value {
        Raw::Null => Content::Null,
        Raw::Text(text) => Content::Scalar { text, integer: None },
        Raw::Typed(integer) => Content::Scalar {
            text: spelling(source, raw.defined),
            integer,
        },
        Raw::List(items) => Content::List(
            items
                .into_iter()
                .map(|item| settle(source, item))
                .collect::<Result<_, _>>()?,
        ),
        Raw::Map(entries) => Content::Map(
            entries
                .into_iter()
                .map(|(key, value)| {
                    let key = settle(source, key)?;
                    if !matches!(key.content, Content::Scalar { .. }) {
                        let message = format!("a key must be a text, found {}", key.content.describe());
                        return Err(SyntaxError {
                            line: key.line,
                            column: key.column,
                            message,
                        });
                    }
                    Ok((key, settle(source, value)?))
                })
                .collect::<Result<_, _>>()?,
        ),
    };
    Ok(Node {
        content,
        line: place.line().max(1),
        column: place.column().max(1),
    })
}

fn spelling(source: &str, place: serde_saphyr::Location) -> String {
    let span = place.span();
    let bounds = span
        .byte_offset()
        .zip(span.byte_len())
        .and_then(|(start, length)| {
            let start = usize::try_from(start).ok()?;
            Some(start..start.checked_add(usize::try_from(length).ok()?)?)
        });
    bounds
        .and_then(|bounds| source.get(bounds))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(node: &Node) -> (&str, Option<i64>, u64, u64) {
        match &node.content {
            Content::Scalar { text, integer } => (text, *integer, node.line, node.column),
            other => panic!("not a scalar: {other:?}"),
        }
    }

    fn map(text: &str) -> Vec<(Node, Node)> {
        match parse(text).unwrap().0.unwrap().content {
            Content::Map(entries) => entries,
            other => panic!("not a map: {other:?}"),
        }
    }

    #[test]
    fn scalars_keep_their_spelling_and_place() {
        let entries = map("a: 2222\nb: yes\nc: \"x y\" # why\nd: 90m\ne: 0x10\nf: 1.50\ng: 0600\n");
        let got: Vec<_> = entries.iter().map(|(_, value)| scalar(value)).collect();
        let want = [
            ("2222", Some(2222), 1, 4),
            ("yes", None, 2, 4),
            ("x y", None, 3, 4),
            ("90m", None, 4, 4),
            ("0x10", Some(16), 5, 4),
            ("1.50", None, 6, 4),
            ("0600", Some(384), 7, 4),
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn spelling_survives_wide_characters_before_it() {
        let entries = map("name: \u{1f980}\u{e9}\ncpus: 12\n");
        assert_eq!(scalar(&entries[1].1), ("12", Some(12), 2, 7));
    }

    #[test]
    fn an_alias_has_the_place_of_its_use_and_the_text_of_its_anchor() {
        let entries = map("a: &x 12\nb: *x\n");
        assert_eq!(scalar(&entries[1].1), ("12", Some(12), 2, 4));
    }

    #[test]
    fn nothing_and_comments_alone_are_an_empty_file() {
        for text in ["", "\n", "# only\n", "---\n", "~\n"] {
            assert_eq!(parse(text).unwrap(), (None, false), "{text:?}");
        }
    }

    #[test]
    fn only_the_first_document_counts() {
        let (node, more) = parse("a: 1\n---\nb: 2\n").unwrap();
        assert!(more);
        assert!(matches!(node.unwrap().content, Content::Map(entries) if entries.len() == 1));
    }

    #[test]
    fn mistakes_are_found_at_their_place() {
        let error = parse("a: 1\na: 2\n").unwrap_err();
        assert_eq!((error.line, error.column), (2, 1), "{error:?}");
        let error = parse("a: [1, 2\nb: 3\n").unwrap_err();
        assert!(error.line >= 1, "{error:?}");
        let error = parse("? [a]\n: 1\n").unwrap_err();
        assert_eq!(error.message, "a key must be a text, found a list");
    }

    #[test]
    fn a_bomb_is_refused_in_little_time() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let before = level - 1;
            let refs = vec![format!("*a{before}"); 9].join(", ");
            text = format!("{text}a{level}: &a{level} [{refs}]\n");
        }
        assert!(parse(&text).is_err());
        let nested = |depth: usize| format!("a: {}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(&nested(20)).is_ok());
        assert!(parse(&nested(40)).is_err());
        assert!(parse(&"[".repeat(10_000)).is_err());
    }
}
