//! Paths and NUL-terminated lists as bytes, and small files that are read and replaced whole.
//!
//! A name need not be UTF-8; it must never be changed on its way.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::failure::{At as _, Failure};

/// Buffer size for reading and writing files, in bytes.
pub(crate) const BUFFER: usize = 32 * 1024;

/// Bytes as a path.
pub(crate) fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// A path as a message shows it.
pub(crate) fn show(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The directory of a path below the tree; empty for the tree itself.
pub(crate) fn parent(path: &[u8]) -> &[u8] {
    path.iter()
        .rposition(|byte| *byte == b'/')
        .map_or(&[], |cut| &path[..cut])
}

/// The parts of a list, each ended by NUL.
pub(crate) fn listed(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    data.split(|byte| *byte == 0).filter(|part| !part.is_empty())
}

/// The last part of a path.
pub(crate) fn leaf(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// A list that is read part by part.
#[derive(Debug)]
pub(crate) struct Records<R> {
    from: R,
    record: Vec<u8>,
    limit: usize,
}

impl<R: BufRead> Records<R> {
    /// A list whose parts are at most `limit` bytes long.
    pub(crate) fn of(from: R, limit: usize) -> Self {
        Self {
            from,
            record: Vec::new(),
            limit,
        }
    }

    /// The next part. A part over the limit ends the list, and so does a last part without its NUL, because a
    /// truncated part would mean something else.
    pub(crate) fn record(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            self.record.clear();
            let most = self.limit as u64 + 1;
            (&mut self.from).take(most).read_until(0, &mut self.record)?;
            if self.record.pop() != Some(0) {
                return Ok(None);
            }
            if !self.record.is_empty() {
                return Ok(Some(&self.record));
            }
        }
    }
}

/// Opens a file to be read part by part; `None` if it does not exist.
pub(crate) fn open(path: &Path) -> Result<Option<io::BufReader<File>>, Failure> {
    match File::open(path) {
        Err(error) if is_absent(&error) => Ok(None),
        opened => Ok(Some(io::BufReader::with_capacity(BUFFER, opened.at(path)?))),
    }
}

/// Appends a part to a list.
pub(crate) fn push(list: &mut Vec<u8>, part: &[u8]) {
    list.extend_from_slice(part);
    list.push(0);
}

/// Reads a whole file; empty if it does not exist.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    match std::fs::read(path) {
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        read => read.at(path),
    }
}

/// Whether the error means that the path does not exist.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Replaces a file atomically.
pub(crate) fn write(path: &Path, parts: &[&[u8]]) -> Result<(), Failure> {
    let mut new = Replacing::begin(path)?;
    for part in parts {
        new.file.write_all(part).at(&new.path)?;
    }
    new.put(path)
}

/// A file being written that is to replace another one atomically.
#[derive(Debug)]
pub(crate) struct Replacing {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
}

impl Replacing {
    /// Creates an empty file beside `path`.
    pub(crate) fn begin(path: &Path) -> Result<Self, Failure> {
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let path = PathBuf::from(new);
        let file = File::create(&path).at(&path)?;
        Ok(Self { file, path })
    }

    /// Renames it to `path`.
    pub(crate) fn put(&self, path: &Path) -> Result<(), Failure> {
        std::fs::rename(&self.path, path).at(path)
    }
}

/// A name that no earlier moment has, in hex.
pub(crate) fn moment() -> String {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!("{:x}{:08x}", now.as_secs(), now.subsec_nanos())
}

/// Removes a file if it exists.
pub(crate) fn discard(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at(path),
        _ => Ok(()),
    }
}
