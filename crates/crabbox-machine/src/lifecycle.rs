//! The stages of a lease's life: acquired, watched, adopted, torn down. Each works through the lease's
//! journal; none may have an effect without an entry.

pub mod acquire;
pub mod adopt;
pub mod client;
pub mod epilog;
mod handover;
pub mod hold;
pub mod orphans;
pub mod pool;
mod refill;
pub mod release;
mod stand_by;
pub mod supervise;
pub(crate) mod supervisor_log;
pub mod teardown;
pub mod vmm_end;
mod watch;
