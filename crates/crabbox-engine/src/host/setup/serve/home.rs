//! The home from which remote owners are served: always root's own, whatever the environment of setup says.
//!
//! sudo passes no environment variables to the serving command, so nothing may be set up for it, or removed,
//! at a place that only a variable names.

use std::path::{Path, PathBuf};

use crabbox_store::places::Places;

use super::{Ground, ServeSetupError, account};

/// Root's home according to the host, which is the home of the command that serves owners.
pub fn served_home(ground: &Ground) -> Result<PathBuf, ServeSetupError> {
    let root = account::named(ground, "root")?;
    root.map(|root| root.home)
        .ok_or_else(|| ServeSetupError::Accounts {
            said: "there is no account root".to_owned(),
        })
}

/// Refuses `here`, where setup would write, unless it equals `served`, the places of a root process that has
/// the home `home` and no other variables.
pub fn check_home(here: &Places, served: &Places, home: &Path) -> Result<(), ServeSetupError> {
    let parts = [
        ("the configuration", &here.config, &served.config),
        ("leases and their records", &here.state, &served.state),
        ("images", &here.cache, &served.cache),
        ("the registry of leases", &here.registry, &served.registry),
    ];
    match parts.into_iter().find(|(_, found, served)| found != served) {
        None => Ok(()),
        Some((what, found, served)) => Err(ServeSetupError::Elsewhere {
            what,
            served: served.clone(),
            found: found.clone(),
            home: home.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_the_one_that_is_served_or_is_named() {
        let served = Places::below(Path::new("/root"));
        check_home(&served, &served, Path::new("/root")).unwrap();
        let other = Places::below(Path::new("/home/me"));
        let (config, state, cache, registry) = (other.config, other.state, other.cache, other.registry);
        for (here, found) in [
            (
                Places {
                    config: config.clone(),
                    ..served.clone()
                },
                config,
            ),
            (
                Places {
                    state: state.clone(),
                    ..served.clone()
                },
                state,
            ),
            (
                Places {
                    cache: cache.clone(),
                    ..served.clone()
                },
                cache,
            ),
            (
                Places {
                    registry: registry.clone(),
                    ..served.clone()
                },
                registry,
            ),
        ] {
            let error = check_home(&here, &served, Path::new("/root")).unwrap_err();
            assert!(
                error.to_string().ends_with(&found.display().to_string()),
                "{error}"
            );
        }
    }
}
