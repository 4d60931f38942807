//! The configuration model: keys, layers, trust, and the typed settings they resolve to.
//!
//! Everything here is a function of texts, names and values that the caller read; it must never open a file or look at the
//! environment itself.

pub mod firecracker;
pub mod key;
pub mod layer;
mod resolve;
pub mod settings;
pub mod trust;
mod value;
mod warning;
mod yaml;

pub use resolve::{ConfigFile, FlagValue, Inputs, Resolution, resolve, suggest, suggest_variable};
pub use settings::{Provider, ProviderError, Settings};
pub use value::Value;
pub use warning::{ConfigError, Spot, Warning};

#[cfg(test)]
mod tests;
