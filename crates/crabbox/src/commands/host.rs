//! Commands about this host and its configuration: setup, images, providers, claims, receipts.

pub(crate) mod claims;
pub(crate) mod config;
pub(crate) mod doctor;
pub(crate) mod image;
pub(crate) mod init;
pub(crate) mod probe;
pub(crate) mod proof;
pub(crate) mod providers;
pub(crate) mod setup;
pub(in crate::commands) mod template;
pub(crate) mod verify;
