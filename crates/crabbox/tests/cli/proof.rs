//! Proofs of runs: what `run --emit-proof` writes, and with which template.

use std::fs;

use crate::place::Answer;
use crate::remote::Entered;
use crate::run::entered;

const CONFIGURATION: &str = "presets:\n  hello: {command: echo hi, shell: true, proofTemplate: pr}\nproofTemplates:\n  pr:\n    behaviorAddressed: It \
                             greets in {{runId}}\n    observedResult: |-\n      It said {{logExcerpt}}\n  lacking: {notTested: '{{nobody}}'}\n";

fn run(lease: &Entered, flags: &[&str], command: &[&str]) -> Answer {
    lease
        .place
        .run(&[&["run", "--id", "jade-krill", "--no-sync"], flags, command].concat())
}

fn read(lease: &Entered, name: &str) -> String {
    fs::read_to_string(lease.place.path("repo").join(name)).unwrap()
}

#[test]
fn a_proof_is_written_by_the_preset_s_template_and_comes_before_the_receipt() {
    let lease = entered();
    lease.place.write("repo/crabbox.yaml", CONFIGURATION);
    let done = run(
        &lease,
        &[
            "--emit-proof",
            "out/p.md",
            "--attest",
            "r.json",
            "--preset",
            "hello",
            "--timing-json",
        ],
        &[],
    );
    assert_eq!(done.code, 0, "{}", done.err);
    let proof = read(&lease, "out/p.md");
    let timing: serde_json::Value = serde_json::from_str(done.err.lines().last().unwrap()).unwrap();
    let id = timing["runId"].as_str().unwrap();
    for part in [
        "## Real behavior proof\n\n",
        &format!("Behavior addressed: It greets in {id}\n\n"),
        "Real environment tested: firecracker Crabbox lease cbx_0123456789ab (jade-krill).\n\n",
        "Exact steps or command run:\n\n```sh\n'echo hi'\n```\n\n",
        &format!("Crabbox `{id}`:\n\n```text\nhi\n```\n\n"),
        "Observed result: It said hi\n\n",
        "What was not tested: ",
    ] {
        assert!(proof.contains(part), "{part:?} in {proof}");
    }
    let line = format!(
        "artifact kind=proof path=out/p.md bytes={} template=pr\n",
        proof.len()
    );
    assert!(done.err.contains(&line), "{}", done.err);
    let artifact = &timing["artifacts"][0];
    assert_eq!(
        (
            &artifact["kind"],
            &artifact["template"],
            &timing["artifacts"][1]["kind"]
        ),
        (&"proof".into(), &"pr".into(), &"receipt".into())
    );
    assert!(timing["artifacts"][1].get("template").is_none());
}

#[test]
fn without_a_template_the_proof_has_words_of_its_own_and_names_what_else_there_is() {
    let lease = entered();
    let done = run(
        &lease,
        &[
            "--emit-proof",
            "p.md",
            "--capture-stdout",
            "o ut",
            "--artifact-glob",
            "a",
        ],
        &[
            "--shell",
            "--",
            "echo 12345; touch a; printf '\\033[31m```\\n' >&2",
        ],
    );
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains(" template=default\n"), "{}", done.err);
    let proof = read(&lease, "p.md");
    assert!(
        proof.contains("````text\n```\ncaptured stream=stdout path=\"o ut\" bytes=6\n````\n"),
        "{proof}"
    );
    assert!(
        proof.contains("-artifacts.tgz\n\nWhat was not tested: "),
        "{proof}"
    );

    // A failed run writes no proof, and leaves an existing one alone.
    let failed = run(&lease, &["--emit-proof", "p.md"], &["--", "false"]);
    assert_eq!(failed.code, 1, "{}", failed.err);
    assert_eq!(read(&lease, "p.md"), proof);
}

#[test]
fn a_template_that_is_not_there_or_asks_for_too_much_is_named() {
    let lease = entered();
    lease.place.write("repo/crabbox.yaml", CONFIGURATION);
    let refused = |flags: &[&str], why: &str| {
        let answer = run(&lease, flags, &["--", "touch", "ran"]);
        assert_eq!(answer.code, 2, "{}", answer.err);
        assert!(answer.err.contains(why), "{}", answer.err);
    };
    refused(
        &["--emit-proof", "p.md", "--proof-template", "none"],
        "proof template \"none\" is not configured for profile \"default\"\n",
    );
    refused(
        &["--emit-proof", "p.md", "--capture-stdout", "p.md"],
        "emit proof/capture stdout: paths must be different",
    );
    let there = run(&lease, &[], &["--", "test", "!", "-e", "ran"]);
    assert_eq!(there.code, 0, "nothing ran: {}", there.err);
    refused(
        &["--emit-proof", "p.md", "--proof-template", "lacking"],
        "proof template notTested has unresolved preset variable(s): {{nobody}}\n",
    );
    assert!(!lease.place.path("repo/p.md").exists());
}
