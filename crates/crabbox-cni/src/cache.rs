//! The result cache: one file per attachment, with libcni's path and format, so that other runtimes find it.
//!
//! DEL passes the cached result to plugins as `prevResult`, and also runs without it. It must never decide
//! what is deleted.

use std::io;
use std::path::{Path, PathBuf};

use crabbox_host::files::remove_if_there;
use serde_json::{Map, Value, json};

use crate::attachment::Attachment;
use crate::base64;

/// The cache file of `attachment`: `<cache dir>/results/<network>-<container>-<interface>`.
pub(crate) fn file(attachment: &Attachment) -> PathBuf {
    let name = format!(
        "{}-{}-{}",
        attachment.conf.name, attachment.container_id, attachment.ifname
    );
    attachment.cache_dir.join("results").join(name)
}

/// Writes the entry. `result` is the last plugin's own output.
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
    // A half-written entry counts as absent, and DEL runs without it.
    std::fs::write(file, serde_json::to_vec(&entry)?)
}

/// The cached result; `None` if there is no readable entry.
pub(crate) fn load(attachment: &Attachment) -> Option<Value> {
    let bytes = std::fs::read(file(attachment)).ok()?;
    let mut entry: Value = serde_json::from_slice(&bytes).ok()?;
    entry.get_mut("result").map(Value::take).filter(Value::is_object)
}

/// The attachments of `container` that a runtime with libcni's cache format (libcni or this one) has cached
/// below `cache_dir`: for a DEL when nothing else is known of them. Unreadable entries are left out.
pub fn cached(cache_dir: &Path, container: &str, netns: &Path, bin_dirs: &[PathBuf]) -> Vec<Attachment> {
    let entries =
        std::fs::read_dir(cache_dir.join("results")).map(|entries| entries.filter_map(Result::ok).collect());
    let mut files: Vec<PathBuf> = entries
        .unwrap_or_else(|_| Vec::new())
        .into_iter()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
        .iter()
        .filter_map(|file| attachment_of(file, cache_dir, container, netns, bin_dirs))
        .collect()
}

fn attachment_of(
    file: &Path,
    cache_dir: &Path,
    container: &str,
    netns: &Path,
    bin_dirs: &[PathBuf],
) -> Option<Attachment> {
    let entry: Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
    if text("containerId") != container {
        return None;
    }
    let conf = crate::conf::parse(file, &base64::decode(text("config"))?)?;
    let mut attachment = Attachment::new(
        conf,
        bin_dirs.to_vec(),
        container,
        netns,
        text("ifName"),
        cache_dir,
    );
    let args = entry.get("cniArgs").cloned().unwrap_or_default();
    attachment.args = serde_json::from_value(args).unwrap_or_default();
    let capabilities = entry.get("capabilityArgs").and_then(Value::as_object);
    attachment.capability_args = capabilities.cloned().unwrap_or_default();
    Some(attachment)
}

/// Deletes the entry; succeeds if there is none.
pub(crate) fn forget(attachment: &Attachment) -> io::Result<()> {
    remove_if_there(&file(attachment)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attachment_comes_back_from_its_cache_entry_without_its_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let conf = br#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp","ipMasq":true},{"type":"portmap"}]}"#;
        let conf = crate::conf::parse(Path::new("/gone"), conf).unwrap();
        let bins = vec![PathBuf::from("/bins")];
        let made = Attachment::new(conf, bins.clone(), "c1", Path::new("/n"), "veth0", dir.path());
        save(&made, &json!({"cniVersion": "1.0.0"})).unwrap();
        std::fs::write(dir.path().join("results/garbage"), "{").unwrap();
        let found = cached(dir.path(), "c1", Path::new("/n"), &bins);
        assert_eq!(found.len(), 1);
        assert_eq!(
            (
                &found[0].conf.plugins,
                &found[0].conf.name,
                found[0].ifname.as_str()
            ),
            (&made.conf.plugins, &made.conf.name, "veth0")
        );
        assert!(
            load(&found[0]).is_some(),
            "its result is found under the same name"
        );
        assert!(cached(dir.path(), "c2", Path::new("/n"), &bins).is_empty());
        assert!(cached(Path::new("/none"), "c1", Path::new("/n"), &bins).is_empty());
    }
}
