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
    if passed == counts.times && !rule.is_empty() {
        return offset_by(rule, at);
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

/// The offset at this time by the rule for the time after a zone's last change, as in `TZ`:
/// `CET-1CEST,M3.5.0,M10.5.0/3`.
fn offset_by(rule: &str, at: i64) -> Option<i64> {
    let mut left = rule;
    name(&mut left)?;
    let standard = -hours(&mut left)?;
    if left.is_empty() {
        return Some(standard);
    }
    name(&mut left)?;
    let summer = if left.starts_with(',') {
        standard + 3600
    } else {
        -hours(&mut left)?
    };
    // Without dates the C library has its own.
    let (begins, ends) = left.strip_prefix(',')?.split_once(',')?;
    let (year, ..) = date(at + standard);
    let begins = change(begins, year)? - standard;
    let ends = change(ends, year)? - summer;
    let is_summer = if begins < ends {
        (begins..ends).contains(&at)
    } else {
        !(ends..begins).contains(&at)
    };
    Some(if is_summer { summer } else { standard })
}

/// Skips the name of a kind of time.
fn name(left: &mut &str) -> Option<()> {
    let length = if left.starts_with('<') {
        left.find('>')? + 1
    } else {
        left.find(|one: char| !one.is_ascii_alphabetic())
            .unwrap_or(left.len())
    };
    *left = left.get(length..).filter(|_| length >= 3)?;
    Some(())
}

/// A number up to `most`.
fn number(left: &mut &str, most: i64) -> Option<i64> {
    let length = left.find(|one: char| !one.is_ascii_digit()).unwrap_or(left.len());
    let (digits, rest) = left.split_at_checked(length)?;
    *left = rest;
    digits.parse().ok().filter(|number| *number <= most)
}

/// A change may take place this many hours from midnight (RFC 9636, section 3.3.1).
const HOURS_LIMIT: i64 = 167;

/// `[+-]hh[:mm[:ss]]` in seconds.
fn hours(left: &mut &str) -> Option<i64> {
    let sign = if left.starts_with('-') { -1 } else { 1 };
    *left = left.trim_start_matches(['+', '-']);
    let mut seconds = number(left, HOURS_LIMIT)? * 3600;
    for unit in [60, 1] {
        if let Some(rest) = left.strip_prefix(':') {
            *left = rest;
            seconds += number(left, 59)? * unit;
        }
    }
    Some(sign * seconds)
}

/// When a change of time takes place in this year, by the clock that it ends.
fn change(text: &str, year: i64) -> Option<i64> {
    let (day, time) = text.split_once('/').unwrap_or((text, "2"));
    let mut time = time;
    let time = Some(hours(&mut time)?).filter(|_| time.is_empty())?;
    let is_leap = days(year, 3, 1) - days(year, 2, 1) == 29;
    let day = if let Some(rule) = day.strip_prefix('M') {
        let mut words = rule.split('.').map(str::parse::<i64>);
        let mut next = || words.next()?.ok();
        let (month, week, weekday) = (next()?, next()?, next()?);
        if !(1..=12).contains(&month) || !(1..=5).contains(&week) || !(0..=6).contains(&weekday) {
            return None;
        }
        let first = days(year, month, 1);
        let nth = first + (weekday - weekday_of(first)).rem_euclid(7) + 7 * (week - 1);
        let next_month = days(year + month / 12, month % 12 + 1, 1);
        // The fifth is the last one.
        if nth < next_month { nth } else { nth - 7 }
    } else if let Some(nth) = day.strip_prefix('J') {
        // February 29 is never counted.
        let nth: i64 = nth.parse().ok().filter(|nth| (1..=365).contains(nth))?;
        days(year, 1, 1) + nth - 1 + i64::from(is_leap && nth >= 60)
    } else {
        let nth: i64 = day.parse().ok().filter(|nth| (0..=365).contains(nth))?;
        days(year, 1, 1) + nth
    };
    Some(day * DAY + time)
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
    fn a_zone_s_rule_is_read_as_by_the_c_library() {
        let mut compared = 0;
        for rule in [
            "UTC0",
            "<+0545>-5:45",
            "CET-1CEST,M3.5.0,M10.5.0/3",
            "EST5EDT,M3.2.0,M11.1.0",
            "AEST-10AEDT,M10.1.0,M4.1.0/3",
            "<-02>2<-01>,M3.5.0/-1,M10.5.0/0",
            "IST-2IDT,M3.4.4/26,M10.5.0",
            "XXX3YYY2:30,J60/4:30:10,J300",
            "XXX-3YYY,59,300/1",
            "IST-1GMT0,M10.5.0,M3.5.0/1",
        ] {
            for week in 0..60 {
                let at = 1_798_761_600 + week * 7 * DAY + week * 2611;
                let offset = offset_by(rule, at).unwrap();
                assert_eq!(ctime(at + offset), by_the_c_library(rule, at), "{rule} {at}");
                compared += 1;
            }
        }
        assert_eq!(compared, 600);
        for unknown in [
            "",
            "X0",
            "A1B,J99999999999999999,J1",
            "A1B,J366,J1",
            "A168B,J1,J2",
            "A1:60B,J1,J2",
            "CET-1CEST",
            "CET",
            "CET-1CEST,M3.5.0",
            "CET-1CEST,M13.5.0,M1.1.1",
        ] {
            assert_eq!(offset_by(unknown, 1_798_761_600), None, "{unknown:?}");
        }
    }

    #[test]
    fn a_compiled_zone_is_read_as_by_the_c_library() {
        let mut zones = 0;
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
            // A system without the data has only UTC.
            let Ok(bytes) = std::fs::read(Path::new(ZONES).join(zone)) else {
                continue;
            };
            zones += 1;
            for nth in 0..40 {
                let at = 1_400_000_000 + nth * 23_456_789;
                let offset = offset_in(&bytes, at).unwrap();
                assert_eq!(ctime(at + offset), by_the_c_library(zone, at), "{zone} {at}");
            }
            for short in 0..bytes.len().min(400) {
                offset_in(&bytes[..short], 1_790_000_000);
            }
        }
        assert!(zones == 0 || zones == 9, "{zones}");
    }
}
