//! The stages of a lease's life, each a walk over the journal: made, watched, adopted, taken back.

pub mod acquire;
pub mod adopt;
pub mod client;
mod handover;
pub mod orphans;
pub mod pool;
mod refill;
pub mod release;
mod stand_by;
pub mod supervise;
pub(crate) mod supervisor_log;
pub mod teardown;
mod watch;
