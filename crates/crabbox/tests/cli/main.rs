//! The built binary from outside: exit codes, messages, and configuration in a temporary home.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that does not hold"
)]

mod adapter;
mod agent;
mod claims;
mod compat;
mod config;
mod deaths;
mod diagnostics;
mod doctor;
mod documents;
mod environment;
mod events;
mod existing;
mod files;
mod forged;
mod host_proof;
mod landing;
mod leases;
mod logs;
mod measure;
mod next;
mod odd_host;
mod owners;
mod place;
mod ports;
mod probe;
mod proof;
mod providers;
mod pull;
mod receipt;
mod refusals;
mod release;
mod remote;
mod run;
mod schema;
mod smoke;
mod ssh_config;
mod static_host;
mod static_repository;
mod static_views;
mod sync_plan;
mod terminal;
mod timings;
mod unread;
mod usage;
mod watched;
mod work;
mod world;
