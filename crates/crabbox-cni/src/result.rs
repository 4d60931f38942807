//! The result of ADD by a chain of plugins: interfaces, addresses, routes, name servers.
//!
//! One type reads every version from 0.3.0 to 1.1.0, whose results differ only in optional fields. The next
//! plugin must never get a result that was serialised from here: it gets the previous plugin's own output.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The result of an ADD.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CniResult {
    /// The version of its format.
    pub cni_version: String,
    /// The interfaces that were made, on the host and in the container.
    pub interfaces: Vec<Interface>,
    /// The addresses that were assigned.
    pub ips: Vec<IpConfig>,
    /// The routes that were set.
    pub routes: Vec<Route>,
    /// The name servers of the network.
    pub dns: Dns,
}

/// One interface of a result.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, as text.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes, from 1.1.0 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Empty on the host; in the container the path of the namespace, or of whatever isolates it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

/// One address of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// The index of its interface in the result; absent or negative if it belongs to none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<i64>,
    /// The address with its prefix.
    pub address: IpNet,
    /// The default gateway of its subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// One route of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Its destination.
    pub dst: IpNet,
    /// Its next hop; absent means the gateway of the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
}

/// The name servers of a result.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Their addresses, in order of preference.
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// The domains to search.
    pub search: Vec<String>,
    /// Options for the resolver.
    pub options: Vec<String>,
}

impl CniResult {
    /// The interface that `ip` belongs to.
    pub fn interface_of(&self, ip: &IpConfig) -> Option<&Interface> {
        self.interfaces.get(usize::try_from(ip.interface?).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_reads_into_the_one_shape() {
        let old = r#"{"cniVersion":"0.3.1","interfaces":[{"name":"veth0","mac":"aa:bb:cc:dd:ee:ff","sandbox":"/ns"}],
            "ips":[{"version":"4","interface":0,"address":"10.1.2.3/24","gateway":"10.1.2.1"}],
            "routes":[{"dst":"0.0.0.0/0"}],"dns":{}}"#;
        let new = r#"{"cniVersion":"1.1.0","interfaces":[{"name":"veth0","mac":"aa:bb:cc:dd:ee:ff","mtu":9000,"sandbox":"/ns","pciID":"x"}],
            "ips":[{"interface":0,"address":"10.1.2.3/24","gateway":"10.1.2.1"}],
            "routes":[{"dst":"0.0.0.0/0","mtu":1400,"table":7}],"dns":{"nameservers":["9.9.9.9"]}}"#;
        let (old, new): (CniResult, CniResult) = (
            serde_json::from_str(old).unwrap(),
            serde_json::from_str(new).unwrap(),
        );
        assert_eq!(old.ips, new.ips);
        assert_eq!(old.interface_of(&old.ips[0]).unwrap().name, "veth0");
        assert_eq!(
            (new.interfaces[0].mtu, new.dns.nameservers[0].as_str()),
            (Some(9000), "9.9.9.9")
        );
    }

    #[test]
    fn an_address_without_an_interface_belongs_to_none() {
        let text = r#"{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"},{"interface":-1,"address":"10.1.2.4/24"},{"interface":5,"address":"10.1.2.5/24"}]}"#;
        let result: CniResult = serde_json::from_str(text).unwrap();
        assert!(result.ips.iter().all(|ip| result.interface_of(ip).is_none()));
    }
}
