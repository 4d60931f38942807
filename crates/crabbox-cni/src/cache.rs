//! The result cache: one file an attachment, in the place and shape that libcni keeps it, so that other runtimes find it.
//!
//! The cache is what DEL and CHECK hand to plugins as `prevResult`; without it both still run. It must never decide what is deleted.

use std::io;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::attachment::Attachment;
use crate::base64;

/// Where `attachment` is cached: `<cache dir>/results/<network>-<container>-<interface>`.
pub(crate) fn file(attachment: &Attachment) -> PathBuf {
    let name = format!(
        "{}-{}-{}",
        attachment.conf.name, attachment.container_id, attachment.ifname
    );
    attachment.cache_dir.join("results").join(name)
}

/// Writes the entry. `result` is the last plugin's own text.
pub(crate) fn save(attachment: &Attachment, result: &Value) -> io::Result<()> {
    let conf = &attachment.conf;
    let mut list = Map::new();
    list.insert("cniVersion".to_owned(), json!(conf.version));
    list.insert("name".to_owned(), json!(conf.name));
    if conf.disable_check {
        list.insert("disableCheck".to_owned(), json!(true));
    }
    list.insert("plugins".to_owned(), json!(conf.plugins));
    let mut entry = json!({
        "kind": "cniCacheV1",
        "containerId": attachment.container_id,
        "config": base64::encode(&serde_json::to_vec(&list)?),
        "ifName": attachment.ifname,
        "networkName": conf.name,
        "netns": attachment.netns.to_string_lossy(),
        "result": result,
    });
    if !attachment.args.is_empty() {
        entry["cniArgs"] = json!(attachment.args);
    }
    if !attachment.capability_args.is_empty() {
        entry["capabilityArgs"] = json!(attachment.capability_args);
    }
    let file = file(attachment);
    if let Some(dir) = file.parent() {
        std::os::unix::fs::DirBuilderExt::mode(std::fs::DirBuilder::new().recursive(true), 0o700)
            .create(dir)?;
    }
    // A half-written entry reads as none, and DEL runs without it.
    std::fs::write(file, serde_json::to_vec(&entry)?)
}

/// The result that was cached; none when there is no entry that can be read.
pub(crate) fn load(attachment: &Attachment) -> Option<Value> {
    let bytes = std::fs::read(file(attachment)).ok()?;
    let mut entry: Value = serde_json::from_slice(&bytes).ok()?;
    entry.get_mut("result").map(Value::take).filter(Value::is_object)
}

/// Deletes the entry. Nothing there is fine.
pub(crate) fn forget(attachment: &Attachment) -> io::Result<()> {
    match std::fs::remove_file(file(attachment)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
