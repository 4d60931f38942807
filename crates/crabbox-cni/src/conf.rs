//! Network configurations: found by name in a directory, checked once, and kept in the form in which they
//! were used.
//!
//! A broken file of another network must not hide the requested one; it is reported if the requested one is
//! not found. Nothing here may run a plugin.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The versions of the specification that this runtime speaks, oldest first.
pub(crate) const SUPPORTED: [Version; 5] = [
    Version::V0_3_0,
    Version::V0_3_1,
    Version::V0_4_0,
    Version::V1_0_0,
    Version::V1_1_0,
];

/// A version of the CNI specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Version {
    /// 0.3.0
    #[serde(rename = "0.3.0")]
    V0_3_0,
    /// 0.3.1
    #[serde(rename = "0.3.1")]
    V0_3_1,
    /// 0.4.0, the first with CHECK.
    #[serde(rename = "0.4.0")]
    V0_4_0,
    /// 1.0.0
    #[serde(rename = "1.0.0")]
    V1_0_0,
    /// 1.1.0, the first with STATUS and GC.
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

impl Version {
    /// The version as the specification writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version written as `text`, if this runtime speaks it.
    pub fn parse(text: &str) -> Option<Self> {
        SUPPORTED.into_iter().find(|version| version.as_str() == text)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One network: its name and its chain of plugins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfList {
    /// The name of the network.
    pub name: String,
    /// The version of the specification that its plugins are called with.
    pub version: Version,
    /// Its author asks not to run CHECK, which other runtimes that find our cached result could do.
    pub disable_check: bool,
    /// The configuration of each plugin, in the order of ADD, as the file has it.
    pub plugins: Vec<Map<String, Value>>,
    /// The file that it was read from.
    pub file: PathBuf,
}

impl ConfList {
    /// The types of this network's plugins, those for address management included, each once.
    pub fn plugin_types(&self) -> Vec<&str> {
        let mut types = Vec::new();
        for plugin in &self.plugins {
            let ipam = plugin.get("ipam").and_then(|ipam| ipam.get("type"));
            let both = [plugin.get("type"), ipam].into_iter().flatten();
            for name in both.filter_map(Value::as_str).filter(|name| !name.is_empty()) {
                if !types.contains(&name) {
                    types.push(name);
                }
            }
        }
        types
    }
}

/// A network in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkFile {
    /// Its name.
    pub name: String,
    /// Its file.
    pub file: PathBuf,
}

/// A file in the directory that is not a readable network.
#[derive(Debug)]
pub struct Unreadable {
    /// The file.
    pub file: PathBuf,
    /// Why it is unreadable.
    pub why: std::io::Error,
}

/// Why a network configuration could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The directory cannot be read.
    #[error("cannot read the CNI configuration directory {}", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// No file of the directory contains the network.
    #[error("there is no CNI network {name:?} in {}; {}", dir.display(), instead(.present, .unreadable))]
    NotFound {
        /// The directory.
        dir: PathBuf,
        /// The requested network.
        name: String,
        /// The networks that are there.
        present: Vec<NetworkFile>,
        /// The files that could not be read as a network.
        unreadable: Vec<Unreadable>,
    },
    /// The network has no plugins.
    #[error("the CNI network {name:?} in {} has no list of plugins", file.display())]
    NoPlugins {
        /// The network.
        name: String,
        /// Its file.
        file: PathBuf,
    },
    /// A plugin has no usable type; a type is a bare file name.
    #[error("plugin {position} of the CNI network {name:?} in {} has no valid \"type\"", file.display())]
    PluginType {
        /// The network.
        name: String,
        /// Its file.
        file: PathBuf,
        /// Which plugin, counted from 1.
        position: usize,
    },
    /// The network asks for a version of the specification that this runtime does not speak.
    #[error(
        "the CNI network {name:?} in {} has cniVersion {version:?}; supported are 0.3.0, 0.3.1, 0.4.0, 1.0.0 and 1.1.0",
        file.display()
    )]
    Version {
        /// The network.
        name: String,
        /// Its file.
        file: PathBuf,
        /// The version that it asks for; empty if it names none, which means 0.1.0.
        version: String,
    },
}

fn instead(present: &[NetworkFile], unreadable: &[Unreadable]) -> String {
    let mut parts = Vec::new();
    if present.is_empty() {
        parts.push("it holds no network".to_owned());
    } else {
        let names: Vec<_> = present
            .iter()
            // Names are untrusted text; unescaped they could contain terminal sequences.
            .map(|found| format!("{} ({})", found.name.escape_debug(), shown(&found.file)))
            .collect();
        parts.push(format!("it holds {}", names.join(", ")));
    }
    parts.extend(
        unreadable
            .iter()
            .map(|bad| format!("{} is unreadable: {}", shown(&bad.file), bad.why)),
    );
    parts.join("; ")
}

fn shown(file: &Path) -> String {
    let name = file.file_name().unwrap_or(file.as_os_str());
    name.to_string_lossy().escape_debug().to_string()
}

/// Finds the network `name` in `conf_dir`: lists (`.conflist`) before single plugins (`.conf`, `.json`), each
/// in lexical order of file names; the first match wins, as in libcni.
pub fn load(conf_dir: &Path, name: &str) -> Result<ConfList, LoadError> {
    let fail = |source| LoadError::Directory {
        dir: conf_dir.to_owned(),
        source,
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(conf_dir).map_err(fail)? {
        let file = entry.map_err(fail)?.path();
        let rank = match file.extension().and_then(|extension| extension.to_str()) {
            Some("conflist") => 0,
            Some("conf" | "json") => 1,
            _ => continue,
        };
        files.push((rank, file));
    }
    files.sort_unstable();
    let (mut present, mut unreadable) = (Vec::new(), Vec::new());
    for (_, file) in files {
        match read(&file) {
            Ok((found, document)) if found == name => return conf_list(found, file, document),
            Ok((found, _)) => present.push(NetworkFile { name: found, file }),
            Err(why) => unreadable.push(Unreadable { file, why }),
        }
    }
    Err(LoadError::NotFound {
        dir: conf_dir.to_owned(),
        name: name.to_owned(),
        present,
        unreadable,
    })
}

/// The name and the content of one file.
fn read(file: &Path) -> std::io::Result<(String, Map<String, Value>)> {
    let bytes = std::fs::read(file)?;
    let document: Map<String, Value> = serde_json::from_slice(&bytes)?;
    let name = document.get("name").and_then(Value::as_str).unwrap_or_default();
    if name.is_empty() {
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            "it has no \"name\"",
        ));
    }
    Ok((name.to_owned(), document))
}

/// Parses a configuration from a cache entry; `file` is the entry's path.
pub(crate) fn parse(file: &Path, bytes: &[u8]) -> Option<ConfList> {
    let document: Map<String, Value> = serde_json::from_slice(bytes).ok()?;
    let name = document.get("name").and_then(Value::as_str)?.to_owned();
    conf_list(name, file.to_owned(), document).ok()
}

fn conf_list(name: String, file: PathBuf, document: Map<String, Value>) -> Result<ConfList, LoadError> {
    let version = version_of(&name, &file, &document)?;
    let disable_check = is_true(document.get("disableCheck"));
    let plugins = match document.get("plugins") {
        Some(Value::Array(plugins)) => plugins
            .iter()
            .map(|plugin| plugin.as_object().cloned().unwrap_or_default())
            .collect(),
        // A file with a single plugin is a list of one.
        None if document.contains_key("type") => vec![document],
        _ => Vec::new(),
    };
    if plugins.is_empty() {
        return Err(LoadError::NoPlugins { name, file });
    }
    if let Some(index) = plugins
        .iter()
        .position(|plugin| !is_plugin_type(plugin.get("type")))
    {
        return Err(LoadError::PluginType {
            name,
            file,
            position: index + 1,
        });
    }
    Ok(ConfList {
        name,
        version,
        disable_check,
        plugins,
        file,
    })
}

/// The highest version that both the file and this runtime support.
fn version_of(name: &str, file: &Path, document: &Map<String, Value>) -> Result<Version, LoadError> {
    let single = document.get("cniVersion").and_then(Value::as_str);
    let several = document
        .get("cniVersions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    let asked: Vec<&str> = single.into_iter().chain(several).collect();
    asked
        .iter()
        .filter_map(|text| Version::parse(text))
        .max()
        .ok_or_else(|| LoadError::Version {
            name: name.to_owned(),
            file: file.to_owned(),
            version: asked.join(", "),
        })
}

/// libcni also accepts a boolean as text.
fn is_true(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Bool(value)) => *value,
        Some(Value::String(text)) => text.eq_ignore_ascii_case("true"),
        _ => false,
    }
}

/// A type is the name of a file in the plugin directory; with a slash it could name any program on the host.
fn is_plugin_type(value: Option<&Value>) -> bool {
    let name = value.and_then(Value::as_str).unwrap_or_default();
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    const LIST: &str =
        r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"ptp"},{"type":"firewall"}]}"#;

    #[test]
    fn a_list_wins_over_a_single_plugin_and_the_first_in_order_over_the_next() {
        let single = r#"{"cniVersion":"0.4.0","name":"net","type":"bridge"}"#;
        let later = r#"{"cniVersion":"0.3.1","name":"net","plugins":[{"type":"x"}]}"#;
        let dir = directory(&[
            ("00.conf", single),
            ("20.conflist", later),
            ("10.conflist", LIST),
            ("05.txt", "no"),
        ]);
        let conf = load(dir.path(), "net").unwrap();
        assert_eq!((conf.version, conf.plugins.len()), (Version::V1_0_0, 2));
        assert_eq!(conf.file, dir.path().join("10.conflist"));
    }

    #[test]
    fn a_single_plugin_is_a_list_of_one() {
        let dir = directory(&[(
            "00.json",
            r#"{"cniVersion":"0.4.0","name":"net","type":"bridge","bridge":"b0"}"#,
        )]);
        let conf = load(dir.path(), "net").unwrap();
        assert_eq!(conf.plugins[0]["bridge"], "b0");
    }

    #[test]
    fn the_highest_common_version_is_spoken() {
        let text = r#"{"cniVersion":"0.4.0","cniVersions":["1.0.0","9.9.9"],"name":"net","plugins":[{"type":"x"}],"disableCheck":"True"}"#;
        let dir = directory(&[("00.conflist", text)]);
        let conf = load(dir.path(), "net").unwrap();
        assert_eq!((conf.version, conf.disable_check), (Version::V1_0_0, true));
    }

    #[test]
    fn an_absent_directory_is_named() {
        let error = load(Path::new("/nowhere/cni"), "net").unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot read the CNI configuration directory /nowhere/cni"
        );
    }

    #[test]
    fn an_absent_network_lists_what_is_there_and_what_is_broken() {
        let dir = directory(&[
            ("10-a.conflist", LIST),
            ("20-b.conflist", "{ \"name\": "),
            ("30-c.conf", "{}"),
            (
                "40-d.conf",
                r#"{"cniVersion":"1.0.0","name":"\u001b[2Jd","type":"ptp"}"#,
            ),
        ]);
        let error = load(dir.path(), "crabbox").unwrap_err().to_string();
        assert!(
            error.contains(&format!("no CNI network \"crabbox\" in {}", dir.path().display())),
            "{error}"
        );
        assert!(
            error.contains(r"it holds net (10-a.conflist), \u{1b}[2Jd (40-d.conf)"),
            "{error}"
        );
        assert!(
            error.contains("20-b.conflist is unreadable: EOF while parsing a value at line 1"),
            "{error}"
        );
        assert!(
            error.contains("30-c.conf is unreadable: it has no \"name\""),
            "{error}"
        );
    }

    #[test]
    fn a_broken_neighbour_hides_nothing() {
        let dir = directory(&[("00.conflist", "nonsense"), ("10.conflist", LIST)]);
        assert!(load(dir.path(), "net").is_ok());
    }

    #[test]
    fn plugin_types_are_listed_once_with_those_for_addresses() {
        let text = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"ptp","ipam":{"type":"host-local"}},
            {"type":"firewall","ipam":{}},{"type":"ptp","ipam":{"type":""}}]}"#;
        let dir = directory(&[("00.conflist", text)]);
        assert_eq!(
            load(dir.path(), "net").unwrap().plugin_types(),
            ["ptp", "host-local", "firewall"]
        );
    }

    #[test]
    fn what_cannot_be_run_is_refused() {
        let with = |text: &str| load(directory(&[("0.conflist", text)]).path(), "n").unwrap_err();
        assert!(matches!(
            with(r#"{"cniVersion":"1.0.0","name":"n"}"#),
            LoadError::NoPlugins { .. }
        ));
        assert!(matches!(
            with(r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#),
            LoadError::NoPlugins { .. }
        ));
        assert!(matches!(
            with(r#"{"cniVersion":"0.2.0","name":"n","type":"x"}"#),
            LoadError::Version { .. }
        ));
        assert!(
            matches!(with(r#"{"name":"n","type":"x"}"#), LoadError::Version { version, .. } if version.is_empty())
        );
        let escape = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"x"},{"type":"../../bin/sh"}]}"#;
        assert!(matches!(with(escape), LoadError::PluginType { position: 2, .. }));
    }
}
