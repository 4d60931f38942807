//! The layers together: precedence, merge rules, warnings, errors and trust.

use std::path::Path;

use super::key::KEYS;
use super::layer::Layer;
use super::*;

/// Layers under test; the repository is `/w/repo`, the home `/h`.
#[derive(Default)]
struct World {
    files: Vec<ConfigFile>,
    variables: Vec<(String, String)>,
    flags: Vec<FlagValue>,
}

impl World {
    fn resolve(&self) -> Result<Resolution, ConfigError> {
        let lookup = |name: &str| {
            self.variables
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, value)| value.clone())
        };
        resolve(&Inputs {
            files: &self.files,
            environment: &lookup,
            flags: &self.flags,
            home: Some(Path::new("/h")),
            cwd: Path::new("/w/repo/sub"),
            repository: Path::new("/w/repo"),
        })
    }
}

fn world() -> World {
    World::default()
}

#[test]
fn defaults_are_readable_and_silent() {
    let resolution = world().resolve().unwrap();
    assert_eq!(resolution.warnings, []);
    for key in KEYS {
        assert_eq!(
            resolution.explain(key.name).layer(),
            Layer::Default,
            "{}",
            key.path
        );
    }
    assert_eq!(resolution.settings.provider(), Err(ProviderError::NotSelected));
    assert_eq!(resolution.settings.ttl.value.to_string(), "1h30m0s");
}
