//! Artefacts by digest, clone and grow, seed, build recipes, guest contract.

pub mod disk;
pub mod fetch;
pub mod inspect;
pub mod progress;
