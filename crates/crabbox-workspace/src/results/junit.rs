//! Reads JUnit reports: how many tests there were and which of them failed.
//!
//! Reports come from the guest: entities of a document type are never expanded, and depth is limited. A
//! report that cannot be read to its end must not pass for one without failures.

use std::borrow::Cow;

use quick_xml::Reader;
use quick_xml::escape::EscapeError;
use quick_xml::events::{BytesStart, Event};

/// How deep elements may be nested; real reports have four levels.
const DEPTH: usize = 64;

/// Why a report cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum JunitError {
    /// It is not well-formed.
    #[error("it is not well-formed XML: {0}")]
    Xml(#[from] quick_xml::Error),
    /// It claims an encoding that it does not have.
    #[error("it begins as UTF-16 but is not valid UTF-16")]
    Encoding,
    /// It uses an entity, which could hide a failed element.
    #[error("it uses the entity &{name};, which is not expanded")]
    Entity {
        /// The entity.
        name: String,
    },
    /// It ends too early.
    #[error("it ends within an element")]
    Cut,
    /// It is XML and not JUnit.
    #[error("its first element is neither testsuites nor testsuite")]
    Other,
    /// It gives a number of tests but lists none of them.
    #[error("it is a summary of {tests} tests without the tests themselves")]
    Summary {
        /// The number it gives.
        tests: u64,
    },
    /// It is nested too deep.
    #[error("its elements are nested deeper than {DEPTH} levels")]
    Deep,
}

/// A test that did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// `classname.name`, or the part of it that is given.
    pub name: String,
    /// The report's message about it; may be empty.
    pub message: String,
}

/// How much of a message is kept, in bytes.
const MESSAGE_LIMIT: usize = 4096;

impl Failed {
    fn new(name: String, mut message: String) -> Self {
        message.truncate(message.floor_char_boundary(MESSAGE_LIMIT));
        message.shrink_to_fit();
        Self { name, message }
    }
}

/// The combined results of reports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The files read.
    pub files: Vec<String>,
    /// Number of tests.
    pub tests: u64,
    /// How many of them failed.
    pub failures: u64,
    /// How many of them had errors, plus suites that had.
    pub errors: u64,
    /// How many of them were skipped.
    pub skipped: u64,
    /// The first tests with failures or errors, in order, at most [`FAILED_LIMIT`].
    pub failed: Vec<Failed>,
}

/// How many tests that did not pass are kept with their names; the others are only counted.
pub const FAILED_LIMIT: usize = 100;

impl Report {
    /// Whether there are no failures or errors.
    pub fn passed(&self) -> bool {
        self.failures == 0 && self.errors == 0
    }

    fn add(&mut self, other: Self) {
        self.files.extend(other.files);
        self.tests += other.tests;
        self.failures += other.failures;
        self.errors += other.errors;
        self.skipped += other.skipped;
        let room = FAILED_LIMIT.saturating_sub(self.failed.len());
        self.failed.extend(other.failed.into_iter().take(room));
    }
}

/// The text of a file: UTF-16 if it begins like that, UTF-8 otherwise. Invalid bytes can only affect names.
fn text(bytes: &[u8]) -> Result<Cow<'_, str>, JunitError> {
    let order: fn([u8; 2]) -> u16 = match bytes {
        [0xff, 0xfe, ..] | [b'<', 0, ..] => u16::from_le_bytes,
        [0xfe, 0xff, ..] | [0, b'<', ..] => u16::from_be_bytes,
        _ => return Ok(String::from_utf8_lossy(bytes)),
    };
    let (units, rest) = bytes.as_chunks();
    if !rest.is_empty() {
        return Err(JunitError::Encoding);
    }
    let units = units.iter().map(|unit| order(*unit));
    let decoded: Result<String, _> = char::decode_utf16(units).collect();
    decoded.map(Cow::Owned).map_err(|_| JunitError::Encoding)
}

/// Adds the report of file `name` to `report`; adds nothing if it cannot be read to its end.
pub fn read(name: &str, bytes: &[u8], report: &mut Report) -> Result<(), JunitError> {
    let text = text(bytes)?;
    let mut reader = Reader::from_str(text.trim_start_matches('\u{feff}'));
    let mut walk = Walk::default();
    loop {
        match reader.read_event()? {
            Event::Start(element) => walk.open(&element)?,
            Event::Empty(element) => {
                walk.open(&element)?;
                walk.close();
            }
            Event::End(_) => walk.close(),
            // XML's predefined entities and character references are text.
            Event::GeneralRef(entity)
                if !entity.is_char_ref()
                    && !matches!(entity.as_ref(), b"amp" | b"lt" | b"gt" | b"quot" | b"apos") =>
            {
                return Err(JunitError::Entity {
                    name: String::from_utf8_lossy(&entity).into_owned(),
                });
            }
            Event::Eof => break,
            _ => {}
        }
    }
    if !walk.open.is_empty() {
        return Err(JunitError::Cut);
    }
    if !walk.begun {
        return Err(JunitError::Other);
    }
    let whole = walk.whole;
    match (whole.listed, whole.unlisted) {
        (0, _) if whole.below.tests > 0 => {
            return Err(JunitError::Summary {
                tests: whole.below.tests,
            });
        }
        (_, 0) => {}
        (_, tests) => return Err(JunitError::Summary { tests }),
    }
    walk.found.failures = whole.below.failures;
    walk.found.errors = whole.below.errors;
    walk.found.files.push(name.to_owned());
    report.add(walk.found);
    Ok(())
}

/// The result of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Came {
    #[default]
    Passed,
    Skipped,
    Failed,
    Error,
}

#[derive(Default)]
struct Walk {
    open: Vec<Vec<u8>>,
    begun: bool,
    /// The name of the current test.
    name: String,
    message: String,
    came: Came,
    /// The suites that are open, each within the one before.
    suites: Vec<Suite>,
    /// What encloses the outermost.
    whole: Suite,
    found: Report,
}

/// A suite, or a list of suites. What it claims counts where it lists less, at every level: one that claims
/// failures has them, and one that lists no test hides how they ended.
#[derive(Default)]
struct Suite {
    /// What it claims.
    said: Said,
    /// What is in it, claimed or listed.
    below: Said,
    /// How many tests are listed in it.
    listed: u64,
    /// How many tests are only claimed, by suites that list none and report nothing bad.
    unlisted: u64,
}

impl Suite {
    /// Adds a suite that is complete.
    fn add(&mut self, inner: &Self) {
        let all = inner.said.or(inner.below);
        let passed = all.failures == 0 && all.errors == 0;
        self.below = self.below.and(all);
        self.listed += inner.listed;
        self.unlisted = self.unlisted.saturating_add(if inner.listed == 0 && passed {
            all.tests
        } else {
            inner.unlisted
        });
    }
}

/// Totals that a report gives.
#[derive(Default, Clone, Copy)]
struct Said {
    tests: u64,
    failures: u64,
    errors: u64,
}

impl Said {
    /// The totals of an element; an invalid number counts as zero.
    fn of(element: &BytesStart<'_>) -> Self {
        let number = |name| attribute(element, name).trim().parse().unwrap_or(0);
        Self {
            tests: number("tests"),
            failures: number("failures"),
            errors: number("errors"),
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            tests: self.tests.saturating_add(other.tests),
            failures: self.failures.saturating_add(other.failures),
            errors: self.errors.saturating_add(other.errors),
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            tests: self.tests.max(other.tests),
            failures: self.failures.max(other.failures),
            errors: self.errors.max(other.errors),
        }
    }
}

impl Walk {
    fn open(&mut self, element: &BytesStart<'_>) -> Result<(), JunitError> {
        for attribute in element.attributes() {
            let attribute = attribute.map_err(quick_xml::Error::from)?;
            match attribute.unescape_value() {
                Ok(_) => {}
                Err(quick_xml::Error::Escape(EscapeError::UnrecognizedEntity(_, name))) => {
                    return Err(JunitError::Entity { name });
                }
                Err(error) => return Err(error.into()),
            }
        }
        let name = element.local_name().as_ref().to_vec();
        if self.open.is_empty() && !matches!(name.as_slice(), b"testsuites" | b"testsuite") {
            return Err(JunitError::Other);
        }
        self.begun = true;
        if name == b"testsuites" || name == b"testsuite" {
            self.suites.push(Suite {
                said: Said::of(element),
                ..Suite::default()
            });
        }
        if self.open.len() == DEPTH {
            return Err(JunitError::Deep);
        }
        let parent = self.open.last().map_or(&b""[..], Vec::as_slice);
        match (parent, name.as_slice()) {
            (_, b"testcase") => {
                let class = attribute(element, "classname");
                let own = attribute(element, "name");
                self.name = if class.is_empty() {
                    own
                } else {
                    format!("{class}.{own}")
                };
                self.message.clear();
                self.came = Came::Passed;
            }
            (b"testcase", b"skipped") => self.came = self.came.max(Came::Skipped),
            (b"testcase", b"failure") => self.bad(Came::Failed, element),
            (b"testcase", b"error") => self.bad(Came::Error, element),
            // A suite that failed before its tests.
            (b"testsuite", b"error" | b"failure") => {
                self.suite().below.errors += 1;
                let message = attribute(element, "message");
                self.found
                    .failed
                    .push(Failed::new("test suite".to_owned(), message));
            }
            _ => {}
        }
        self.open.push(name);
        Ok(())
    }

    fn bad(&mut self, came: Came, element: &BytesStart<'_>) {
        if self.came < came {
            self.came = came;
            self.message = attribute(element, "message");
        }
    }

    /// The innermost open suite.
    fn suite(&mut self) -> &mut Suite {
        self.suites.last_mut().unwrap_or(&mut self.whole)
    }

    fn close(&mut self) {
        match self.open.pop().as_deref() {
            Some(b"testcase") => {}
            Some(b"testsuites" | b"testsuite") => {
                if let Some(ended) = self.suites.pop() {
                    self.suite().add(&ended);
                }
                return;
            }
            _ => return,
        }
        self.found.tests += 1;
        let came = self.came;
        let suite = self.suite();
        suite.listed += 1;
        suite.below.tests += 1;
        match came {
            Came::Passed => return,
            Came::Skipped => {
                self.found.skipped += 1;
                return;
            }
            Came::Failed => suite.below.failures += 1,
            Came::Error => suite.below.errors += 1,
        }
        let (name, message) = (std::mem::take(&mut self.name), std::mem::take(&mut self.message));
        self.found.failed.push(Failed::new(name, message));
    }
}

/// An attribute's text; empty if it is missing. [`Walk::open`] has checked that it can be read.
fn attribute(element: &BytesStart<'_>, name: &str) -> String {
    let found = element.try_get_attribute(name).ok().flatten();
    found
        .and_then(|attribute| attribute.unescape_value().ok().map(Cow::into_owned))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<Report, JunitError> {
        let mut report = Report::default();
        read("f.xml", text.as_bytes(), &mut report)?;
        Ok(report)
    }

    #[test]
    fn tests_are_counted_one_by_one() {
        let report = one("\u{feff}<?xml version='1.0'?><testsuites tests='99'><testsuite name='s'>
            <testcase name='a'/><testcase classname='C' name='b'><failure message='1 &lt; 2'>x</failure><error/></testcase>
            <testcase name='c'><skipped/></testcase><testcase name='d'><error message='boom'/></testcase>
            <testsuite><testcase name='e'><failure/></testcase><error message='no setup'/></testsuite>
            </testsuite></testsuites>")
        .unwrap();
        assert_eq!(
            (report.tests, report.failures, report.errors, report.skipped),
            (5, 1, 3, 1)
        );
        assert_eq!((report.failed[0].name.as_str(), report.failed.len()), ("C.b", 4));
        assert!(!report.passed());
        let plain = one("<testsuite><testcase name='b'><failure message='1 &lt; 2'/></testcase></testsuite>");
        assert_eq!(plain.unwrap().failed[0].message, "1 < 2");
    }

    #[test]
    fn what_a_report_says_of_itself_counts_where_it_lists_less() {
        for text in [
            "<testsuite tests='3' failures='1'/>",
            "<testsuites tests='3'></testsuites>",
            "<testsuites><testsuite tests='2'/><testsuite tests='1'/></testsuites>",
        ] {
            let error = one(text).unwrap_err();
            assert!(
                matches!(error, JunitError::Summary { tests: 3 }),
                "{text}: {error}"
            );
        }
        let hidden = "<testsuites><testsuite tests='2' failures='1'><testcase name='a'/></testsuite>\
            <testsuite tests='1' errors='1'/></testsuites>";
        let report = one(hidden).unwrap();
        assert_eq!((report.failures, report.errors, report.passed()), (1, 1, false));
        assert!(one("<testsuite tests='0'/>").unwrap().passed());
    }

    #[test]
    fn a_suite_counts_at_every_level_as_the_outermost_does() {
        let listed = "<testsuite tests='1'><testcase name='a'/></testsuite>";
        for nested in [
            format!("<testsuite>{listed}<testsuite tests='3' failures='1'/></testsuite>"),
            format!(
                "<testsuites><testsuite>{listed}<testsuite tests='3' failures='1'/></testsuite></testsuites>"
            ),
            format!("<testsuites>{listed}<testsuite failures='1'>{listed}</testsuite></testsuites>"),
        ] {
            let report = one(&nested).unwrap();
            assert_eq!((report.failures, report.errors), (1, 0), "{nested}");
        }
        let hidden = format!(
            "<testsuites>{listed}<testsuite tests='9'><testsuite tests='3'/></testsuite></testsuites>"
        );
        assert!(matches!(one(&hidden), Err(JunitError::Summary { tests: 9 })));
        // What a list and its suites say is one failure, not two.
        let twice = "<testsuites failures='1'><testsuite failures='1'><testcase><failure/></testcase></testsuite></testsuites>";
        assert_eq!(one(twice).unwrap().failures, 1);
    }

    #[test]
    fn what_is_no_report_adds_nothing() {
        let mut report = Report::default();
        for text in [
            "",
            "text",
            "<html></html>",
            "<testsuite><testcase>",
            "<testsuite></testcase></testsuite>",
            "<testsuite><testcase name='a' name='b'/></testsuite>",
            "<testsuite failures=1><testcase/></testsuite>",
            &"<testsuite>".repeat(100),
        ] {
            assert!(read("f", text.as_bytes(), &mut report).is_err(), "{text}");
        }
        assert_eq!(report, Report::default());
    }

    #[test]
    fn what_an_entity_stands_for_is_not_taken_for_nothing() {
        let kind = "<!DOCTYPE t [<!ENTITY f '<failure/>'>]>";
        for text in [
            format!("{kind}<testsuite><testcase name='a'>&f;</testcase></testsuite>"),
            format!("{kind}<testsuite tests='1' failures='&f;'><testcase/></testsuite>"),
            "<testsuite><testcase>&f;</testcase></testsuite>".to_owned(),
        ] {
            let error = one(&text).unwrap_err();
            assert!(
                matches!(&error, JunitError::Entity { name } if name == "f"),
                "{text}: {error}"
            );
        }
        let own = "<testsuite><testcase name='&amp;&#65;'>&lt;&#x41;&quot;</testcase></testsuite>";
        assert_eq!(one(own).unwrap().tests, 1);
    }

    #[test]
    fn utf_16_is_read_where_a_report_begins_so() {
        let text = "<?xml version='1.0' encoding='utf-16'?><testsuite><testcase name='é𝄞'><failure/></testcase></testsuite>";
        let units = || text.encode_utf16();
        let little: Vec<u8> = units().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = units().flat_map(u16::to_be_bytes).collect();
        let marked = |mark: &[u8], bytes: &[u8]| [mark, bytes].concat();
        for bytes in [
            marked(&[0xff, 0xfe], &little),
            marked(&[0xfe, 0xff], &big),
            little.clone(),
            big,
        ] {
            let mut report = Report::default();
            read("f", &bytes, &mut report).unwrap();
            assert_eq!((report.failed[0].name.as_str(), report.failures), ("é𝄞", 1));
        }
        let cut = &little[..little.len() - 1];
        assert!(matches!(
            read("f", cut, &mut Report::default()),
            Err(JunitError::Encoding)
        ));
    }

    #[test]
    fn what_is_kept_of_failures_has_a_limit_and_all_are_counted() {
        let mut report = Report::default();
        // The byte at the limit is inside of a character.
        let message = format!("x{}", "é".repeat(MESSAGE_LIMIT));
        let case = format!("<testcase name=\"t\"><failure message=\"{message}\"/></testcase>");
        let text = format!("<testsuite>{}</testsuite>", case.repeat(FAILED_LIMIT - 1));
        for name in ["a", "b"] {
            read(name, text.as_bytes(), &mut report).unwrap();
        }
        assert_eq!(report.failed.len(), FAILED_LIMIT);
        assert_eq!(report.failures, 2 * (FAILED_LIMIT as u64 - 1));
        assert!(
            report
                .failed
                .iter()
                .all(|failed| failed.message.len() == MESSAGE_LIMIT - 1)
        );
    }
}
