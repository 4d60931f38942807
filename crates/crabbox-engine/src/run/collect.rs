//! Files of a run brought back: which there are, and one archive of those that are wanted.
//!
//! Only regular files are taken, and a name from the guest is only ever sent back to it: no path on this side is made of one.

use std::io::{self, Read as _, Write as _};
use std::path::Path;

use crabbox_ssh::capture::{self, CAPTURE_LIMIT};
use crabbox_ssh::exec::{self, Exec, RemoteStatus, Sink, Stdin};
use crabbox_ssh::quote;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::RunError;
use super::junit::{self, Report};
use super::owner::Owner;
use crate::lease::Target;

/// The most reports of a run that are read, as the Go program has it.
const REPORTS: usize = 50;
/// The largest report that is read, in bytes, as the Go program has it.
const REPORT_LIMIT: u64 = 16 << 20;
/// How much of what the other side says is kept, in bytes.
const WORDS_LIMIT: usize = 4000;

/// Reads a list of names, each ended by NUL, and writes an archive of them.
const TAR: &str = "tar -c --no-recursion --null -T - -f -";

/// The regular files below the working directory, but for those of `.git` and `.crabbox`.
pub fn list(target: &Target, workdir: &str) -> Result<Vec<Vec<u8>>, RunError> {
    let dir = quote::single(workdir);
    let script =
        format!("cd {dir} && exec find . '(' -name .git -o -name .crabbox ')' -prune -o -type f -print0");
    let listed = capture::capture(target, &script, Stdin::Null, None)?;
    let failed = |said| RunError::File {
        attempt: "list the files of",
        path: workdir.to_owned(),
        said,
    };
    if !listed.success() {
        return Err(failed(listed.stderr_text()));
    }
    if listed.stdout.len() == CAPTURE_LIMIT {
        return Err(failed("there are too many".to_owned()));
    }
    let names = listed.stdout.split(|byte| *byte == 0);
    Ok(names
        .filter_map(|name| name.strip_prefix(b"./"))
        .map(<[u8]>::to_vec)
        .collect())
}

/// Writes an archive of these files to `local`; answers its size in bytes.
pub fn archive(target: &Target, workdir: &str, names: &[Vec<u8>], local: &Path) -> Result<u64, RunError> {
    let failed = |source| RunError::Local {
        path: local.to_owned(),
        source,
    };
    let parent = local.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(failed)?;
    let kept = tempfile::NamedTempFile::new_in(parent).map_err(failed)?;
    let mut packed = GzEncoder::new(kept, Compression::default());
    if names.is_empty() {
        // The two blocks of zeros that end an archive.
        packed.write_all(&[0; 1024]).map_err(failed)?;
    } else {
        let (dir, mut said) = (quote::single(workdir), Words::default());
        let status = exec::run(
            target,
            Exec {
                script: format!("cd {dir} && exec {TAR}"),
                stdin: Stdin::Bytes(&sent(names)),
                stdout: Sink::Writer(&mut packed),
                stderr: Sink::Writer(&mut said),
                cancel: None,
                limit: None,
            },
        )?;
        if status != RemoteStatus::Exited(0) {
            return Err(RunError::File {
                attempt: "archive the artifacts of",
                path: workdir.to_owned(),
                said: String::from_utf8_lossy(&said.0).trim().to_owned(),
            });
        }
    }
    let kept = packed.finish().map_err(failed)?;
    let bytes = kept.as_file().metadata().map_err(failed)?.len();
    kept.persist(local).map_err(|error| failed(error.error))?;
    Ok(bytes)
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

#[derive(Default)]
struct Words(Vec<u8>);

impl io::Write for Words {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = WORDS_LIMIT.saturating_sub(self.0.len());
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads the JUnit reports of a run: those at `paths`, and with `auto` those of the usual names that the command wrote.
/// Answers what they hold, and what could not be read.
pub fn reports(
    target: &Target,
    workdir: &str,
    paths: &[String],
    auto: Option<&Owner>,
) -> Result<(Report, Vec<String>), RunError> {
    let dir = quote::single(workdir);
    let mut find = format!("cd {dir} || exit\n{{ :\n");
    for path in paths {
        let path = quote::single(&format!("./{}", path.trim_start_matches("./")));
        find.push_str(&format_args!("printf '%s\\0' {path}\n").to_string());
    }
    if let Some(owner) = auto {
        let marker = owner.marker();
        find.push_str(&format_args!("find . '(' -name .git -o -name node_modules -o -name .crabbox ')' -prune -o -type f '(' -name 'junit*.xml' -o -name 'TEST-*.xml' -o -name results.xml ')' -newer {marker} -print0\n").to_string());
    }
    find.push_str(&format_args!("}} | {TAR}").to_string());
    let seen = capture::capture(target, &find, Stdin::Null, None)?;
    let mut problems: Vec<String> = seen.stderr_text().lines().map(str::to_owned).collect();
    let mut report = Report::default();
    if let Err(error) = take(&seen.stdout, &mut report, &mut problems) {
        problems.push(format!("the archive of reports cannot be read: {error}"));
    }
    Ok((report, problems))
}

/// Reads the reports out of their archive.
fn take(archive: &[u8], report: &mut Report, problems: &mut Vec<String>) -> io::Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes())
            .trim_start_matches("./")
            .to_owned();
        if !seen.insert(name.clone()) {
            continue;
        }
        let problem = if entry.header().entry_type() != tar::EntryType::Regular {
            Some("is not a regular file".to_owned())
        } else if entry.size() > REPORT_LIMIT {
            Some("is larger than 16 MiB".to_owned())
        } else if report.files.len() == REPORTS {
            problems.push(format!("there are more than {REPORTS} reports"));
            return Ok(());
        } else {
            let mut text = Vec::new();
            entry.read_to_end(&mut text)?;
            junit::read(&name, &String::from_utf8_lossy(&text), report)
                .err()
                .map(|error| error.to_string())
        };
        problems.extend(problem.map(|problem| format!("{name}: {problem}")));
    }
    Ok(())
}
