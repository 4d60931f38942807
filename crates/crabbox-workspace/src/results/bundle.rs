//! The local bundle of a failed run, with the same entries as the Go program's.
//!
//! It contains what was shown anyway, without values of variables or secrets of the configuration; a user
//! should still review it before sharing. Its directory and file are private.

use std::io::{self, Write as _};
use std::path::Path;

use crabbox_host::beneath::Existing;
use crabbox_host::place::Place;
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::command::RemoteError;

/// Writes the bundle of these files to its place, where nothing may exist yet; returns its size in bytes.
pub fn write(place: &Place, files: &[(String, Vec<u8>)]) -> Result<u64, RemoteError> {
    let packed = pack(files).map_err(|source| RemoteError::Local {
        path: place.path(),
        source,
    })?;
    place.write(&packed, Existing::Refuse)?;
    Ok(packed.len() as u64)
}

fn pack(files: &[(String, Vec<u8>)]) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(content.len() as u64);
        tar.append_data(
            &mut header,
            Path::new("crabbox-artifacts").join(name),
            content.as_slice(),
        )?;
    }
    let mut packed = tar.into_inner()?.finish()?;
    packed.flush()?;
    Ok(packed)
}
