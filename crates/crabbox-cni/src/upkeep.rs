//! Commands since version 1.1.0 of the specification: STATUS before an ADD, and GC of everything that no attachment
//! owns any more.
//!
//! Both concern a network, not a container. GC deletes everything of the network that is not listed, so it must never
//! be called with a list that may be incomplete.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::conf::{ConfList, Version};
use crate::plugin::{Call, Place, PluginError, Verb};

/// The outcome of a command that not every version has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All plugins were asked and succeeded.
    Done,
    /// The configuration disables it.
    Disabled,
    /// The network's version is too old for it.
    TooOld,
}

/// An attachment that GC must keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ValidAttachment {
    /// Its container.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Its interface.
    pub ifname: String,
}

/// Asks every plugin of `conf` whether an ADD could work now; returns the first failure.
pub fn status(conf: &ConfList, bin_dirs: &[PathBuf], limit: Duration) -> Result<Outcome, PluginError> {
    if conf.version < Version::V1_1_0 {
        return Ok(Outcome::TooOld);
    }
    for plugin in &conf.plugins {
        let call = Call {
            verb: Verb::Status,
            conf,
            plugin,
            extra: Vec::new(),
            attachment: None,
            netns: Path::new(""),
        };
        call.run(Place { bin_dirs, limit })?;
    }
    Ok(Outcome::Done)
}

/// Makes every plugin of `conf` remove what belongs to none of `valid`. All plugins are run; the error lists their
/// failures.
pub fn gc(
    conf: &ConfList,
    bin_dirs: &[PathBuf],
    limit: Duration,
    valid: &[ValidAttachment],
) -> Result<Outcome, Vec<PluginError>> {
    if conf.version < Version::V1_1_0 {
        return Ok(Outcome::TooOld);
    }
    if conf.disable_gc {
        return Ok(Outcome::Disabled);
    }
    let list: Value = json!(valid);
    let failures: Vec<_> = conf
        .plugins
        .iter()
        .filter_map(|plugin| {
            let extra = vec![("cni.dev/valid-attachments", list.clone())];
            let call = Call {
                verb: Verb::Gc,
                conf,
                plugin,
                extra,
                attachment: None,
                netns: Path::new(""),
            };
            call.run(Place { bin_dirs, limit }).err()
        })
        .collect();
    if failures.is_empty() {
        Ok(Outcome::Done)
    } else {
        Err(failures)
    }
}
