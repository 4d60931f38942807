//! Parses YAML text to a plain tree in which every node has its line and column.
//!
//! It is the only user of the YAML library. It reads only the first document, as the Go program does, and
//! keeps the spelling of scalars so that the key registry can judge them. It must never interpret a key or
//! expand without a limit.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::{Error, Spanned};

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
    /// A tag without a value, as spelled in the file: `!keep.txt`. In YAML it is null, but the author meant a
    /// text.
    Tag(String),
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
            Self::Scalar { text, .. } => shortened(text),
            Self::Tag(tag) => format!("the tag {} without a value", shortened(tag)),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// The beginning of `text`, in quotes.
fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push('\u{2026}');
    }
    format!("{short:?}")
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

/// Maximum nesting of lists and mappings.
const DEPTH: usize = 32;

/// Maximum number of values in a file, including those repeated by aliases.
const NODES: usize = 50_000;

/// Maximum number of anchors, of aliases and of merge keys in a file.
const REFERENCES: usize = 1_000;

/// Maximum number of documents in a file.
const DOCUMENTS: usize = 16;

/// Limits that keep time and memory negligible for any file of a hostile repository.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: DEPTH,
            max_nodes: NODES,
            max_events: 4 * NODES,
            max_aliases: REFERENCES,
            max_anchors: REFERENCES,
            max_documents: DOCUMENTS,
            max_merge_keys: REFERENCES,
        },
        legacy_octal_numbers: true,
        with_snippet: false,
    }
}

fn describe(error: &Error) -> SyntaxError {
    let error = error.without_snippet();
    let (line, column) = error
        .location()
        .map_or((1, 1), |location| (location.line(), location.column()));
    SyntaxError {
        line: line.max(1),
        column: column.max(1),
        message: reworded(error).unwrap_or_else(|| {
            let message = error.to_string();
            let first = message.lines().next().unwrap_or("not valid YAML");
            // The library appends the position to its message, which ours already includes.
            first.split(" at line ").next().unwrap_or(first).to_owned()
        }),
    }
}

/// Our message for errors where the library's own names its options and types.
fn reworded(error: &Error) -> Option<String> {
    match error {
        Error::DuplicateMappingKey { key, .. } => Some(key.as_ref().map_or_else(
            || "a key appears twice".to_owned(),
            |key| format!("the key {} appears twice", shortened(key)),
        )),
        Error::NonFiniteFloat { value, .. } => Some(format!("{value} is not a finite number")),
        Error::Budget { breach, .. } => Some(exceeded(breach)),
        Error::AliasReplayCounterOverflow { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => Some("aliases expand to too many values".to_owned()),
        // The parser itself also limits nested brackets, and reports that before the budget is checked.
        Error::ExternalMessage { msg, .. } if msg.contains("recursion limit") => Some(too_deep()),
        _ => None,
    }
}

fn exceeded(breach: &BudgetBreach) -> String {
    let more_than = |limit: usize, what: &str| format!("the file has more than {limit} {what}");
    match breach {
        BudgetBreach::Depth { .. } => too_deep(),
        BudgetBreach::Nodes { .. } => more_than(NODES, "values"),
        BudgetBreach::Anchors { .. } => more_than(REFERENCES, "anchors"),
        BudgetBreach::Aliases { .. } => more_than(REFERENCES, "aliases"),
        BudgetBreach::MergeKeys { .. } => more_than(REFERENCES, "merge keys"),
        BudgetBreach::Documents { .. } => more_than(DOCUMENTS, "documents"),
        BudgetBreach::AliasAnchorRatio { .. } => "aliases expand to too many values".to_owned(),
        _ => "the file is too large for a configuration".to_owned(),
    }
}

fn too_deep() -> String {
    format!("lists and mappings are nested more than {DEPTH} deep")
}

/// A node from the library; spans are resolved afterwards, because only then is the text available.
enum Raw {
    Null,
    /// A scalar that the library did not read as text: its spelling is in the file.
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
    let mut column = place.column().max(1);
    let content = match raw.value {
        Raw::Null => match tag_before(source, raw.defined) {
            Some(tag) => {
                // The library's position is that of the missing value, after the tag.
                column = column.saturating_sub(tag.chars().count() as u64).max(1);
                Content::Tag(tag.to_owned())
            }
            None => Content::Null,
        },
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
        column,
    })
}

/// The tag directly before a null at `place`. YAML's own tags, which begin with `!!`, do not count.
fn tag_before(source: &str, place: serde_saphyr::Location) -> Option<&str> {
    let end = usize::try_from(place.span().byte_offset()?).ok()?;
    let before = source.get(..end)?;
    let word = before
        .rsplit(|c: char| c.is_whitespace() || matches!(c, '[' | ']' | '{' | '}' | ','))
        .next()?;
    (word.starts_with('!') && !word.starts_with("!!")).then_some(word)
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
        assert_eq!(error.message, "the key \"a\" appears twice");
        let error = parse("a: [1, 2\nb: 3\n").unwrap_err();
        assert!(error.line >= 1, "{error:?}");
        let error = parse("? [a]\n: 1\n").unwrap_err();
        assert_eq!(error.message, "a key must be a text, found a list");
    }

    #[test]
    fn a_tag_without_a_value_is_not_nothing() {
        let tags = |text: &str| {
            let items = match map(text).remove(0).1.content {
                Content::List(items) => items,
                other => panic!("not a list: {other:?}"),
            };
            let tag = |item: Node| match item.content {
                Content::Tag(tag) => Some((tag, item.line, item.column)),
                _ => None,
            };
            items.into_iter().map(tag).collect::<Vec<_>>()
        };
        let keep = |line, column| Some(("!keep.txt".to_owned(), line, column));
        assert_eq!(
            tags("a:\n  - !keep.txt\n  - b\n  -\n  - !!null\n  - '!x'\n"),
            [keep(2, 5), None, None, None, None]
        );
        assert_eq!(tags("a: [!keep.txt, !keep.txt]\n"), [keep(1, 5), keep(1, 16)]);
        assert_eq!(tags("a:\n- !keep.txt"), [keep(2, 3)]);
        let entries = map("a: !keep.txt # why\nb:\n");
        assert_eq!(entries[0].1.content, Content::Tag("!keep.txt".to_owned()));
        assert_eq!((entries[0].1.line, entries[0].1.column), (1, 4));
        assert_eq!(entries[1].1.content, Content::Null);
    }

    #[test]
    fn what_exceeds_a_limit_is_told_in_our_words() {
        let said = |text: &str| {
            let error = parse(text).unwrap_err();
            (error.line, error.message)
        };
        let nested = |depth: usize| format!("b: 1\na: {}{}", "[".repeat(depth), "]".repeat(depth));
        let deep = "lists and mappings are nested more than 32 deep".to_owned();
        assert_eq!(said(&nested(40)), (2, deep.clone()));
        assert_eq!(said(&nested(10_000)), (2, deep));
        let many = format!("a:\n{}", "- x\n".repeat(NODES));
        let (line, message) = said(&many);
        assert_eq!(message, "the file has more than 50000 values");
        assert!(line > 49_000, "{line}");
        let (line, message) = said(&format!("a: &x 1\nb:\n{}", "- *x\n".repeat(REFERENCES + 1)));
        assert_eq!(message, "the file has more than 1000 aliases");
        assert!(line > 1_000, "{line}");
        assert_eq!(
            said(&"a: 1\n---\n".repeat(20)).1,
            "the file has more than 16 documents"
        );
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
