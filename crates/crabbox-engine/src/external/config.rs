//! The `external.config` of a request, as an additional configuration file.
//!
//! It can come from a repository, so it is trusted only as far as a repository's file: it may set sizes and
//! times, but never a program, a path or a network of this host. An unusable setting is refused instead of
//! ignored, because a machine other than the requested one is of no use.

use std::path::{Path, PathBuf};

use crabbox_core::config::layer::Layer;
use crabbox_core::config::{ConfigError, ConfigFile, Inputs, resolve};
use crabbox_core::fault::{Fault, Kind};
use serde_json::{Map, Value};

/// Its name in messages.
const NAME: &str = "external.config";

/// The configuration sections that concern a new lease.
const SECTIONS: [&str; 7] = [
    "class",
    "firecracker",
    "idleTimeout",
    "lease",
    "profile",
    "serverType",
    "ttl",
];

/// Why the config is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigRefused {
    /// It has a section that does not concern a lease.
    #[error("{NAME} cannot have {name:?}: expected some of {}", SECTIONS.join(", "))]
    Section {
        /// The name.
        name: String,
    },
    /// It sets something that it may not set, or that has no meaning.
    #[error("{warning}")]
    Warned {
        /// The warning that a repository's file would get.
        warning: String,
    },
    /// A value is wrong.
    #[error(transparent)]
    Wrong(#[from] ConfigError),
}

impl Fault for ConfigRefused {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Wrong(error) => error.hints(),
            Self::Section { .. } | Self::Warned { .. } => vec![
                "the rest of the configuration here is read as by every command; external.args takes flags of `crabbox adapter external`"
                    .to_owned(),
            ],
        }
    }
}

/// `config` as a configuration file, checked on its own.
pub fn file(config: &Map<String, Value>) -> Result<ConfigFile, ConfigRefused> {
    if let Some(name) = config.keys().find(|name| !SECTIONS.contains(&name.as_str())) {
        let name = name.chars().take(64).collect();
        return Err(ConfigRefused::Section { name });
    }
    // JSON is YAML, and pretty-printing puts each value on its own line, so that errors can name the line.
    let files = [ConfigFile {
        path: PathBuf::from(NAME),
        layer: Layer::RepoFile,
        text: format!("{:#}", Value::Object(config.clone())),
    }];
    let resolution = resolve(&Inputs {
        files: &files,
        environment: &|_| None,
        flags: &[],
        home: None,
        cwd: Path::new("/"),
        user_file: None,
    })?
    .sound()?;
    if let Some(warning) = resolution.warnings.first() {
        return Err(ConfigRefused::Warned {
            warning: warning.to_string().chars().take(1000).collect(),
        });
    }
    let [file] = files;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(config: Value) -> String {
        let Value::Object(config) = config else {
            panic!("{config}");
        };
        file(&config).map_or_else(|error| error.to_string(), |file| file.text)
    }

    #[test]
    fn sizes_and_times_are_taken() {
        let config = json!({"firecracker": {"cpus": 2, "memoryMiB": 512}, "ttl": "2h"});
        assert_eq!(told(config.clone()), format!("{config:#}"));
        assert_eq!(told(json!({})), "{}");
    }

    #[test]
    fn what_it_cannot_have_is_refused_with_its_name() {
        for (config, part) in [
            (
                json!({"firecracker": {"kernel": "/evil"}}),
                "firecracker.kernel is ignored: a repository file must not choose what runs on this host",
            ),
            (
                json!({"firecracker": {"cpu": 2}}),
                "unknown key firecracker.cpu is ignored; did you mean firecracker.cpus?",
            ),
            (
                json!({"firecracker": {"cpus": "many"}}),
                "firecracker.cpus must be",
            ),
            (json!({"ttl": "-1h"}), "ttl is ignored"),
            (
                json!({"env": {"allow": ["*"]}}),
                "external.config cannot have \"env\"",
            ),
            (
                json!({"provider": "ssh"}),
                "external.config cannot have \"provider\"",
            ),
            (json!({"a\nb": 1}), "external.config cannot have \"a\\nb\""),
        ] {
            let told = told(config);
            assert!(told.contains(part), "{told}");
        }
    }
}
