//! What the specification has since 1.1.0: STATUS before an ADD, GC of what no attachment owns any more.
//!
//! Both are about a network, not a container. GC deletes everything of the network that is not named, so it must never be called with
//! a list that may be incomplete.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::conf::{ConfList, Version};
use crate::plugin::{Call, Place, PluginError, Verb};

/// What came of asking plugins for something that not every version knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All of them were asked, and all is well.
    Done,
    /// The configuration asks not to.
    Disabled,
    /// The network's version is too old for it.
    TooOld,
}

/// One attachment that GC is to keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ValidAttachment {
    /// Its container.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Its interface.
    pub ifname: String,
}

/// Asks every plugin of `conf` whether an ADD could work now; the first that says no is the error.
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

/// Lets every plugin of `conf` throw away what belongs to none of `valid`. All of them are asked; the failures are the error.
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
