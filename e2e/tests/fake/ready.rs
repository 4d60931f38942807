//! Machines that run and do not become ready: each is given up in time, taken back, and its owner told why.

use super::*;

#[test]
fn a_machine_that_never_answers_is_given_up_in_time_and_taken_back() {
    let host = Host::pretend();
    lease(&host, "first", "");
    drop(host.crabbox("stop first").exits(0));
    let before = host.residue();
    drop(
        host.sh("echo '{\"sshd\": false}' > /srv/fake/fake-vmm.json")
            .exits(0),
    );
    for mode in ["cni", "nat"] {
        let given_up = host
            .sh(&format!(
                "timeout 60 crabbox warmup {PRETEND} --firecracker-network {mode} --firecracker-launch-timeout 4s"
            ))
            .exits(5);
        assert!(given_up.stderr.contains("not ready after"), "{given_up:?}");
        assert_nothing_left(&before, &comes_back_to(&host, &before));
    }
}

#[test]
fn a_foreign_image_that_does_not_become_ready_is_given_back_and_says_why() {
    let host = Host::pretend();
    let before = host.residue();
    let ready = "printf '#!/bin/sh\\nsleep 0.2\\necho crabbox-ready: git is missing\\nexit 1\\n' > /usr/local/bin/crabbox-ready";
    drop(host.sh(ready).exits(0));
    // It ends in the middle of a session, after one that has said what is missing.
    let warmup = host.crabbox(&format!("warmup {PRETEND} --firecracker-launch-timeout 18s"));
    let told = warmup.exits(5).stderr;
    for part in [
        "timed out waiting for SSH on ",
        " during bootstrap (ready-check); next_action=",
        "the ready command exited with 1: crabbox-ready: git is missing",
        "the image must have git, rsync, curl and jq",
        "bootstrap ready-check... elapsed=",
        "console tail last ",
    ] {
        assert!(told.contains(part), "{part:?} in {told}");
    }
    assert_nothing_left(&before, &comes_back_to(&host, &before));
}
