//! What one configuration file says: its sections and keys, with the place of each in warnings and errors.
//!
//! It must never take a host-only key of a repository's file.

use std::path::Path;

use super::{ConfigFile, Fold, Inputs, printable};
use crate::config::fields::{Unknown, Wrong, item_of};
use crate::config::jobs;
use crate::config::key::{FOREIGN_SECTIONS, JOBS, KEYS, Key, Kind, Name, PRESETS, PROFILES, PROOF_TEMPLATES};
use crate::config::layer::{Layer, Origin, Place};
use crate::config::profiles::Reader;
use crate::config::provider::Provider;
use crate::config::suggest::suggest;
use crate::config::value::{Bases, Value, from_node};
use crate::config::volumes;
use crate::config::warning::{ConfigError, Spot, Warning};
use crate::config::yaml::{self, Content, Node};

impl Fold {
    pub(super) fn file(&mut self, inputs: &Inputs<'_>, file: &ConfigFile) -> Result<(), ConfigError> {
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
