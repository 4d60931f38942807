//! The configuration model: keys, layers, trust, and the resolved, typed settings.
//!
//! Everything here is a function of texts, names and values that the caller has read; it must never open a
//! file or read the environment itself.

pub mod allow;
pub mod choice;
mod fields;
pub mod firecracker;
pub mod fit;
pub mod jobs;
pub mod key;
pub mod layer;
pub mod profiles;
mod provider;
mod resolve;
pub mod settings;
mod suggest;
mod table;
pub mod trust;
mod value;
mod volumes;
mod warning;
mod yaml;

pub use provider::{Provider, ProviderError};
pub use resolve::{ConfigFile, FlagValue, Inputs, Resolution, resolve};
pub use settings::Settings;
pub use suggest::{suggest, suggest_variable};
pub use value::Value;
pub use warning::{ConfigError, Spot, Warning};

#[cfg(test)]
mod tests;
