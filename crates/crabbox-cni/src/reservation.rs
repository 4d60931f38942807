//! Addresses that the plugin `host-local` has assigned: one file per address, whose content names the holder.
//! The plugin does not sync these files, so a power cut leaves them empty, and then no DEL ever finds them
//! again. They are synced here, and never changed.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::conf::ConfList;
use crate::result::CniResult;

/// Where `host-local` keeps its files unless its `dataDir` says otherwise (its `backend/disk/backend.go`).
const DATA_DIR: &str = "/var/lib/cni/networks";

/// Syncs the files of the addresses in `result`. If a file does not exist, the address was assigned by
/// another plugin or stored elsewhere, and nothing is done.
pub(crate) fn make_durable(conf: &ConfList, result: &CniResult) {
    for file in files(conf, result) {
        let dir = file.parent().map(File::open);
        for open in [Some(File::open(&file)), dir].into_iter().flatten().flatten() {
            // Ignore errors: they matter only if the power fails within the next seconds, and nothing could
            // be done.
            open.sync_all().ok();
        }
    }
}

/// The files of the addresses in `result`, if the chain's address management is `host-local`.
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
