//! The parts of the host's network that leases depend on.

use std::path::{Path, PathBuf};

use crabbox_core::config::firecracker::FirecrackerPlan;
use crabbox_host::command::find_on_path;
use crabbox_machine::resource::network::DEBIAN_CNI;
use crabbox_net::nat::{self, Passage};

use super::super::world::{Chain, Network, ObserveError, Observed};
use super::{entry, kernel_file};

/// Observes the CNI network and other programs' packet filters.
pub(super) fn network(plan: &FirecrackerPlan) -> Network {
    let dirs = [plan.cni_bin_dir.as_path(), Path::new(DEBIAN_CNI)];
    let chain = crabbox_cni::load(plan.cni_conf_dir.as_path(), plan.cni_network.as_str());
    Network {
        conf_dir: entry(plan.cni_conf_dir.as_path()),
        bin_dirs: dirs.map(entry).to_vec(),
        chain: chain
            .map(|list| chain_of(&list, &dirs))
            .map_err(|error| ObserveError::chain(&error)),
        forwards: kernel_file("/proc/sys/net/ipv4/ip_forward") == "1",
        passage: passage(),
        filters: nat::filters().unwrap_or_default(),
    }
}

/// Sends a packet as a lease would. Only root can make the namespace to send it from, and only root can have
/// leases.
fn passage() -> Observed<Passage> {
    if !rustix::process::geteuid().is_root() {
        return Err(ObserveError::new("only root can send a packet as a lease would"));
    }
    nat::passage().map_err(|error| ObserveError::chain(&error))
}

fn chain_of(list: &crabbox_cni::ConfList, dirs: &[&Path]) -> Chain {
    let types = list.plugin_types().into_iter();
    let plugins = types.map(|name| (name.to_owned(), program(name, dirs))).collect();
    Chain {
        file: list.file.clone(),
        plugins,
    }
}

/// The executable of a plugin: the first match in the directories, in the runtime's search order.
fn program(name: &str, dirs: &[&Path]) -> Option<PathBuf> {
    dirs.iter()
        .find_map(|dir| find_on_path(dir.join(name).as_os_str(), "".as_ref()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn every_program_of_a_chain_is_looked_for_and_must_be_executable() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp","ipam":{"type":"host-local"}},{"type":"firewall"}]}"#;
        std::fs::write(dir.path().join("n.conflist"), text).unwrap();
        for (name, mode) in [("ptp", 0o755), ("host-local", 0o644)] {
            std::fs::write(dir.path().join(name), "").unwrap();
            std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let list = crabbox_cni::load(dir.path(), "n").unwrap();
        let chain = chain_of(&list, &[Path::new("/nowhere"), dir.path()]);
        let found: Vec<_> = chain
            .plugins
            .iter()
            .map(|(name, path)| (name.as_str(), path.is_some()))
            .collect();
        assert_eq!(found, [("ptp", true), ("host-local", false), ("firewall", false)]);
    }
}
