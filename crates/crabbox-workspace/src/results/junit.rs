//! JUnit reports: how many tests there were and which of them failed.
//!
//! Reports come from the guest: no entity of a document type is ever expanded, and depth is limited.

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

/// How deep elements may be nested; real reports have four levels.
const DEPTH: usize = 64;

/// Why a report cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum JunitError {
    /// It is not well-formed.
    #[error("it is not well-formed XML: {0}")]
    Xml(#[from] quick_xml::Error),
    /// It ends too early.
    #[error("it ends within an element")]
    Cut,
    /// It is XML and not JUnit.
    #[error("its first element is neither testsuites nor testsuite")]
    Other,
    /// It says how many tests there were and names none of them.
    #[error("it is a summary of {tests} tests without the tests themselves")]
    Summary {
        /// How many it says.
        tests: u64,
    },
    /// It is nested too deep.
    #[error("its elements are nested deeper than {DEPTH} levels")]
    Deep,
}

/// A test that did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// `classname.name`, or what there is of it.
    pub name: String,
    /// What the report says of it; may be empty.
    pub message: String,
}

/// What reports hold together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The files read.
    pub files: Vec<String>,
    /// Number of tests.
    pub tests: u64,
    /// Of them, those that failed.
    pub failures: u64,
    /// Of them, those that could not be run to their end, and suites that could not.
    pub errors: u64,
    /// Of them, those that were not run.
    pub skipped: u64,
    /// Those that failed either way, in their order.
    pub failed: Vec<Failed>,
}

impl Report {
    /// Whether all is well.
    pub fn passed(&self) -> bool {
        self.failures == 0 && self.errors == 0
    }

    fn add(&mut self, other: Self) {
        self.files.extend(other.files);
        self.tests += other.tests;
        self.failures += other.failures;
        self.errors += other.errors;
        self.skipped += other.skipped;
        self.failed.extend(other.failed);
    }
}

/// Adds the report `text` of file `name` to `report`, or nothing when it cannot be read to its end.
pub fn read(name: &str, text: &str, report: &mut Report) -> Result<(), JunitError> {
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
    let said = walk.said.or(walk.suites);
    if walk.found.tests == 0 && said.tests > 0 {
        return Err(JunitError::Summary { tests: said.tests });
    }
    // A report that says of itself that it failed has, whatever it lists.
    walk.found.failures = walk.found.failures.max(said.failures);
    walk.found.errors = walk.found.errors.max(said.errors);
    walk.found.files.push(name.to_owned());
    report.add(walk.found);
    Ok(())
}

/// What a test came to.
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
    /// Of the test that we are in.
    name: String,
    message: String,
    came: Came,
    /// What the outermost elements that count say: `testsuites`, else the suites.
    said: Said,
    suites: Said,
    found: Report,
}

/// Numbers that a report gives of itself.
#[derive(Default, Clone, Copy)]
struct Said {
    tests: u64,
    failures: u64,
    errors: u64,
}

impl Said {
    /// What an element says; a number that is none counts as nothing.
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
        let name = element.local_name().as_ref().to_vec();
        if self.open.is_empty() && !matches!(name.as_slice(), b"testsuites" | b"testsuite") {
            return Err(JunitError::Other);
        }
        self.begun = true;
        if name == b"testsuites" || name == b"testsuite" {
            let said = Said::of(element);
            match self.open.len() {
                0 => self.said = said,
                1 if self.open[0] == b"testsuites" => self.suites = self.suites.and(said),
                _ => {}
            }
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
            // A suite that did not come to its tests.
            (b"testsuite", b"error" | b"failure") => {
                self.found.errors += 1;
                self.found.failed.push(Failed {
                    name: "test suite".to_owned(),
                    message: attribute(element, "message"),
                });
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

    fn close(&mut self) {
        if self.open.pop().as_deref() != Some(b"testcase") {
            return;
        }
        self.found.tests += 1;
        match self.came {
            Came::Passed => return,
            Came::Skipped => {
                self.found.skipped += 1;
                return;
            }
            Came::Failed => self.found.failures += 1,
            Came::Error => self.found.errors += 1,
        }
        self.found.failed.push(Failed {
            name: std::mem::take(&mut self.name),
            message: std::mem::take(&mut self.message),
        });
    }
}

/// An attribute's text; empty where it is missing or cannot be read, for it is only shown.
fn attribute(element: &BytesStart<'_>, name: &str) -> String {
    let found = element.try_get_attribute(name).ok().flatten();
    found
        .and_then(|attribute| attribute.unescape_value().ok().map(std::borrow::Cow::into_owned))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<Report, JunitError> {
        let mut report = Report::default();
        read("f.xml", text, &mut report)?;
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
    fn what_is_no_report_adds_nothing() {
        let mut report = Report::default();
        for text in [
            "",
            "text",
            "<html></html>",
            "<testsuite><testcase>",
            "<testsuite></testcase></testsuite>",
            &"<testsuite>".repeat(100),
        ] {
            assert!(read("f", text, &mut report).is_err(), "{text}");
        }
        assert_eq!(report, Report::default());
        let bomb =
            "<!DOCTYPE t [<!ENTITY a 'b'>]><testsuite><testcase name='&a;'><error/></testcase></testsuite>";
        assert_eq!(one(bomb).unwrap().failed[0].name, "", "no entity is expanded");
    }
}
