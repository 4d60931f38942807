//! The runtime side of the CNI specification, versions 0.3.0 to 1.1.0: finds a network configuration by name,
//! runs its chain of plugins for ADD and DEL, and reads their results. CHECK, STATUS and GC are not
//! implemented.
//!
//! [`load`] reads a configuration once; everything after works from the [`Attachment`], which is meant to be
//! saved before [`add`], so that [`del`] works even if the configuration is gone by then. This crate must
//! keep no state of its own except the result cache that the specification asks for, and it knows nothing of
//! crabbox.

mod attachment;
mod base64;
mod cache;
mod conf;
mod plugin;
mod reservation;
mod result;

pub use attachment::{AddError, Attachment, DelError, add, del};
pub use cache::cached;
pub use conf::{ConfList, LoadError, NetworkFile, Unreadable, Version, load};
pub use plugin::{PluginError, Verb};
pub use result::{CniResult, Dns, Interface, IpConfig, Route};
