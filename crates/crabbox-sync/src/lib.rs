//! Git manifest, fingerprint, guardrails, rsync.
//!
//! `repo` finds the tree, `manifest` lists what the lease must have of it, `guardrail` checks whether that is
//! too much, and `transfer` makes the lease's workdir equal to it. This crate prints nothing and never
//! changes the local tree.

mod base;
mod channel;
mod direct;
pub mod directories;
mod entry;
mod events;
mod filter;
mod filtered;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod git;
mod glob;
pub mod guardrail;
mod listing;
mod lists;
pub mod manifest;
mod mark;
pub mod memory;
pub mod origin;
pub mod pull;
mod redirect;
pub mod repo;
mod rsync;
mod seed;
pub mod transfer;

pub use channel::Channel;
pub use direct::DirectError;
pub use entry::{Entry, Kind, Standing};
pub use events::{Progress, Silent, Stage, SyncEvents};
pub use filter::{Filter, Origin, Verdict, built_in as built_in_excludes};
pub use git::ConfigurationError;
pub use listing::Staged;
pub use mark::Mark;
pub use redirect::Redirect;
pub use rsync::RsyncError;
