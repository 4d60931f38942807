//! Firecracker as a protocol: its API's requests and responses, versions, and how it and its
//! jailer are called.
//!
//! Everything here is data, or a conversation over a stream that the caller opened. This crate never opens a
//! socket or a file and never starts a process, so all of it can be tested with bytes alone.

pub mod client;
pub mod launch;
pub mod log;
pub mod plan;
pub mod request;
mod response;
pub mod types;
pub mod version;

pub use client::{Client, ClientError};
pub use launch::{DirectLaunch, JailLaunch, JailLayout, VmId};
pub use plan::{BootPlan, boot};
pub use request::{Method, Request};
pub use version::Version;
