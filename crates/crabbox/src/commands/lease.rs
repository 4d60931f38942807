//! Commands about leases: making, inspecting, keeping and giving them back; and how any command finds its
//! lease.

pub(crate) mod adapter;
pub(crate) mod cleanup;
pub(crate) mod entering;
pub(crate) mod entry;
pub(crate) mod heartbeat;
pub(crate) mod inspect;
pub(crate) mod leaving;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod pool;
pub(crate) mod prewarm;
pub(crate) mod route;
pub(crate) mod screen;
pub(crate) mod stages;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod unsupported;
pub(crate) mod views;
pub(crate) mod warmup;
