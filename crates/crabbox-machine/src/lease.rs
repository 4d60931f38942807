//! A lease on disk: what it is, what it alone has, whose it is, and what its files say.

pub mod activity;
pub(crate) mod admission;
pub mod allocate;
pub mod allocated;
pub mod capacity;
pub mod find;
pub mod holders;
pub mod keys;
pub mod logs;
pub(crate) mod machine;
pub mod ownership;
pub(crate) mod relief;
pub mod touch;
