//! Use cases: acquire, run, stop, cleanup, doctor, supervise. Emits events, prints nothing.
//!
//! The engine observes the world, lets `crabbox-core` decide, and applies the plan through the crates below it, with a
//! journal entry before every effect. It must never print, read the environment, or destroy what it has no proof of owning.

pub mod acquire;
pub mod activity;
mod admission;
pub mod adopt;
pub mod allocate;
pub mod claims;
pub mod client;
pub mod connection;
pub mod context;
pub mod copy;
pub mod disk;
pub mod doctor;
pub mod event;
pub mod failpoint;
pub mod firecracker;
pub mod heartbeat;
pub mod images;
pub mod lease;
pub mod logs;
pub mod network;
pub mod orphans;
pub mod ownership;
pub mod ports;
pub mod prepare;
pub mod probe;
pub mod provider;
pub mod pull;
pub mod ready;
pub mod release;
pub mod request;
pub mod resolve;
pub mod route;
pub mod run;
pub mod session;
pub mod setup;
pub mod static_host;
pub mod supervise;
pub mod sync_plan;
pub mod teardown;
pub mod touch;
pub mod trim;
pub mod tunnel;
pub mod vmm;
pub mod watch;
