//! A lease on disk: its directory, its exclusive resources, its owner, and its files.

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
