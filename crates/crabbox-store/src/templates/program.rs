//! The digest of a program, remembered as long as its file is untouched: a template depends on the program's bytes, and to read them for
//! each lease would cost more than all else that is looked at.
//!
//! It must never answer for a file of which the kernel says anything else than when its bytes were read, nor for one that could have been
//! written to since without the kernel saying so.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crabbox_host::files::{self, FileError};
use crabbox_host::{clock, digest};

/// The file with what is remembered: a line for each program, of its identity, when it was read, and its digest.
pub(super) const KNOWN: &str = "programs";
/// The longest that is read, in bytes.
const KNOWN_LIMIT: u64 = 16 * 1024;
/// How many programs are remembered; one is in use, and another one after an update.
const MOST: usize = 8;
/// How long a file has to have been left alone when it is read, in seconds: two changes within a tick of the kernel's clock look like one.
const SETTLED: i64 = 2;

/// The SHA-256 of `program`, remembered in `dir` where that is there and can be written to.
pub(super) fn digest(dir: &Path, program: &Path) -> Result<String, FileError> {
    let fail = |source| FileError::io("look at", program, source);
    let known = known(&dir.join(KNOWN));
    let before = std::fs::metadata(program).map_err(fail)?;
    let identity = identity(&before);
    let remembered = known.iter().find(|line| line.identity == identity);
    if let Some(line) = remembered.filter(|line| before.ctime() + SETTLED <= line.read_at) {
        return Ok(line.sha256.clone());
    }
    let (read_at, _) = clock::unix_now();
    let sha256 = digest::sha256_file(program)?;
    let after = std::fs::metadata(program).map_err(fail)?;
    if dir.is_dir() && self::identity(&after) == identity {
        let mut lines = known;
        lines.retain(|line| line.identity != identity);
        lines.insert(
            0,
            Line {
                identity,
                read_at,
                sha256: sha256.clone(),
            },
        );
        lines.truncate(MOST);
        // Where it cannot be written down it is read again each time.
        files::write_atomic(&dir.join(KNOWN), text(&lines).as_bytes(), 0o600).ok();
    }
    Ok(sha256)
}

/// What is remembered of one program.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    identity: String,
    /// Seconds since 1970.
    read_at: i64,
    sha256: String,
}

/// All that the kernel says of a file which another file, or other bytes in it, would not have; without blanks.
fn identity(facts: &std::fs::Metadata) -> String {
    format!(
        "{}:{}:{}:{}:{}.{}:{}.{}",
        facts.dev(),
        facts.ino(),
        facts.len(),
        facts.mode(),
        facts.mtime(),
        facts.mtime_nsec(),
        facts.ctime(),
        facts.ctime_nsec()
    )
}

/// What is remembered; what cannot be read or understood is not.
fn known(path: &Path) -> Vec<Line> {
    let bytes = files::read_regular(path, KNOWN_LIMIT).unwrap_or_default();
    String::from_utf8_lossy(&bytes).lines().filter_map(line).collect()
}

fn line(text: &str) -> Option<Line> {
    let mut words = text.split(' ');
    let (identity, read_at, sha256) = (words.next()?, words.next()?, words.next()?);
    let is_digest = sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_digest && words.next().is_none()).then_some(Line {
        identity: identity.to_owned(),
        read_at: read_at.parse().ok()?,
        sha256: sha256.to_owned(),
    })
}

fn text(lines: &[Line]) -> String {
    let mut text = String::new();
    for line in lines {
        // Writing to a String cannot fail.
        writeln!(text, "{} {} {}", line.identity, line.read_at, line.sha256).ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store's directory, and a program that was left alone long enough as far as `programs` says.
    fn world() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        std::fs::write(&program, "first").unwrap();
        (dir, program)
    }

    /// Has what is remembered say `sha256`, as if it had been read long after the last change.
    fn forge(dir: &Path, sha256: &str) {
        let mut lines = known(&dir.join(KNOWN));
        for line in &mut lines {
            line.read_at += SETTLED + 1;
            sha256.clone_into(&mut line.sha256);
        }
        std::fs::write(dir.join(KNOWN), text(&lines)).unwrap();
    }

    #[test]
    fn an_untouched_program_is_not_read_again_and_a_touched_one_is() {
        let (dir, program) = world();
        let first = digest(dir.path(), &program).unwrap();
        assert_eq!(first, digest::sha256(b"first"));
        let other = "0".repeat(64);
        forge(dir.path(), &other);
        assert_eq!(digest(dir.path(), &program).unwrap(), other, "it is remembered");
        // The same bytes under another mode, or put there once more, are the same program.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        assert_eq!(digest(dir.path(), &program).unwrap(), first);
        forge(dir.path(), &other);
        let copy = dir.path().join("copy");
        std::fs::write(&copy, std::fs::read(&program).unwrap()).unwrap();
        std::fs::rename(&copy, &program).unwrap();
        assert_eq!(digest(dir.path(), &program).unwrap(), first);
        // Other bytes of the same length, with the times of the old ones as far as anybody can set them.
        forge(dir.path(), &first);
        let modified = program.metadata().unwrap().modified().unwrap();
        std::fs::write(&program, "other").unwrap();
        std::fs::File::options()
            .write(true)
            .open(&program)
            .unwrap()
            .set_modified(modified)
            .unwrap();
        assert_eq!(digest(dir.path(), &program).unwrap(), digest::sha256(b"other"));
    }

    #[test]
    fn a_program_that_was_changed_a_moment_ago_is_read_each_time() {
        let (dir, program) = world();
        digest(dir.path(), &program).unwrap();
        let mut lines = known(&dir.path().join(KNOWN));
        assert_eq!(lines.len(), 1);
        lines[0].sha256 = "0".repeat(64);
        lines[0].read_at = program.metadata().unwrap().ctime();
        std::fs::write(dir.path().join(KNOWN), text(&lines)).unwrap();
        assert_eq!(digest(dir.path(), &program).unwrap(), digest::sha256(b"first"));
    }

    #[test]
    fn what_is_damaged_or_cannot_be_written_costs_a_reading_and_nothing_else() {
        let (dir, program) = world();
        for damage in ["", "\n", "a b", "a b c\n", "1:2 x 00\n", "\u{0}\u{1}"] {
            std::fs::write(dir.path().join(KNOWN), damage).unwrap();
            assert_eq!(digest(dir.path(), &program).unwrap(), digest::sha256(b"first"));
        }
        let nowhere = Path::new("/nowhere");
        assert_eq!(digest(nowhere, &program).unwrap(), digest::sha256(b"first"));
        assert!(digest(dir.path(), &dir.path().join("none")).is_err());
    }

    #[test]
    fn few_programs_are_remembered_the_last_ones_first() {
        let (dir, program) = world();
        for number in 0..MOST + 3 {
            std::fs::write(&program, format!("program {number}")).unwrap();
            digest(dir.path(), &program).unwrap();
        }
        let lines = known(&dir.path().join(KNOWN));
        assert_eq!(lines.len(), MOST);
        assert_eq!(
            lines[0].sha256,
            digest::sha256(format!("program {}", MOST + 2).as_bytes())
        );
    }
}
