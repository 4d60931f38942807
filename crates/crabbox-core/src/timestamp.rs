//! RFC 3339 times as the Go program writes them. Never asks the clock: seconds and nanoseconds are arguments.

use jiff::Timestamp;

/// `2026-08-01T00:00:00Z`; the epoch where `seconds` is beyond what a calendar can say.
pub fn rfc3339(seconds: i64) -> String {
    Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

/// `2026-08-01T00:00:00.123456789Z`, trailing zeros of the fraction cut as Go's RFC3339Nano does.
pub fn rfc3339_nano(seconds: i64, nanoseconds: u32) -> String {
    let nanoseconds = i32::try_from(nanoseconds).unwrap_or(0);
    Timestamp::new(seconds, nanoseconds)
        .unwrap_or_default()
        .to_string()
}

/// Unix seconds of an RFC 3339 time.
pub fn parse(text: &str) -> Option<i64> {
    text.trim().parse::<Timestamp>().ok().map(Timestamp::as_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spelled_as_go_spells_them() {
        assert_eq!(rfc3339(1_754_000_000), "2025-07-31T22:13:20Z");
        assert_eq!(
            rfc3339_nano(1_754_000_000, 120_000_000),
            "2025-07-31T22:13:20.12Z"
        );
        assert_eq!(parse("2025-07-31T22:13:20.12Z"), Some(1_754_000_000));
        assert_eq!(parse("yesterday"), None);
    }
}
