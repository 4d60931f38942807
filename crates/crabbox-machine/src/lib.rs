//! A microVM's life on this host: a request becomes a lease, a lease is watched, and nothing of it is left.
//!
//! Every effect has its journal entry before it, and every destructive step takes a proof of ownership. Nothing here may print,
//! read configuration or the environment, or know that there are other providers.

pub mod context;
pub mod control;
pub mod failpoint;
pub mod lease;
pub mod lifecycle;
pub mod log_filter;
pub mod protocol;
pub mod request;
pub mod resource;
