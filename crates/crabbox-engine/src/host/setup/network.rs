//! The CNI network that setup writes: a veth pair per lease, a subnet of its own, masqueraded.

use ipnet::Ipv4Net;

/// The plugins that the network needs.
pub(super) const PLUGINS: [&str; 2] = ["ptp", "host-local"];

/// The default directory of `host-local`, which has a subdirectory per network.
pub(super) const ADDRESSES: &str = "/var/lib/cni/networks";

/// Candidate subnets. The Go program's own comes first, so that both programs' documentation applies.
const CANDIDATES: [&str; 4] = [
    "192.168.127.0/24",
    "192.168.126.0/24",
    "10.214.0.0/24",
    "172.29.0.0/24",
];

/// The first candidate that overlaps no route of this host; `routes` is the text of `/proc/net/route`.
pub(super) fn free(routes: &str) -> Option<&'static str> {
    let taken: Vec<Ipv4Net> = routes.lines().skip(1).filter_map(route).collect();
    CANDIDATES.into_iter().find(|candidate| {
        candidate.parse::<Ipv4Net>().is_ok_and(|candidate| {
            !taken
                .iter()
                .any(|route| route.contains(&candidate.network()) || candidate.contains(&route.network()))
        })
    })
}

/// Destination and mask of one line, both in hexadecimal and in this machine's byte order. The default route
/// is ignored, because it occupies no subnet.
fn route(line: &str) -> Option<Ipv4Net> {
    let mut words = line.split_whitespace().skip(1);
    let address = |word: Option<&str>| {
        u32::from_str_radix(word?, 16)
            .ok()
            .map(|raw| u32::from_be_bytes(raw.to_ne_bytes()))
    };
    let (destination, mask) = (address(words.next())?, address(words.nth(5))?);
    let prefix = u8::try_from(mask.leading_ones())
        .ok()
        .filter(|prefix| *prefix > 0)?;
    Ipv4Net::new(destination.into(), prefix).ok()
}

/// The file's content.
pub(super) fn conflist(name: &str, subnet: &str) -> String {
    let list = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": name,
        "plugins": [{
            "type": "ptp",
            "ipMasq": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": subnet }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    });
    format!("{list:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";

    #[test]
    fn a_subnet_that_the_host_uses_is_passed_over() {
        let default = "eth0\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        assert_eq!(free(&format!("{HEAD}{default}")), Some("192.168.127.0/24"));
        // 192.168.0.0/16 contains the first two candidates.
        let broad = "eth0\t0000A8C0\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        assert_eq!(free(&format!("{HEAD}{default}{broad}")), Some("10.214.0.0/24"));
        // A single address within a candidate is enough.
        let narrow = "eth0\t057FA8C0\t00000000\t0001\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n";
        assert_eq!(free(&format!("{HEAD}{narrow}")), Some("192.168.126.0/24"));
    }

    #[test]
    fn the_file_is_one_that_the_runtime_loads() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("10-crabbox.conflist"),
            conflist("crabbox-firecracker", CANDIDATES[0]),
        )
        .unwrap();
        let list = crabbox_cni::load(dir.path(), "crabbox-firecracker").unwrap();
        assert_eq!(list.plugins.len(), 1);
    }
}
