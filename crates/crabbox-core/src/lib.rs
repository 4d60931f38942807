//! The domain model of crabbox: ids, records, states, configuration model, plans. No module here may do I/O.

pub mod admission;
pub mod claim;
pub mod comma_list;
pub mod config;
pub mod duration;
pub mod external;
pub mod fault;
pub mod holding;
pub mod id;
pub mod journal;
pub mod labels;
pub mod network;
pub mod process;
pub mod proof;
pub mod receipt;
pub mod record;
pub mod shell;
pub mod size;
pub mod state;
pub mod strict_json;
pub mod timestamp;
pub mod volume;
