//! Two state directories on one host: the registry keeps their leases apart, whoever dies beside it.

use super::*;

/// The uid and address block of the lease `slug` from its journal; `crabbox` is the command line of its state
/// directory.
#[track_caller]
fn share(host: &Host, crabbox: &str, slug: &str) -> [serde_json::Value; 2] {
    let id = host
        .sh(&format!(
            "{crabbox} list --provider firecracker | grep slug={slug}"
        ))
        .exits(0)
        .lease();
    let open = host
        .sh(&format!(
            "head -n1 $(find /srv/.config/crabbox/state /srv/second -path '*/{id}/journal.jsonl')"
        ))
        .exits(0)
        .json();
    assert!(open["uid"].is_u64(), "{open}");
    ["uid", "subnet"].map(|name| open[name].clone())
}

/// The same user with another state directory.
const SECOND: &str = "XDG_STATE_HOME=/srv/second crabbox";

#[test]
fn two_state_directories_share_nothing_and_neither_takes_the_others_leases_away() {
    let host = Host::pretend();
    lease(&host, "first", "--firecracker-network nat");
    lease(&host, "chained", "--firecracker-network cni");
    let before = host.residue();
    let entries = before.iter().filter(|line| line.starts_with("entry ")).count();
    assert_eq!(entries, 2, "{before:#?}");
    // First with the registry entries lost, then with them.
    let away = host
        .sh("mv /var/lib/crabbox/registry/leases /srv/entries")
        .exits(0);
    drop(away);
    for entries in ["none", "all"] {
        if entries == "all" {
            drop(host.sh("rm -rf /var/lib/crabbox/registry/leases; mv /srv/entries /var/lib/crabbox/registry/leases").exits(0));
        }
        let cleaned = host
            .sh(&format!("{SECOND} cleanup --provider firecracker --json"))
            .exits(0)
            .json();
        assert_eq!(cleaned["decisions"], serde_json::json!([]), "{entries} entered");
        let warm = format!("{SECOND} warmup {PRETEND} --slug second --firecracker-network nat");
        drop(host.sh(&warm).exits(0));
        let [uid, block] = share(&host, SECOND, "second");
        assert!(block.is_string(), "{block}");
        for slug in ["first", "chained"] {
            let theirs = share(&host, "crabbox", slug);
            assert!(
                uid != theirs[0] && block != theirs[1],
                "{entries} entered: {uid} {block} {theirs:?}"
            );
        }
        // And the other way round, with both directories' leases alive.
        assert_eq!(cleanup(&host), "", "{entries} entered");
        for (crabbox, slug) in [("crabbox", "first"), ("crabbox", "chained"), (SECOND, "second")] {
            let alive = host
                .sh(&format!("{crabbox} run --id {slug} --no-sync -- echo alive"))
                .exits(0);
            assert_eq!(alive.stdout, "alive\n", "{slug}, {entries} entered");
        }
        drop(host.sh(&format!("{SECOND} stop second")).exits(0));
    }
    // The second directory's own files do not belong to a lease.
    drop(host.sh("rm -rf /srv/second").exits(0));
    assert_nothing_left(&before, &comes_back_to(&host, &before));
}

#[test]
fn a_death_beside_the_registry_leaves_an_entry_that_any_state_directory_takes_back() {
    let host = Host::pretend();
    lease(&host, "first", "");
    drop(host.crabbox("stop first").exits(0));
    let before = host.residue();
    let mut failures = String::new();
    for phase in ["begun", "made", "done"] {
        // The requesting command takes it back.
        let died = host.sh(&format!(
            "CRABBOX_TEST_FAILPOINT=supervisor:registry:{phase} crabbox warmup {PRETEND} --slug crash"
        ));
        if died.code != Some(5) || comes_back_to(&host, &before) != before {
            writeln!(failures, "{phase}: {died:?} {:#?}", host.residue()).ok();
        }
    }
    let entered = |residue: &[String]| residue.iter().filter(|line| line.starts_with("entry ")).count();
    // While being made, it has an entry but no directory, and is protected by its lock.
    let beside = format!("{SECOND} cleanup --provider firecracker > /srv/beside 2>&1");
    host.kill_at("registry:done", PRETEND, &beside);
    assert_eq!(host.sh("cat /srv/beside").exits(0).stdout, "");
    assert_eq!(entered(&host.residue()), 1);
    drop(host.sh("crabbox stop killed && rm /srv/beside").exits(0));
    assert_nothing_left(&before, &comes_back_to(&host, &before));
    // With both dead, the other directory's cleanup sees that only the entry is left of the lease.
    host.kill_at("registry:done", PRETEND, KILL_BOTH);
    assert_eq!(entered(&host.residue()), 1);
    let cleaned = host
        .sh(&format!("{SECOND} cleanup --provider firecracker"))
        .exits(0);
    assert!(
        cleaned.stdout.contains("remove firecracker entry name=cbx_") && cleaned.stdout.lines().count() == 1,
        "{cleaned:?}"
    );
    assert_eq!(entered(&host.residue()), 0);
    drop(cleanup(&host));
    for phase in ["begun", "done"] {
        lease(&host, "half", "");
        let died = host.sh(&format!(
            "kill -9 $(pgrep -f '[_]_supervise'); CRABBOX_TEST_FAILPOINT=cli:undo-registry:{phase} crabbox stop half; code=$?; \
             pkill -9 -f '[_]_supervise'; exit $code"
        ));
        assert_eq!(died.code, Some(137), "{died:?}");
        assert_eq!(entered(&host.residue()), usize::from(phase == "begun"));
        drop(
            host.sh(&format!("{SECOND} cleanup --provider firecracker"))
                .exits(0),
        );
        drop(cleanup(&host));
        if comes_back_to(&host, &before) != before {
            writeln!(failures, "{phase}: {:#?}", host.residue()).ok();
        }
    }
    assert!(failures.is_empty(), "{failures}");
}
