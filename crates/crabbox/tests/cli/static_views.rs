//! What `status` and `inspect` show of a host that exists already.

use serde_json::{Value, json};

use crate::static_host::{ID, existing, key};

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
