//! SSH to a lease through OpenSSH: keys, known hosts, readiness, one shared connection, remote commands.
//!
//! Turns a [`target::Target`] into connections and answers how they ended. It must never accept an unknown
//! key for a pinned host, put a value of the environment into an argument vector, or leave a connection
//! behind after [`master::exit`].

pub mod agent_client;
pub mod beginning;
pub mod capture;
mod client_config;
pub mod command;
pub mod control;
mod doubt;
pub mod exec;
pub mod forward;
pub mod forwards;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod group;
pub mod interactive;
pub(crate) mod key_trouble;
pub mod keys;
pub mod loopback;
pub mod master;
mod mux;
pub mod peer;
pub mod port;
pub mod quote;
pub mod ready;
pub mod remote_line;
mod shared;
mod streams;
pub mod target;
pub mod tunnel;

pub use mux::MuxError;
