//! The digest of a program, cached as long as its file is unchanged. A template depends on the program's
//! bytes, and reading them for each lease would cost more than all other checks.
//!
//! A cached digest must never be used if any file attribute differs from those at the time of reading, or if
//! the file could have been written since without a change of its attributes.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crabbox_host::files::{self, FileError};
use crabbox_host::{clock, digest};

/// The cache file: one line per program, with its file attributes, the time of reading, and its digest.
pub(super) const KNOWN: &str = "programs";
/// Maximum size of the cache file, in bytes.
const KNOWN_LIMIT: u64 = 16 * 1024;
/// Number of cached programs: one in use, and one more after an update.
const MOST: usize = 8;
/// Minimum age of a file's last change when it is read, in seconds: two changes within one tick of the
/// kernel's clock have the same time.
const SETTLED: i64 = 2;

/// The SHA-256 of `program`, cached in `dir` if that exists and is writable.
pub(super) fn digest(dir: &Path, program: &Path) -> Result<String, FileError> {
    let fail = |source| FileError::io("inspect", program, source);
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
        // If the cache cannot be written, the program is read again each time.
        files::write_atomic(&dir.join(KNOWN), text(&lines).as_bytes(), 0o600).ok();
    }
    Ok(sha256)
}

/// A cached digest.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    identity: String,
    /// Seconds since 1970.
    read_at: i64,
    sha256: String,
}

/// All file attributes that would differ for another file or other contents, without blanks.
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

/// The cached digests; unreadable or invalid lines are left out.
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

    /// A store's directory, and a program whose last change is old enough according to `programs`.
    fn world() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        std::fs::write(&program, "first").unwrap();
        (dir, program)
    }

    /// Sets the cached digest to `sha256`, as if the program had been read long after its last change.
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
        // A new mode, or the same bytes written again, changes the attributes but not the digest.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        assert_eq!(digest(dir.path(), &program).unwrap(), first);
        forge(dir.path(), &other);
        let copy = dir.path().join("copy");
        std::fs::write(&copy, std::fs::read(&program).unwrap()).unwrap();
        std::fs::rename(&copy, &program).unwrap();
        assert_eq!(digest(dir.path(), &program).unwrap(), first);
        // Other bytes of the same length, with the old timestamps as far as they can be set.
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
