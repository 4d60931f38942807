//! Writes a bundle: the record, then each file, whose digest is checked while it is written. A file that does
//! not match must never get into a bundle.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use crabbox_host::digest;
use crabbox_host::files::{self, FileError};
use sha2::{Digest as _, Sha256};

use super::{BundleError, PROGRAMS, RECORD, Record, VERSION};
use crate::manifest::FileFacts;
use crate::progress::Progress;
use crate::store::{Image, StoreError};

/// Writes `image`, and the programs in the directory `programs`, to the file `to`, which is created or
/// replaced; returns its length in bytes.
///
/// The same image and programs give the same bytes. Nothing appears under `to` before all of it is written
/// and checked.
pub fn export(
    image: &Image,
    programs: Option<&Path>,
    to: &Path,
    progress: &dyn Progress,
) -> Result<u64, BundleError> {
    let dir = to
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let fail = |source| FileError::io("write", to, source);
    let file = tempfile::Builder::new()
        .prefix(".crabbox-tmp-")
        .tempfile_in(dir)
        .map_err(fail)?;
    progress.stage("writing the bundle");
    let out = BufWriter::with_capacity(1 << 20, file);
    let compressed = to
        .extension()
        .is_some_and(|extension| extension == "gz" || extension == "tgz");
    let out = if compressed {
        // Level 1: level 6 halves the speed and saves only a twentieth.
        let encoder = flate2::write::GzEncoder::new(out, flate2::Compression::new(1));
        members(encoder, image, programs, to, progress)?
            .finish()
            .map_err(fail)?
    } else {
        members(out, image, programs, to, progress)?
    };
    let file = out.into_inner().map_err(|error| fail(error.into_error()))?;
    file.as_file()
        .set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .and_then(|()| file.as_file().sync_all())
        .map_err(fail)?;
    let written = file.persist(to).map_err(|error| fail(error.error))?;
    Ok(written.metadata().map_err(fail)?.len())
}

fn members<W: Write>(
    out: W,
    image: &Image,
    programs: Option<&Path>,
    to: &Path,
    progress: &dyn Progress,
) -> Result<W, BundleError> {
    let mut record = Record {
        version: VERSION,
        image: image.manifest.clone(),
        programs: std::collections::BTreeMap::new(),
    };
    let mut sources: Vec<_> = image
        .manifest
        .files
        .iter()
        .map(|(name, facts)| {
            (
                format!("image/{name}"),
                image.dir.join(name),
                facts.clone(),
                0o644,
            )
        })
        .collect();
    for (name, _) in PROGRAMS {
        let Some(dir) = programs else { break };
        let facts = FileFacts::of(&dir.join(name))?;
        record.programs.insert(name.to_owned(), facts.clone());
        sources.push((format!("bin/{name}"), dir.join(name), facts, 0o755));
    }
    let total: u64 = sources.iter().map(|(_, _, facts, _)| facts.bytes).sum();
    let fail = |source| FileError::io("write", to, source);
    let mut archive = tar::Builder::new(out);
    let text = serde_json::to_vec_pretty(&record).map_err(|source| BundleError::Record {
        bundle: to.to_owned(),
        source,
    })?;
    let mut head = header(text.len() as u64, 0o644);
    archive.append_data(&mut head, RECORD, &text[..]).map_err(fail)?;
    let mut done = 0;
    for (member, path, expected, mode) in sources {
        let file = files::open_regular(&path).map_err(|source| FileError::io("open", &path, source))?;
        let mut source = Counted {
            // If the file has grown meanwhile, the additional bytes would break the archive.
            file: file.take(expected.bytes),
            hash: Sha256::new(),
            done,
            told: &|done| progress.bytes(done, Some(total)),
        };
        archive
            .append_data(&mut header(expected.bytes, mode), &member, &mut source)
            .map_err(fail)?;
        let found = digest::hex(&source.hash.finalize());
        if found != expected.sha256 {
            let expected = expected.sha256;
            return Err(StoreError::Damaged {
                path,
                expected,
                found,
            }
            .into());
        }
        done += expected.bytes;
    }
    Ok(archive.into_inner().map_err(fail)?)
}

/// A fixed owner and time: no property of the writing machine gets into a bundle.
fn header(bytes: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(bytes);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// A file that is being written to the archive.
struct Counted<'a> {
    file: std::io::Take<File>,
    hash: Sha256,
    done: u64,
    told: &'a dyn Fn(u64),
}

impl Read for Counted<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read(into)?;
        self.hash.update(&into[..count]);
        self.done += count as u64;
        (self.told)(self.done);
        Ok(count)
    }
}
