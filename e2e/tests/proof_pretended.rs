//! Proofs on pretended hosts with a fake VMM: they say so, and the machine is given back even if a proof
//! fails.

use crabbox_e2e::{Host, assert_nothing_left};

const OURS: &str = "--provider firecracker --firecracker-binary ./fake/firecracker --firecracker-user root --firecracker-cpus 1 \
     --firecracker-memory-mib 128 --firecracker-disk-mib 64 --firecracker-network nat --firecracker-launch-timeout 20s";

fn host() -> Host {
    let host = Host::pretend();
    host.build_image("default", "word");
    // The host name is private to it, like its other namespaces.
    drop(host.sh("hostname alices-laptop").exits(0));
    host
}

#[test]
fn a_proof_of_a_pretended_host_says_so_and_a_forged_one_is_refused() {
    let host = host();
    let before = host.settled();
    let made = host
        .sh(&format!(
            "cd /srv && crabbox proof {OURS} --firecracker-work-root /srv/work"
        ))
        .exits(0);
    assert_eq!(
        made.stdout, "PASS /srv/crabbox-proof.md rung=2 kind=pretended sure=certain trust=unsigned\n",
        "{made:?}"
    );
    assert!(
        made.stderr.contains("run       ok exit=0 expected=0 "),
        "{made:?}"
    );
    assert_nothing_left(&before, &host.settled());
    let proof = host.sh("cat crabbox-proof.md").exits(0).stdout;
    assert!(proof.starts_with("# crabbox proof: passed, rung 2\n"), "{proof}");
    for seen in [
        "    hello from the working tree\n",
        "leased cbx_",
        "<address>",
        "    session in the guest\n",
    ] {
        assert!(proof.contains(seen), "{seen} in\n{proof}");
    }
    for secret in ["10.213.", "/srv", "fake", "alice", "laptop"] {
        assert!(!proof.contains(secret), "{secret} in\n{proof}");
    }
    let checked = host.crabbox("proof --check crabbox-proof.md").exits(0);
    assert!(checked.stdout.contains("\nstands for pretended: "), "{checked:?}");
    // An existing proof is not overwritten.
    let again = host
        .sh(&format!(
            "cd /srv && crabbox proof {OURS} --firecracker-work-root /srv/work"
        ))
        .exits(2);
    assert!(again.stderr.contains("/srv/crabbox-proof.md exists"), "{again:?}");
    let forged = host
        .sh("sed 's/\"kind\": \"pretended\"/\"kind\": \"hardware\"/' crabbox-proof.md > forged.md; crabbox proof --check forged.md")
        .exits(2);
    assert!(
        forged.stdout.is_empty() && forged.stderr.contains("rung: hardware (certain, rung 2)"),
        "{forged:?}"
    );
}

#[test]
fn a_proof_that_fails_half_way_gives_its_machine_back_and_says_what_was_seen() {
    let host = host();
    let before = host.settled();
    // The machine is leased, but no command has a usable work root.
    let failed = host
        .sh(&format!(
            "cd /srv && crabbox proof {OURS} --firecracker-work-root /proc/none --output failed.md"
        ))
        .exits(1);
    assert!(
        failed
            .stdout
            .starts_with("FAIL /srv/failed.md rung=0 kind=unseen "),
        "{failed:?}"
    );
    for told in [
        "warmup    ok ",
        "run       FAILED exit=6 ",
        "stop      ok ",
        "does not hold: an edit, a new file",
    ] {
        assert!(failed.stderr.contains(told), "{told}: {failed:?}");
    }
    assert_nothing_left(&before, &host.settled());
    let checked = host.crabbox("proof --check failed.md").exits(1);
    assert!(checked.stdout.starts_with("FAIL failed.md "), "{checked:?}");
    // No machine at all.
    let none = host
        .sh(&format!(
            "cd /srv && crabbox proof {OURS} --firecracker-image nosuch --output none.md"
        ))
        .exits(1);
    assert!(none.stdout.contains(" rung=0 kind=unseen "), "{none:?}");
    drop(host.crabbox("proof --check none.md").exits(1));
    assert_nothing_left(&before, &host.settled());
}

#[test]
fn ctrl_c_gives_the_machine_back_and_leaves_what_was_seen() {
    let host = host();
    let before = host.settled();
    let ended = host
        .sh(&format!(
            "cd /srv && crabbox proof {OURS} --firecracker-work-root /srv/work --output cut.md & proof=$!; \
             for i in $(seq 600); do pgrep -f '[_]_supervise' >/dev/null && break; sleep 0.05; done; kill -INT $proof; wait $proof; echo code=$?"
        ))
        .exits(0);
    assert!(ended.stdout.ends_with("code=130\n"), "{ended:?}");
    assert_nothing_left(&before, &host.settled());
    let proof = host.sh("cat cut.md").exits(0).stdout;
    assert!(proof.contains("- Interrupted: yes\n"), "{proof}");
    drop(host.crabbox("proof --check cut.md").exits(1));
}
