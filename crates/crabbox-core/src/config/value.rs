//! Values of keys: parses the spellings in files, variables and flags.
//!
//! A spelling is either a valid value of the key's type or not; this module must never guess, or decide what to do about an
//! invalid one.

use std::fmt;
use std::path::{Path, PathBuf};

use super::key::Kind;
use super::yaml::{Content, Node};
use crate::duration::GoDuration;

/// A value of one of the registry's types.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A path, or the name of a program. Empty if not set.
    Path(PathBuf),
    /// A whole number.
    Integer(i64),
    /// A TCP port, `None` if not set.
    Port(Option<u16>),
    /// A boolean.
    Bool(bool),
    /// A duration.
    Duration(GoDuration),
    /// Texts in order.
    List(Vec<String>),
    /// TCP ports in order.
    Ports(Vec<u16>),
}

impl Value {
    /// Whether it is empty, so that it overrides nothing.
    pub(super) fn is_blank(&self) -> bool {
        match self {
            Self::Text(text) => text.trim().is_empty(),
            Self::Path(path) => path.as_os_str().is_empty(),
            Self::Port(port) => port.is_none(),
            Self::Integer(_) | Self::Bool(_) | Self::Duration(_) | Self::List(_) | Self::Ports(_) => false,
        }
    }
}

impl fmt::Display for Value {
    /// In the format of `config explain`: lists joined by commas.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Path(path) => path.display().fmt(f),
            Self::Integer(number) => number.fmt(f),
            Self::Port(port) => port.map_or(Ok(()), |port| port.fmt(f)),
            Self::Bool(truth) => truth.fmt(f),
            Self::Duration(span) => span.fmt(f),
            Self::List(items) => f.write_str(&items.join(",")),
            Self::Ports(ports) => {
                f.write_str(&ports.iter().map(u16::to_string).collect::<Vec<_>>().join(","))
            }
        }
    }
}

/// The bases of relative paths and `~`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bases<'a> {
    /// The user's home directory.
    pub home: Option<&'a Path>,
    /// The base directory of relative paths.
    pub relative: &'a Path,
}

/// Parses a single text, as in variables and flags. `None` if it is invalid for the type.
pub(super) fn from_text(kind: Kind, text: &str, bases: Bases<'_>) -> Option<Value> {
    let trimmed = text.trim();
    match kind {
        Kind::Text => Some(Value::Text(trimmed.to_owned())),
        Kind::Choice(choice) => choice.name_of(trimmed).map(Value::Text),
        Kind::Path | Kind::Program => Some(Value::Path(path(kind, trimmed, bases))),
        Kind::Integer => trimmed.parse().ok().map(Value::Integer),
        Kind::Port if trimmed.is_empty() => Some(Value::Port(None)),
        Kind::Port => port(trimmed).map(|port| Value::Port(Some(port))),
        Kind::Bool => boolean(trimmed).map(Value::Bool),
        Kind::Duration => trimmed.parse().ok().map(Value::Duration),
        Kind::List => Some(Value::List(pieces(trimmed).map(str::to_owned).collect())),
        Kind::Ports if trimmed.eq_ignore_ascii_case("none") => Some(Value::Ports(Vec::new())),
        Kind::Ports => pieces(trimmed).map(port).collect::<Option<_>>().map(Value::Ports),
    }
}

/// Parses a node of a file. `None` if it is invalid for the type; a list type also accepts a single scalar.
pub(super) fn from_node(kind: Kind, node: &Node, bases: Bases<'_>) -> Option<Value> {
    match (&node.content, kind) {
        (Content::Scalar { integer, text }, Kind::Integer) => {
            integer.or_else(|| text.trim().parse().ok()).map(Value::Integer)
        }
        (Content::Scalar { text, .. }, Kind::List) => Some(Value::List(vec![text.clone()])),
        (Content::Scalar { text, .. }, _) => from_text(kind, text, bases),
        (Content::List(items), Kind::List) => items
            .iter()
            .map(|item| scalar(item).map(str::to_owned))
            .collect::<Option<_>>()
            .map(Value::List),
        (Content::List(items), Kind::Ports) => items
            .iter()
            // As in a variable, `none` is no port.
            .filter(|item| !scalar(item).is_some_and(|text| text.eq_ignore_ascii_case("none")))
            .map(|item| scalar(item).and_then(port))
            .collect::<Option<_>>()
            .map(Value::Ports),
        (Content::Null | Content::List(_) | Content::Map(_), _) => None,
    }
}

fn scalar(node: &Node) -> Option<&str> {
    match &node.content {
        Content::Scalar { text, .. } => Some(text.trim()),
        _ => None,
    }
}

fn pieces(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|piece| !piece.is_empty())
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0)
}

/// The boolean spellings of the Go program's environment variables, and of its YAML library.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" | "y" | "t" => Some(true),
        "0" | "false" | "no" | "off" | "n" | "f" => Some(false),
        _ => None,
    }
}

/// `text` as an absolute path, with `~` expanded. The bare name of a program is unchanged, to be looked up on `PATH`.
fn path(kind: Kind, text: &str, bases: Bases<'_>) -> PathBuf {
    if text.is_empty() || (kind == Kind::Program && !text.contains('/') && text != "~") {
        return PathBuf::from(text);
    }
    let expanded = match (text.strip_prefix('~'), bases.home) {
        (Some(""), Some(home)) => home.to_owned(),
        (Some(rest), Some(home)) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => PathBuf::from(text),
    };
    if expanded.is_absolute() {
        expanded
    } else {
        bases.relative.join(expanded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: Kind, text: &str) -> Option<Value> {
        from_text(
            kind,
            text,
            Bases {
                home: Some(Path::new("/h")),
                relative: Path::new("/c"),
            },
        )
    }

    #[test]
    fn paths_are_absolute_and_bare_program_names_stay() {
        let path = |kind, text| match read(kind, text) {
            Some(Value::Path(path)) => path,
            other => panic!("{other:?}"),
        };
        assert_eq!(path(Kind::Path, "~/x"), Path::new("/h/x"));
        assert_eq!(path(Kind::Path, "~"), Path::new("/h"));
        assert_eq!(path(Kind::Path, "~other/x"), Path::new("/c/~other/x"));
        assert_eq!(path(Kind::Path, "x"), Path::new("/c/x"));
        assert_eq!(path(Kind::Path, "/x"), Path::new("/x"));
        assert_eq!(path(Kind::Path, ""), Path::new(""));
        assert_eq!(path(Kind::Program, "firecracker"), Path::new("firecracker"));
        assert_eq!(
            path(Kind::Program, "./firecracker"),
            Path::new("/c/./firecracker")
        );
    }

    #[test]
    fn numbers_ports_and_booleans_are_read_strictly() {
        assert_eq!(read(Kind::Integer, "-3"), Some(Value::Integer(-3)));
        for text in ["", "3.5", "many", "9223372036854775808", "0x10"] {
            assert_eq!(read(Kind::Integer, text), None, "{text}");
        }
        assert_eq!(read(Kind::Port, "65535"), Some(Value::Port(Some(65535))));
        for text in ["0", "65536", "-1", "ssh"] {
            assert_eq!(read(Kind::Port, text), None, "{text}");
        }
        assert_eq!(read(Kind::Bool, "YES"), Some(Value::Bool(true)));
        assert_eq!(read(Kind::Bool, "off"), Some(Value::Bool(false)));
        assert_eq!(read(Kind::Bool, "maybe"), None);
    }

    #[test]
    fn lists_are_split_at_commas_and_none_means_no_ports() {
        assert_eq!(
            read(Kind::List, " a, ,b "),
            Some(Value::List(vec!["a".into(), "b".into()]))
        );
        assert_eq!(read(Kind::Ports, "none"), Some(Value::Ports(Vec::new())));
        assert_eq!(read(Kind::Ports, "22,2200"), Some(Value::Ports(vec![22, 2200])));
        assert_eq!(read(Kind::Ports, "22,x"), None);
    }
}
