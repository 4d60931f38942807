//! The domain of crabbox: ids, records, states, configuration model, plans. No I/O at all.

pub mod duration;
