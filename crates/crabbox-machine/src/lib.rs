//! The lifecycle of a microVM on this host: acquisition, supervision and teardown of a lease.
//!
//! Every effect has a journal entry before it, and every destructive step takes a proof of ownership. Nothing
//! here may print, read configuration or the environment, or know other providers.

pub mod context;
pub mod control;
pub mod failpoint;
pub mod lease;
pub mod lifecycle;
pub mod log_filter;
pub mod protocol;
pub mod request;
pub mod resource;
