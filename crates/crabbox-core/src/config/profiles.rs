//! The sections `profiles`, `presets` and `proofTemplates`: a project's defaults for its runs, named
//! commands, and texts for proofs of runs.
//!
//! They must never select anything on this host: variables and commands are for the lease. Each records
//! whether its file is trusted.

use std::collections::BTreeMap;

use super::fields::{Unknown, Wrong, list, mapping, scalar, truth, wrong};
use super::layer::{Layer, Origin, Place, Sourced};
use super::yaml::{Content, Node};

/// Fields of the Go program in a profile or preset without a counterpart here.
const FOREIGN: [&str; 1] = ["doctor"];

/// A named command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preset {
    /// The command.
    pub command: String,
    /// Whether it is passed to a shell unchanged.
    pub shell: bool,
    /// Variables for it.
    pub env: BTreeMap<String, String>,
    /// Whether versions of the lease's tools are shown first.
    pub preflight: bool,
    /// Files to fetch, as with `--artifact-glob`.
    pub artifact_globs: Vec<String>,
    /// The template of its proof, if one is requested; empty for none.
    pub proof_template: String,
}

/// The texts of a proof of a run, with `{{name}}` for values that are known after the run. For an empty text
/// the program's own is used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProofTemplate {
    /// The behaviour that the run was to show.
    pub behavior_addressed: String,
    /// Where it ran.
    pub real_environment_tested: String,
    /// The steps.
    pub exact_steps: String,
    /// The result.
    pub observed_result: String,
    /// What the run does not show.
    pub not_tested: String,
}

/// The defaults for runs with a profile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// Variables for the command.
    pub env: BTreeMap<String, String>,
    /// Variables of this host that are forwarded, in place of `env.allow`; `None` if the profile does not set
    /// them.
    pub allow: Option<Sourced<Vec<String>>>,
    /// Files to fetch, as with `--artifact-glob`.
    pub artifact_globs: Vec<String>,
    /// Its own presets.
    pub presets: BTreeMap<String, Preset>,
    /// Its own templates.
    pub proof_templates: BTreeMap<String, ProofTemplate>,
}

/// Reads a section of one file.
pub(super) struct Reader<'a> {
    /// The file's layer.
    pub layer: Layer,
    /// The position of a node.
    pub at: &'a dyn Fn(&Node) -> Place,
    /// Unknown fields.
    pub unknown: Unknown,
    /// Fields without a counterpart here, by path.
    pub foreign: Vec<String>,
}

impl Reader<'_> {
    /// The section `profiles`.
    pub(super) fn profiles(&mut self, section: &Node) -> Result<BTreeMap<String, Profile>, Wrong> {
        let mut profiles = BTreeMap::new();
        for (name, node) in mapping(section, "profiles")? {
            let path = format!("profiles.{name}");
            let mut profile = Profile::default();
            for (field, node) in mapping(node, &path)? {
                let at = format!("{path}.{field}");
                match field {
                    "env" => self.env(&mut profile, node, &at)?,
                    "envAllow" => self.allow(&mut profile, node, &at)?,
                    "artifactGlobs" => profile.artifact_globs = texts(node, &at)?,
                    "presets" => profile.presets = self.presets(node, &at)?,
                    "proofTemplates" => profile.proof_templates = self.proof_templates(node, &at)?,
                    _ => self.other(field, at, node),
                }
            }
            profiles.insert(name.to_owned(), profile);
        }
        Ok(profiles)
    }

    /// A section `presets`.
    pub(super) fn presets(&mut self, section: &Node, path: &str) -> Result<BTreeMap<String, Preset>, Wrong> {
        let mut presets = BTreeMap::new();
        for (name, node) in mapping(section, path)? {
            let at = format!("{path}.{name}");
            let mut preset = Preset::default();
            for (field, node) in mapping(node, &at)? {
                let at = format!("{at}.{field}");
                match field {
                    _ if node.content == Content::Null => {}
                    "command" => preset.command = scalar(node, &at, "a text")?,
                    "shell" => preset.shell = truth(node, &at)?,
                    "preflight" => preset.preflight = truth(node, &at)?,
                    "artifactGlobs" => preset.artifact_globs = texts(node, &at)?,
                    "proofTemplate" => preset.proof_template = scalar(node, &at, "a text")?,
                    "env" => {
                        for (name, value) in mapping(node, &at)? {
                            variable(&mut preset.env, name, value, &at)?;
                        }
                    }
                    _ => self.other(field, at, node),
                }
            }
            if preset.command.is_empty() {
                return Err(wrong(node, &format!("{at}.command"), "a command"));
            }
            presets.insert(name.to_owned(), preset);
        }
        Ok(presets)
    }

    /// A section `proofTemplates`.
    pub(super) fn proof_templates(
        &mut self,
        section: &Node,
        path: &str,
    ) -> Result<BTreeMap<String, ProofTemplate>, Wrong> {
        let mut templates = BTreeMap::new();
        for (name, node) in mapping(section, path)? {
            let at = format!("{path}.{name}");
            let mut template = ProofTemplate::default();
            for (field, node) in mapping(node, &at)? {
                let at = format!("{at}.{field}");
                let text = match field {
                    "behaviorAddressed" => &mut template.behavior_addressed,
                    "realEnvironmentTested" => &mut template.real_environment_tested,
                    "exactSteps" => &mut template.exact_steps,
                    "observedResult" => &mut template.observed_result,
                    "notTested" => &mut template.not_tested,
                    _ => {
                        self.other(field, at, node);
                        continue;
                    }
                };
                if node.content != Content::Null {
                    *text = scalar(node, &at, "a text")?;
                }
            }
            templates.insert(name.to_owned(), template);
        }
        Ok(templates)
    }

    /// `env`: variables by name, and `allow`.
    fn env(&mut self, profile: &mut Profile, node: &Node, path: &str) -> Result<(), Wrong> {
        for (name, value) in mapping(node, path)? {
            if name == "allow" {
                self.allow(profile, value, &format!("{path}.allow"))?;
            } else {
                variable(&mut profile.env, name, value, path)?;
            }
        }
        Ok(())
    }

    fn allow(&mut self, profile: &mut Profile, node: &Node, path: &str) -> Result<(), Wrong> {
        let place = (self.at)(node);
        let origin = if self.layer.is_trusted() {
            Origin::UserFile(place)
        } else {
            Origin::RepoFile(place)
        };
        let names = texts(node, path)?;
        match &mut profile.allow {
            Some(allow) => allow.value.extend(names),
            None => profile.allow = Some(Sourced { value: names, origin }),
        }
        Ok(())
    }

    fn other(&mut self, field: &str, path: String, node: &Node) {
        if FOREIGN.contains(&field) {
            self.foreign.push(path);
        } else {
            self.unknown.push((path, (self.at)(node)));
        }
    }
}

fn texts(node: &Node, path: &str) -> Result<Vec<String>, Wrong> {
    match node.content {
        Content::Null => Ok(Vec::new()),
        _ => list(node, path),
    }
}

fn variable(env: &mut BTreeMap<String, String>, name: &str, value: &Node, path: &str) -> Result<(), Wrong> {
    if !super::allow::is_name(name) {
        return Err(wrong(
            value,
            &format!("{path}.{name}"),
            "under the name of a variable",
        ));
    }
    let text = match &value.content {
        Content::Null => String::new(),
        Content::Scalar { text, .. } => text.clone(),
        _ => return Err(wrong(value, &format!("{path}.{name}"), "a text")),
    };
    env.insert(name.to_owned(), text);
    Ok(())
}
