//! Durations in Go's syntax: `1h30m0s`, `250ms`, `.5s`, `-1h`.
//!
//! Configuration files, flags and JSON of crabbox contain such texts, so this module parses and prints them
//! exactly like Go's `time.ParseDuration` and `Duration.String`. It must never accept what Go refuses (`5d`,
//! `2 minutes`) or round a value.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A duration in nanoseconds, with Go's range (about ±292 years) and Go's syntax.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GoDuration {
    nanoseconds: i64,
}

/// Why a text is not a duration; the messages are Go's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Empty, without digits, only a sign, or too large for 64 bits of nanoseconds.
    #[error("time: invalid duration {}", quoted(.text))]
    Invalid {
        /// The text as given.
        text: String,
    },
    /// A number without a unit, such as `5`.
    #[error("time: missing unit in duration {}", quoted(.text))]
    MissingUnit {
        /// The text as given.
        text: String,
    },
    /// A unit that Go does not know, such as the `d` of `5d`.
    #[error("time: unknown unit {} in duration {}", quoted(.unit), quoted(.text))]
    UnknownUnit {
        /// The unit that was found.
        unit: String,
        /// The text as given.
        text: String,
    },
}

const SECOND: u64 = 1_000_000_000;
/// Go keeps the sum as an unsigned number up to 2^63, so that the smallest duration can be parsed.
const LIMIT: u64 = 1 << 63;

impl GoDuration {
    /// The zero duration.
    pub const ZERO: Self = Self { nanoseconds: 0 };

    /// A duration of this many nanoseconds.
    pub const fn from_nanoseconds(nanoseconds: i64) -> Self {
        Self { nanoseconds }
    }

    /// The length in nanoseconds.
    pub const fn nanoseconds(self) -> i64 {
        self.nanoseconds
    }

    /// Whole seconds, truncated towards zero.
    pub const fn seconds(self) -> i64 {
        self.nanoseconds / 1_000_000_000
    }

    /// Whether the duration is greater than zero.
    pub(crate) const fn is_positive(self) -> bool {
        self.nanoseconds > 0
    }

    /// The same duration for the standard library; a negative one becomes zero.
    pub const fn to_std(self) -> Duration {
        if self.nanoseconds < 0 {
            Duration::ZERO
        } else {
            Duration::from_nanos(self.nanoseconds.unsigned_abs())
        }
    }
}

impl From<Duration> for GoDuration {
    /// A duration above 292 years is capped.
    fn from(span: Duration) -> Self {
        Self {
            nanoseconds: i64::try_from(span.as_nanos()).unwrap_or(i64::MAX),
        }
    }
}

impl FromStr for GoDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let invalid = || DurationError::Invalid {
            text: text.to_owned(),
        };
        let (negative, mut rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        if rest == "0" {
            return Ok(Self::ZERO);
        }
        if rest.is_empty() {
            return Err(invalid());
        }
        let mut total: u64 = 0;
        while !rest.is_empty() {
            let (part, after) = parse_part(text, rest)?;
            total = total
                .checked_add(part)
                .filter(|sum| *sum <= LIMIT)
                .ok_or_else(invalid)?;
            rest = after;
        }
        let nanoseconds = if negative {
            0i64.checked_sub_unsigned(total)
        } else {
            i64::try_from(total).ok()
        };
        nanoseconds.map(Self::from_nanoseconds).ok_or_else(invalid)
    }
}

/// Parses one number with its unit from the start of `rest`; returns its nanoseconds and the remainder.
fn parse_part<'a>(text: &str, rest: &'a str) -> Result<(u64, &'a str), DurationError> {
    let invalid = || DurationError::Invalid {
        text: text.to_owned(),
    };
    let digits = digits_of(rest);
    let mut whole: u64 = 0;
    for digit in digits.bytes() {
        // The order of checks is Go's: it decides which over-long numbers are refused.
        if whole > LIMIT / 10 {
            return Err(invalid());
        }
        whole = whole * 10 + u64::from(digit - b'0');
        if whole > LIMIT {
            return Err(invalid());
        }
    }
    let mut after = &rest[digits.len()..];
    let mut fraction = "";
    if let Some(behind_dot) = after.strip_prefix('.') {
        fraction = digits_of(behind_dot);
        after = &behind_dot[fraction.len()..];
    }
    if digits.is_empty() && fraction.is_empty() {
        return Err(invalid());
    }
    let unit_end = after
        .find(|c: char| c == '.' || c.is_ascii_digit())
        .unwrap_or(after.len());
    let (unit, after) = after.split_at(unit_end);
    if unit.is_empty() {
        return Err(DurationError::MissingUnit {
            text: text.to_owned(),
        });
    }
    let scale = unit_nanoseconds(unit).ok_or_else(|| DurationError::UnknownUnit {
        unit: unit.to_owned(),
        text: text.to_owned(),
    })?;
    let whole = whole
        .checked_mul(scale)
        .filter(|product| *product <= LIMIT)
        .ok_or_else(invalid)?;
    let sum = whole.saturating_add(fraction_of(fraction, scale));
    if sum > LIMIT {
        Err(invalid())
    } else {
        Ok((sum, after))
    }
}

fn digits_of(text: &str) -> &str {
    &text[..text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len())]
}

/// The nanoseconds of `0.<digits>` units, truncated towards zero. Go computes this in floating point; so do
/// we, otherwise the last nanosecond would differ.
#[expect(
    clippy::cast_precision_loss,
    reason = "Go's own arithmetic, rounding included"
)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "0 <= value <= one hour of nanoseconds"
)]
fn fraction_of(digits: &str, scale: u64) -> u64 {
    let (mut value, mut divisor) = (0u64, 1f64);
    for digit in digits.bytes() {
        // Further digits are below what 63 bits can hold; Go stops here too.
        let Some(next) = value
            .checked_mul(10)
            .and_then(|tens| tens.checked_add(u64::from(digit - b'0')))
            .filter(|next| value <= (LIMIT - 1) / 10 && *next <= LIMIT)
        else {
            break;
        };
        value = next;
        divisor *= 10.0;
    }
    if value == 0 {
        0
    } else {
        (value as f64 * (scale as f64 / divisor)) as u64
    }
}

fn unit_nanoseconds(unit: &str) -> Option<u64> {
    Some(match unit {
        "ns" => 1,
        // The micro sign and the Greek letter mu, as in Go.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => SECOND,
        "m" => 60 * SECOND,
        "h" => 3600 * SECOND,
        _ => return None,
    })
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.nanoseconds.unsigned_abs();
        let sign = if self.nanoseconds < 0 { "-" } else { "" };
        // Padding applies to the whole text, so it is put together first.
        let text = match total {
            0 => "0s".to_owned(),
            1..1_000 => format!("{sign}{total}ns"),
            1_000..1_000_000 => format!("{sign}{}\u{b5}s", decimal(total, 1_000)),
            1_000_000..SECOND => format!("{sign}{}ms", decimal(total, 1_000_000)),
            _ => {
                let minutes = total / SECOND / 60;
                let seconds = decimal(total % (60 * SECOND), SECOND);
                match (minutes / 60, minutes % 60) {
                    (0, 0) => format!("{sign}{seconds}s"),
                    (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
                    (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
                }
            }
        };
        f.pad(&text)
    }
}

/// `value / unit` as a decimal number without trailing zeros; `unit` is a power of ten.
fn decimal(value: u64, unit: u64) -> String {
    let width = unit.ilog10() as usize;
    let (whole, fraction) = (value / unit, value % unit);
    if fraction == 0 {
        return whole.to_string();
    }
    format!("{whole}.{}", format!("{fraction:0width$}").trim_end_matches('0'))
}

/// Go's quoting in these messages: ASCII unchanged, everything else as `\xNN`.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend(['\\', char::from(byte)]),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => out.extend(format!("\\x{byte:02x}").chars()),
        }
    }
    out.push('"');
    out
}

impl serde::Serialize for GoDuration {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for GoDuration {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<i64, String> {
        text.parse::<GoDuration>()
            .map(GoDuration::nanoseconds)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn reads_what_go_reads() {
        let cases = [
            ("0", 0),
            ("+0", 0),
            ("-0", 0),
            ("5s", 5_000_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("-1h", -3_600_000_000_000),
            ("+5m", 300_000_000_000),
            ("1h30m0s", 5_400_000_000_000),
            ("250ms", 250_000_000),
            ("12\u{b5}s", 12_000),
            ("12\u{3bc}s", 12_000),
            ("12us", 12_000),
            ("3h30m4s", 12_604_000_000_000),
            ("10.5s4m", 250_500_000_000),
            ("0.3333333333333333333h", 1_200_000_000_000),
            ("9007199254740993ns", 9_007_199_254_740_993),
            ("9223372036854775807ns", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
            ("-2562047h47m16.854775808s", i64::MIN),
            ("0.100000000000000000000h", 360_000_000_000),
            ("0.9223372036854775807h", 3_320_413_933_267),
        ];
        for (text, want) in cases {
            assert_eq!(parse(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn refuses_what_go_refuses_in_gos_words() {
        let cases = [
            ("", "time: invalid duration \"\""),
            ("3", "time: missing unit in duration \"3\""),
            ("-", "time: invalid duration \"-\""),
            ("s", "time: invalid duration \"s\""),
            (".", "time: invalid duration \".\""),
            (".s", "time: invalid duration \".s\""),
            ("5d", "time: unknown unit \"d\" in duration \"5d\""),
            (
                "2 minutes",
                "time: unknown unit \" minutes\" in duration \"2 minutes\"",
            ),
            ("1h 30m", "time: unknown unit \"h \" in duration \"1h 30m\""),
            (
                "1\u{e9}",
                "time: unknown unit \"\\xc3\\xa9\" in duration \"1\\xc3\\xa9\"",
            ),
            (
                "9223372036854775808ns",
                "time: invalid duration \"9223372036854775808ns\"",
            ),
            (
                "-9223372036854775809ns",
                "time: invalid duration \"-9223372036854775809ns\"",
            ),
            ("2562048h", "time: invalid duration \"2562048h\""),
            (
                "99999999999999999999s",
                "time: invalid duration \"99999999999999999999s\"",
            ),
        ];
        for (text, want) in cases {
            assert_eq!(parse(text), Err(want.to_owned()), "{text}");
        }
    }

    #[test]
    fn prints_what_go_prints() {
        let cases = [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1\u{b5}s"),
            (2_200_000, "2.2ms"),
            (250_000_000, "250ms"),
            (3_300_000_000, "3.3s"),
            (120_000_000_000, "2m0s"),
            (245_000_000_000, "4m5s"),
            (245_001_000_000, "4m5.001s"),
            (18_367_001_000_000, "5h6m7.001s"),
            (5_400_000_000_000, "1h30m0s"),
            (480_000_000_001, "8m0.000000001s"),
            (i64::MAX, "2562047h47m16.854775807s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ];
        for (nanoseconds, want) in cases {
            assert_eq!(GoDuration::from_nanoseconds(nanoseconds).to_string(), want);
        }
        let padded = format!("[{:>8}]", GoDuration::from_nanoseconds(120_000_000_000));
        assert_eq!(padded, "[    2m0s]");
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(nanoseconds in any::<i64>()) {
            let printed = GoDuration::from_nanoseconds(nanoseconds).to_string();
            prop_assert_eq!(parse(&printed), Ok(nanoseconds));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[-+]?[0-9.]{0,25}(ns|us|ms|s|m|h|d| )?[0-9.smh]{0,8}|\\PC*") {
            let _outcome = parse(&text);
        }
    }
}
