//! Artefacts by digest, clone and grow, seed, build recipes, guest contract.

pub mod build;
pub mod bundle;
pub mod cpio;
pub mod debugfs;
pub mod disk;
pub mod fetch;
pub mod guest;
pub mod guest_binary;
pub mod import;
pub mod initrd;
pub mod inspect;
pub mod kernel;
pub mod manifest;
mod modinfo;
pub mod progress;
pub mod seed;
pub mod source;
pub mod store;

#[cfg(test)]
mod small;
