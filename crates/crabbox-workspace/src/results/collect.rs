//! Brings back files of a run: lists them, and packs the wanted ones into an archive.
//!
//! Only regular files are accepted, and links to such below the working directory. A name from the guest is
//! only ever sent back to it: no local path is made from one. A file that cannot be read is reported and must
//! never prevent the others.

use std::io::{self, Write};

use crabbox_agent_protocol::Request;
use crabbox_host::beneath::Existing;
use crabbox_host::budget::Bounded;
use crabbox_host::entry_path::EntryPath;
use crabbox_host::place::Place;
use crabbox_ssh::agent_client::{AgentError, short};
use crabbox_ssh::target::Target;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::junit::{self, Report};
use super::pattern::Pattern;
use crate::command::RemoteError;
use crate::files::{self, Coming, FetchError, FetchRequest, Fetched};
use crate::owner::Owner;
use crate::pull::LIST_LIMIT;
use crate::stream::budget;

/// The most reports of a run that are read. Build tools write one for each class of tests; the Go program reads
/// the first 50 that it finds itself.
const REPORTS: usize = 10_000;
/// How much is read of all reports of a run together, in bytes.
const REPORTS_LIMIT: u64 = 1 << 30;
/// What to do about too many or too large reports.
const FEWER: &str = "name fewer with --junit";
/// The largest report that is read, in bytes, as in the Go program.
const REPORT_LIMIT: u64 = 16 << 20;
/// The most problems that are named one by one.
const PROBLEMS: usize = 20;

/// The files found, and the problems.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Paths below the working directory.
    pub names: Vec<Vec<u8>>,
    /// Other names of the same files, if each was to be listed once.
    pub doubles: Vec<Vec<u8>>,
    /// Problems of the lease with paths that a pattern names.
    pub problems: Vec<String>,
    /// Problems with paths that a pattern only might have meant: by `**`, or in a directory that is wanted as
    /// a whole.
    pub aside: Vec<String>,
}

/// The files below the working directory that match these patterns, except those of `.git` and `.crabbox`.
pub fn list(owner: &mut Owner, workdir: &str, patterns: &[&Pattern]) -> Result<Listing, RemoteError> {
    let wish = Wish {
        skipped: &SKIPPED,
        written: false,
        once: false,
    };
    listed(owner, workdir, patterns, &wish)
}

/// Directories that are skipped.
const SKIPPED: [&str; 2] = [".git", ".crabbox"];

/// Further conditions for the files.
struct Wish<'a> {
    /// Directories of these names are skipped.
    skipped: &'a [&'a str],
    /// Only files written since the last command began.
    written: bool,
    /// Each file under one name only.
    once: bool,
}

fn listed(
    owner: &mut Owner,
    workdir: &str,
    patterns: &[&Pattern],
    wish: &Wish<'_>,
) -> Result<Listing, RemoteError> {
    let far = owner.far();
    let asked = far.ask(&Request::List {
        dir: workdir.to_owned(),
        patterns: patterns.iter().map(ToString::to_string).collect(),
        skipped: wish.skipped.iter().map(ToString::to_string).collect(),
        written: wish.written,
        once: wish.once,
    });
    // A link may lead to a file system that hangs.
    far.limit(Some(LIST_LIMIT));
    let listed = asked.and_then(|()| far.list());
    far.limit(None);
    match listed {
        Ok((list, _)) => Ok(sorted(&list, patterns)),
        Err(AgentError::Failed { why }) => Err(RemoteError::File {
            attempt: "list the files of",
            path: workdir.to_owned(),
            said: why,
        }),
        Err(error) => Err(error.into()),
    }
}

/// Sorts the records of a list by kind. A name that matches no pattern, or is not below a directory, is
/// ignored.
fn sorted(list: &[u8], patterns: &[&Pattern]) -> Listing {
    let mut listing = Listing::default();
    for record in list.split(|byte| *byte == 0) {
        let text = |bytes| short(String::from_utf8_lossy(bytes).into_owned());
        match record.split_first() {
            Some((kind @ (b'f' | b'd'), name)) => {
                let is_wanted = patterns.iter().any(|pattern| pattern.matches(name));
                if is_wanted && EntryPath::exact(name).is_ok() {
                    let names = match kind {
                        b'f' => &mut listing.names,
                        _ => &mut listing.doubles,
                    };
                    names.push(name.to_vec());
                }
            }
            Some((b'p', why)) => listing.problems.push(text(why)),
            Some((b'w', why)) => listing.aside.push(text(why)),
            _ => {}
        }
    }
    listing.problems = some(listing.problems);
    listing.aside = some(listing.aside);
    listing
}

/// Limits the problems to a readable number.
fn some(mut problems: Vec<String>) -> Vec<String> {
    let more = problems.len().saturating_sub(PROBLEMS);
    problems.truncate(PROBLEMS);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    problems
}

/// The result of making an archive.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Archived {
    /// Its size in bytes.
    pub bytes: u64,
    /// Problems: files that could not be read, or changed while being read.
    pub problems: Vec<String>,
    /// The files that are missing in it.
    pub lost: Vec<Vec<u8>>,
}

/// Writes an archive of these files to its place.
pub fn archive(
    owner: &mut Owner,
    target: &Target,
    workdir: &str,
    names: &[Vec<u8>],
    place: &Place,
) -> Result<Archived, RemoteError> {
    let path = place.path();
    let failed = |source| RemoteError::Local {
        path: path.clone(),
        source,
    };
    let mut placing = place.begin()?;
    let budget = budget(target, placing.file()).map_err(failed)?;
    let mut packed = GzEncoder::new(Bounded::new(placing.file(), budget), Compression::default());
    let (mut archived, mut padding) = (Archived::default(), 0);
    let wanted = FetchRequest {
        dir: workdir,
        names,
        follow: true,
        within: true,
        limit: None,
    };
    let fetched = files::fetch(owner.far(), &wanted, &mut |event| match event {
        Fetched::Begins(coming) => {
            packed.write_all(&BLOCK[..padding])?;
            padding = usize::try_from(coming.size.next_multiple_of(512) - coming.size).unwrap_or(0);
            begin(&mut packed, &names[coming.number], coming)
        }
        Fetched::Piece(piece) => packed.write_all(piece),
        Fetched::Problem { number, text, lost } => {
            archived.problems.push(text.to_owned());
            if lost {
                archived.lost.push(names[number].clone());
            }
            Ok(())
        }
    });
    match fetched {
        Ok(()) => {}
        Err(FetchError::Agent(AgentError::Cancelled)) => return Err(RemoteError::Interrupted { path }),
        Err(FetchError::Agent(AgentError::Failed { why })) => {
            return Err(RemoteError::File {
                attempt: "archive the artifacts of",
                path: workdir.to_owned(),
                said: why,
            });
        }
        Err(FetchError::Agent(error)) => return Err(error.into()),
        Err(FetchError::Sink(source)) => return Err(failed(source)),
    }
    // An archive ends with two blocks of zeros.
    packed
        .write_all(&BLOCK[..padding])
        .and_then(|()| packed.write_all(&BLOCK))
        .and_then(|()| packed.write_all(&BLOCK))
        .map_err(failed)?;
    packed.finish().map_err(failed)?;
    let file = placing.commit(Existing::Replace)?;
    archived.bytes = file.metadata().map_err(failed)?.len();
    archived.problems = some(archived.problems);
    Ok(archived)
}

/// A block of a tar archive.
const BLOCK: [u8; 512] = [0; 512];

/// Writes the header of a file, with its whole name whatever its length.
fn begin(to: &mut impl Write, name: &[u8], coming: &Coming) -> io::Result<()> {
    let mut whole = b"./".to_vec();
    whole.extend_from_slice(name);
    let mut header = tar::Header::new_gnu();
    let field = &mut header.as_old_mut().name;
    if whole.len() > field.len() {
        // As in GNU tar, a separate member before it carries the name.
        let mut long = tar::Header::new_gnu();
        long.as_old_mut().name[..13].copy_from_slice(b"././@LongLink");
        long.set_entry_type(tar::EntryType::GNULongName);
        long.set_size(whole.len() as u64 + 1);
        long.set_mode(0);
        long.set_cksum();
        to.write_all(long.as_bytes())?;
        to.write_all(&whole)?;
        let rest = (whole.len() + 1).next_multiple_of(BLOCK.len()) - whole.len();
        to.write_all(&BLOCK[..1])?;
        to.write_all(&BLOCK[..rest - 1])?;
    }
    let field = &mut header.as_old_mut().name;
    let known = whole.len().min(field.len());
    field[..known].copy_from_slice(&whole[..known]);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(coming.size);
    header.set_mode(coming.mode);
    header.set_mtime(u64::try_from(coming.seconds).unwrap_or(0));
    header.set_cksum();
    to.write_all(header.as_bytes())
}

/// The contents of test reports.
#[derive(Debug, Default)]
pub struct Reports {
    /// The combined report.
    pub report: Report,
    /// Requested reports that could not be read.
    pub problems: Vec<String>,
    /// Other paths that could not be examined, where no report is known to be.
    pub aside: Vec<String>,
    /// How many bytes have come.
    bytes: u64,
}

/// Reads the JUnit reports of a run: those that `wanted` names or matches, and with `auto` those with the
/// usual names that the command wrote.
pub fn reports(
    owner: &mut Owner,
    workdir: &str,
    wanted: &[String],
    auto: bool,
) -> Result<Reports, RemoteError> {
    let (mut names, mut collected) = (Vec::new(), Reports::default());
    let is_pattern = |text: &&String| text.contains(['*', '?', '[']);
    let wanted: Vec<String> = wanted
        .iter()
        .map(|text| below(workdir, text).to_owned())
        .collect();
    for name in wanted.iter().filter(|text| !is_pattern(text)) {
        names.push(name.trim_start_matches("./").as_bytes().to_vec());
    }
    let mut patterns: Vec<Pattern> = Vec::new();
    for text in wanted.iter().filter(is_pattern) {
        match Pattern::of_reports(text) {
            Ok(pattern) => patterns.push(pattern),
            Err(error) => collected.problems.push(format!("{text}: {}", error.why)),
        }
    }
    let wish = Wish {
        skipped: &SKIPPED,
        written: false,
        once: true,
    };
    let found = collected.find(owner, workdir, &patterns, &wish)?;
    for pattern in patterns {
        let mut found = found.names.iter().chain(&found.doubles);
        if !found.any(|name| pattern.matches(name)) {
            collected.problems.push(format!("{pattern}: no file matches"));
        }
    }
    names.extend(found.names);
    if auto {
        let usual: Vec<Pattern> = USUAL.iter().filter_map(|text| text.parse().ok()).collect();
        let wish = Wish {
            skipped: &[".git", "node_modules", ".crabbox"],
            written: true,
            once: true,
        };
        names.extend(collected.find(owner, workdir, &usual, &wish)?.names);
    }
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    if names.len() > REPORTS {
        names.truncate(REPORTS);
        let problem =
            format!("there are more than {REPORTS} reports, of which the rest was not read: {FEWER}");
        collected.problems.insert(0, problem);
    }
    // Paths outside of the working directory were named literally.
    let (inside, elsewhere): (Vec<_>, Vec<_>) = names
        .into_iter()
        .partition(|name| EntryPath::normal(name).is_ok());
    for (names, within) in [(inside, true), (elsewhere, false)] {
        if !names.is_empty() {
            read(owner, workdir, &names, within, &mut collected)?;
        }
    }
    if collected.is_over() {
        let most = REPORTS_LIMIT >> 20;
        let problem = format!(
            "the reports have more than {most} MiB together, of which the rest was not read: {FEWER}"
        );
        // The first that a user reads.
        collected.problems.insert(0, problem);
    }
    collected.problems = some(collected.problems);
    collected.aside = some(collected.aside);
    Ok(collected)
}

impl Reports {
    /// Whether more has come than is read.
    fn is_over(&self) -> bool {
        self.bytes > REPORTS_LIMIT
    }

    /// Adds the report `current` of `names`. One that has come after the limit is not all there.
    fn add(&mut self, names: &[Vec<u8>], current: Option<usize>, text: &[u8]) {
        let Some(name) = current
            .and_then(|number| names.get(number))
            .filter(|_| !self.is_over())
        else {
            return;
        };
        let name = String::from_utf8_lossy(name).into_owned();
        if let Err(error) = junit::read(&name, text, &mut self.report) {
            self.problems.push(format!("{name}: {error}"));
        }
    }

    /// The files that match these patterns. If the lease cannot list them, that does not affect reports found
    /// in other ways.
    fn find(
        &mut self,
        owner: &mut Owner,
        workdir: &str,
        patterns: &[Pattern],
        wish: &Wish<'_>,
    ) -> Result<Listing, RemoteError> {
        if patterns.is_empty() {
            return Ok(Listing::default());
        }
        let patterns: Vec<&Pattern> = patterns.iter().collect();
        let mut listing = match listed(owner, workdir, &patterns, wish) {
            Err(error @ RemoteError::File { .. }) => Listing {
                problems: vec![error.to_string()],
                ..Listing::default()
            },
            listed => listed?,
        };
        self.problems.append(&mut listing.problems);
        self.aside.append(&mut listing.aside);
        Ok(listing)
    }
}

/// A path relative to the working directory if it is below that; otherwise unchanged.
fn below<'a>(workdir: &str, path: &'a str) -> &'a str {
    match path.strip_prefix(workdir.trim_end_matches('/')) {
        Some(rest) if rest.starts_with('/') => rest.trim_start_matches('/'),
        _ => path,
    }
}

/// The usual names of reports, as in the Go program.
const USUAL: [&str; 3] = ["**/junit*.xml", "**/TEST-*.xml", "**/results.xml"];

/// Fetches the reports and parses each as it arrives.
fn read(
    owner: &mut Owner,
    workdir: &str,
    names: &[Vec<u8>],
    within: bool,
    reports: &mut Reports,
) -> Result<(), RemoteError> {
    let wanted = FetchRequest {
        dir: workdir,
        names,
        follow: true,
        within,
        limit: Some(REPORT_LIMIT),
    };
    let (mut text, mut current) = (Vec::new(), None);
    let fetched = files::fetch(owner.far(), &wanted, &mut |event| {
        match event {
            Fetched::Begins(coming) => {
                reports.add(names, current.replace(coming.number), &text);
                text.clear();
            }
            Fetched::Piece(piece) => {
                reports.bytes += piece.len() as u64;
                // The rest is skipped, so that the conversation can go on.
                if !reports.is_over() {
                    text.extend_from_slice(piece);
                }
            }
            Fetched::Problem { text, .. } => reports.problems.push(text.to_owned()),
        }
        Ok(())
    });
    match fetched {
        Ok(()) => {
            reports.add(names, current, &text);
            Ok(())
        }
        Err(FetchError::Agent(AgentError::Failed { why })) => {
            reports.problems.push(why);
            Ok(())
        }
        Err(FetchError::Agent(error)) => Err(error.into()),
        Err(FetchError::Sink(source)) => Err(RemoteError::Local {
            path: workdir.into(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_that_came_after_the_limit_is_not_read_in_part() {
        let names = [b"a.xml".to_vec()];
        let text = b"<testsuite><testcase name='t'/></testsuite>";
        let mut reports = Reports {
            bytes: REPORTS_LIMIT,
            ..Reports::default()
        };
        reports.add(&names, Some(0), text);
        assert_eq!((reports.report.tests, reports.is_over()), (1, false));
        reports.bytes += 1;
        reports.add(&names, Some(0), text);
        reports.add(&names, Some(0), b"<testsuite>");
        assert_eq!((reports.report.tests, reports.is_over()), (1, true));
        assert!(reports.problems.is_empty(), "{:?}", reports.problems);
    }
}
