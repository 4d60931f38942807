//! What a crash, a race or a strange record leaves behind, on pretended hosts with a fake VMM: every step and
//! phase, hundreds of leases. Namespaces, rules, CNI plugins and logins are real; the microVM is not, and
//! `crash.rs` has the proofs on real ones.

use std::fmt::Write as _;

use crabbox_e2e::{Host, KILL_BOTH, PRETEND, assert_nothing_left};

#[path = "fake/jail.rs"]
mod jail;
#[path = "fake/ready.rs"]
mod ready;
#[path = "fake/registry.rs"]
mod registry;

/// The steps of a jailed lease from a foreign image, in order; a lease from our own image also has `mount`
/// (`crash.rs`).
const STEPS: [&str; 12] = [
    "directory",
    "supervisor",
    "key",
    "namespace",
    "tap",
    "jail",
    "cgroup",
    "vmm",
    "attach",
    "mapping",
    "claim",
    // Only without a jail; the last because it needs a different option.
    "disk",
];

/// Foreign objects on the host: made before, checked after.
const BYSTANDERS: &str = "ip netns add bystander; nft add table ip bystander; mkdir -p /srv/.config/crabbox/state/firecracker/leases/not-a-lease; \
     echo mine > /srv/.config/crabbox/state/firecracker/foreign-file; \
     echo mine > /srv/.config/crabbox/state/firecracker/leases/not-a-lease/file";

/// Waits on the host, up to 30 s, for a shell condition.
#[track_caller]
fn until(host: &Host, condition: &str) {
    let waited = host.sh(&format!(
        "for i in $(seq 600); do if {condition}; then exit 0; fi; sleep 0.05; done; exit 1"
    ));
    assert_eq!(waited.code, Some(0), "never became true: {condition}");
}

/// The residue, after waiting: the kernel frees what a dead process held only a moment later.
fn comes_back_to(host: &Host, before: &[String]) -> Vec<String> {
    let mut after = host.residue();
    for _ in 0..20 {
        if after == before {
            break;
        }
        drop(host.sh("sleep 0.1"));
        after = host.residue();
    }
    after
}

fn lease(host: &Host, slug: &str, more: &str) {
    drop(
        host.crabbox(&format!("warmup {PRETEND} --slug {slug} {more}"))
            .exits(0),
    );
}

fn cleanup(host: &Host) -> String {
    host.crabbox("cleanup --provider firecracker").exits(0).stdout
}

/// The matrix for one network mode.
fn deaths_of_the_supervisor(mode: &str) {
    let host = Host::pretend();
    drop(host.sh(BYSTANDERS).exits(0));
    lease(&host, "bystander", &format!("--firecracker-network {mode}"));
    let before = host.residue();
    let mut failures = String::new();
    for step in STEPS {
        let jail = if step == "disk" {
            "--firecracker-jailer none"
        } else {
            ""
        };
        for phase in ["begun", "made", "done"] {
            if (step, phase) == ("directory", "made") {
                // The journal is inside the directory, so this moment does not exist.
                continue;
            }
            let point = format!("supervisor:{step}:{phase}");
            let died = host.sh(&format!(
                "CRABBOX_TEST_FAILPOINT={point} crabbox warmup {PRETEND} --slug crash --firecracker-network {mode} {jail}"
            ));
            if died.code != Some(5) || !died.stderr.contains("supervisor") {
                writeln!(failures, "{point}: {died:?}").ok();
            }
            if comes_back_to(&host, &before) != before {
                let cleaned = cleanup(&host);
                let after = comes_back_to(&host, &before);
                if after != before {
                    let left: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
                    writeln!(failures, "{point}: left after `{cleaned}`: {left:#?}").ok();
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
    let alive = host
        .crabbox("run --id bystander --no-sync -- echo alive")
        .exits(0);
    assert_eq!(alive.stdout, "alive\n");
    let mine = host.sh("cat /srv/.config/crabbox/state/firecracker/foreign-file /srv/.config/crabbox/state/firecracker/leases/not-a-lease/file; \
         nft list table ip bystander; ip netns list").exits(0);
    assert!(
        mine.stdout.starts_with("mine\nmine\ntable ip bystander") && mine.stdout.contains("bystander"),
        "{mine:?}"
    );
}

#[test]
fn a_supervisor_that_dies_at_any_step_leaves_nothing_with_cni() {
    deaths_of_the_supervisor("cni");
}

#[test]
fn a_supervisor_that_dies_at_any_step_leaves_nothing_with_built_in_networking() {
    deaths_of_the_supervisor("nat");
}

/// Runs the shell words `kill` when a warmup has reached `step`.
#[track_caller]
fn kill_at(host: &Host, step: &str, kill: &str) {
    // The journal is inside the directory, and before the step `vmm` is done there is no VMM.
    let phase = if matches!(step, "directory" | "vmm") {
        "done"
    } else {
        "begun"
    };
    host.kill_at(&format!("{step}:{phase}"), PRETEND, kill);
}

#[test]
fn a_command_line_that_dies_at_any_step_is_cleaned_up_after_without_any_command() {
    let host = Host::pretend();
    lease(&host, "first", "");
    drop(host.crabbox("stop first").exits(0));
    let before = host.residue();
    for step in STEPS.into_iter().filter(|step| *step != "disk") {
        kill_at(&host, step, "kill -9 $cli");
        until(&host, "! pgrep -f '[_]_supervise' >/dev/null");
        assert_nothing_left(&before, &comes_back_to(&host, &before));
    }
}

#[test]
fn a_vmm_that_dies_at_any_step_is_cleaned_up_after_without_any_command() {
    let host = Host::pretend();
    lease(&host, "first", "");
    drop(host.crabbox("stop first").exits(0));
    let before = host.residue();
    // Before the step `vmm` there is no VMM.
    for step in ["vmm", "attach", "mapping", "claim"] {
        kill_at(&host, step, "pkill -9 -f '[f]irecracker --id'");
        // A machine that dies during its boot is made once more, and then there is a lease.
        drop(host.crabbox("stop killed"));
        until(&host, "! pgrep -f '[_]_supervise' >/dev/null");
        assert_nothing_left(&before, &comes_back_to(&host, &before));
    }
}

#[test]
fn when_both_die_at_any_step_one_cleanup_is_enough() {
    let host = Host::pretend();
    lease(&host, "first", "");
    drop(host.crabbox("stop first").exits(0));
    let before = host.residue();
    for step in STEPS.into_iter().filter(|step| *step != "disk") {
        kill_at(&host, step, KILL_BOTH);
        let cleaned = cleanup(&host);
        assert!(cleaned.contains("remove firecracker lease="), "{step}: {cleaned}");
        assert_nothing_left(&before, &comes_back_to(&host, &before));
    }
    // Even without a cleanup, any command that uses leases makes sure that it is ended.
    kill_at(&host, "claim", KILL_BOTH);
    drop(host.crabbox("list --provider firecracker").exits(0));
    until(&host, "! pgrep -f '[_]_supervise' >/dev/null");
    assert_nothing_left(&before, &comes_back_to(&host, &before));
}

#[test]
fn a_stop_that_dies_at_any_step_is_finished_by_cleanup() {
    let host = Host::pretend();
    lease(&host, "first", "");
    drop(host.crabbox("stop first").exits(0));
    let before = host.residue();
    let mut failures = String::new();
    for step in [
        "claim",
        "connection",
        "mapping",
        "attach",
        "vmm",
        "cgroup",
        "jail",
        "tap",
        "namespace",
        "key",
    ] {
        for phase in ["begun", "done"] {
            lease(&host, "half", "");
            // The supervisor would finish the teardown by itself; without it, `cleanup` must.
            let died = host.sh(&format!(
                "kill -9 $(pgrep -f '[_]_supervise'); CRABBOX_TEST_FAILPOINT=cli:undo-{step}:{phase} crabbox stop half; code=$?; \
                 pkill -9 -f '[_]_supervise'; exit $code"
            ));
            if died.code != Some(137) {
                writeln!(failures, "{step}:{phase}: stop did not die there: {died:?}").ok();
            }
            let cleaned = host.crabbox("cleanup --provider firecracker");
            let after = comes_back_to(&host, &before);
            if after != before {
                writeln!(failures, "{step}:{phase}: left after {cleaned:?}: {after:#?}").ok();
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn four_at_once_with_one_slug_all_get_a_lease_and_a_name_of_their_own() {
    let host = Host::pretend();
    lease(&host, "first", "");
    drop(host.crabbox("stop first").exits(0));
    let before = host.residue();
    drop(host.sh(&format!(
        "for i in 1 2 3 4; do crabbox warmup {PRETEND} --slug same >/dev/null 2>/tmp/$i.err & done; wait"
    )));
    let list = host.crabbox("list --provider firecracker --json").exits(0).json();
    let mut slugs: Vec<String> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|lease| lease["labels"]["slug"].as_str().unwrap().to_owned())
        .collect();
    slugs.sort();
    slugs.dedup();
    assert_eq!(slugs.len(), 4, "{list:#}");
    // Concurrent stops, heartbeats and cleanups.
    drop(host.sh(
        "ids=$(crabbox list --provider firecracker | grep -o 'lease=cbx_[0-9a-f]*' | cut -d= -f2); \
         for id in $ids; do crabbox stop $id & crabbox heartbeat $id & crabbox stop $id & done; \
         crabbox cleanup --provider firecracker & crabbox cleanup --provider firecracker & wait",
    ));
    assert_nothing_left(&before, &comes_back_to(&host, &before));
}

#[test]
fn a_cleanup_beside_warmups_touches_none_of_them() {
    let host = Host::pretend();
    let stormy = host.sh(&format!(
        "(for i in 1 2 3 4 5 6; do crabbox warmup {PRETEND} || echo FAILED; done) & warmups=$!; \
         while kill -0 $warmups 2>/dev/null; do crabbox cleanup --provider firecracker 2>&1 | grep remove; done; wait"
    ));
    assert!(
        !stormy.stdout.contains("FAILED") && !stormy.stdout.contains("remove"),
        "{stormy:?}"
    );
    assert_eq!(stormy.stdout.matches("leased cbx_").count(), 6, "{stormy:?}");
}

#[test]
fn strange_records_hide_nothing_and_block_nothing() {
    let host = Host::pretend();
    lease(&host, "gone", "");
    drop(host.crabbox("stop gone").exits(0));
    let before = host.residue();
    let state = "/srv/.config/crabbox/state/firecracker";

    // A corrupt record beside a healthy one.
    lease(&host, "healthy", "");
    lease(&host, "corrupt", "");
    let id = host.crabbox("list --provider firecracker").exits(0);
    let id = id
        .stdout
        .lines()
        .find(|line| line.contains("slug=corrupt"))
        .unwrap()
        .to_owned();
    let id = id.split("lease=").nth(1).unwrap()[..16].to_owned();
    drop(
        host.sh(&format!("echo garbage > {state}/leases/{id}/metadata.json"))
            .exits(0),
    );
    let list = host.crabbox("list --provider firecracker").exits(0);
    assert!(
        list.stdout.contains("slug=healthy") && list.stderr.contains(&id),
        "{list:?}"
    );
    let kept = host.crabbox("cleanup --provider firecracker").exits(0);
    assert!(kept.stderr.contains("unreadable_record"), "{kept:?}");
    // Its unreadable lock blocks no other lease.
    drop(
        host.sh(&format!("ln -sf /nowhere {state}/locks/{id}.lock"))
            .exits(0),
    );
    lease(&host, "beside", "");
    drop(host.crabbox("stop beside").exits(0));
    drop(host.sh(&format!("rm {state}/locks/{id}.lock")).exits(0));
    drop(host.crabbox(&format!("stop {id}")).exits(0));

    // Its CNI network disappears before it is stopped.
    drop(host.sh("mv /srv/cni /srv/cni.away").exits(0));
    drop(host.crabbox("stop healthy").exits(0));
    drop(host.sh("mv /srv/cni.away /srv/cni").exits(0));
    assert_nothing_left(&before, &comes_back_to(&host, &before));

    // A lease from an earlier boot, whose pid now belongs to another process.
    lease(&host, "rebooted", "");
    drop(host.sh(&format!(
        "kill -9 $(pgrep -f '[_]_supervise'); pkill -9 -f '[f]irecracker --id'; sleep 0.3; sleep 600 >/dev/null 2>&1 & bystander=$!; echo $bystander > /srv/pid; \
         cd {state}/leases/cbx_*; boot=$(cat /proc/sys/kernel/random/boot_id); \
         sed -i \"s/$boot/00000000-0000-0000-0000-000000000000/; s/\\\"pid\\\": *[0-9]*/\\\"pid\\\": $bystander/\" metadata.json journal.jsonl"
    )).exits(0));
    let list = host.crabbox("list --provider firecracker").exits(0);
    assert!(list.stdout.contains(" stopped "), "{list:?}");
    assert!(cleanup(&host).contains("reason=process_exited"));
    drop(
        host.sh("kill -0 $(cat /srv/pid) && kill $(cat /srv/pid) && rm /srv/pid")
            .exits(0),
    );
    assert_nothing_left(&before, &comes_back_to(&host, &before));

    // A lease as left by the Go program: a record, the cache of its CNI attachment, and no files of this
    // program.
    lease(&host, "foreign", "--firecracker-jailer none");
    drop(host.sh(&format!(
        "kill -9 $(pgrep -f '[_]_supervise'); rm {state}/leases/cbx_*/journal.jsonl; mv /srv/cni /srv/cni.away"
    )).exits(0));
    let list = host.crabbox("list --provider firecracker").exits(0);
    assert!(list.stdout.contains("slug=foreign"), "{list:?}");
    drop(host.crabbox("stop foreign").exits(0));
    drop(host.sh("mv /srv/cni.away /srv/cni").exits(0));
    assert_nothing_left(&before, &comes_back_to(&host, &before));
}

#[test]
fn objects_of_ours_without_a_lease_go_and_nobody_else_s_do() {
    let host = Host::pretend();
    lease(&host, "live", "--firecracker-network nat");
    let before = host.residue();
    drop(host.sh(
        "ip link add cbx0badcafe type veth peer name x0 && ip link set cbx0badcafe alias crabbox:cbx_000000000001; \
         nft add table ip crabbox_0badcafe; touch /srv/.config/crabbox/state/firecracker/locks/cbx_000000000001.lock; \
         mkdir -p /srv/.config/crabbox/state/firecracker/leases/cbx_000000000002",
    ).exits(0));
    // The same without our tag. A key directory may just as well belong to another provider, in this
    // program's state or the Go program's.
    drop(host.sh("ip link add cbxmine type veth peer name x1; nft add table ip crabboxes; mkdir -p /srv/.config/crabbox/testboxes/cbx_000000000003").exits(0));
    let dry = host.crabbox("cleanup --provider firecracker --dry-run").exits(0);
    for what in [
        "link name=cbx0badcafe",
        "table name=crabbox_0badcafe",
        "lock name=cbx_000000000001",
        "lease=cbx_000000000002",
    ] {
        assert!(
            dry.stdout.contains(what) && dry.stdout.contains("would remove"),
            "{what}: {dry:?}"
        );
    }
    let cleaned = host
        .crabbox("cleanup --provider firecracker --json")
        .exits(0)
        .json();
    assert!(
        cleaned["decisions"]
            .as_array()
            .unwrap()
            .iter()
            .all(|one| one["reason"].is_string()),
        "{cleaned:#}"
    );
    drop(host.sh("ip link del cbxmine && nft delete table ip crabboxes && rmdir /srv/.config/crabbox/testboxes/cbx_000000000003").exits(0));
    assert_nothing_left(&before, &comes_back_to(&host, &before));
    drop(host.crabbox("run --id live --no-sync -- true").exits(0));
}

#[test]
fn an_idle_lease_ends_and_one_in_use_does_not_until_its_time_is_over() {
    let host = Host::pretend();
    lease(&host, "first", "");
    drop(host.crabbox("stop first").exits(0));
    let before = host.residue();
    // The idle timeout ends it, although its shared connection is still open.
    lease(&host, "idle", "--idle-timeout 8s");
    until(&host, "! pgrep -f '[_]_supervise' >/dev/null");
    assert_nothing_left(&before, &comes_back_to(&host, &before));
    // In use for three times as long, it stays. When the run is killed it leaves the label `running`, and the
    // lease still ends.
    lease(&host, "busy", "--idle-timeout 8s");
    drop(
        host.sh(
            "crabbox run --id busy --no-sync -- sleep 600 >/dev/null 2>&1 & echo $! > /srv/run.pid; sleep 24",
        )
        .exits(0),
    );
    let list = host.crabbox("list --provider firecracker").exits(0);
    assert!(
        list.stdout.contains("slug=busy") && list.stdout.contains(" running "),
        "{list:?}"
    );
    drop(host.sh("kill -9 $(cat /srv/run.pid); rm /srv/run.pid; pkill -f '[s]leep 600'"));
    until(&host, "! pgrep -f '[_]_supervise' >/dev/null");
    assert_nothing_left(&before, &comes_back_to(&host, &before));
    // The time to live ends it, even in use.
    lease(&host, "short", "--ttl 12s");
    let cut = host.crabbox("run --id short --no-sync -- sleep 600");
    assert!(cut.code.is_some_and(|code| code != 0), "{cut:?}");
    until(&host, "! pgrep -f '[_]_supervise' >/dev/null");
    assert_nothing_left(&before, &comes_back_to(&host, &before));
}

#[test]
fn two_hundred_leases_four_at_a_time_leave_nothing() {
    let host = Host::pretend();
    lease(&host, "first", "");
    drop(host.crabbox("stop first").exits(0));
    let before = host.residue();
    for round in 0..50 {
        let mode = if round % 2 == 0 { "cni" } else { "nat" };
        let done = host.sh(&format!(
            "for i in 1 2 3 4; do (crabbox warmup {PRETEND} --slug c$i --firecracker-network {mode} >/tmp/$i.out 2>&1 && crabbox stop c$i >>/tmp/$i.out 2>&1 \
             && echo ok || cat /tmp/$i.out) & done; wait; rm /tmp/?.out"
        ));
        assert_eq!(done.stdout, "ok\n".repeat(4), "round {round}: {done:?}");
    }
    assert_nothing_left(&before, &comes_back_to(&host, &before));
    // The leases' resources are free again: the first uid and subnet of their ranges are given out.
    lease(&host, "last", "--firecracker-network nat");
    let opened = host
        .sh("head -1 /srv/.config/crabbox/state/firecracker/leases/cbx_*/journal.jsonl")
        .exits(0);
    assert!(opened.stdout.contains("\"uid\":1900000000"), "{opened:?}");
}
