//! What a command leaves behind: reports, files by pattern, and the bundle of a failure.
//!
//! All of it comes from the machine and is untrusted: it is bounded, and never written outside of its
//! directory.

pub mod bundle;
pub mod collect;
pub mod junit;
pub mod pattern;
pub mod schema;
