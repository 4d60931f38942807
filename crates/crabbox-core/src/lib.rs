//! The domain of crabbox: ids, records, states, configuration model, plans. No I/O at all.

pub mod admission;
pub mod claim;
pub mod config;
pub mod duration;
pub mod fault;
pub mod id;
pub mod journal;
pub mod labels;
pub mod record;
pub mod timestamp;
