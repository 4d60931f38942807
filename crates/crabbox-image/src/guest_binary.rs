//! The guest's first process, carried inside the program itself.
//!
//! A released `crabbox` is one file, so it brings the static `crabbox-guest` along: whoever compiles it sets
//! `CRABBOX_GUEST_BINARY` to the built binary's absolute path (`build.rs`). A program compiled without it has none.

use std::io::Read as _;

/// The bytes of `crabbox-guest`, when this program was compiled with one.
pub fn bytes() -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    // What the build script compressed is whole, or this program would not be.
    flate2::read::GzDecoder::new(EMBEDDED?)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(bytes)
}

#[cfg(embedded_guest)]
const EMBEDDED: Option<&[u8]> = Some(include_bytes!(concat!(env!("OUT_DIR"), "/crabbox-guest.gz")));

#[cfg(not(embedded_guest))]
const EMBEDDED: Option<&[u8]> = None;

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_carried_is_an_executable() {
        let carried = super::bytes();
        assert_eq!(carried.is_some(), cfg!(embedded_guest));
        assert!(carried.is_none_or(|bytes| bytes.starts_with(b"\x7fELF")));
    }
}
