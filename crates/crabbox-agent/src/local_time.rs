//! A point in time as ctime(3) writes it in the time zone of this session, for the text of ps(1) that the Go
//! program compares.
//!
//! The C library reads the zone from `TZ` or `/etc/localtime` (tzset(3)), as compiled by zic(8) (RFC 9636). A
//! zone that is not understood completely gives no text: a wrong one would deny a process that lives.

use std::path::Path;

/// The zone of a session without `TZ`.
const DEFAULT: &str = "/etc/localtime";
const ZONES: &str = "/usr/share/zoneinfo";
/// Larger than any compiled zone (the largest have 4 KB).
const LIMIT: u64 = 1 << 20;
const DAY: i64 = 86_400;
const WEEKDAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// The local time of `at`, in seconds since 1970, with single spaces: `Sun Nov 29 12:00:00 2026`.
pub(crate) fn text(at: i64) -> Option<String> {
    Some(ctime(at + offset(at)?))
}

/// The offset from UTC in seconds at this time.
fn offset(at: i64) -> Option<i64> {
    let named = std::env::var_os("TZ");
    let path = match &named {
        None => Path::new(DEFAULT).to_owned(),
        Some(name) => {
            let name = name.to_str()?;
            let name = name.strip_prefix(':').unwrap_or(name);
            if name.is_empty() {
                return Some(0);
            }
            // An absolute path stays what it is. What names no file is a rule, which is rare here.
            Path::new(ZONES).join(name)
        }
    };
    let zone = match std::fs::metadata(&path) {
        Ok(meta) if meta.is_file() && meta.len() <= LIMIT => std::fs::read(&path).ok()?,
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => return Some(0),
        _ => return None,
    };
    offset_in(&zone, at)
}

/// The lengths in the header of a compiled zone.
struct Counts {
    version: u8,
    universal: usize,
    standard: usize,
    leaps: usize,
    times: usize,
    types: usize,
    chars: usize,
}

impl Counts {
    fn read(zone: &[u8]) -> Option<Self> {
        let header = zone.strip_prefix(b"TZif")?;
        let number = |nth: usize| usize::try_from(big(header.get(16 + 4 * nth..)?, 4)?).ok();
        Some(Self {
            version: *header.first()?,
            universal: number(0)?,
            standard: number(1)?,
            leaps: number(2)?,
            times: number(3)?,
            types: number(4)?,
            chars: number(5)?,
        })
    }

    /// The length of the data that follows the header, with times of this many bytes.
    fn length(&self, width: usize) -> usize {
        self.times * (width + 1)
            + self.types * 6
            + self.chars
            + self.leaps * (width + 4)
            + self.standard
            + self.universal
    }
}

const HEADER: usize = 44;

/// The first `width` bytes as a signed number, most significant byte first.
fn big(bytes: &[u8], width: usize) -> Option<i64> {
    let bytes = bytes.get(..width)?;
    let sign = if bytes.first()? & 0x80 == 0 { 0 } else { -1 };
    Some(
        bytes
            .iter()
            .fold(sign, |number, byte| (number << 8) | i64::from(*byte)),
    )
}

/// The offset at this time in a compiled zone.
fn offset_in(zone: &[u8], at: i64) -> Option<i64> {
    let first = Counts::read(zone)?;
    let (counts, data, width) = if first.version >= b'2' {
        let second = zone.get(HEADER + first.length(4)..)?;
        (Counts::read(second)?, second.get(HEADER..)?, 8)
    } else {
        let data = zone.get(HEADER..)?;
        (first, data, 4)
    };
    if counts.leaps > 0 {
        // Such a zone counts leap seconds, which the clock of the kernel does not.
        return None;
    }
    let times = data.get(..counts.times * width)?;
    let passed = times
        .chunks_exact(width)
        .take_while(|time| big(time, width).is_some_and(|time| time <= at))
        .count();
    let rule = data
        .get(counts.length(width)..)
        .filter(|_| width == 8)
        .and_then(|end| std::str::from_utf8(end.strip_prefix(b"\n")?.strip_suffix(b"\n")?).ok())
        .unwrap_or_default();
    if passed == counts.times && rule.contains(',') {
        // The table has ended, and the rule goes on to change between summer and winter.
        return None;
    }
    let types = data.get(counts.times * width..)?;
    let nth = match passed.checked_sub(1) {
        Some(last) => usize::from(*types.get(last)?),
        None if counts.times == 0 => 0,
        // No process is that old.
        None => return None,
    };
    big(types.get(counts.times + 6 * nth..)?, 4)
}

/// Days from 1970-01-01 to this date.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March, so that the leap day is the last.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    365 * year + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + day
        - 719_469
}

/// Year, month and day of this many seconds since 1970.
fn date(seconds: i64) -> (i64, i64, i64) {
    let day = seconds.div_euclid(DAY);
    // At most one year too late, and never too early.
    let mut year = 1970 + day.div_euclid(365);
    while days(year, 1, 1) > day {
        year -= 1;
    }
    let month = (1..=12)
        .rev()
        .find(|month| days(year, *month, 1) <= day)
        .unwrap_or(1);
    (year, month, day - days(year, month, 1) + 1)
}

/// 0 is Sunday.
fn weekday_of(day: i64) -> i64 {
    (day + 4).rem_euclid(7)
}

fn ctime(local: i64) -> String {
    let (year, month, day) = date(local);
    let name = |names: &'static [&'static str], nth: i64| {
        usize::try_from(nth)
            .ok()
            .and_then(|nth| names.get(nth))
            .unwrap_or(&"")
    };
    let weekday = name(&WEEKDAYS, weekday_of(local.div_euclid(DAY)));
    let month = name(&MONTHS, month - 1);
    let time = local.rem_euclid(DAY);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{weekday} {month} {day} {hour:02}:{minute:02}:{second:02} {year}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// What date(1) says, which uses the C library's own reader.
    fn by_the_c_library(zone: &str, at: i64) -> String {
        let said = Command::new("date")
            .env("TZ", zone)
            .env("LC_ALL", "C")
            .args(["-d", &format!("@{at}"), "+%a %b %-d %H:%M:%S %Y"])
            .output()
            .unwrap();
        String::from_utf8(said.stdout).unwrap().trim().to_owned()
    }

    #[test]
    fn a_time_is_written_as_by_the_c_library() {
        for at in [
            0,
            951_782_399,
            951_782_400,
            1_709_251_199,
            1_796_040_000,
            4_107_542_400,
        ] {
            assert_eq!(ctime(at), by_the_c_library("UTC0", at), "{at}");
        }
    }

    #[test]
    fn a_compiled_zone_is_read_as_by_the_c_library() {
        for zone in [
            "UTC",
            "Europe/Berlin",
            "America/New_York",
            "America/St_Johns",
            "Asia/Kathmandu",
            "Australia/Lord_Howe",
            "Africa/Casablanca",
            "Europe/Dublin",
            "America/Sao_Paulo",
        ] {
            let bytes = std::fs::read(Path::new(ZONES).join(zone)).unwrap();
            // The tables end in 2037.
            for nth in 0..28 {
                let at = 1_400_000_000 + nth * 23_456_789;
                let offset = offset_in(&bytes, at).unwrap();
                assert_eq!(ctime(at + offset), by_the_c_library(zone, at), "{zone} {at}");
            }
            let has_summers = ["Europe", "America/N", "America/St", "Australia"];
            let ends = has_summers.iter().any(|begin| zone.starts_with(begin));
            assert_eq!(offset_in(&bytes, 2_300_000_000).is_none(), ends, "{zone}");
            for short in 0..bytes.len().min(400) {
                offset_in(&bytes[..short], 1_790_000_000);
            }
        }
    }
}
