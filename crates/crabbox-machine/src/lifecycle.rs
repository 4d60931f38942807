//! The stages of a lease's life, each a walk over the journal: made, watched, adopted, taken back.

pub mod acquire;
pub mod adopt;
pub mod client;
pub mod orphans;
pub mod release;
pub mod supervise;
pub(crate) mod supervisor_log;
pub mod teardown;
mod watch;
