//! The guest's first process, carried inside the program itself.
//!
//! `crabbox` is one file, so it brings the static `crabbox-guest` along (`build.rs`). It must never be another than that of the sources
//! beside this crate: what the two say to each other changes with them.

use std::io::{Read as _, Result};

const CARRIED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/crabbox-guest.gz"));

/// The bytes of `crabbox-guest`.
///
/// # Errors
/// When what this program carries was damaged after it was built.
pub fn bytes() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(CARRIED).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_carried_is_an_executable() {
        assert!(super::bytes().unwrap().starts_with(b"\x7fELF"));
    }
}
