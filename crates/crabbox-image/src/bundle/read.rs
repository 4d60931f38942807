//! Reads an untrusted bundle: only members that its record names are accepted, complete and with the recorded
//! digest. Nothing else may be written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use crabbox_host::archive::{ArchiveError, Member, MemberKind, Reader};
use crabbox_host::digest;
use crabbox_host::files::{self, FileError};
use sha2::{Digest as _, Sha256};

use super::{BundleError, PROGRAMS, RECORD, RECORD_LIMIT, Record, VERSION};
use crate::manifest::{self, FileFacts};
use crate::progress::Progress;
use crate::store::{Image, Scratch, Store, StoreError};

/// Bytes per read; a run of zeros of this length becomes a hole.
const CHUNK: usize = 64 * 1024;

/// Maximum size of a program in a bundle, in bytes; its digest is pinned anyway.
const PROGRAM_LIMIT: u64 = 256 << 20;

/// The contents of a bundle.
#[derive(Debug)]
pub struct Imported {
    /// The image, in the store.
    pub image: Image,
    /// The programs written to the requested directory; empty if the bundle has none or no directory was
    /// given.
    pub programs: Vec<PathBuf>,
}

/// Puts the image of the bundle at `bundle` into `store` as `name`, and its programs into `programs` if that
/// is given. If `sha256` is given, the bundle must have that digest.
pub fn import(
    bundle: &Path,
    sha256: Option<&str>,
    store: &Store,
    name: &str,
    programs: Option<&Path>,
    progress: &dyn Progress,
) -> Result<Imported, BundleError> {
    crate::store::check_name(name)?;
    progress.stage("reading the bundle");
    let unread = |source| FileError::io("read", bundle, source);
    // Opened once: what is hashed is what is read, whatever happens to the path.
    let mut file = files::open_regular(bundle).map_err(|source| FileError::io("open", bundle, source))?;
    if let Some(expected) = sha256 {
        let found = digest::sha256_open(&mut file, bundle)?;
        if !found.eq_ignore_ascii_case(expected) {
            return Err(BundleError::WrongDigest {
                bundle: bundle.to_owned(),
                expected: expected.to_owned(),
                found,
            });
        }
        file.rewind().map_err(unread)?;
    }
    let mut magic = Vec::new();
    (&mut file).take(2).read_to_end(&mut magic).map_err(unread)?;
    file.rewind().map_err(unread)?;
    let file = BufReader::with_capacity(1 << 20, file);
    let reader: Box<dyn Read> = if magic == [0x1f, 0x8b] {
        Box::new(flate2::bufread::MultiGzDecoder::new(file))
    } else {
        Box::new(file)
    };
    let scratch = store.begin()?;
    Incoming {
        bundle,
        store,
        scratch: &scratch,
        progress,
    }
    .read(reader, name, programs)
}

struct Incoming<'a> {
    bundle: &'a Path,
    store: &'a Store,
    scratch: &'a Scratch,
    progress: &'a dyn Progress,
}

/// The remaining members: name, destination, and expected length and digest.
type Expected = BTreeMap<String, (PathBuf, FileFacts)>;

impl Incoming<'_> {
    fn read(
        &self,
        reader: Box<dyn Read>,
        name: &str,
        programs: Option<&Path>,
    ) -> Result<Imported, BundleError> {
        let mut archive = Reader::new(reader);
        let first = archive
            .next_member()
            .map_err(|_| self.no_bundle("it is no tar archive"))?;
        let first = first.ok_or_else(|| self.no_bundle("it is empty"))?;
        if first.path != RECORD.as_bytes() || !is_plain(&first) {
            return Err(self.no_bundle("its first member is not bundle.json"));
        }
        let record = self.record(&mut archive.content())?;
        let (image, bin) = (self.scratch.dir().join("image"), self.scratch.dir().join("bin"));
        for dir in [&image, &bin] {
            files::create_private_dir(dir)?;
        }
        let mut expected = Expected::new();
        for (file, facts) in &record.image.files {
            expected.insert(format!("image/{file}"), (image.join(file), facts.clone()));
        }
        for (file, facts) in &record.programs {
            expected.insert(format!("bin/{file}"), (bin.join(file), facts.clone()));
        }
        let total = expected
            .values()
            .fold(0_u64, |total, (_, facts)| total.saturating_add(facts.bytes));
        self.check_space(total)?;
        let mut done = 0;
        while let Some(member) = archive
            .next_member()
            .map_err(|error| self.cut_or(error, &expected))?
        {
            let name = String::from_utf8_lossy(&member.path).into_owned();
            if !is_plain(&member) {
                return Err(self.member(name, "is no plain file"));
            }
            let Some((to, facts)) = expected.remove(&name) else {
                return Err(self.member(name, "is not in its record, or there twice"));
            };
            self.take(&mut archive.content(), &name, &to, &facts, &|here| {
                self.progress.bytes(done + here, Some(total));
            })?;
            done += facts.bytes;
        }
        if let Some((member, (_, facts))) = expected.into_iter().next() {
            return Err(self.truncated(member, 0, facts.bytes));
        }
        // Everything is complete and verified; only now is it installed.
        let image = self.store.place(self.scratch, &image, &record.image, name)?;
        let mut placed = Vec::new();
        if let Some(dir) = programs {
            for file in record.programs.keys() {
                let from = bin.join(file);
                let bytes = files::read_regular(&from, PROGRAM_LIMIT)
                    .map_err(|source| FileError::io("read", &from, source))?;
                files::create_private_dir(dir)?;
                files::write_atomic(&dir.join(file), &bytes, 0o755)?;
                placed.push(dir.join(file));
            }
        }
        Ok(Imported {
            image,
            programs: placed,
        })
    }

    fn record(&self, member: &mut impl Read) -> Result<Record, BundleError> {
        let mut text = Vec::new();
        member
            .take(RECORD_LIMIT)
            .read_to_end(&mut text)
            .map_err(|source| self.archive(source))?;
        let unreadable = |source| BundleError::Record {
            bundle: self.bundle.to_owned(),
            source,
        };
        // A newer format may not parse as this one, so check its version first: that is the better error.
        let version: VersionOnly = serde_json::from_slice(&text).map_err(unreadable)?;
        if version.version != VERSION {
            return Err(BundleError::Version {
                bundle: self.bundle.to_owned(),
                found: version.version,
            });
        }
        let record: Record = serde_json::from_slice(&text).map_err(unreadable)?;
        self.check(&record)?;
        Ok(record)
    }

    /// Checks that need only the record.
    fn check(&self, record: &Record) -> Result<(), BundleError> {
        let image = &record.image;
        let bundle = self.bundle.to_owned();
        if image.version != manifest::VERSION {
            let path = self.bundle.join(RECORD);
            return Err(StoreError::Version {
                path,
                found: image.version,
            }
            .into());
        }
        if image.arch != std::env::consts::ARCH {
            let found = image.arch.clone();
            return Err(BundleError::Architecture { bundle, found });
        }
        if !image.init.has_files(image.files.keys().map(String::as_str)) {
            return Err(BundleError::Inconsistent {
                bundle,
                problem: "image has not the files of its kind",
            });
        }
        if manifest::image_digest(&image.files) != image.digest {
            return Err(BundleError::Inconsistent {
                bundle,
                problem: "digest is not that of its files",
            });
        }
        for (program, facts) in &record.programs {
            let pinned = PROGRAMS.iter().find(|(name, _)| name == program);
            let Some((_, expected)) = pinned else {
                return Err(self.member(format!("bin/{program}"), "is no program that a bundle may bring"));
            };
            if facts.sha256 != *expected {
                let (program, found) = (program.clone(), facts.sha256.clone());
                return Err(BundleError::Unpinned {
                    bundle,
                    program,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }

    fn check_space(&self, needed_bytes: u64) -> Result<(), BundleError> {
        let free = files::free_bytes(self.store.root())?;
        if free >= needed_bytes {
            return Ok(());
        }
        let full = std::io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        Err(FileError::io("make room for the image in", self.store.root(), full).into())
    }

    /// Writes one member to the new file `to`, with holes for runs of zeros.
    fn take(
        &self,
        member: &mut impl Read,
        name: &str,
        to: &Path,
        expected: &FileFacts,
        on_bytes: &dyn Fn(u64),
    ) -> Result<(), BundleError> {
        let fail = |source| FileError::io("write", to, source);
        let mut file = create_new(to).map_err(fail)?;
        let (mut hash, mut got, mut chunk) = (Sha256::new(), 0, vec![0; CHUNK]);
        loop {
            let count = match member.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
                Err(source) => return Err(self.archive(source)),
            };
            got += count as u64;
            // Refuse a member that is longer than its record says before it fills the disk.
            if got > expected.bytes {
                return Err(self.member(name.to_owned(), "is longer than its record says"));
            }
            hash.update(&chunk[..count]);
            if chunk[..count].iter().all(|byte| *byte == 0) {
                file.seek(SeekFrom::Current(i64::try_from(count).unwrap_or(0)))
                    .map_err(fail)?;
            } else {
                file.write_all(&chunk[..count]).map_err(fail)?;
            }
            on_bytes(got);
        }
        if got < expected.bytes {
            return Err(self.truncated(name.to_owned(), got, expected.bytes));
        }
        // If the file ends with a hole, its length has not been set yet.
        file.set_len(got).map_err(fail)?;
        let found = digest::hex(&hash.finalize());
        if found == expected.sha256 {
            return Ok(());
        }
        Err(BundleError::Damaged {
            bundle: self.bundle.to_owned(),
            member: name.to_owned(),
            expected: expected.sha256.clone(),
            found,
        })
    }

    fn archive(&self, source: std::io::Error) -> BundleError {
        let bundle = self.bundle.to_owned();
        BundleError::Archive { bundle, source }
    }

    fn no_bundle(&self, problem: &'static str) -> BundleError {
        let bundle = self.bundle.to_owned();
        BundleError::NotABundle { bundle, problem }
    }

    fn member(&self, member: String, problem: &'static str) -> BundleError {
        let bundle = self.bundle.to_owned();
        BundleError::Member {
            bundle,
            member,
            problem,
        }
    }

    fn truncated(&self, member: String, got: u64, expected: u64) -> BundleError {
        let bundle = self.bundle.to_owned();
        BundleError::Truncated {
            bundle,
            member,
            got,
            expected,
        }
    }

    /// If the archive ends where another member should begin, it is truncated; any other error is the
    /// reader's own.
    fn cut_or(&self, error: ArchiveError, expected: &Expected) -> BundleError {
        match (error, expected.iter().next()) {
            (ArchiveError::Read(source), Some((member, (_, facts))))
                if source.kind() == std::io::ErrorKind::UnexpectedEof =>
            {
                self.truncated(member.clone(), 0, facts.bytes)
            }
            (ArchiveError::Read(source), _) => self.archive(source),
            (error, _) => self.archive(std::io::Error::other(error)),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the file is in the store's scratch directory, under a name that the record's checks allow"
)]
fn create_new(path: &Path) -> std::io::Result<File> {
    File::create_new(path)
}

/// Sparse members are not accepted: holes are made here, where the content has zeros.
fn is_plain(member: &Member) -> bool {
    member.kind == MemberKind::File && member.pieces.is_none()
}

#[derive(serde::Deserialize)]
struct VersionOnly {
    version: u32,
}
