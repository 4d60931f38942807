//! JSON as Go's `json.Encoder` writes it: compact, one line, `<`, `>` and `&` escaped.

use crabbox_core::fault::{Fault, Kind};
use std::fmt::Write as _;

use crabbox_host::console::is_format;
use schemars::JsonSchema;
use serde::Serialize;

/// A value that may be printed as JSON. Only types in the one list of documents can be, so that each has a schema.
pub(crate) trait Document: Serialize + JsonSchema {}

/// The value has no JSON form: a map with keys that are not strings.
#[derive(Debug, thiserror::Error)]
#[error("cannot print JSON")]
pub(crate) struct JsonError(#[from] serde_json::Error);

impl Fault for JsonError {
    fn kind(&self) -> Kind {
        Kind::General
    }
}

/// `value` as one line of JSON without its line break. With `html`, characters that matter to HTML are escaped.
pub(super) fn line(value: &impl Serialize, html: bool) -> Result<String, JsonError> {
    let plain = serde_json::to_string(value)?;
    // These characters occur only inside strings, so the whole text can be scanned.
    let mut out = String::with_capacity(plain.len());
    for c in plain.chars() {
        match c {
            '<' if html => out.push_str("\\u003c"),
            '>' if html => out.push_str("\\u003e"),
            '&' if html => out.push_str("\\u0026"),
            // Of these, Go escapes only U+2028 and U+2029; the others could affect a terminal that displays the line.
            c if c.is_control() || is_format(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a string cannot fail.
                    write!(out, "\\u{unit:04x}").ok();
                }
            }
            other => out.push(other),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn escapes_as_go_does() {
        let value = serde_json::json!({"a": "<b> & \u{2028}\"\u{1f980}"});
        assert_eq!(
            line(&value, true).unwrap(),
            r#"{"a":"\u003cb\u003e \u0026 \u2028\"🦀"}"#
        );
        assert_eq!(line(&value, false).unwrap(), r#"{"a":"<b> & \u2028\"🦀"}"#);
    }

    #[test]
    fn what_drives_or_reorders_a_terminal_stands_escaped_and_reads_back_as_it_was() {
        let value = serde_json::json!({"a": "\u{1b}[2J\u{9b}\u{7f}\u{202e}\u{2066}\u{e0041}\u{feff}"});
        let line = line(&value, true).unwrap();
        assert!(line.is_ascii(), "{line:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap(), value);
    }
}
