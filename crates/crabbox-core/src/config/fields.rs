//! Reads the fields of sections outside the key registry: jobs, profiles, presets.
//!
//! An invalid value is reported with its path and node; nothing may be guessed.

use super::layer::Place;
use super::yaml::{Content, Node};

/// An invalid field.
#[derive(Debug, Clone)]
pub(super) struct Wrong {
    /// The path of the field.
    pub path: String,
    /// The expected type.
    pub expected: &'static str,
    /// The actual node.
    pub node: Node,
}

/// Unknown fields, each with its position.
pub(super) type Unknown = Vec<(String, Place)>;

/// The entries of a mapping, in file order; an empty node is an empty mapping.
pub(super) fn mapping<'a>(node: &'a Node, path: &str) -> Result<Vec<(&'a str, &'a Node)>, Wrong> {
    match &node.content {
        Content::Null => Ok(Vec::new()),
        Content::Map(entries) => Ok(entries
            .iter()
            .filter_map(|(key, value)| match &key.content {
                Content::Scalar { text, .. } => Some((text.as_str(), value)),
                _ => None,
            })
            .collect()),
        _ => Err(wrong(node, path, "a mapping of keys to values")),
    }
}

/// A text.
pub(super) fn scalar(node: &Node, path: &str, expected: &'static str) -> Result<String, Wrong> {
    match &node.content {
        Content::Scalar { text, .. } => Ok(text.trim().to_owned()),
        _ => Err(wrong(node, path, expected)),
    }
}

/// A boolean.
pub(super) fn truth(node: &Node, path: &str) -> Result<bool, Wrong> {
    let text = scalar(node, path, "true or false")?;
    super::value::boolean(&text).ok_or_else(|| wrong(node, path, "true or false"))
}

/// A list of texts; a single text is a list of one. Empty items (null) are dropped.
pub(super) fn list(node: &Node, path: &str) -> Result<Vec<String>, Wrong> {
    match &node.content {
        Content::Scalar { text, .. } => Ok(vec![text.trim().to_owned()]),
        Content::List(items) => items
            .iter()
            .filter(|item| item.content != Content::Null)
            .map(|item| scalar(item, &item_of(path), "a text"))
            .collect(),
        _ => Err(wrong(node, path, "a list of texts")),
    }
}

/// How a message names an item of the list at `path`.
pub(super) fn item_of(path: &str) -> String {
    format!("each item of {path}")
}

/// The error for an invalid node of a field.
pub(super) fn wrong(node: &Node, path: &str, expected: &'static str) -> Wrong {
    Wrong {
        path: path.to_owned(),
        expected,
        node: node.clone(),
    }
}
