//! `providers` and its commands: the exact text, the JSON that readers depend on, and what is refused.

use serde_json::{Value, json};

use crate::place::run;

fn document(words: &[&str]) -> Value {
    let answer = run(words);
    assert_eq!((answer.code, answer.err.as_str()), (0, ""), "{words:?}");
    serde_json::from_str(&answer.out).unwrap()
}

#[test]
fn the_providers_are_listed() {
    let want = "\
firecracker
  family: firecracker
  kind: ssh-lease
  category: self-hosted-virtualization
  targets: linux
  features: ssh,crabbox-sync,cleanup
  runtime: ssh-host
  reachability: ssh-tunnel
  lifecycle: cleanup
  coordinator: never
ssh
  family: ssh
  kind: ssh-lease
  category: byo-ssh
  targets: linux
  features: ssh,crabbox-sync
  runtime: ssh-host
  reachability: ssh-tunnel
  coordinator: never
  aliases: static,static-ssh
";
    let answer = run(&["providers"]);
    assert_eq!((answer.code, answer.out.as_str()), (0, want));
    assert_eq!(
        document(&["providers", "--json"])[1],
        json!({
            "provider": "ssh", "family": "ssh", "aliases": ["static", "static-ssh"], "kind": "ssh-lease",
            "category": "byo-ssh", "targets": ["linux"], "features": ["ssh", "crabbox-sync"],
            "runtime": ["ssh-host"], "reachability": ["ssh-tunnel"], "coordinator": "never",
            "classCatalog": {"disposition": "unmapped", "profiles": []}
        })
    );
}

#[test]
fn filters_leave_the_providers_that_have_everything() {
    let left = |words: &[&str]| -> Vec<String> {
        let list = document(&[&["providers", "--json"], words].concat());
        let names = list.as_array().unwrap().iter();
        names
            .map(|entry| entry["provider"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        left(&["--kind", "SSH-lease", "--target=linux"]),
        ["firecracker", "ssh"]
    );
    assert_eq!(left(&["--feature", "ssh, cleanup"]), ["firecracker"]);
    assert_eq!(
        left(&["--feature", "ssh", "--feature", "cleanup"]),
        ["firecracker"]
    );
    assert_eq!(left(&["--category", "byo-ssh"]), ["ssh"]);
    assert_eq!(
        left(&["--category", "byo-ssh", "--lifecycle", "cleanup"]),
        [""; 0]
    );
    assert_eq!(
        left(&["--runtime", "ssh-host", "--reachability", "ssh-tunnel"]).len(),
        2
    );
    for (words, want) in [
        (
            ["--category", "direct-cloud"],
            "unknown provider category filter \"direct-cloud\"; try one of: byo-ssh, self-hosted-virtualization\n",
        ),
        (
            ["--workspace", "fork"],
            "unknown provider workspace filter \"fork\"; no provider of this program has any\n",
        ),
        (
            ["--evidence", "proof"],
            "unknown provider evidence filter \"proof\"; no provider of this program has any\n",
        ),
    ] {
        let answer = run(&["providers", words[0], words[1]]);
        assert_eq!((answer.code, answer.out.as_str()), (2, ""), "{words:?}");
        assert!(answer.err.starts_with(want), "{}", answer.err);
    }
}

#[test]
fn the_values_of_the_filters_are_told() {
    let want = "\
provider filter values:
  kind: ssh-lease
  category: byo-ssh,self-hosted-virtualization
  target: linux
  feature: cleanup,crabbox-sync,ssh
  runtime: ssh-host
  reachability: ssh-tunnel
  workspace: -
  evidence: -
  lifecycle: cleanup
";
    let answer = run(&["providers", "filters"]);
    assert_eq!((answer.code, answer.out.as_str()), (0, want));
    let json = document(&["providers", "filters", "--json"]);
    assert_eq!(json["feature"], json!(["cleanup", "crabbox-sync", "ssh"]));
    assert_eq!(
        (&json["workspace"], json.as_object().unwrap().len()),
        (&json!([]), 9)
    );
}

#[test]
fn providers_are_ranked_for_a_use() {
    let ranked = |words: &[&str]| -> Vec<(String, u64)> {
        let list = document(&[&["providers", "recommend", "--json"], words].concat());
        let list = list.as_array().unwrap().iter();
        list.map(|one| {
            let name = one["provider"].as_str().unwrap().to_owned();
            (name, one["score"].as_u64().unwrap())
        })
        .collect()
    };
    let both =
        |one: (&str, u64), other: (&str, u64)| vec![(one.0.to_owned(), one.1), (other.0.to_owned(), other.1)];
    // The Go program's points for what these two support.
    assert_eq!(ranked(&["self-hosted"]), both(("firecracker", 105), ("ssh", 65)));
    assert_eq!(ranked(&["homelab"]), ranked(&["--use-case", "Self-Hosted"]));
    assert_eq!(ranked(&["byo"]), both(("ssh", 125), ("firecracker", 35)));
    assert_eq!(ranked(&["linux"]), both(("firecracker", 105), ("ssh", 90)));
    // Equal points are ordered by name.
    assert_eq!(ranked(&["reachability"]), both(("firecracker", 20), ("ssh", 20)));
    assert_eq!(ranked(&["offline"]), [("ssh".to_owned(), 79)]);
    assert_eq!(ranked(&["linux", "--limit", "1"]).len(), 1);
    assert_eq!(
        ranked(&["linux", "--category", "byo-ssh"]),
        [("ssh".to_owned(), 90)]
    );
    let answer = run(&["providers", "recommend", "byo-ssh", "--limit", "1"]);
    let want = "\
recommended providers for byo-ssh:
ssh
  score: 125
  kind: ssh-lease
  category: byo-ssh
  targets: linux
  features: ssh,crabbox-sync
  runtime: ssh-host
  reachability: ssh-tunnel
  reasons: a host of your own that is there already; entered over SSH; takes the working tree, and runs commands in it
";
    assert_eq!((answer.code, answer.out.as_str()), (0, want));
}

#[test]
fn without_a_use_the_known_ones_are_listed() {
    let uses = document(&["providers", "recommend", "--json"]);
    assert_eq!(
        (uses.as_array().unwrap().len(), &uses[0]),
        (35, &json!("agent-sandbox"))
    );
    let text = run(&["providers", "recommend"]).out;
    assert!(
        text.starts_with("provider recommendation use cases:\n  agent-sandbox\n"),
        "{text}"
    );
    let examples = text.split_once("\n\nexamples:\n").unwrap().1;
    for example in examples.lines() {
        let words: Vec<&str> = example.split_whitespace().skip(1).collect();
        assert_eq!(run(&words).code, 0, "{example}");
    }
}

#[test]
fn advice_that_cannot_be_given_is_refused() {
    for (words, code, want) in [
        (&["--limit", "0", "gpu"][..], 2, "--limit must be greater than 0"),
        (&["--limit=-3", "gpu"], 2, "--limit must be greater than 0"),
        (
            &["a", "b"],
            2,
            "usage: crabbox providers recommend <use-case> [--limit N] [--json]",
        ),
        (
            &["gpu", "--use-case", "gpu"],
            2,
            "pass the use case either positionally or with --use-case, not both",
        ),
        (
            &["--kind", "ssh-lease"],
            2,
            "provider recommendation filters require a use case",
        ),
        (
            &["flying"],
            2,
            "unknown provider recommendation use case \"flying\"; try one of: agent-sandbox, ",
        ),
        (&["gpu"], 1, "no providers matched use case \"gpu\""),
        (
            &["offline", "--category", "self-hosted-virtualization"],
            1,
            "no providers matched use case \"offline-validation\" with the requested filters",
        ),
        (&["linux", "--kind", "x"], 2, "unknown provider kind filter \"x\""),
    ] {
        let answer = run(&[&["providers", "recommend"], words].concat());
        assert_eq!(
            (answer.code, answer.out.as_str()),
            (code, ""),
            "{words:?}: {}",
            answer.err
        );
        assert!(answer.err.starts_with(want), "{words:?}: {}", answer.err);
    }
}

fn flag<'a>(flags: &'a Value, name: &str) -> &'a Value {
    let flags = flags.as_array().unwrap();
    flags.iter().find(|flag| flag["name"] == name).expect(name)
}

#[test]
fn a_provider_is_described_with_typed_flags() {
    let json = document(&["providers", "describe", "firecracker", "--json"]);
    let (shared, own) = (&json["sharedFlags"], &json["providerFlags"]);
    assert_eq!(
        (&json["schemaVersion"], &json["runnable"], &json["kind"]),
        (&json!(2), &json!(true), &json!("ssh-lease"))
    );
    assert_eq!(
        json["provider"],
        json!({
            "requested": "firecracker", "canonical": "firecracker", "inputAlias": "", "aliases": [],
            "deprecated": false, "replacement": ""
        })
    );
    assert_eq!(
        json["capabilities"]["features"],
        json!(["cleanup", "crabbox-sync", "ssh"])
    );
    assert_eq!(
        flag(own, "firecracker-cpus"),
        &json!({
            "name": "firecracker-cpus", "type": "int", "valueShape": "scalar", "default": 4, "repeatable": false,
            "usage": "Virtual processors", "deprecated": false, "replacement": "", "routing": false, "creationOnly": false
        })
    );
    let typed = |flags: &Value, name: &str| {
        let flag = flag(flags, name);
        (
            flag["type"].as_str().unwrap().to_owned(),
            flag["valueShape"].as_str().unwrap().to_owned(),
            flag["default"].clone(),
        )
    };
    let scalar = |kind: &str, default: Value| (kind.to_owned(), "scalar".to_owned(), default);
    assert_eq!(
        typed(own, "firecracker-launch-timeout"),
        scalar("string", json!("2m0s"))
    );
    assert_eq!(
        typed(own, "firecracker-delete-on-release"),
        scalar("bool", json!(true))
    );
    assert_eq!(typed(shared, "ttl"), scalar("duration", json!("1h30m0s")));
    assert_eq!(typed(shared, "ssh-port"), scalar("string", json!("2222")));
    assert_eq!(typed(shared, "keep"), scalar("bool", json!(false)));
    assert_eq!(typed(shared, "profile"), scalar("string", json!("default")));
    assert_eq!(typed(shared, "id"), scalar("string", json!("")));
    let download = flag(shared, "download");
    assert_eq!(
        (
            &download["valueShape"],
            &download["default"],
            &download["repeatable"]
        ),
        (&json!("string-list"), &json!([]), &json!(true))
    );
    // Alternative spellings are included in the sorting; refused flags are absent.
    let names: Vec<&str> = shared
        .as_array()
        .unwrap()
        .iter()
        .map(|flag| flag["name"].as_str().unwrap())
        .collect();
    assert!(names.is_sorted() && names.contains(&"fresh-sync") && names.contains(&"static-host"));
    for absent in ["pool", "image-sdk", "help", "v", "firecracker-cpus"] {
        assert!(!names.contains(&absent), "{absent}");
    }
    // The Go program's 19, and the flag for the KVM host.
    assert_eq!(own.as_array().unwrap().len(), 20);
}

#[test]
fn an_alias_is_told_from_the_name() {
    let json = document(&["providers", "describe", "--json", " Static "]);
    assert_eq!(
        json["provider"],
        json!({
            "requested": "static", "canonical": "ssh", "inputAlias": "static", "aliases": ["static", "static-ssh"],
            "deprecated": false, "replacement": ""
        })
    );
    assert_eq!(
        (&json["providerFlags"], &json["targets"]),
        (&json!([]), &json!(["linux"]))
    );
    let text = run(&["providers", "describe", "static-ssh"]).out;
    let want = "\
static-ssh -> ssh
  kind: ssh-lease
  runnable: true
  family: ssh
  aliases: static,static-ssh
  deprecated: false
  replacement: -
  targets: linux
  features: crabbox-sync,ssh
  runtime: ssh-host
  reachability: ssh-tunnel
  workspace: -
  evidence: -
  lifecycle: -
  coordinator: never

Shared run flags:
  --allow-env
    type: string; value shape: string-list; default: []; repeatable: true
    deprecated: false; replacement: -; routing: false; creation-only: false
    Also forward this environment variable
";
    assert!(text.starts_with(want), "{text}");
    assert!(text.ends_with("\n\nssh flags:\n  (none)\n"), "{text}");
}

#[test]
fn only_one_known_name_is_described() {
    for (words, want) in [
        (&[][..], "usage: crabbox providers describe <provider> [--json]\n"),
        (
            &["ssh", "static"],
            "usage: crabbox providers describe <provider> [--json]\n",
        ),
        (&[" "], "provider name must not be empty\n"),
        (&["hetzner"], "unknown provider \"hetzner\""),
    ] {
        let answer = run(&[&["providers", "describe", "--json"], words].concat());
        assert_eq!((answer.code, answer.out.as_str()), (2, ""), "{words:?}");
        assert!(answer.err.starts_with(want), "{words:?}: {}", answer.err);
    }
}
