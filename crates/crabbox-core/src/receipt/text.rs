//! Texts in the JSON of a receipt, byte for byte like the output of Go's `json.Marshal`, because signatures
//! are made over these bytes.
//!
//! It must never depend on how another library writes an escape.

use std::fmt::Write as _;

/// Appends `text` to `out` as a JSON string.
pub(super) fn push(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            // HTML's special characters, and JavaScript's line terminators.
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                // Writing to a string cannot fail.
                write!(out, "\\u{:04x}", u32::from(c)).ok();
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// A value in a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field<'a> {
    /// A text.
    Text(&'a str),
    /// A whole number.
    Number(i64),
    /// A boolean.
    Truth(bool),
}

impl Field<'_> {
    fn push(self, out: &mut String) {
        match self {
            Self::Text(text) => push(out, text),
            Self::Number(number) => out.push_str(&number.to_string()),
            Self::Truth(truth) => out.push_str(if truth { "true" } else { "false" }),
        }
    }
}

/// An object with these fields in order, on one line.
pub(super) fn compact(fields: &[(&str, Field<'_>)]) -> String {
    object(fields, "", "", ":")
}

/// The same with one field per line and a final newline.
pub(super) fn indented(fields: &[(&str, Field<'_>)]) -> String {
    object(fields, "\n  ", "\n", ": ") + "\n"
}

fn object(fields: &[(&str, Field<'_>)], before: &str, end: &str, colon: &str) -> String {
    let mut out = String::from("{");
    for (index, (name, value)) in fields.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        out.push_str(before);
        push(&mut out, name);
        out.push_str(colon);
        value.push(&mut out);
    }
    out.push_str(end);
    out.push('}');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_spelled_as_go_spells_them() {
        let mut out = String::new();
        let text = "a\"\\/\n\r\t\u{8}\u{c}\0\u{1f}\u{7f}<>&'\u{2028}\u{2029}é\u{feff}🦀";
        push(&mut out, text);
        let wanted = concat!(
            r#""a\"\\/\n\r\t\b\f\u0000\u001f"#,
            "\u{7f}",
            r"\u003c\u003e\u0026'\u2028\u2029é",
            "\u{feff}🦀\""
        );
        assert_eq!(out, wanted);
        assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
    }

    #[test]
    fn an_object_is_one_line_or_a_line_a_field() {
        let fields = [
            ("a", Field::Text("x")),
            ("b", Field::Number(-1)),
            ("c", Field::Truth(true)),
        ];
        assert_eq!(compact(&fields), r#"{"a":"x","b":-1,"c":true}"#);
        assert_eq!(
            indented(&fields),
            "{\n  \"a\": \"x\",\n  \"b\": -1,\n  \"c\": true\n}\n"
        );
    }
}
