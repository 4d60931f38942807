//! Files of a run brought back: which there are, and one archive of those that are wanted.
//!
//! Only regular files are taken, and a name from the guest is only ever sent back to it: no path on this side is made of one.
//! What cannot be read there is named beside the rest; it must never cost the rest.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;

use crabbox_host::archive::{ArchiveError, MemberKind, Reader};
use crabbox_host::beneath::Existing;
use crabbox_host::budget::Bounded;
use crabbox_host::place::Place;
use crabbox_ssh::capture::CAPTURE_LIMIT;
use crabbox_ssh::exec::{self, Exec, RemoteStatus, Sink, Stdin};
use crabbox_ssh::quote;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::junit::{self, Report};
use super::pattern::Pattern;
use crate::command::{RemoteError, ask};
use crate::owner::Owner;
use crate::stream::{Words, budget};
use crabbox_ssh::target::Target;

/// The most reports of a run that are read, as the Go program has it.
const REPORTS: usize = 50;
/// The largest report that is read, in bytes, as the Go program has it.
const REPORT_LIMIT: u64 = 16 << 20;
/// The most problems that are named one by one.
const PROBLEMS: usize = 20;

/// What find(1) exits with when a directory could not be read; all others were.
const FIND_PARTLY: u8 = 1;
/// What tar(1) exits with when a file changed while it was read, and when one could not be read at all.
const TAR_PARTLY: [u8; 2] = [1, 2];
/// Ours, when there is no working directory.
const NO_DIRECTORY: u8 = 9;

/// Reads a list of names, each ended by NUL, and writes an archive of them.
const TAR: &str = "tar -c --no-recursion --null -T - -f -";

/// What was found, and what could not be looked at.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Paths below the working directory.
    pub names: Vec<Vec<u8>>,
    /// What the other side said of the rest.
    pub problems: Vec<String>,
}

/// The regular files below the working directory, but for those of `.git` and `.crabbox`. Stops when `cancel` becomes readable.
pub fn list(target: &Target, workdir: &str, cancel: BorrowedFd<'_>) -> Result<Listing, RemoteError> {
    let dir = quote::single(workdir);
    let script = format!(
        "cd {dir} || exit {NO_DIRECTORY}\nexec find . '(' -name .git -o -name .crabbox ')' -prune -o -type f -print0"
    );
    let listed = ask(target, &script, Stdin::Null, None, cancel)?;
    let failed = |said| RemoteError::File {
        attempt: "list the files of",
        path: workdir.to_owned(),
        said,
    };
    let is_partly = listed.status == RemoteStatus::Exited(FIND_PARTLY);
    if !listed.success() && !is_partly {
        return Err(failed(listed.stderr_text()));
    }
    if listed.stdout.len() == CAPTURE_LIMIT {
        return Err(failed("there are too many".to_owned()));
    }
    let names = listed.stdout.split(|byte| *byte == 0);
    Ok(Listing {
        names: names
            .filter_map(|name| name.strip_prefix(b"./"))
            .map(<[u8]>::to_vec)
            .collect(),
        problems: some(listed.stderr_text().lines().map(str::to_owned).collect()),
    })
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

/// Writes an archive of these files to its place; returns its size in bytes, and what of it could not be read, or changed
/// while it was. Stops when `cancel` becomes readable.
pub fn archive(
    target: &Target,
    workdir: &str,
    names: &[Vec<u8>],
    place: &Place,
    cancel: BorrowedFd<'_>,
) -> Result<(u64, Vec<String>), RemoteError> {
    let path = place.path();
    let failed = |source| RemoteError::Local {
        path: path.clone(),
        source,
    };
    let mut placing = place.begin()?;
    let budget = budget(target, placing.file()).map_err(failed)?;
    let mut packed = Ending::new(GzEncoder::new(
        Bounded::new(placing.file(), budget),
        Compression::default(),
    ));
    let mut problems = Vec::new();
    if names.is_empty() {
        // The two blocks of zeros that end an archive.
        packed.write_all(&[0; 1024]).map_err(failed)?;
    } else {
        let (dir, mut said) = (quote::single(workdir), Words::default());
        let status = exec::run(
            target,
            Exec {
                script: format!("cd {dir} || exit {NO_DIRECTORY}\nexec {TAR}"),
                stdin: Stdin::Bytes(&sent(names)),
                stdout: Sink::Writer(&mut packed),
                stderr: Sink::Writer(&mut said),
                cancel: Some(cancel),
                limit: None,
            },
        )?;
        match status {
            RemoteStatus::Exited(0) => {}
            RemoteStatus::Exited(code) if TAR_PARTLY.contains(&code) && packed.is_whole() => {
                problems = some(said.lines());
            }
            RemoteStatus::Cancelled { .. } => return Err(RemoteError::Interrupted { path }),
            _ => {
                return Err(RemoteError::File {
                    attempt: "archive the artifacts of",
                    path: workdir.to_owned(),
                    said: said.text(),
                });
            }
        }
    }
    packed.into_inner().finish().map_err(failed)?;
    let file = placing.commit(Existing::Replace)?;
    let bytes = file.metadata().map_err(failed)?.len();
    Ok((bytes, problems))
}

/// Which of these files cannot be read there, or are there no more. Stops when `cancel` becomes readable.
pub fn unreadable(
    target: &Target,
    workdir: &str,
    names: &[Vec<u8>],
    cancel: BorrowedFd<'_>,
) -> Result<Vec<Vec<u8>>, RemoteError> {
    let dir = quote::single(workdir);
    let script = format!(
        "cd {dir} || exit {NO_DIRECTORY}\n\
         exec xargs -0 sh -c 'for f; do test -r \"$f\" || printf \"%s\\\\000\" \"$f\"; done' sh"
    );
    let seen = ask(target, &script, Stdin::Bytes(&sent(names)), None, cancel)?;
    if !seen.success() {
        return Err(RemoteError::File {
            attempt: "look at the artifacts of",
            path: workdir.to_owned(),
            said: seen.stderr_text(),
        });
    }
    let names = seen.stdout.split(|byte| *byte == 0);
    Ok(names
        .filter_map(|name| name.strip_prefix(b"./"))
        .map(<[u8]>::to_vec)
        .collect())
}

/// Passes an archive on and knows whether its end has come: two blocks of zeros, whatever padding follows.
struct Ending<W> {
    to: W,
    zeros: usize,
}

impl<W> Ending<W> {
    fn new(to: W) -> Self {
        Self { to, zeros: 0 }
    }

    fn into_inner(self) -> W {
        self.to
    }

    fn is_whole(&self) -> bool {
        self.zeros >= 1024
    }
}

impl<W: Write> Write for Ending<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        let zeros = bytes[..count].iter().rev().take_while(|byte| **byte == 0).count();
        self.zeros = if zeros == count { self.zeros + zeros } else { zeros };
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn sent(names: &[Vec<u8>]) -> Vec<u8> {
    let mut list = Vec::new();
    for name in names {
        list.extend_from_slice(b"./");
        list.extend_from_slice(name);
        list.push(0);
    }
    list
}

/// Reads the JUnit reports of a run: those that `wanted` names or describes by a pattern, and with `auto` those of the usual
/// names that the command wrote. Returns what they hold, and what could not be read. Stops when `cancel` becomes readable.
pub fn reports(
    target: &Target,
    workdir: &str,
    wanted: &[String],
    auto: Option<&Owner>,
    cancel: BorrowedFd<'_>,
) -> Result<(Report, Vec<String>), RemoteError> {
    let (mut names, mut problems) = (Vec::new(), Vec::new());
    let is_pattern = |text: &&String| text.contains(['*', '?']);
    for name in wanted.iter().filter(|text| !is_pattern(text)) {
        names.push(name.trim_start_matches("./").as_bytes().to_vec());
    }
    let patterns: Vec<&String> = wanted.iter().filter(is_pattern).collect();
    if !patterns.is_empty() {
        let listed = list(target, workdir, cancel)?;
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
    let dir = quote::single(workdir);
    let mut find = format!("cd {dir} || exit\n{{ cat\n");
    if let Some(owner) = auto {
        let marker = owner.marker();
        find.push_str(&format_args!("find . '(' -name .git -o -name node_modules -o -name .crabbox ')' -prune -o -type f '(' -name 'junit*.xml' -o -name 'TEST-*.xml' -o -name results.xml ')' -newer {marker} -print0\n").to_string());
    }
    find.push_str(&format_args!("}} | {TAR}").to_string());
    let seen = ask(target, &find, Stdin::Bytes(&sent(&names)), None, cancel)?;
    problems.extend(some(seen.stderr_text().lines().map(str::to_owned).collect()));
    let mut report = Report::default();
    if let Err(error) = take(&seen.stdout, &mut report, &mut problems) {
        problems.push(format!("the archive of reports cannot be read: {error}"));
    }
    Ok((report, problems))
}

/// Reads the reports out of their archive.
fn take(archive: &[u8], report: &mut Report, problems: &mut Vec<String>) -> Result<(), ArchiveError> {
    let mut seen = std::collections::BTreeSet::new();
    let mut reader = Reader::new(archive);
    while let Some(member) = reader.next_member()? {
        let name = String::from_utf8_lossy(&member.path)
            .trim_start_matches("./")
            .to_owned();
        if !seen.insert(name.clone()) {
            continue;
        }
        let problem = if member.kind != MemberKind::File || member.pieces.is_some() {
            Some("is not a regular file".to_owned())
        } else if member.size > REPORT_LIMIT {
            Some("is larger than 16 MiB".to_owned())
        } else if report.files.len() == REPORTS {
            problems.push(format!("there are more than {REPORTS} reports"));
            return Ok(());
        } else {
            let text = reader.read_small(REPORT_LIMIT)?;
            junit::read(&name, &String::from_utf8_lossy(&text), report)
                .err()
                .map(|error| error.to_string())
        };
        problems.extend(problem.map(|problem| format!("{name}: {problem}")));
    }
    Ok(())
}
