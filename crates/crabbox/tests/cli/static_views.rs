//! What `status`, `inspect` and `doctor` show of a host that exists already.

use serde_json::{Value, json};

use crate::place::{Answer, Place};
use crate::static_host::{ID, configure, ended, existing, key};

#[test]
fn the_ports_that_would_be_tried_next_are_shown() {
    let (place, sshd) = existing();
    let configure = |ports: &str| {
        let text = format!(
            "provider: ssh\nssh:\n  key: {}\n  user: {}\n  port: {}\n{ports}static:\n  host: 127.0.0.1\n  workRoot: {}\n",
            key(&place, &sshd),
            sshd.user(),
            sshd.port(),
            sshd.dir().join("work").display()
        );
        place.write("home/.config/crabbox/config.yaml", text);
    };
    // What a lease would try, and then what this one did.
    for (ports, would) in [("", json!([])), ("  fallbackPorts: [1, 2]\n", json!(["1", "2"]))] {
        configure(ports);
        let shown = place.run(&["config", "show", "--json"]);
        let view: Value = serde_json::from_str(&shown.out).unwrap();
        assert_eq!(view["sshFallbackPorts"], would, "{view}");
        assert_eq!(view["sshPort"], sshd.port().to_string(), "{view}");
    }
    configure("");
    let warmup = place.run(&["warmup"]);
    assert_eq!(warmup.code, 0, "{}", warmup.err);
    for (ports, as_json, as_text) in [
        ("", Value::Null, "-"),
        ("  fallbackPorts: [1, 2]\n", json!(["1", "2"]), "1,2"),
    ] {
        configure(ports);
        for command in ["status", "inspect"] {
            let shown = place.run(&[command, "--json", ID]);
            assert_eq!(shown.code, 0, "{}", shown.err);
            let view: Value = serde_json::from_str(&shown.out).unwrap();
            assert_eq!(view["sshFallbackPorts"], as_json, "{command} {view}");
            assert_eq!(view["sshPort"], sshd.port().to_string(), "{command} {view}");
        }
        let shown = place.run(&["inspect", ID]);
        let line = format!("\nssh_fallback_ports={as_text}\n");
        assert!(shown.out.contains(&line), "{}", shown.out);
    }
    let stop = place.run(&["stop", ID]);
    assert_eq!(stop.code, 0, "{}", stop.err);
}

/// The document of `doctor --json`.
fn doctor(place: &Place, more: &[&str]) -> (Answer, Value) {
    let answer = place.run(&[&["doctor", "--json"], more].concat());
    let document = serde_json::from_str(&answer.out).expect(&answer.err);
    (answer, document)
}

#[test]
fn the_doctor_of_a_lease_looks_at_the_provider_and_host_of_its_claim() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    let warmup = place.run(&["warmup", "--slug", "box"]);
    assert_eq!(warmup.code, 0, "{}", warmup.err);
    let key = key(&place, &sshd);
    for settings in ["", "provider: firecracker\n", "static:\n  host: build.invalid\n"] {
        let text = format!("{settings}ssh:\n  key: {key}\n");
        place.write("home/.config/crabbox/config.yaml", text);
        for name in [ID, "box"] {
            let (answer, document) = doctor(&place, &["--id", name, "--doctor-probe-ssh"]);
            assert_eq!(answer.code, 0, "{settings:?}: {} {}", answer.out, answer.err);
            assert_eq!(document["provider"], "ssh");
            let checks = document["checks"].as_array().unwrap();
            let check = |name: &str| checks.iter().find(|check| check["check"] == name).unwrap();
            let selection = check("provider-selection");
            let message = "provider=ssh source=lease_context selected=true";
            assert_eq!(selection["message"], message);
            assert_eq!(selection["details"]["source"], "lease_context");
            assert_eq!(check("remote")["details"]["lease"], ID);
            assert_eq!(check("provider")["details"]["host"], "127.0.0.1");
            assert_eq!(check("provider")["details"]["runtime"], "ssh_reachable");
            assert!(!answer.out.contains("firecracker"), "{}", answer.out);
        }
    }
    // A flag takes precedence over the claim.
    let (_, document) = doctor(&place, &["--id", "box", "--provider", "ssh"]);
    assert_eq!(document["checks"][1]["details"]["source"], "flag", "{document}");
    drop(sshd);
    let silent = place.run(&["doctor", "--id", "box"]);
    ended(&silent, 7, "remote doctor failed for static_127-0-0-1\n");
    assert!(silent.err.contains("`crabbox status --id "), "{}", silent.err);
    assert!(!silent.err.contains("crabbox logs"), "{}", silent.err);
}
