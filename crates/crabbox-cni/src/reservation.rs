//! Addresses that the plugin `host-local` gave: one file an address, whose content says who has it. The plugin does not sync them, so that a
//! power cut leaves files without content, which no DEL ever finds again. Here they are made to stay as written; never changed.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::conf::ConfList;
use crate::result::CniResult;

/// Where `host-local` keeps its files unless its `dataDir` says otherwise (its `backend/disk/backend.go`).
const DATA_DIR: &str = "/var/lib/cni/networks";

/// Syncs the files of the addresses in `result`. A file that is not there was made by another plugin, or elsewhere, and is left alone.
pub(crate) fn make_durable(conf: &ConfList, result: &CniResult) {
    for file in files(conf, result) {
        let dir = file.parent().map(File::open);
        for open in [Some(File::open(&file)), dir].into_iter().flatten().flatten() {
            // Only a power cut within the next seconds would show that it failed, and there is nothing to do about it.
            open.sync_all().ok();
        }
    }
}

/// The files of the addresses in `result`, where an address management of the chain is `host-local`.
fn files(conf: &ConfList, result: &CniResult) -> Vec<PathBuf> {
    let managed = |plugin: &Map<String, Value>| {
        let ipam = plugin.get("ipam")?;
        (ipam.get("type")?.as_str()? == "host-local").then(|| {
            let dir = ipam.get("dataDir").and_then(Value::as_str);
            dir.filter(|dir| !dir.is_empty()).unwrap_or(DATA_DIR).to_owned()
        })
    };
    let dirs: Vec<String> = conf.plugins.iter().filter_map(managed).collect();
    let place = |dir: &String| {
        let network = Path::new(dir).join(&conf.name);
        result
            .ips
            .iter()
            .map(move |ip| network.join(ip.address.addr().to_string()))
    };
    dirs.iter().flat_map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_an_address_is_where_the_plugin_puts_it() {
        let result: CniResult = serde_json::from_str(r#"{"ips": [{"address": "10.9.0.7/24"}]}"#).unwrap();
        let conf = |ipam: &str| {
            let dir = tempfile::tempdir().unwrap();
            let text = format!(
                r#"{{"cniVersion": "1.0.0", "name": "n", "plugins": [{{"type": "ptp", "ipam": {ipam}}}]}}"#
            );
            std::fs::write(dir.path().join("n.conflist"), text).unwrap();
            crate::load(dir.path(), "n").unwrap()
        };
        assert_eq!(
            files(&conf(r#"{"type": "host-local"}"#), &result),
            [Path::new("/var/lib/cni/networks/n/10.9.0.7")]
        );
        assert_eq!(
            files(&conf(r#"{"type": "host-local", "dataDir": "/run/n"}"#), &result),
            [Path::new("/run/n/n/10.9.0.7")]
        );
        assert!(files(&conf(r#"{"type": "static"}"#), &result).is_empty());
    }
}
