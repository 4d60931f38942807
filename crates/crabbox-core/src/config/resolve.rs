//! Resolves the layers of configuration to one value per key, each with its origin.
//!
//! It folds over the layers, weakest first, driven by the key registry. It must never let a repository file
//! set a host-only key, and never ignore a value without a warning.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::choice::Choice;
use super::fields::{Unknown, Wrong, item_of};
use super::jobs::{self, Job};
use super::key::{FOREIGN_SECTIONS, JOBS, KEYS, Key, Kind, Name, PRESETS, PROFILES, PROOF_TEMPLATES, Trust};
use super::layer::{Layer, Origin, Place, Sourced, Trusted};
use super::profiles::{Preset, Profile, ProofTemplate, Reader};
use super::provider::Provider;
use super::settings::Settings;
use super::suggest::suggest;
use super::table::Table;
use super::value::{Bases, Value, expectation, from_node, from_text, is_usable};
use super::volumes;
use super::warning::{ConfigError, Spot, Warning};
use super::yaml::{self, Content, Node};
use crate::volume::Volume;

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

    fn file(&mut self, inputs: &Inputs<'_>, file: &ConfigFile) -> Result<(), ConfigError> {
        let (node, more) = yaml::parse(&file.text).map_err(|error| {
            let at = spot(
                file,
                Place {
                    path: file.path.clone(),
                    line: error.line,
                    column: error.column,
                },
            );
            ConfigError::Syntax {
                at: Box::new(at),
                message: printable(&error.message),
            }
        })?;
        if more {
            self.warnings.push(Warning::MoreDocuments {
                file: file.path.clone(),
            });
        }
        let Some(root) = node else { return Ok(()) };
        let Content::Map(entries) = &root.content else {
            return Err(wrong_type(
                file,
                &root,
                "a configuration file",
                "a mapping of keys to values",
            ));
        };
        let mut foreign = Vec::new();
        for (key, value) in entries {
            let name = key_text(key);
            let read = if FOREIGN_SECTIONS.contains(&name) {
                self.ours(inputs, file, name, value).map(|is_all_ours| {
                    if !is_all_ours {
                        foreign.push(name.to_owned());
                    }
                })
            } else if name == JOBS {
                self.jobs(file, value)
            } else if [PROFILES, PRESETS, PROOF_TEMPLATES].contains(&name) {
                self.profiles(file, name, value)
                    .map(|unused| foreign.extend(unused))
            } else {
                self.entry(inputs, file, name, key, value)
            };
            self.bear(file, read)?;
        }
        if !foreign.is_empty() {
            self.warnings.push(Warning::ForeignSections {
                file: file.path.clone(),
                sections: foreign,
            });
        }
        Ok(())
    }

    /// Reads the keys that are ours in another program's section; returns whether there is nothing else.
    fn ours(
        &mut self,
        inputs: &Inputs<'_>,
        file: &ConfigFile,
        section: &str,
        node: &Node,
    ) -> Result<bool, ConfigError> {
        let Content::Map(entries) = &node.content else {
            return Ok(false);
        };
        let mut is_all_ours = !entries.is_empty();
        for (key, value) in entries {
            let Some(key) = Key::by_path(&format!("{section}.{}", key_text(key))) else {
                is_all_ours = false;
                continue;
            };
            let read = self.file_value(inputs, file, key, value);
            self.bear(file, read)?;
        }
        Ok(is_all_ours)
    }

    fn jobs(&mut self, file: &ConfigFile, section: &Node) -> Result<(), ConfigError> {
        let (jobs, unknown) = jobs::read(section, file.layer, &|node| place(file, node))
            .map_err(|wrong| misfit(file, &wrong))?;
        let judged = jobs
            .into_iter()
            .map(|(name, job)| (name, job.map_err(|wrong| misfit(file, &wrong))));
        self.jobs.extend(judged);
        self.unknown(unknown);
        Ok(())
    }

    /// Reads `profiles`, `presets` or `proofTemplates`; a later file replaces entries of the same name.
    /// Returns fields without a counterpart here.
    fn profiles(
        &mut self,
        file: &ConfigFile,
        name: &str,
        section: &Node,
    ) -> Result<Vec<String>, ConfigError> {
        let mut reader = Reader {
            layer: file.layer,
            at: &|node| place(file, node),
            unknown: Vec::new(),
            foreign: Vec::new(),
        };
        if name == PROFILES {
            let profiles = reader.profiles(section).map_err(|wrong| misfit(file, &wrong))?;
            self.profiles.extend(profiles);
        } else if name == PRESETS {
            let presets = reader
                .presets(section, PRESETS)
                .map_err(|wrong| misfit(file, &wrong))?;
            self.presets.extend(presets);
        } else {
            let templates = reader
                .proof_templates(section, PROOF_TEMPLATES)
                .map_err(|wrong| misfit(file, &wrong))?;
            self.proof_templates.extend(templates);
        }
        self.unknown(reader.unknown);
        Ok(reader.foreign.iter().map(|path| printable(path)).collect())
    }

    fn unknown(&mut self, unknown: Unknown) {
        self.warnings
            .extend(unknown.into_iter().map(|(path, place)| Warning::UnknownKey {
                place,
                path: printable(&path),
                suggestion: None,
            }));
    }

    fn entry(
        &mut self,
        inputs: &Inputs<'_>,
        file: &ConfigFile,
        path: &str,
        key_node: &Node,
        node: &Node,
    ) -> Result<(), ConfigError> {
        if path == volumes::PATH {
            return self.file_volumes(file, node);
        }
        if let Some(key) = Key::by_path(path) {
            return self.file_value(inputs, file, key, node);
        }
        if is_section(path) {
            return match &node.content {
                Content::Null => Ok(()),
                Content::Map(entries) => entries.iter().try_for_each(|(key, value)| {
                    let path = format!("{path}.{}", key_text(key));
                    let read = self.entry(inputs, file, &path, key, value);
                    self.bear(file, read)
                }),
                Content::Scalar { .. } | Content::Tag(_) | Content::List(_) => {
                    Err(wrong_type(file, node, path, "a mapping of keys to values"))
                }
            };
        }
        self.warnings.push(Warning::UnknownKey {
            place: place(file, key_node),
            path: printable(path),
            suggestion: suggest(path),
        });
        Ok(())
    }

    /// Reads `cache.volumes`: the one key whose items are mappings.
    fn file_volumes(&mut self, file: &ConfigFile, node: &Node) -> Result<(), ConfigError> {
        let key = Name::CacheVolumes;
        if node.content == Content::Null {
            return Ok(());
        }
        if !file.layer.is_trusted() {
            let place = place(file, node);
            self.warnings.push(Warning::Restricted { place, key });
            return Ok(());
        }
        let section = volumes::read(node).map_err(|wrong| misfit(file, &wrong))?;
        let unknown = section.unknown.into_iter();
        self.unknown(unknown.map(|(path, node)| (path, place(file, &node))).collect());
        self.take_volumes(section.volumes, Origin::UserFile(place(file, node)));
        Ok(())
    }

    /// Replaces all earlier volumes with `volumes`, which may be empty.
    fn take_volumes(&mut self, volumes: Vec<Volume>, origin: Origin) {
        let short = volumes.iter().map(Volume::spec).collect();
        self.values
            .set(Name::CacheVolumes.key(), Value::List(short), origin);
        self.volumes = volumes;
    }

    fn file_value(
        &mut self,
        inputs: &Inputs<'_>,
        file: &ConfigFile,
        key: &'static Key,
        node: &Node,
    ) -> Result<(), ConfigError> {
        let place = place(file, node);
        if node.content == Content::Null {
            return Ok(());
        }
        if !file.layer.is_trusted() {
            if !key.trust.is_open_to_repositories() {
                self.warnings.push(Warning::Restricted { place, key: key.name });
                return Ok(());
            }
            if key.name == Name::ProviderName && self.keeps_provider(key_text(node), &place) {
                return Ok(());
            }
        }
        let relative = file.path.parent().unwrap_or(Path::new("/"));
        let origin = match file.layer {
            Layer::UserFile => Origin::UserFile(place),
            _ => Origin::RepoFile(place),
        };
        match from_node(
            key.kind,
            node,
            Bases {
                home: inputs.home,
                relative,
            },
        ) {
            Ok(value) => self.take(key, value, &raw_text(node), origin),
            Err(unfit) => match (key.kind, &node.content) {
                (Kind::Choice(choice), Content::Scalar { text, .. }) => {
                    self.no_choice(choice, text, origin);
                }
                // The Go program ignores a text that is not a duration, while any other wrong type is an
                // error.
                (Kind::Duration, Content::Scalar { text, .. }) => self.unusable(key, text, origin),
                _ if unfit.is_item => {
                    let what = item_of(key.path);
                    return Err(wrong_type(file, unfit.node, &what, unfit.expected));
                }
                _ => return Err(wrong_type(file, unfit.node, key.path, unfit.expected)),
            },
        }
        Ok(())
    }

    /// Whether the user of this host chose a provider, which a repository must not change.
    fn keeps_provider(&mut self, found: &str, place: &Place) -> bool {
        let chosen = self.values.trusted(Name::ProviderName);
        let Value::Text(name) = &chosen.value else {
            return false;
        };
        if chosen.is_default() {
            return false;
        }
        let same = match (Provider::by_name(name), Provider::by_name(found.trim())) {
            (Ok(ours), Ok(theirs)) => ours == theirs,
            _ => name == found.trim(),
        };
        if !same && !found.trim().is_empty() {
            self.warnings.push(Warning::ProviderKept {
                place: place.clone(),
                found: printable(found),
                chosen: printable(name),
                origin: chosen.origin.clone(),
            });
        }
        true
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

/// Whether a key of the registry begins with `path`.
fn is_section(path: &str) -> bool {
    let inside = |full: &str| full.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
    KEYS.iter()
        .any(|key| inside(key.path) || key.aliases.iter().any(|alias| inside(alias)))
}

fn key_text(node: &Node) -> &str {
    match &node.content {
        Content::Scalar { text, .. } => text,
        Content::Null | Content::Tag(_) | Content::List(_) | Content::Map(_) => "",
    }
}

fn raw_text(node: &Node) -> String {
    key_text(node).to_owned()
}

fn place(file: &ConfigFile, node: &Node) -> Place {
    Place {
        path: file.path.clone(),
        line: node.line,
        column: node.column,
    }
}

fn spot(file: &ConfigFile, place: Place) -> Spot {
    let index = usize::try_from(place.line.saturating_sub(1)).unwrap_or(usize::MAX);
    Spot {
        line: file.text.lines().nth(index).unwrap_or_default().to_owned(),
        place,
    }
}

fn wrong_type(file: &ConfigFile, node: &Node, key: &str, expected: &'static str) -> ConfigError {
    ConfigError::WrongType {
        at: Box::new(spot(file, place(file, node))),
        key: printable(key),
        expected,
        found: node.content.describe(),
        is_tag: matches!(node.content, Content::Tag(_)),
    }
}

fn misfit(file: &ConfigFile, wrong: &Wrong) -> ConfigError {
    wrong_type(file, &wrong.node, &wrong.path, wrong.expected)
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
