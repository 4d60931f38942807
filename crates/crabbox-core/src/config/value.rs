//! Values of keys: parses the spellings in files, variables and flags.
//!
//! A spelling is either a valid value of the key's type or not; this module must never guess, or decide what
//! to do about an invalid one.

use std::fmt;
use std::path::{Path, PathBuf};

use super::key::{Key, Kind, Merge};
use super::yaml::{Content, Node};
use crate::comma_list;
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
        Kind::Integer => whole(trimmed).map(Value::Integer),
        Kind::Port if trimmed.is_empty() => Some(Value::Port(None)),
        Kind::Port => port(trimmed).map(|port| Value::Port(Some(port))),
        Kind::Bool => boolean(trimmed).map(Value::Bool),
        Kind::Duration => trimmed.parse().ok().map(Value::Duration),
        Kind::List => Some(Value::List(
            comma_list::items(trimmed).map(str::to_owned).collect(),
        )),
        Kind::Ports if trimmed.eq_ignore_ascii_case("none") => Some(Value::Ports(Vec::new())),
        Kind::Ports => comma_list::items(trimmed)
            .map(port)
            .collect::<Option<_>>()
            .map(Value::Ports),
    }
}

/// Whether the key accepts this value, which already has the right type.
pub(super) fn is_usable(key: &Key, value: &Value) -> bool {
    match value {
        Value::Duration(span) => span.is_positive(),
        Value::Integer(number) => key.merge != Merge::WhenPositive || *number > 0,
        _ => true,
    }
}

/// What a value of the key must be, for messages.
pub(super) const fn expectation(key: &Key) -> &'static str {
    match (key.kind, key.merge) {
        (Kind::Integer, Merge::WhenPositive) => "a whole number greater than zero",
        (Kind::Duration, _) => "a duration greater than zero, such as 90m or 1h30m",
        _ => key.kind.expectation(),
    }
}

/// A node of a file that is invalid for a type.
#[derive(Debug)]
pub(super) struct Unfit<'a> {
    /// The whole value, or the invalid item of a list.
    pub node: &'a Node,
    /// The expected type.
    pub expected: &'static str,
    /// Whether it is an item of a list.
    pub is_item: bool,
}

/// Parses a node of a file. A list type also accepts a single scalar; empty items (null) are dropped.
pub(super) fn from_node<'a>(kind: Kind, node: &'a Node, bases: Bases<'_>) -> Result<Value, Unfit<'a>> {
    let value = match (&node.content, kind) {
        (Content::Scalar { integer, text }, Kind::Integer) => {
            integer.or_else(|| whole(text.trim())).map(Value::Integer)
        }
        (Content::Scalar { text, .. }, Kind::List) => Some(Value::List(vec![text.clone()])),
        (Content::Scalar { text, .. }, _) => from_text(kind, text, bases),
        (Content::List(list), Kind::List) => {
            let text = |text: &str| Some(text.to_owned());
            return items(list, Kind::Text, text).map(Value::List);
        }
        (Content::List(list), Kind::Ports) => {
            // As in a variable, `none` means no port.
            let item = |text: &str| {
                let none = text.eq_ignore_ascii_case("none");
                if none { Some(None) } else { port(text).map(Some) }
            };
            let ports: Vec<Option<u16>> = items(list, Kind::Port, item)?;
            return Ok(Value::Ports(ports.into_iter().flatten().collect()));
        }
        (Content::Null | Content::Tag(_) | Content::List(_) | Content::Map(_), _) => None,
    };
    value.ok_or(Unfit {
        node,
        expected: kind.expectation(),
        is_item: false,
    })
}

/// Parses the items of a list with `read`, each as a value of `kind`.
fn items<T>(list: &[Node], kind: Kind, read: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, Unfit<'_>> {
    list.iter()
        .filter(|item| item.content != Content::Null)
        .map(|item| {
            scalar(item).and_then(&read).ok_or(Unfit {
                node: item,
                expected: kind.expectation(),
                is_item: true,
            })
        })
        .collect()
}

fn scalar(node: &Node) -> Option<&str> {
    match &node.content {
        Content::Scalar { text, .. } => Some(text.trim()),
        _ => None,
    }
}

/// Parses a whole number. Floats with an integral value are accepted too (`8.0`, `1e10`), because programs
/// that write JSON and YAML produce them. Done in digits: converting to a float would round large numbers.
pub(super) fn whole(text: &str) -> Option<i64> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let unsigned = mantissa.strip_prefix(['-', '+']).unwrap_or(mantissa);
    let sign = if mantissa.starts_with('-') { "-" } else { "" };
    let (before, behind) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let digits = format!("{before}{behind}");
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let counted = digits.trim_end_matches('0');
    if counted.is_empty() {
        return Some(0);
    }
    let zeros = digits.len() - counted.len();
    let places = i64::from(exponent) - i64::try_from(behind.len()).ok()? + i64::try_from(zeros).ok()?;
    let number: i64 = format!("{sign}{counted}").parse().ok()?;
    number.checked_mul(10_i64.checked_pow(u32::try_from(places).ok()?)?)
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

/// `text` as an absolute path, with `~` expanded. The bare name of a program is unchanged, to be looked up on
/// `PATH`.
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
        for (text, number) in [
            ("8.0", 8),
            ("-8.", -8),
            ("1e10", 10_000_000_000),
            ("+1.50E2", 150),
            ("1500e-2", 15),
            ("0.0", 0),
            ("0e99", 0),
            ("9007199254740993.0", 9_007_199_254_740_993),
            ("9.223372036854775807e18", i64::MAX),
        ] {
            assert_eq!(read(Kind::Integer, text), Some(Value::Integer(number)), "{text}");
        }
        for text in [
            "1e-1",
            "1.5e0",
            "1e19",
            "1e99999999999",
            "e5",
            ".",
            "-",
            "1e",
            "1e5.0",
            "1 e5",
            "inf",
            ".nan",
            "1_0.0",
            "--1.0",
        ] {
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
