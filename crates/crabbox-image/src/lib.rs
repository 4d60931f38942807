//! Images and disks: the content-addressed image store, build and import, private disks, seeds, and the guest
//! contract.
//!
//! Foreign trees, archives and file systems are never mounted, and nothing in them may reach a file of this
//! host.

#![cfg_attr(
    test,
    expect(
        clippy::disallowed_methods,
        reason = "tests make foreign trees by path; the library that is checked without them does not"
    )
)]

pub use crabbox_guest_protocol::image::{HOST_KEY, READY};

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
pub mod programs;
pub mod progress;
pub mod seed;
pub mod source;
pub mod store;

#[cfg(feature = "fuzzing")]
pub mod fuzzing;
#[cfg(test)]
mod small;
