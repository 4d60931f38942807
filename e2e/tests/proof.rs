//! A proof on a real microVM: it passes, names its rung, does not identify the host, and can be checked
//! elsewhere.

use crabbox_e2e::{Host, SMALL, assert_nothing_left};

#[test]
fn a_proof_passes_says_its_rung_and_names_nothing_of_the_host() {
    let host = Host::alone();
    let before = host.residue();
    let made = host
        .sh(&format!(
            "mkdir -p $HOME/e2e && cd $HOME/e2e && rm -f proof.md && crabbox proof {SMALL} --output proof.md"
        ))
        .exits(0);
    assert!(made.stdout.starts_with("PASS "), "{made:?}");
    let proof = host.sh("cat $HOME/e2e/proof.md").exits(0).stdout;
    // The host is a lab or this machine, and so has at least a real Firecracker.
    assert!(
        proof.starts_with("# crabbox proof: passed, rung 4\n")
            || proof.starts_with("# crabbox proof: passed, rung 5\n"),
        "{proof}"
    );
    if proof.contains("hypervisor tcg") {
        assert!(
            proof.contains("\"kind\": \"emulated\"") && proof.contains("(certain)"),
            "{proof}"
        );
    }
    for own in [
        "hostname",
        "id -un | grep -v root",
        "echo $HOME/",
        "ip -o -4 address show scope global | grep -o '[0-9.]*/' | tr -d /",
    ] {
        // Short names occur inside many words.
        for name in host
            .sh(own)
            .stdout
            .split_whitespace()
            .filter(|name| name.len() > 4)
        {
            assert!(!proof.contains(name), "{name} in\n{proof}");
        }
    }
    let checked = host.sh("cd $HOME/e2e && crabbox proof --check proof.md").exits(0);
    assert!(checked.stdout.starts_with("PASS proof.md rung="), "{checked:?}");
    drop(host.sh("rm $HOME/e2e/proof.md").exits(0));
    assert_nothing_left(&before, &host.residue());
}
