//! Values spelled as the Go program prints them.

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
}
