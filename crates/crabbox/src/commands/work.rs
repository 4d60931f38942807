//! Commands that work in a lease: runs and their trees, copies, sessions, tunnels.

pub(crate) mod bench;
pub(crate) mod cache;
pub(crate) mod connect;
pub(crate) mod cp;
pub(crate) mod job;
pub(crate) mod ports;
pub(crate) mod progress;
pub(crate) mod pull;
pub(crate) mod run;
pub(crate) mod ssh;
pub(crate) mod sync_plan;
pub(crate) mod tunnel;
pub(crate) mod volumes;
pub(crate) mod watch;
