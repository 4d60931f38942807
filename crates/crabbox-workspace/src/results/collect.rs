//! Files of a run brought back: which there are, and one archive of those that are wanted.
//!
//! Only regular files are taken, and a name from the guest is only ever sent back to it: no path on this side is made of one.
//! What cannot be read there is named beside the rest; it must never cost the rest.

use std::io::{self, Write};

use crabbox_agent_protocol::Request;
use crabbox_host::beneath::Existing;
use crabbox_host::budget::Bounded;
use crabbox_host::place::Place;
use crabbox_ssh::far::FarError;
use crabbox_ssh::target::Target;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::junit::{self, Report};
use super::pattern::Pattern;
use crate::command::RemoteError;
use crate::files::{self, Coming, FetchError, Fetched, Wanted};
use crate::owner::Owner;
use crate::stream::budget;

/// The most reports of a run that are read, as the Go program has it.
const REPORTS: usize = 50;
/// The largest report that is read, in bytes, as the Go program has it.
const REPORT_LIMIT: u64 = 16 << 20;
/// The most problems that are named one by one.
const PROBLEMS: usize = 20;

/// What was found, and what could not be looked at.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Paths below the working directory.
    pub names: Vec<Vec<u8>>,
    /// What the other side said of the rest.
    pub problems: Vec<String>,
}

/// The regular files below the working directory, but for those of `.git` and `.crabbox`.
pub fn list(owner: &mut Owner, workdir: &str) -> Result<Listing, RemoteError> {
    listed(owner, workdir, &[".git", ".crabbox"], &[])
}

/// With `named`, only files whose names begin and end so, and that were written since the last command began.
fn listed(
    owner: &mut Owner,
    workdir: &str,
    skipped: &[&str],
    named: &[(&str, &str)],
) -> Result<Listing, RemoteError> {
    let far = owner.far();
    let asked = far.ask(&Request::List {
        dir: workdir.to_owned(),
        skipped: skipped.iter().map(ToString::to_string).collect(),
        written: !named.is_empty(),
        named: named
            .iter()
            .map(|(start, end)| ((*start).to_owned(), (*end).to_owned()))
            .collect(),
    });
    match asked.and_then(|()| far.list()) {
        Ok((names, problems)) => Ok(Listing {
            names: names
                .split(|byte| *byte == 0)
                .filter(|name| !name.is_empty())
                .map(<[u8]>::to_vec)
                .collect(),
            problems: some(problems),
        }),
        Err(FarError::Failed { why }) => Err(RemoteError::File {
            attempt: "list the files of",
            path: workdir.to_owned(),
            said: why,
        }),
        Err(error) => Err(error.into()),
    }
}

/// No more problems than anybody reads.
fn some(mut problems: Vec<String>) -> Vec<String> {
    let more = problems.len().saturating_sub(PROBLEMS);
    problems.truncate(PROBLEMS);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    problems
}

/// What became of an archive.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Archived {
    /// Its size in bytes.
    pub bytes: u64,
    /// What of the files could not be read, or changed while it was.
    pub problems: Vec<String>,
    /// The files that did not come.
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
    let wanted = Wanted {
        dir: workdir,
        names,
        follow: false,
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
        Err(FetchError::Far(FarError::Cancelled)) => return Err(RemoteError::Interrupted { path }),
        Err(FetchError::Far(FarError::Failed { why })) => {
            return Err(RemoteError::File {
                attempt: "archive the artifacts of",
                path: workdir.to_owned(),
                said: why,
            });
        }
        Err(FetchError::Far(error)) => return Err(error.into()),
        Err(FetchError::Sink(source)) => return Err(failed(source)),
    }
    // The two blocks of zeros that end an archive.
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

/// Writes the header of a file; its name is given whole, whatever its length.
fn begin(to: &mut impl Write, name: &[u8], coming: &Coming) -> io::Result<()> {
    let mut whole = b"./".to_vec();
    whole.extend_from_slice(name);
    let mut header = tar::Header::new_gnu();
    let field = &mut header.as_old_mut().name;
    if whole.len() > field.len() {
        // The way of GNU tar: a member of its own before it has the name.
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

/// Reads the JUnit reports of a run: those that `wanted` names or describes by a pattern, and with `auto` those of the usual
/// names that the command wrote. Returns what they hold, and what could not be read.
pub fn reports(
    owner: &mut Owner,
    workdir: &str,
    wanted: &[String],
    auto: bool,
) -> Result<(Report, Vec<String>), RemoteError> {
    let (mut names, mut problems) = (Vec::new(), Vec::new());
    let is_pattern = |text: &&String| text.contains(['*', '?']);
    let wanted: Vec<String> = wanted
        .iter()
        .map(|text| below(workdir, text).to_owned())
        .collect();
    for name in wanted.iter().filter(|text| !is_pattern(text)) {
        names.push(name.trim_start_matches("./").as_bytes().to_vec());
    }
    let patterns: Vec<&String> = wanted.iter().filter(is_pattern).collect();
    if !patterns.is_empty() {
        let listed = list(owner, workdir)?;
        problems.extend(listed.problems);
        for text in patterns {
            match text.parse::<Pattern>() {
                Ok(pattern) => {
                    let matched = listed.names.iter().filter(|name| pattern.matches(name));
                    let before = names.len();
                    names.extend(matched.cloned());
                    if names.len() == before {
                        problems.push(format!("{text}: no file matches"));
                    }
                }
                Err(error) => problems.push(format!("{text}: {}", error.why)),
            }
        }
    }
    if auto {
        let listed = listed(owner, workdir, &[".git", "node_modules", ".crabbox"], &USUAL)?;
        problems.extend(listed.problems);
        names.extend(listed.names);
    }
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    if names.len() > REPORTS {
        names.truncate(REPORTS);
        problems.push(format!("there are more than {REPORTS} reports"));
    }
    let mut report = Report::default();
    if !names.is_empty() {
        read(owner, workdir, &names, &mut report, &mut problems)?;
    }
    Ok((report, some(problems)))
}

/// A path as it is seen from the working directory, where it is below that; others stay as they are.
fn below<'a>(workdir: &str, path: &'a str) -> &'a str {
    match path.strip_prefix(workdir.trim_end_matches('/')) {
        Some(rest) if rest.starts_with('/') => rest.trim_start_matches('/'),
        _ => path,
    }
}

/// How the names of reports usually begin and end, as the Go program knows them.
const USUAL: [(&str, &str); 3] = [
    ("junit", ".xml"),
    ("TEST-", ".xml"),
    ("results.xml", "results.xml"),
];

/// Fetches the reports and reads each when it is there.
fn read(
    owner: &mut Owner,
    workdir: &str,
    names: &[Vec<u8>],
    report: &mut Report,
    problems: &mut Vec<String>,
) -> Result<(), RemoteError> {
    let wanted = Wanted {
        dir: workdir,
        names,
        follow: false,
        limit: Some(REPORT_LIMIT),
    };
    let (mut text, mut current) = (Vec::new(), None);
    let mut end = |text: &mut Vec<u8>, current: Option<usize>, problems: &mut Vec<String>| {
        if let Some(number) = current {
            let name = String::from_utf8_lossy(&names[number]).into_owned();
            let read = junit::read(&name, &String::from_utf8_lossy(text), report);
            problems.extend(read.err().map(|error| format!("{name}: {error}")));
        }
        text.clear();
    };
    let fetched = files::fetch(owner.far(), &wanted, &mut |event| {
        match event {
            Fetched::Begins(coming) => {
                end(&mut text, current.replace(coming.number), problems);
            }
            Fetched::Piece(piece) => text.extend_from_slice(piece),
            Fetched::Problem { text, .. } => problems.push(text.to_owned()),
        }
        Ok(())
    });
    match fetched {
        Ok(()) => {
            end(&mut text, current, problems);
            Ok(())
        }
        Err(FetchError::Far(FarError::Failed { why })) => {
            problems.push(why);
            Ok(())
        }
        Err(FetchError::Far(error)) => Err(error.into()),
        Err(FetchError::Sink(source)) => Err(RemoteError::Local {
            path: workdir.into(),
            source,
        }),
    }
}
