//! The bundle that a failed run leaves on this side (behaviour reference 5.3).
//!
//! It holds what was shown anyway, without values of variables or secrets of the configuration; who passes it on must still
//! look at it. Its directory and file are private.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::RunError;

/// Writes the bundle `path` of these files; answers its size in bytes.
pub fn write(path: &Path, files: &[(String, Vec<u8>)]) -> Result<u64, RunError> {
    let failed = |source| RunError::Local {
        path: path.to_owned(),
        source,
    };
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(failed)?;
    }
    put(path, files).map_err(failed)
}

fn put(path: &Path, files: &[(String, Vec<u8>)]) -> io::Result<u64> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let mut tar = tar::Builder::new(GzEncoder::new(file, Compression::default()));
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
    let mut file = tar.into_inner()?.finish()?;
    file.flush()?;
    Ok(file.metadata()?.len())
}
