//! Finds a process that may write to a file, for files that must not change while they are read or passed on.
//!
//! It inspects open files only. It must never access the files of other processes: a file on a dead server
//! would block it.

use std::path::Path;

use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, statx};
use rustix::io::Errno;

use super::ProcessError;

/// A process that has the file at `path` open for writing, under any name. Only root sees the files of all
/// users. Processes that only read it, such as a backup, do not count.
pub fn writer_of(path: &Path) -> Result<Option<u32>, ProcessError> {
    let facts = match facts_of(path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(facts) => facts,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => {
            return Err(ProcessError::Read {
                path: path.to_owned(),
                source: errno.into(),
            });
        }
    };
    let identity = |facts: &Statx| (facts.stx_dev_major, facts.stx_dev_minor, facts.stx_ino);
    let is_it = |link: &Path, pid: u32| -> bool {
        // Most descriptors are sockets, pipes and the like, which have no path.
        let has_path = std::fs::read_link(link).is_ok_and(|target| target.is_absolute());
        has_path
            && may_write(pid, link)
            // Use cached attributes: a query to a dead server, or to a file system in user space, could
            // block.
            && facts_of(link, AtFlags::STATX_DONT_SYNC).is_ok_and(|opened| identity(&opened) == identity(&facts))
    };
    let has_it = |pid: u32| {
        let entries = std::fs::read_dir(format!("/proc/{pid}/fd"));
        let mut entries = entries.into_iter().flatten().flatten();
        entries.any(|entry| is_it(&entry.path(), pid))
    };
    let processes = super::list()?;
    Ok(processes
        .into_iter()
        .map(|process| process.id.pid)
        .find(|pid| has_it(*pid)))
}

fn facts_of(path: &Path, flags: AtFlags) -> Result<Statx, Errno> {
    statx(CWD, path, flags, StatxFlags::INO)
}

/// Whether the open file behind `link` of process `pid` can be written to (`proc_pid_fdinfo(5)`).
fn may_write(pid: u32, link: &Path) -> bool {
    let name = link.file_name().unwrap_or_default();
    let Ok(text) = std::fs::read_to_string(Path::new(&format!("/proc/{pid}/fdinfo")).join(name)) else {
        // It has been closed meanwhile.
        return false;
    };
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    // The two lowest bits are 0 for read-only. If the flags are unreadable, assume that it may write.
    flags.is_none_or(|flags| flags & 3 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_write_is_found_by_any_name_and_who_reads_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("file"), dir.path().join("other"));
        assert_eq!(writer_of(&path).unwrap(), None, "there is none");
        std::fs::write(&path, "").unwrap();
        std::fs::hard_link(&path, &other).unwrap();
        let reader = std::fs::File::open(&path).unwrap();
        assert_eq!(writer_of(&path).unwrap(), None);
        let writer = std::fs::File::options().append(true).open(&other).unwrap();
        assert_eq!(writer_of(&path).unwrap(), Some(std::process::id()));
        drop((reader, writer));
        assert_eq!(writer_of(&path).unwrap(), None);
    }
}
