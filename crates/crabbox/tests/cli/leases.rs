//! Commands on leases that consist only of records, claims and a process: their output and exit codes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crabbox_host::clock;

use crate::place::Place;
use crate::world::{ID, MADE, Machine, OTHER, Record, claim, leased, read_claim, record};

#[test]
fn inspect_prints_a_line_a_field_then_the_labels() {
    let place = Place::new();
    Record::new(ID, "jade-krill").write(&place);
    let answer = place.run(&["inspect", "--provider", "firecracker", "jade-krill"]);
    assert_eq!((answer.code, answer.err.as_str()), (0, ""));
    let key = place.path(&format!("home/.config/crabbox/testboxes/{ID}/id_ed25519"));
    let head = format!(
        "id={ID}\nslug=jade-krill\nprovider=firecracker\ntarget=linux\nwindows_mode=-\nstate=stopped\n\
         server=crabbox-jade-krill-1a2b3c4d\nhost=127.0.0.1\nnetwork=public\nssh={} -p 1 crabbox@127.0.0.1\n\
         ssh_fallback_ports=-\nidle_for=",
        key.display()
    );
    assert!(answer.out.starts_with(&head), "{}", answer.out);
    let labels: Vec<&str> = answer
        .out
        .lines()
        .filter_map(|line| line.strip_prefix("label."))
        .collect();
    assert!(labels.is_sorted() && labels.len() == 12, "{labels:?}");
    assert_eq!(labels[0], format!("created_at={MADE}"));
    let json: serde_json::Value = serde_json::from_str(&place.run(&["inspect", "--json", ID]).out).unwrap();
    assert_eq!(
        (&json["state"], &json["ready"], &json["serverType"]),
        (&"stopped".into(), &false.into(), &"microvm".into())
    );
    let usage = place.run(&["inspect"]);
    assert_eq!(
        (usage.code, usage.err.as_str()),
        (2, "usage: crabbox inspect --id <lease-id-or-slug>\n")
    );
}

#[test]
fn a_heartbeat_moves_the_expiry_in_record_and_claim() {
    let (place, _machine) = leased();
    let before = clock::unix_seconds();
    let answer = place.run(&["heartbeat", "jade-krill"]);
    assert_eq!((answer.code, answer.err.as_str()), (0, ""));
    let head = format!(
        "heartbeat lease={ID} slug=jade-krill provider=firecracker state=ready idle_timeout=30m0s last_touched="
    );
    assert!(
        answer.out.starts_with(&head) && answer.out.contains(" expires="),
        "{}",
        answer.out
    );
    let labels = record(&place, ID)["labels"].clone();
    let number = |name: &str| labels[name].as_str().unwrap().parse::<i64>().unwrap();
    assert!(
        (before..before + 60).contains(&number("last_touched_at")),
        "{labels}"
    );
    // The lease's time to live has long passed, so the idle limit cannot extend it.
    assert_eq!(
        (number("expires_at"), &labels["state"]),
        (MADE + 5400, &"ready".into())
    );
    assert_ne!(read_claim(&place, ID)["lastUsedAt"], "2025-07-31T22:13:20Z");
}

#[test]
fn a_heartbeat_s_idle_timeout_stays() {
    let (place, machine) = leased();
    let now = clock::unix_seconds();
    Record::new(ID, "jade-krill")
        .on(&machine)
        .label("created_at", &now.to_string())
        .write(&place);
    let answer = place.run(&["heartbeat", "--id", ID, "--idle-timeout", "10m", "--json"]);
    let keys: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&answer.out).unwrap();
    let names: Vec<&String> = keys.keys().collect();
    assert_eq!(
        names,
        [
            "id",
            "slug",
            "provider",
            "state",
            "lastTouchedAt",
            "idleTimeout",
            "expiresAt"
        ]
    );
    assert_eq!(keys["idleTimeout"], "10m0s");
    let labels = record(&place, ID)["labels"].clone();
    let number = |name: &str| labels[name].as_str().unwrap().parse::<i64>().unwrap();
    assert_eq!(number("expires_at") - number("last_touched_at"), 600, "{labels}");
    assert_eq!(read_claim(&place, ID)["idleTimeoutSeconds"], 600);
    // The next heartbeat without the flag keeps the value.
    assert!(place.run(&["heartbeat", ID]).out.contains(" idle_timeout=10m0s "));
}

#[test]
fn a_heartbeat_is_refused_without_a_claim_and_after_the_end() {
    let (place, _machine) = leased();
    Record::new(OTHER, "brisk-crab").write(&place);
    let refused: &[(&[&str], i32, &str)] = &[
        (
            &["heartbeat"],
            2,
            "usage: crabbox heartbeat --id <lease-id-or-slug>\n",
        ),
        (
            &["heartbeat", "--idle-timeout", "0s", ID],
            2,
            "idle timeout must be positive\n",
        ),
        (
            &["heartbeat", "--idle-timeout=-5m", ID],
            2,
            "idle timeout must be positive\n",
        ),
        (&["heartbeat", "nobody"], 4, "lease/server not found: nobody\n"),
        (
            &["heartbeat", OTHER],
            4,
            "lease cbx_ba9876543210 is not claimed for provider=firecracker; refusing heartbeat\n",
        ),
    ];
    for (words, code, want) in refused {
        let answer = place.run(words);
        assert_eq!((answer.code, answer.out.as_str()), (*code, ""), "{words:?}");
        assert!(answer.err.starts_with(want), "{words:?}: {}", answer.err);
    }
    claim(&place, OTHER, "brisk-crab", "firecracker");
    let ended = place.run(&["heartbeat", OTHER]);
    assert_eq!(ended.code, 5);
    assert!(
        ended
            .err
            .starts_with("lease cbx_ba9876543210 is in terminal state stopped\n"),
        "{}",
        ended.err
    );
}

#[test]
fn the_claim_chooses_the_provider_and_a_flag_wins() {
    let (place, _machine) = leased();
    claim(&place, "static_host", "host", "ssh");
    claim(&place, "cbx_aaaaaaaaaaaa", "twice", "firecracker");
    claim(&place, "other_1", "twice", "hetzner");
    claim(&place, "other_2", "far", "hetzner");
    let cases: &[(&[&str], i32, &str)] = &[
        (
            &["status", "static_host"],
            2,
            "provider=ssh requires static.host or CRABBOX_STATIC_HOST\n",
        ),
        (
            &["stop", "static_unclaimed"],
            2,
            "provider=ssh requires static.host",
        ),
        (
            &["status", "twice"],
            2,
            "slug \"twice\" is claimed under several providers (firecracker, hetzner); name the lease by its id, or give --provider\n",
        ),
        (
            &["status", "far"],
            2,
            "unknown provider \"hetzner\"; this program has firecracker and ssh\n",
        ),
        (
            &["ssh", "--provider", "ssh", "jade-krill"],
            2,
            "provider=ssh requires static.host or CRABBOX_STATIC_HOST\n",
        ),
        (
            &["heartbeat", "--provider", "firecracker", "far"],
            4,
            "lease/server not found: far\n",
        ),
        (
            &["status", "--provider", "firecracker", "twice"],
            4,
            "firecracker lease \"cbx_aaaaaaaaaaaa\" has a stale local claim but no local state; run `crabbox cleanup --provider firecracker`\n",
        ),
        (
            &["pause", "jade-krill"],
            2,
            "provider=firecracker does not support pause\n",
        ),
        (
            &["resume", "--id", ID],
            2,
            "provider=firecracker does not support resume\n",
        ),
        (&["pause", "host"], 2, "provider=ssh does not support pause\n"),
        (
            &["ports", "--id", ID, "8080"],
            2,
            "provider=firecracker does not support ports; use a provider with native port publishing\n",
        ),
        (&["stop", "host"], 0, "released static lease=static_host host=-\n"),
    ];
    for (words, code, want) in cases {
        let answer = place.run(words);
        assert_eq!(
            (answer.code, answer.out.as_str()),
            (*code, ""),
            "{words:?}: {}",
            answer.err
        );
        assert!(answer.err.starts_with(want), "{words:?}: {}", answer.err);
    }
    // The claim wins over the provider in the configuration.
    place.write("home/.config/crabbox/config.yaml", "provider: ssh\n");
    assert_eq!(place.run(&["heartbeat", "jade-krill"]).code, 0);
}

#[test]
fn without_a_provider_only_an_existing_lease_says_which_one_is_meant() {
    let (place, _machine) = leased();
    for words in [
        &["list"][..],
        &["cleanup"],
        &["pool", "list", "--json"],
        &["warmup"],
        &["pause"],
    ] {
        let answer = place.run(words);
        assert_eq!((answer.code, answer.out.as_str()), (2, ""), "{words:?}");
        assert!(
            answer.err.starts_with(
                "no provider selected; use --provider <name>, set CRABBOX_PROVIDER, or configure a provider; \
                 run 'crabbox providers recommend' to compare options\n"
            ),
            "{words:?}: {}",
            answer.err
        );
    }
    assert_eq!(place.run(&["inspect", "jade-krill"]).code, 0);
    // A record suffices: a lease does not vanish with its claim.
    Record::new(OTHER, "brisk-crab").write(&place);
    assert_eq!(place.run(&["inspect", "brisk-crab"]).code, 0);
    let ssh = place.run(&["cleanup", "--provider", "ssh"]);
    assert_eq!(
        (ssh.code, ssh.err.as_str()),
        (2, "machine cleanup is not supported for provider=ssh\n")
    );
}

#[test]
fn list_shows_every_lease_and_tells_about_bad_records() {
    let (place, _machine) = leased();
    let list = |more: &[&str]| place.run(&[&["list", "--provider", "firecracker"], more].concat());
    let line = format!(
        "crabbox-jade-krill-1a2b3c4d crabbox-jade-krill-1a2b3c4d  ready        microvm        127.0.0.1       lease={ID} slug=jade-krill keep=false target=linux\n"
    );
    assert_eq!(list(&[]).out, line);
    let bad = Record::new(OTHER, "brisk-crab").write(&place);
    fs::write(bad.join("metadata.json"), "{").unwrap();
    let answer = list(&["--json"]);
    assert_eq!(answer.code, 0);
    assert!(
        answer
            .err
            .starts_with(&format!("warning: lease {OTHER} is left out: ")),
        "{}",
        answer.err
    );
    let json: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(
        (json.as_array().unwrap().len(), &json[0]["CloudID"]),
        (1, &"crabbox-jade-krill-1a2b3c4d".into())
    );
    // A readable record with invalid contents is also left out, without affecting others.
    for (field, value) in [("sshPort", "abc"), ("sshUser", "-oProxyCommand=x")] {
        let mut odd = Record::new(OTHER, "brisk-crab");
        odd.0[field] = value.into();
        odd.write(&place);
        let answer = list(&[]);
        assert_eq!((answer.code, answer.out.as_str()), (0, line.as_str()), "{field}");
        assert!(
            answer.err.contains(&format!("lease {OTHER} is left out: ")) && answer.err.contains(value),
            "{field}: {}",
            answer.err
        );
    }
    assert_eq!(
        Place::new()
            .run(&["list", "--provider", "firecracker", "--json"])
            .out,
        "[]\n"
    );
}

#[test]
fn a_lease_of_a_later_version_is_left_whole_and_says_what_can_take_it_back() {
    let (place, _machine) = leased();
    let fix = "use the crabbox that made the lease, or a newer one";
    // A record of a later version is reported and left out, without affecting other leases.
    let mut later = Record::new(OTHER, "brisk-crab");
    later.0["schemaVersion"] = 2.into();
    let dir = later.write(&place);
    let list = place.run(&["list", "--provider", "firecracker"]);
    assert!(list.code == 0 && list.out.contains(ID), "{}", list.err);
    assert!(
        list.err.contains("has schemaVersion 2, but this program knows 1"),
        "{}",
        list.err
    );
    let status = place.run(&["status", "--provider", "firecracker", OTHER]);
    assert!(status.code == 2 && status.err.contains(fix), "{}", status.err);
    let cleaned = place.run(&["cleanup", "--provider", "firecracker"]);
    assert!(
        cleaned.err.contains(&format!("skip firecracker lease={OTHER}")),
        "{}",
        cleaned.err
    );
    // Now the journal is of a later version: neither stop nor cleanup touches anything.
    let mut later = Record::new(OTHER, "brisk-crab");
    later.0["schemaVersion"] = 1.into();
    later.write(&place);
    let opened = format!("{{\"entry\":\"open\",\"version\":2,\"lease\":\"{OTHER}\",\"at\":1}}\n");
    fs::write(dir.join("journal.jsonl"), opened).unwrap();
    let stop = place.run(&["stop", "--provider", "firecracker", OTHER]);
    assert!(
        stop.code == 2
            && stop
                .err
                .contains("format version 2 is newer than this program's 1")
            && stop.err.contains(fix),
        "{} {}",
        stop.code,
        stop.err
    );
    let cleaned = place.run(&["cleanup", "--provider", "firecracker"]);
    assert!(
        cleaned.code == 7 && cleaned.err.contains("format version 2"),
        "{}",
        cleaned.err
    );
    assert!(dir.join("metadata.json").exists() && dir.join("journal.jsonl").exists());
}

#[test]
fn cleanup_tells_the_same_in_text_and_in_one_document() {
    let place = Place::new();
    let machine = Machine::start();
    Record::new(ID, "jade-krill")
        .on(&machine)
        .label("keep", "true")
        .write(&place);
    let gone = Record::new(OTHER, "brisk-crab").write(&place);
    claim(&place, "cbx_aaaaaaaaaaaa", "lost", "firecracker");
    claim(&place, "other_1", "far", "hetzner");
    let dry = place.run(&["cleanup", "--provider", "firecracker", "--dry-run"]);
    assert_eq!(
        (dry.code, dry.out.as_str(), dry.err.as_str()),
        (
            0,
            "would remove firecracker lease=cbx_ba9876543210 vmid=crabbox-brisk-crab-1a2b3c4d reason=process_exited\n\
             would remove firecracker claim lease=cbx_aaaaaaaaaaaa slug=lost reason=missing_state\n",
            "skip firecracker lease=cbx_0123456789ab vmid=crabbox-jade-krill-1a2b3c4d reason=keep=true\n"
        )
    );
    let json = place.run(&["cleanup", "--provider", "firecracker", "--dry-run", "--json"]);
    assert_eq!(
        (json.code, json.out.as_str(), json.err.as_str()),
        (
            0,
            "{\"provider\":\"firecracker\",\"dryRun\":true,\"decisions\":[\
             {\"lease\":\"cbx_0123456789ab\",\"subject\":\"lease\",\"action\":\"skip\",\"reason\":\"keep=true\"},\
             {\"lease\":\"cbx_ba9876543210\",\"subject\":\"lease\",\"action\":\"would_remove\",\"reason\":\"process_exited\"},\
             {\"lease\":\"cbx_aaaaaaaaaaaa\",\"subject\":\"claim\",\"action\":\"would_remove\",\"reason\":\"missing_state\"}]}\n",
            ""
        )
    );
    assert!(gone.exists(), "a dry run removes nothing");
    let real = place.run(&["cleanup", "--provider", "firecracker", "--json"]);
    assert_eq!(real.code, 0, "{} {}", real.out, real.err);
    assert!(
        real.out.contains(
            r#""lease":"cbx_ba9876543210","subject":"lease","action":"remove","reason":"process_exited"}"#
        ),
        "{}",
        real.out
    );
    assert!(!gone.exists());
    let claims = place.path("home/.config/crabbox/state/claims");
    assert!(!claims.join("cbx_aaaaaaaaaaaa.json").exists() && claims.join("other_1.json").exists());
    let nothing = Place::new().run(&["cleanup", "--provider", "firecracker", "--json"]);
    assert_eq!(
        nothing.out,
        "{\"provider\":\"firecracker\",\"dryRun\":false,\"decisions\":[]}\n"
    );
}

#[test]
fn an_entry_of_the_hosts_registry_goes_with_its_lease_and_not_before() {
    let place = Place::new();
    let entries = place.path("registry/leases");
    fs::create_dir_all(&entries).unwrap();
    for dir in [&entries, &place.path("registry")] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
    }
    // Both leases belong to another state directory, and only one still exists.
    let state = place.path("elsewhere");
    fs::create_dir_all(state.join("firecracker/leases").join(OTHER)).unwrap();
    for lease in [ID, OTHER] {
        let entry = serde_json::json!({
            "lease": lease, "owner": {"state": state, "device": 1, "inode": 2}, "uid": 1_950_000_000, "block": "10.213.0.0/30"
        });
        fs::write(entries.join(format!("{lease}.json")), entry.to_string()).unwrap();
    }
    let gone = format!("firecracker entry name={ID} reason=no_lease\n");
    let dry = place.run(&["cleanup", "--provider", "firecracker", "--dry-run"]);
    assert_eq!(
        (dry.code, dry.out),
        (0, format!("would remove {gone}")),
        "{}",
        dry.err
    );
    let real = place.run(&["cleanup", "--provider", "firecracker"]);
    assert_eq!(
        (real.code, real.out),
        (0, format!("remove {gone}")),
        "{}",
        real.err
    );
    let there = |lease: &str| entries.join(format!("{lease}.json")).exists();
    assert!(!there(ID) && there(OTHER));
    // A registry that others can write to may contain anything, so nothing is removed because of it.
    fs::set_permissions(place.path("registry"), fs::Permissions::from_mode(0o777)).unwrap();
    let refused = place.run(&["cleanup", "--provider", "firecracker"]);
    assert_eq!((refused.code, refused.out.as_str()), (7, ""));
    assert!(
        refused.err.contains("others can change") && there(OTHER),
        "{}",
        refused.err
    );
}

#[test]
fn status_waits_for_nothing_that_cannot_come() {
    let place = Place::new();
    Record::new(ID, "jade-krill").write(&place);
    let now = place.run(&["status", "jade-krill"]);
    assert_eq!(now.code, 0);
    let head = format!(
        "{ID} slug=jade-krill provider=firecracker target=linux windows_mode=- state=stopped type=microvm host=127.0.0.1 \
         pond=- network=public ready=false has_host=true idle_for="
    );
    assert!(
        now.out.starts_with(&head)
            && now
                .out
                .ends_with(" idle_timeout=30m0s expires=2025-07-31T22:43:20Z\n"),
        "{}",
        now.out
    );
    let waited = place.run(&["status", "--wait", "--json", "jade-krill"]);
    assert_eq!((waited.code, waited.out.as_str()), (5, ""));
    assert_eq!(
        waited.err,
        format!("lease {ID} reached terminal state stopped before ready\n")
    );
    assert_eq!(place.run(&["status"]).code, 2);
}

#[test]
fn numbers_out_of_this_world_end_no_command_in_a_panic() {
    let extremes = [i64::MIN, i64::MAX].map(|number| number.to_string());
    let names = [
        "created_at",
        "last_touched_at",
        "expires_at",
        "idle_timeout_secs",
        "idle_timeout",
        "ttl_secs",
    ];
    for extreme in &extremes {
        let (place, machine) = (Place::new(), Machine::start());
        let record = names
            .iter()
            .fold(Record::new(ID, "jade-krill").on(&machine), |record, name| {
                record.label(name, extreme)
            });
        record.write(&place);
        for words in [
            &["list", "--provider", "firecracker"][..],
            &["list", "--provider", "firecracker", "--json"],
            &["status", ID],
            &["status", "--json", ID],
            &["inspect", ID],
            &["cleanup", "--provider", "firecracker", "--dry-run"],
            &["heartbeat", ID],
        ] {
            let answer = place.run(words);
            assert!(
                answer.code != 101 && !answer.err.contains("panicked"),
                "{extreme} {words:?}: {}",
                answer.err
            );
        }
    }
}
