//! Limits on the bytes from untrusted sources that are stored on this host, and copying within these limits.
//!
//! A guest, an archive or a download decides how much it sends; a [`Budget`] decides how much is stored. It
//! is the minimum of the declared size, the capacity of the lease for one file, and the free space less a
//! reserve. Nothing here may write a byte that was not charged to a budget first. Runs of zeros become holes.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt as _;

/// This fraction (one part in n) of the file system stays free for others ...
const RESERVE_PART: u64 = 20;
/// ... but at most this many bytes.
const RESERVE_LIMIT: u64 = 1 << 30;
/// Limit for the apparent size of sparse files if the size of the other side's disk is unknown: 16 TiB, the
/// longest file of ext4.
const SPAN_LIMIT: u64 = 16 << 40;
/// Unit of the search for zeros, in bytes: the block size of the usual file systems.
const GRAIN: usize = 4096;
/// Bytes per read.
const CHUNK: usize = 16 * GRAIN;

/// The origin of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The declared size.
    Declared,
    /// The disks and the memory of the lease: no file in it can store more.
    Lease,
    /// The free space here, less the reserve.
    FreeSpace,
    /// The maximum length of a file.
    Span,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Declared => "that were declared",
            Self::Lease => "that the lease can hold",
            Self::FreeSpace => "that are free here, less a reserve",
            Self::Span => "that a file can span",
        })
    }
}

/// More bytes arrived than may be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is larger than the {limit} bytes {bound}")]
pub struct OverBudget {
    /// The limit in bytes.
    pub limit: u64,
    /// The origin of the limit.
    pub bound: Bound,
}

impl OverBudget {
    /// The error with which a [`Bounded`] writer failed, if it was this one.
    pub fn of(error: &io::Error) -> Option<Self> {
        error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<Self>())
            .copied()
    }
}

/// A number of bytes of one kind, with the smallest of their limits.
#[derive(Debug, Clone, Copy)]
struct Account {
    left: u64,
    limit: u64,
    bound: Bound,
}

impl Account {
    fn new(limit: u64, bound: Bound) -> Self {
        Self {
            left: limit,
            limit,
            bound,
        }
    }

    fn at_most(&mut self, limit: u64, bound: Bound) {
        if limit < self.left {
            *self = Self::new(limit, bound);
        }
    }

    fn take(&mut self, bytes: u64) -> Result<(), OverBudget> {
        self.left = self.left.checked_sub(bytes).ok_or(OverBudget {
            limit: self.limit,
            bound: self.bound,
        })?;
        Ok(())
    }
}

/// The remaining budget: bytes stored, and apparent sizes of files including holes.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    stored: Account,
    span: Account,
    /// The limit for one file.
    each: Account,
}

impl Budget {
    /// A budget of `limit` bytes; messages name `bound`.
    pub fn of(limit: u64, bound: Bound) -> Self {
        Self {
            stored: Account::new(limit, bound),
            span: Account::new(limit, bound),
            each: Account::new(u64::MAX, bound),
        }
    }

    /// The free space on the file system of `dir`, less a reserve of a twentieth of it, at most 1 GiB.
    pub fn free_space(dir: impl AsFd) -> io::Result<Self> {
        let facts = rustix::fs::fstatvfs(dir)?;
        let free = facts.f_bavail.saturating_mul(facts.f_frsize);
        let whole = facts.f_blocks.saturating_mul(facts.f_frsize);
        let reserve = (whole / RESERVE_PART).min(RESERVE_LIMIT);
        Ok(Self {
            stored: Account::new(free.saturating_sub(reserve), Bound::FreeSpace),
            span: Account::new(SPAN_LIMIT, Bound::Span),
            each: Account::new(u64::MAX, Bound::Span),
        })
    }

    /// The same, but at most `limit` bytes in total, including holes.
    #[must_use]
    pub fn at_most(mut self, limit: u64, bound: Bound) -> Self {
        self.stored.at_most(limit, bound);
        self.span.at_most(limit, bound);
        self
    }

    /// The same, where no single file stores more than `limit` bytes, the size of the source's disk. The
    /// total may be larger, since a file with several names is sent under each, and holes do not count.
    #[must_use]
    pub fn each_at_most(mut self, limit: u64, bound: Bound) -> Self {
        self.each.at_most(limit, bound);
        self
    }

    /// Charges `bytes` that will be stored.
    pub fn take(&mut self, bytes: u64) -> Result<(), OverBudget> {
        self.stored.take(bytes)?;
        self.span.take(bytes)
    }

    /// Charges `bytes` of apparent size that are not stored.
    pub(crate) fn take_hole(&mut self, bytes: u64) -> Result<(), OverBudget> {
        self.span.take(bytes)
    }

    /// The limit for one file in it.
    #[must_use]
    pub fn of_one_file(&self) -> Self {
        Self {
            stored: self.each,
            span: Account::new(u64::MAX, Bound::Span),
            each: self.each,
        }
    }

    /// Whether `bytes` could be charged now, for a size that is declared before its bytes arrive.
    pub fn allows(&self, bytes: u64) -> Result<(), OverBudget> {
        let mut after = *self;
        after.take(bytes)
    }

    /// Number of bytes that may still be stored.
    pub fn left(&self) -> u64 {
        self.stored.left.min(self.span.left)
    }
}

/// Why a copy was not completed.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The source could not be read.
    #[error("cannot read the incoming data")]
    Read(#[source] io::Error),
    /// The local file could not be written.
    #[error("cannot write")]
    Write(#[source] io::Error),
    /// More bytes arrived than may be stored.
    #[error(transparent)]
    Over(#[from] OverBudget),
}

/// Copies all of `from` into `to` at byte `offset`, with holes in place of zeros; returns the number of bytes
/// copied. The range of `to` must be a hole or past its end; the length of `to` becomes `offset` plus that
/// number.
pub fn fill(from: &mut impl Read, to: &File, offset: u64, budget: &mut Budget) -> Result<u64, FillError> {
    let mut chunk = vec![0; CHUNK];
    let (mut done, mut of_file) = (0, budget.each);
    loop {
        let count = read_full(from, &mut chunk).map_err(FillError::Read)?;
        if count == 0 {
            break;
        }
        budget.take(count as u64)?;
        for (number, block) in chunk[..count].chunks(GRAIN).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                of_file.take(block.len() as u64)?;
                let at = offset + done + (number * GRAIN) as u64;
                to.write_all_at(block, at).map_err(FillError::Write)?;
            }
        }
        done += count as u64;
    }
    to.set_len(offset + done).map_err(FillError::Write)?;
    Ok(done)
}

/// Reads until `chunk` is full or the input ends, so that blocks stay aligned however a pipe splits them.
fn read_full(from: &mut impl Read, chunk: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < chunk.len() {
        match from.read(&mut chunk[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A writer that passes on at most its budget, for streams into a file of the caller.
#[derive(Debug)]
pub struct Bounded<W> {
    to: W,
    budget: Budget,
}

impl<W> Bounded<W> {
    /// Writes to `to` what `budget` permits.
    pub fn new(to: W, budget: Budget) -> Self {
        Self { to, budget }
    }

    /// The inner writer.
    pub fn into_inner(self) -> W {
        self.to
    }
}

impl<W: io::Write> io::Write for Bounded<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.budget
            .allows(bytes.len() as u64)
            .map_err(|over| io::Error::new(io::ErrorKind::FileTooLarge, over))?;
        let count = self.to.write(bytes)?;
        self.budget.take(count as u64).map_err(io::Error::other)?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn a_file_stores_no_more_than_is_there_for_one_and_many_may_and_holes_count_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let room = || Budget::of(1 << 30, Bound::FreeSpace).each_at_most(64 << 10, Bound::Lease);
        let file = |name: &str| File::create(dir.path().join(name)).unwrap();
        let mut budget = room();
        for name in ["a", "b", "c"] {
            let full = vec![1_u8; 64 << 10];
            assert_eq!(
                fill(&mut full.as_slice(), &file(name), 0, &mut budget).unwrap(),
                64 << 10
            );
        }
        let holes = io::repeat(0).take(1 << 20);
        assert_eq!(
            fill(&mut { holes }, &file("holes"), 0, &mut room()).unwrap(),
            1 << 20
        );
        let more = io::repeat(1).take((64 << 10) + 1);
        let refused = fill(&mut { more }, &file("more"), 0, &mut room()).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "it is larger than the 65536 bytes that the lease can hold"
        );
    }

    #[test]
    fn an_endless_stream_ends_at_the_least_of_its_limits() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("f")).unwrap();
        let mut budget = Budget::of(1 << 20, Bound::Lease).at_most(1 << 30, Bound::FreeSpace);
        let error = fill(&mut io::repeat(7), &file, 0, &mut budget).unwrap_err();
        let over = OverBudget {
            limit: 1 << 20,
            bound: Bound::Lease,
        };
        assert!(
            matches!(error, FillError::Over(found) if found == over),
            "{error}"
        );
        assert!(file.metadata().unwrap().len() <= 1 << 20);
        // Zeros need no space, but an endless stream of them would never finish.
        assert!(
            fill(
                &mut io::repeat(0),
                &file,
                0,
                &mut Budget::of(1 << 20, Bound::Lease)
            )
            .is_err()
        );
    }

    #[test]
    fn zeros_become_holes_and_the_length_stays() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("f");
        let file = File::create(&path).unwrap();
        let mut bytes = vec![0; (1 << 20) + 3];
        bytes[5000] = 1;
        let mut budget = Budget::of(2 << 20, Bound::Declared);
        assert_eq!(
            fill(&mut &bytes[..], &file, 0, &mut budget).unwrap(),
            bytes.len() as u64
        );
        assert!(std::fs::read(&path).unwrap() == bytes);
        assert!(file.metadata().unwrap().blocks() <= 64, "holes stay holes");
        assert_eq!(budget.left(), (2 << 20) - bytes.len() as u64);
    }

    #[test]
    fn holes_count_against_the_span_and_not_against_the_space() {
        let mut budget = Budget::free_space(File::open("/dev/shm").unwrap()).unwrap();
        let space = budget.left();
        budget.take_hole(1 << 40).unwrap();
        assert_eq!(budget.left(), space);
        assert_eq!(budget.take_hole(16 << 40).unwrap_err().bound, Bound::Span);
        let error = budget.allows(space + 1).unwrap_err();
        assert_eq!((error.limit, error.bound), (space, Bound::FreeSpace));
    }

    #[test]
    fn whose_fault_a_failure_is_is_kept_apart() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
        }
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut budget = Budget::of(100, Bound::Declared);
        let here = fill(&mut &b"text"[..], &full, 0, &mut budget);
        assert!(matches!(here, Err(FillError::Write(_))), "{here:?}");
        let there = fill(&mut Broken, &full, 0, &mut budget);
        assert!(matches!(there, Err(FillError::Read(_))), "{there:?}");
    }

    #[test]
    fn a_bounded_writer_passes_on_no_more_than_it_may() {
        let mut writer = Bounded::new(Vec::new(), Budget::of(4, Bound::FreeSpace));
        writer.write_all(b"1234").unwrap();
        let error = writer.write_all(b"5").unwrap_err();
        assert!(
            error.to_string().contains("4 bytes that are free here"),
            "{error}"
        );
        assert_eq!(writer.into_inner(), b"1234");
    }
}
