//! Resolves the layers of configuration to one value per key, each with its origin.
//!
//! It folds over the layers, weakest first, driven by the key registry. It must never let a repository file
//! set a host-only key, and never ignore a value without a warning.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::choice::Choice;
use super::jobs::Job;
use super::key::{KEYS, Key, Kind, Name, Trust};
use super::layer::{Layer, Origin, Sourced, Trusted};
use super::profiles::{Preset, Profile, ProofTemplate};
use super::provider::Provider;
use super::settings::Settings;
use super::table::Table;
use super::value::{Bases, Value, expectation, from_text, is_usable};
use super::volumes;
use super::warning::{ConfigError, Warning};
use crate::volume::Volume;

mod file;

/// A configuration file read by the caller.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    /// Its absolute path.
    pub path: PathBuf,
    /// [`Layer::UserFile`] or [`Layer::RepoFile`], from [`super::trust::classify`].
    pub layer: Layer,
    /// Its text.
    pub text: String,
}

/// A flag that sets a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlagValue {
    /// The key.
    pub key: Name,
    /// The values, one for each occurrence of the flag; keys that are not lists use only the last.
    pub values: Vec<String>,
}

/// The inputs of the configuration.
pub struct Inputs<'a> {
    /// Files, weakest first.
    pub files: &'a [ConfigFile],
    /// Looks up an environment variable.
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    /// Flags that were given.
    pub flags: &'a [FlagValue],
    /// The user's home directory.
    pub home: Option<&'a Path>,
    /// The current directory, to which relative paths in variables and flags refer.
    pub cwd: &'a Path,
    /// The user's own configuration file, for messages; it may not exist.
    pub user_file: Option<&'a Path>,
}

impl std::fmt::Debug for Inputs<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inputs")
            .field("files", &self.files)
            .field("flags", &self.flags)
            .finish_non_exhaustive()
    }
}

/// The result of resolving the layers.
#[derive(Debug, Clone)]
pub struct Resolution {
    /// The typed settings.
    pub settings: Settings,
    /// The ignored values with reasons, in the order in which they were found.
    pub warnings: Vec<Warning>,
    /// The jobs by name; a later file replaces those of an earlier one. An invalid job fails only when it is
    /// run.
    pub jobs: BTreeMap<String, Result<Job, ConfigError>>,
    /// Unreadable parts of repository files, and invalid choices, in the order in which they were found. The
    /// affected keys keep their earlier values.
    pub faults: Vec<ConfigError>,
    values: Table,
}

impl Resolution {
    /// The value of a key with its origin, for `config explain`.
    pub fn explain(&self, name: Name) -> &Sourced<Value> {
        self.values.get(name)
    }

    /// Returns the resolution if everything was readable, for callers that use values from a repository.
    pub fn sound(self) -> Result<Self, ConfigError> {
        match self.faults.first() {
            Some(fault) => Err(fault.clone()),
            None => Ok(self),
        }
    }
}

/// Resolves all layers to settings. An invalid value in the user's own file is an error, one in a
/// repository's file a fault.
pub fn resolve(inputs: &Inputs<'_>) -> Result<Resolution, ConfigError> {
    let mut fold = Fold {
        values: Table::defaults(inputs.home),
        warnings: Vec::new(),
        jobs: BTreeMap::new(),
        profiles: BTreeMap::new(),
        presets: BTreeMap::new(),
        proof_templates: BTreeMap::new(),
        volumes: Vec::new(),
        faults: Vec::new(),
    };
    for file in inputs.files {
        let read = fold.file(inputs, file);
        fold.bear(file, read)?;
    }
    fold.environment(inputs);
    fold.flags(inputs)?;
    fold.check_destination(inputs)?;
    let Fold {
        mut values,
        mut warnings,
        jobs,
        mut profiles,
        presets,
        proof_templates,
        volumes,
        faults,
    } = fold;
    let mut settings = Settings::from_table(&values);
    if let Some(volumes) = Trusted::new(values.get(Name::CacheVolumes).with(volumes)) {
        settings.cache.volumes = volumes;
    }
    warnings.extend(volumes_left_out(&settings));
    let profile = profiles.remove(&settings.profile.value).unwrap_or_default();
    settings.take_profile(profile, presets, proof_templates);
    let allow = &settings.env_allow;
    values.set(
        Name::EnvAllow.key(),
        Value::List(allow.value.clone()),
        allow.origin.clone(),
    );
    Ok(Resolution {
        settings,
        warnings,
        jobs,
        faults,
        values,
    })
}

/// The warning about configured volumes if leases cannot have any; a required one is refused when a lease is
/// requested.
fn volumes_left_out(settings: &Settings) -> Option<Warning> {
    let volumes = &settings.cache.volumes;
    if volumes.value.is_empty() {
        return None;
    }
    let lacking = match settings.provider().ok()? {
        Provider::Ssh => "a host of provider ssh keeps its own caches",
        Provider::Firecracker if settings.is_afar() => "leases on another host have no volumes",
        Provider::Firecracker => return None,
    };
    Some(Warning::VolumesLeftOut {
        origin: volumes.origin.clone(),
        lacking,
    })
}

/// Maximum length of file text in a message, in characters.
const PRINTED_LENGTH: usize = 80;

struct Fold {
    values: Table,
    warnings: Vec<Warning>,
    jobs: BTreeMap<String, Result<Job, ConfigError>>,
    profiles: BTreeMap<String, Profile>,
    presets: BTreeMap<String, Preset>,
    proof_templates: BTreeMap<String, ProofTemplate>,
    /// `cache.volumes`; the table has only the short form.
    volumes: Vec<Volume>,
    faults: Vec<ConfigError>,
}

impl Fold {
    /// Continues after an unreadable part of a repository's file.
    fn bear(&mut self, file: &ConfigFile, read: Result<(), ConfigError>) -> Result<(), ConfigError> {
        match read {
            Err(fault) if !file.layer.is_trusted() => {
                self.faults.push(fault);
                Ok(())
            }
            read => read,
        }
    }

    /// Replaces all earlier volumes with `volumes`, which may be empty.
    fn take_volumes(&mut self, volumes: Vec<Volume>, origin: Origin) {
        let short = volumes.iter().map(Volume::spec).collect();
        self.values
            .set(Name::CacheVolumes.key(), Value::List(short), origin);
        self.volumes = volumes;
    }

    /// For provider `ssh`, all keys of the destination must come from the user. Drops the others with a
    /// warning, and refuses a destination whose host only a repository names.
    fn check_destination(&mut self, inputs: &Inputs<'_>) -> Result<(), ConfigError> {
        let provider = self.values.get(Name::ProviderName);
        let Value::Text(name) = &provider.value else {
            return Ok(());
        };
        if provider.is_default() || Provider::by_name(name) != Ok(Provider::Ssh) {
            return Ok(());
        }
        if self.values.trusted(Name::StaticHost).value.is_blank()
            && let Some(place) = self.warnings.iter().find_map(Warning::of_static_host)
        {
            return Err(ConfigError::InheritedCredentials {
                place: place.clone(),
                user_file: inputs.user_file.map(Path::to_owned),
            });
        }
        for key in KEYS.iter().filter(|key| key.trust == Trust::DestinationOfHost) {
            if let Some(Sourced {
                origin: Origin::RepoFile(place),
                ..
            }) = self.values.distrust(key.name)
            {
                self.warnings.push(Warning::Restricted { place, key: key.name });
            }
        }
        Ok(())
    }

    fn environment(&mut self, inputs: &Inputs<'_>) {
        for key in KEYS {
            let found = key.variables.iter().find_map(|variable| {
                (inputs.environment)(variable)
                    .filter(|text| !text.trim().is_empty())
                    .map(|text| (*variable, text))
            });
            let Some((variable, text)) = found else { continue };
            let origin = Origin::Environment(variable);
            if key.name == Name::CacheVolumes {
                match volumes::from_variable(&text) {
                    Ok(volumes) => self.take_volumes(volumes, origin),
                    Err(why) => self.warnings.push(Warning::Unusable {
                        origin,
                        key: key.name,
                        value: printable(&text),
                        expected: why.expectation(),
                    }),
                }
                continue;
            }
            match from_text(
                key.kind,
                &text,
                Bases {
                    home: inputs.home,
                    relative: inputs.cwd,
                },
            ) {
                Some(Value::List(items)) => self.values.set(key, Value::List(items), origin),
                Some(value) => self.take(key, value, &text, origin),
                None => match key.kind {
                    Kind::Choice(choice) => self.no_choice(choice, &text, origin),
                    _ => self.unusable(key, &text, origin),
                },
            }
        }
    }

    /// An invalid choice is a fault in any layer: commands that do not depend on it use the earlier value.
    fn no_choice(&mut self, choice: Choice, found: &str, origin: Origin) {
        self.faults.push(ConfigError::NoChoice {
            choice,
            value: printable(found),
            origin,
        });
    }

    fn flags(&mut self, inputs: &Inputs<'_>) -> Result<(), ConfigError> {
        let bases = Bases {
            home: inputs.home,
            relative: inputs.cwd,
        };
        for FlagValue { key, values } in inputs.flags {
            let key = key.key();
            let (Some(flag), Some(last)) = (key.flag, values.last()) else {
                continue;
            };
            if key.name == Name::CacheVolumes {
                let mut volumes = std::mem::take(&mut self.volumes);
                volumes::add_flags(&mut volumes, values).map_err(|(value, why)| ConfigError::WrongFlag {
                    flag: flag.name,
                    value: printable(&value),
                    expected: why.expectation(),
                })?;
                self.take_volumes(volumes, Origin::Flag(flag.name));
                continue;
            }
            let text = if matches!(key.kind, Kind::List | Kind::Ports) {
                values.join(",")
            } else {
                last.clone()
            };
            let wrong = |value: String| match key.kind {
                Kind::Choice(choice) => ConfigError::NoChoice {
                    choice,
                    value: printable(&value),
                    origin: Origin::Flag(flag.name),
                },
                _ => ConfigError::WrongFlag {
                    flag: flag.name,
                    value,
                    expected: expectation(key),
                },
            };
            let value = from_text(key.kind, &text, bases).ok_or_else(|| wrong(text.clone()))?;
            if !is_usable(key, &value) {
                return Err(wrong(text));
            }
            // An empty path or port has no meaning; an empty text is deliberate.
            if !value.is_blank() || key.kind == Kind::Text {
                self.values.set(key, value, Origin::Flag(flag.name));
            }
        }
        Ok(())
    }

    /// Merges a value unless it is empty, which never overrides, or invalid.
    fn take(&mut self, key: &Key, value: Value, spelling: &str, origin: Origin) {
        if !is_usable(key, &value) {
            self.unusable(key, spelling, origin);
        } else if !value.is_blank() {
            self.values.merge(key, value, origin);
        }
    }

    fn unusable(&mut self, key: &Key, spelling: &str, origin: Origin) {
        self.warnings.push(Warning::Unusable {
            origin,
            key: key.name,
            value: printable(spelling),
            expected: expectation(key),
        });
    }
}

/// Text from a file without terminal sequences, truncated.
fn printable(text: &str) -> String {
    let clean = |c: char| {
        if c.is_control() {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    let mut out: String = text.chars().take(PRINTED_LENGTH).map(clean).collect();
    if text.chars().nth(PRINTED_LENGTH).is_some() {
        out.push('\u{2026}');
    }
    out
}
