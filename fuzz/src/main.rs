//! One program for all targets: libFuzzer calls the parser named by `CRABBOX_FUZZ_TARGET`. `cargo xtask fuzz` builds and runs it.
#![no_main]

use std::sync::OnceLock;

mod targets;

/// The chosen parser.
static CHOSEN: OnceLock<targets::Read> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let read = CHOSEN.get_or_init(|| {
        let name = std::env::var("CRABBOX_FUZZ_TARGET").unwrap_or_default();
        let found = targets::TARGETS.iter().find(|(known, _)| *known == name);
        found.expect("CRABBOX_FUZZ_TARGET names a target").1
    });
    read(bytes);
});
