//! SHA-256 of files, as 64 lower-case hexadecimal digits.
//!
//! Artefacts are trusted by these digests, so they are always computed from the contents. It must never use a
//! name, a size or a cache instead.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

pub use crabbox_core::id::hex;
use sha2::{Digest as _, Sha256};

use crate::files::{self, FileError};

/// The SHA-256 of the file at `path`, read from its start to its end.
pub fn sha256_file(path: &Path) -> Result<String, FileError> {
    let mut file = files::open_regular(path).map_err(|source| FileError::io("open", path, source))?;
    sha256_open(&mut file, path)
}

/// The SHA-256 of the open `file`, read from its offset to its end; `path` is for messages. For a file that
/// is used afterwards: its path may lead to another one by then.
pub fn sha256_open(file: &mut File, path: &Path) -> Result<String, FileError> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1024 * 1024];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(hex(&hash.finalize())),
            Ok(count) => hash.update(&chunk[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => return Err(FileError::io("read", path, source)),
        }
    }
}

/// Unit of hashing of a sparse file, in bytes: the page size of a machine's memory.
const PAGE: usize = 4096;

/// A SHA-256 of the file at `path` whose cost depends on its data, not on its length: over the length, and
/// over the offset and contents of each page that is not all zeros. Holes are not read, and a page of zeros
/// counts as a hole. Stops with `None` as soon as `stop` says so, which is called before each MiB.
pub fn sha256_sparse(path: &Path, stop: &dyn Fn() -> bool) -> Result<Option<String>, FileError> {
    let fail = |source| FileError::io("read", path, source);
    let file = files::open_regular(path).map_err(|source| FileError::io("open", path, source))?;
    let length = file.metadata().map_err(fail)?.len();
    let mut hash = Sha256::new();
    hash.update(length.to_le_bytes());
    let mut chunk = vec![0; 256 * PAGE];
    let mut at = 0;
    while at < length {
        if stop() {
            return Ok(None);
        }
        at = match rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
            // Start at the beginning of the page that contains the data.
            Ok(data) => data - data % PAGE as u64,
            Err(rustix::io::Errno::NXIO) => break,
            Err(errno) => return Err(fail(errno.into())),
        };
        let count = read_whole(&file, &mut chunk, at).map_err(fail)?;
        if count == 0 {
            break;
        }
        for page in chunk[..count].chunks(PAGE) {
            if page.iter().any(|byte| *byte != 0) {
                hash.update(at.to_le_bytes());
                hash.update(page);
            }
            at += page.len() as u64;
        }
    }
    Ok(Some(hex(&hash.finalize())))
}

/// Reads at `offset` until `chunk` is full or the file ends; returns the number of bytes.
fn read_whole(file: &std::fs::File, chunk: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < chunk.len() {
        match file.read_at(&mut chunk[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// A SHA-256 of bytes that arrive in pieces.
#[derive(Debug, Clone, Default)]
pub struct Running(Sha256);

impl Running {
    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all added bytes.
    pub fn hex(&self) -> String {
        hex(&self.0.clone().finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_the_one_of_the_standard() {
        // FIPS 180-2, appendix B.1: "abc".
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(b"abc"), known);
        let mut running = Running::default();
        running.update(b"a");
        assert_ne!(running.hex(), known);
        running.update(b"bc");
        assert_eq!(running.hex(), known);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(sha256_file(&path).unwrap(), known);
    }

    #[test]
    fn a_sparse_digest_sees_every_byte_and_no_difference_between_zeros_and_a_hole() {
        use std::os::unix::fs::FileExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (holes, full) = (dir.path().join("holes"), dir.path().join("full"));
        let length = 3_000_001;
        let parts: [(u64, &[u8]); 4] = [
            (0, b"start"),
            (4095, b"edge"),
            (1 << 20, b"x"),
            (length - 1, b"end"),
        ];
        std::fs::write(&full, vec![0; usize::try_from(length).unwrap()]).unwrap();
        for path in [&holes, &full] {
            let file = std::fs::File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(path)
                .unwrap();
            file.set_len(length).unwrap();
            for (at, bytes) in parts {
                file.write_all_at(
                    &bytes[..bytes.len().min(usize::try_from(length - at).unwrap())],
                    at,
                )
                .unwrap();
            }
        }
        let digest = sha256_sparse(&holes, &|| false).unwrap();
        assert!(digest.is_some());
        assert_eq!(digest, sha256_sparse(&full, &|| false).unwrap());
        for at in [3, 4097, 500_000, length - 1] {
            let file = std::fs::File::options()
                .read(true)
                .write(true)
                .open(&holes)
                .unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            assert_ne!(digest, sha256_sparse(&holes, &|| false).unwrap(), "byte {at}");
            file.write_all_at(&byte, at).unwrap();
        }
        assert_eq!(digest, sha256_sparse(&holes, &|| false).unwrap());
        std::fs::File::options()
            .write(true)
            .open(&holes)
            .unwrap()
            .set_len(length + 1)
            .unwrap();
        assert_ne!(digest, sha256_sparse(&holes, &|| false).unwrap());
        assert_eq!(sha256_sparse(&holes, &|| true).unwrap(), None);
    }

    #[test]
    fn a_file_longer_than_one_read_counts_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("long");
        let bytes: Vec<u8> = (0..3_000_001_u32).map(|n| n.to_le_bytes()[0]).collect();
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(sha256_file(&path).unwrap(), sha256(&bytes));
        assert_ne!(sha256_file(&path).unwrap(), sha256(&bytes[..3_000_000]));
    }
}
