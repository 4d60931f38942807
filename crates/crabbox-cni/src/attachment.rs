//! One container's attachment to one network: ADD along the chain, DEL back along it.
//!
//! An [`Attachment`] is saved by its owner before [`add`], and [`del`] works from it alone. A chain that
//! fails half way is undone; a DEL must never stop at the first plugin that fails.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_core::fault;
use crabbox_host::netns;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::cache;
use crate::conf::{ConfList, Version};
use crate::plugin::{Call, Place, PluginError, Verb};
use crate::reservation;
use crate::result::CniResult;

/// Everything that the plugins need to know, now and at teardown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The configuration as it was used.
    pub conf: ConfList,
    /// Where the plugins are, in the order they are looked for.
    pub bin_dirs: Vec<PathBuf>,
    /// The container: letters, digits, `_`, `.` and `-`.
    pub container_id: String,
    /// The file of its network namespace.
    pub netns: PathBuf,
    /// The interface that it gets in the namespace.
    pub ifname: String,
    /// Where results are cached.
    pub cache_dir: PathBuf,
    /// `CNI_ARGS`, which the specification has deprecated, but some plugins still need.
    #[serde(default)]
    pub args: Vec<(String, String)>,
    /// Values for the plugins that name the key among their `capabilities`.
    #[serde(default)]
    pub capability_args: Map<String, Value>,
    /// How long one plugin may run, in milliseconds.
    pub limit_ms: u64,
}

/// How long a plugin may run unless an attachment says otherwise: an address from DHCP can take 15 s.
const DEFAULT_LIMIT_MS: u64 = 30_000;

impl Attachment {
    /// An attachment without arguments and with the default time limit.
    pub fn new(
        conf: ConfList,
        bin_dirs: Vec<PathBuf>,
        container_id: &str,
        netns: &Path,
        ifname: &str,
        cache_dir: &Path,
    ) -> Self {
        Self {
            conf,
            bin_dirs,
            container_id: container_id.to_owned(),
            netns: netns.to_owned(),
            ifname: ifname.to_owned(),
            cache_dir: cache_dir.to_owned(),
            args: Vec::new(),
            capability_args: Map::new(),
            limit_ms: DEFAULT_LIMIT_MS,
        }
    }

    fn place(&self) -> Place<'_> {
        Place {
            bin_dirs: &self.bin_dirs,
            limit: Duration::from_millis(self.limit_ms),
        }
    }

    /// `CNI_ARGS` as one text.
    pub(crate) fn args_text(&self) -> String {
        self.args
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
            .join(";")
    }

    fn call<'a>(
        &'a self,
        verb: Verb,
        plugin: &'a Map<String, Value>,
        previous: Option<&Value>,
        netns: &'a Path,
    ) -> Call<'a> {
        let extra = previous
            .map(|result| ("prevResult", result.clone()))
            .into_iter()
            .collect();
        Call {
            verb,
            conf: &self.conf,
            plugin,
            extra,
            attachment: self,
            netns,
        }
    }
}

/// Why a container could not be attached. The plugins that had run were undone, except for the failures in
/// `undo`.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// A plugin of the chain failed.
    #[error("cannot attach {container} to the CNI network {network}{}", left(.undo))]
    Plugin {
        /// The network.
        network: String,
        /// The container.
        container: String,
        /// What went wrong while the plugins that had run were undone.
        undo: Vec<PluginError>,
        /// The plugin that failed.
        #[source]
        source: Box<PluginError>,
    },
    /// The chain ran, but its last output is not a valid result.
    #[error("cannot read the result of the CNI network {network}{}", left(.undo))]
    Result {
        /// The network.
        network: String,
        /// What went wrong while the chain was undone.
        undo: Vec<PluginError>,
        /// Where it is invalid.
        #[source]
        source: serde_json::Error,
    },
    /// The chain ran, but its result could not be cached.
    #[error("cannot write the CNI result cache {}{}", file.display(), left(.undo))]
    Cache {
        /// The file.
        file: PathBuf,
        /// What went wrong while the chain was undone.
        undo: Vec<PluginError>,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

/// Why a container is not completely detached. Plugins that are not listed succeeded.
#[derive(Debug, thiserror::Error)]
#[error("cannot detach {container} from the CNI network {network}: {}", listed(.failures))]
pub struct DelError {
    /// The network.
    pub network: String,
    /// The container.
    pub container: String,
    /// The plugins that failed, in the order that they ran.
    pub failures: Vec<PluginError>,
}

fn listed(failures: &[PluginError]) -> String {
    // In a list of errors each chain of sources must be part of the text, because `source` can only return
    // one.
    let all: Vec<String> = failures.iter().map(|failure| fault::chain(failure)).collect();
    all.join("; ")
}

fn left(undo: &[PluginError]) -> String {
    if undo.is_empty() {
        String::new()
    } else {
        format!("; undoing it failed as well: {}", listed(undo))
    }
}

/// Runs the chain, caches its result, and returns it. If a plugin fails, it and those before it are undone.
pub fn add(attachment: &Attachment) -> Result<CniResult, AddError> {
    let (network, container) = (attachment.conf.name.clone(), attachment.container_id.clone());
    let mut previous: Option<Value> = None;
    for (index, plugin) in attachment.conf.plugins.iter().enumerate() {
        let call = attachment.call(Verb::Add, plugin, previous.as_ref(), &attachment.netns);
        match call.run_for_result(attachment.place()) {
            Ok(result) => previous = Some(result),
            Err(source) => {
                // A plugin that was never started has nothing to undo; one that failed half way may have
                // something.
                let ran = if matches!(source, PluginError::Missing { .. }) {
                    index
                } else {
                    index + 1
                };
                let undo = backwards(attachment, ran, previous.as_ref());
                return Err(AddError::Plugin {
                    network,
                    container,
                    undo,
                    source: Box::new(source),
                });
            }
        }
    }
    let last = previous.unwrap_or_default();
    let all = attachment.conf.plugins.len();
    let result = CniResult::deserialize(&last).map_err(|source| AddError::Result {
        network,
        undo: backwards(attachment, all, Some(&last)),
        source,
    })?;
    cache::save(attachment, &last).map_err(|source| AddError::Cache {
        file: cache::file(attachment),
        undo: backwards(attachment, all, Some(&last)),
        source,
    })?;
    reservation::make_durable(&attachment.conf, &result);
    Ok(result)
}

/// Detaches: runs every plugin in reverse order, even if some fail. Succeeds if a namespace, interface or
/// address is gone already, and when called twice. The cached result is removed if all plugins succeeded.
pub fn del(attachment: &Attachment) -> Result<(), DelError> {
    let previous = cache::load(attachment);
    let failures = backwards(attachment, attachment.conf.plugins.len(), previous.as_ref());
    if failures.is_empty() {
        // A stale entry is harmless: it is in the attachment's own directory, and its container never comes
        // back.
        cache::forget(attachment).ok();
        return Ok(());
    }
    Err(DelError {
        network: attachment.conf.name.clone(),
        container: attachment.container_id.clone(),
        failures,
    })
}

/// DEL of the first `count` plugins, last first.
fn backwards(attachment: &Attachment, count: usize, previous: Option<&Value>) -> Vec<PluginError> {
    // A plugin fails on a file that is not a namespace, but accepts an empty path.
    let netns = if netns::exists(&attachment.netns) {
        attachment.netns.as_path()
    } else {
        Path::new("")
    };
    let previous = previous.filter(|_| attachment.conf.version >= Version::V0_4_0);
    attachment.conf.plugins[..count]
        .iter()
        .rev()
        .filter_map(|plugin| {
            attachment
                .call(Verb::Del, plugin, previous, netns)
                .run(attachment.place())
                .err()
        })
        .collect()
}
