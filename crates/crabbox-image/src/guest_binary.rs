//! The guest's process 1, embedded in the program.
//!
//! `crabbox` is one file, so it contains the static `crabbox-guest` (`build.rs`). It must never differ from
//! the one built from the sources of this workspace, because the protocol between the two changes with them.

use std::io::{Read as _, Result};

const CARRIED: &[u8] = include_bytes!(env!("CRABBOX_GUEST_PACKED"));

/// The bytes of `crabbox-guest`.
///
/// # Errors
/// If the embedded binary was damaged after the build.
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
