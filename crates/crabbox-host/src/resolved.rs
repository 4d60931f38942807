//! Opening a path that the kernel resolves inside a directory (openat2(2)). Nothing here may give up because
//! something unrelated was renamed.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

/// How often a lookup is repeated because of a concurrent rename.
const ATTEMPTS: u32 = 10_000;

/// Opens `path` in `dir`. If it contains `..`, as a link on the way may, and a rename or mount happens anywhere
/// on this machine at that moment, the kernel cannot be sure that the path stays inside, and the call must be
/// repeated.
pub(crate) fn open_resolved(
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    repeated(|| openat2(dir, path, flags, Mode::empty(), resolve))
}

fn repeated<T>(mut open: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 0..ATTEMPTS {
        match open() {
            Err(Errno::AGAIN | Errno::INTR) => std::thread::yield_now(),
            opened => return opened,
        }
    }
    Err(Errno::AGAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lookup_that_a_rename_disturbed_is_repeated_and_no_other() {
        let mut left = vec![Ok(7), Err(Errno::INTR), Err(Errno::AGAIN), Err(Errno::AGAIN)];
        assert_eq!(repeated(|| left.pop().unwrap()), Ok(7));
        let mut left = vec![Ok(7), Err(Errno::NOENT)];
        assert_eq!(repeated(|| left.pop().unwrap()), Err(Errno::NOENT));
        assert_eq!(repeated(|| Err::<(), _>(Errno::AGAIN)), Err(Errno::AGAIN));
    }
}
