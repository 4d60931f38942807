//! RFC 3339 times in the Go program's format. It must never read the clock: seconds and nanoseconds are
//! arguments.

use jiff::Timestamp;

/// `2026-08-01T00:00:00Z`; the epoch if `seconds` is outside the calendar's range.
pub fn rfc3339(seconds: i64) -> String {
    Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

/// `2026-08-01T00:00:00.123456789Z`, without trailing zeros of the fraction, like Go's RFC3339Nano.
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

/// Unix nanoseconds of an RFC 3339 time.
pub fn parse_nano(text: &str) -> Option<i128> {
    let time = text.parse::<Timestamp>().ok()?;
    is_rfc3339(text).then(|| time.as_nanosecond())
}

/// Whether `text` is a time according to RFC 3339, which allows only a subset of ISO 8601.
pub fn is_rfc3339(text: &str) -> bool {
    let shape = b"0000-00-00T00:00:00";
    let (head, tail) = text.as_bytes().split_at(shape.len().min(text.len()));
    let like = |(byte, shape): (&u8, &u8)| match shape {
        b'0' => byte.is_ascii_digit(),
        mark => byte == mark,
    };
    let digits = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let zone = tail.iter().position(|byte| b"Z+-".contains(byte));
    let Some((fraction, zone)) = zone.map(|at| tail.split_at(at)) else {
        return false;
    };
    let fraction = fraction.is_empty() || fraction.strip_prefix(b".").is_some_and(digits);
    let zone = match zone {
        b"Z" => true,
        [_, h1, h2, b':', m1, m2] => digits(&[*h1, *h2, *m1, *m2]),
        _ => false,
    };
    head.len() == shape.len()
        && head.iter().zip(shape).all(like)
        && fraction
        && zone
        && text.parse::<Timestamp>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_rfc_3339_has_is_one() {
        for good in [
            "2026-08-01T00:00:00Z",
            "2026-08-01T00:00:00.123456789Z",
            "2026-08-01T02:00:00.5+02:00",
        ] {
            assert!(is_rfc3339(good), "{good}");
        }
        for bad in [
            "",
            "2026-08-01",
            "2026-08-01 00:00:00Z",
            "2026-08-01T00:00:00",
            "2026-13-01T00:00:00Z",
            "20260801T000000Z",
            "2026-08-01T00:00:00.Z",
            "2026-08-01T00:00:00+02",
            "2026-08-01T00:00:00Z ",
            "2026-08-01T00:00:00ZZ",
            "é",
            "2026-08-01T00:00:00Z[UTC]",
        ] {
            assert!(!is_rfc3339(bad), "{bad}");
        }
        assert_eq!(parse_nano("1970-01-01T00:00:01.5Z"), Some(1_500_000_000));
        assert_eq!(parse_nano("1970-01-01 00:00:01Z"), None);
    }

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
