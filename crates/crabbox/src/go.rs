//! Values formatted as the Go program prints them.

use std::time::Duration;

use crabbox_core::duration::GoDuration;

/// A duration rounded to milliseconds: `1.234s`, `250ms`.
pub(crate) fn milliseconds(duration: Duration) -> String {
    let rounded = (duration.as_nanos() + 500_000) / 1_000_000;
    GoDuration::from_nanoseconds(i64::try_from(rounded * 1_000_000).unwrap_or(i64::MAX)).to_string()
}

/// Whole seconds: `30m0s`.
pub(crate) fn seconds(seconds: i64) -> String {
    GoDuration::from_nanoseconds(seconds.saturating_mul(1_000_000_000)).to_string()
}

/// `-` for a blank text.
pub(crate) fn blank(text: &str) -> &str {
    if text.trim().is_empty() { "-" } else { text }
}

/// A text in Go's quotes, as `strconv.Quote` formats it: always on one line.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            c if is_printable(c) => out.push(c),
            c => out.push_str(&escaped(u32::from(c))),
        }
    }
    out.push('"');
    out
}

/// A character by its number, in the shortest of Go's three forms.
fn escaped(number: u32) -> String {
    match number {
        0..=0x7f => format!("\\x{number:02x}"),
        0x80..=0xffff => format!("\\u{number:04x}"),
        _ => format!("\\U{number:08x}"),
    }
}

/// Tested after another character, so that a combining one counts as printable, as in Go.
fn is_printable(c: char) -> bool {
    let text = String::from_iter(['a', c]);
    // Rust escapes the single quote too, which Go does not inside double quotes.
    c == '\'' || text.escape_debug().eq(text.chars())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spelled_as_go_does() {
        assert_eq!(milliseconds(Duration::from_micros(1_234_500)), "1.235s");
        assert_eq!(milliseconds(Duration::from_micros(250_400)), "250ms");
        assert_eq!(seconds(1800), "30m0s");
        assert_eq!((blank(" "), blank("x")), ("-", "x"));
    }

    #[test]
    fn quoted_as_go_does() {
        assert_eq!(quote("/a b/ü\u{301}'🦀"), "\"/a b/ü\u{301}'🦀\"");
        assert_eq!(
            quote("\"\\\u{7}\u{8}\t\n\u{b}\u{c}\r\u{1b}\u{7f}"),
            r#""\"\\\a\b\t\n\v\f\r\x1b\x7f""#
        );
        assert_eq!(
            quote("\u{a0}\u{200b}\u{2028}\u{e0001}"),
            r#""\u00a0\u200b\u2028\U000e0001""#
        );
    }
}
