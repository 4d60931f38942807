//! The `cni` mode with the plugins that Debian ships.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Instant;

use crabbox_cni::Attachment;
use crabbox_host::netns;
use crabbox_net::{CniSpec, Outer, Policy, attach_cni, detach_cni, map_inner, plan_cni};

use crate::lab::{Guest, Lab, greeting, inner, links, serve};

/// Where Debian's `containernetworking-plugins` puts them.
const PLUGINS: &str = "/usr/lib/cni";

fn network(lab: &Lab, plugins: &str) {
    lab.write(
        "net.d/10-lab.conflist",
        &format!(r#"{{"cniVersion":"1.0.0","name":"lab","plugins":[{plugins}]}}"#),
    );
}

fn ipam(lab: &Lab) -> String {
    let data = lab.path("ipam");
    let routes = r#""routes":[{"dst":"0.0.0.0/0"}]"#;
    format!(
        r#"{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"10.99.0.0/24"}}]],{routes}}}"#,
        data.display()
    )
}

fn plan(lab: &Lab, lease: &str) -> Attachment {
    let spec = CniSpec {
        conf_dir: lab.path("net.d"),
        bin_dirs: vec![lab.path("no-such-dir"), PathBuf::from(PLUGINS)],
        network: "lab".to_owned(),
        container_id: format!("cbx-{lease}"),
        netns: lab.path(lease),
        ifname: "veth0".to_owned(),
        cache_dir: lab.path("cache"),
    };
    plan_cni(&spec).unwrap()
}

/// A lease whose attachment has been through the journal, as the engine's has.
fn attach(lab: &Lab, lease: &str) -> (Attachment, Outer) {
    netns::create(&lab.path(lease)).unwrap();
    let saved = serde_json::to_string(&plan(lab, lease)).unwrap();
    let attachment: Attachment = serde_json::from_str(&saved).unwrap();
    let outer = attach_cni(&attachment).unwrap();
    (attachment, outer)
}

fn reserved(lab: &Lab) -> Vec<String> {
    let mut files: Vec<_> = std::fs::read_dir(lab.path("ipam/lab"))
        .map(|entries| {
            entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect()
        })
        .unwrap_or_default();
    files.retain(|name| name.starts_with("10."));
    files
}

#[test]
fn ptp_carries_a_lease_and_leaves_nothing() {
    Lab::run(|lab| {
        network(lab, &format!(r#"{{"type":"ptp","ipam":{}}}"#, ipam(lab)));
        let started = Instant::now();
        let (attachment, outer) = attach(lab, "lease");
        println!("create and attach: {:?}", started.elapsed());
        assert_eq!(
            (outer.ifname.as_str(), outer.prefix, outer.mtu),
            ("veth0", 24, 1500)
        );
        assert_eq!(outer.gateway, Ipv4Addr::new(10, 99, 0, 1));
        let started = Instant::now();
        map_inner(&inner(&attachment.netns, outer.clone(), Policy::default())).unwrap();
        println!("map: {:?}", started.elapsed());
        let guest = Guest::behind(lab, &attachment.netns, "guest");
        guest.within(|| serve(Ipv4Addr::UNSPECIFIED, 22, "ssh"));
        assert_eq!(
            greeting(outer.address, 22).unwrap(),
            "ssh",
            "the host reaches the guest at the outer address"
        );
        assert_eq!((reserved(lab).len(), links().len()), (1, 1));

        // The configuration is gone, the lease's saved attachment is not.
        std::fs::remove_dir_all(lab.path("net.d")).unwrap();
        let started = Instant::now();
        detach_cni(&attachment).unwrap();
        println!("detach: {:?}", started.elapsed());
        assert_eq!((reserved(lab), links()), (Vec::new(), Vec::new()));
        assert_eq!(std::fs::read_dir(lab.path("cache/results")).unwrap().count(), 0);
        detach_cni(&attachment).unwrap();
        drop(guest);
        netns::remove(&attachment.netns).unwrap();
        detach_cni(&attachment).unwrap();
    });
}

#[test]
fn a_namespace_that_died_first_is_detached_all_the_same() {
    Lab::run(|lab| {
        network(lab, &format!(r#"{{"type":"ptp","ipam":{}}}"#, ipam(lab)));
        let (attachment, _) = attach(lab, "lease");
        netns::remove(&attachment.netns).unwrap();
        // As a reboot leaves it: the file is there and holds no namespace.
        std::fs::write(&attachment.netns, "").unwrap();
        assert_eq!(reserved(lab).len(), 1);
        detach_cni(&attachment).unwrap();
        assert_eq!(reserved(lab), Vec::<String>::new());
        std::fs::remove_file(&attachment.netns).unwrap();
    });
}
