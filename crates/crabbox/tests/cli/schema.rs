//! JSON files of runs, validated against JSON schemas by `run --require-artifact-schema`.

use crate::place::Answer;
use crate::remote::Entered;
use crate::run::entered;

const SCHEMA: &str = r#"{"type": "object", "required": ["ok"], "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer"}}}"#;

fn run(lease: &Entered, flags: &[&str], script: &str) -> Answer {
    let words = [
        &["run", "--id", "jade-krill", "--no-sync"],
        flags,
        &["--shell", "--", script],
    ]
    .concat();
    lease.place.run(&words)
}

#[test]
fn a_file_has_to_be_there_and_to_satisfy_its_schema() {
    let lease = entered();
    lease.place.write("repo/s.json", SCHEMA);
    let flags = |remote: &str| format!("--require-artifact-schema={remote}=s.json");
    let good = run(
        &lease,
        &[&flags("./out/r.json")],
        "mkdir -p out; echo '{\"ok\": true}' > out/r.json",
    );
    assert_eq!(good.code, 0, "{}", good.err);
    assert!(
        good.err.contains("schema out/r.json: ok (s.json)\n"),
        "{}",
        good.err
    );

    // All are checked; the first failure is the reason, and an invalid file is not brought.
    let bad = run(
        &lease,
        &[
            &flags("a.json"),
            &flags("none.json"),
            &flags("out/r.json"),
            "--download",
            "./a.json=got",
            "--download",
            "out/r.json=other",
            "--timing-json",
        ],
        "echo '{\"n\": \"\\u001b[31msecret\"}' > a.json",
    );
    assert_eq!(bad.code, 7, "{}", bad.err);
    for line in [
        "schema a.json: failed 2 check(s) against s.json:\n",
        "  - (root): does not satisfy JSON Schema constraint /required\n",
        "  - /n: does not satisfy JSON Schema constraint /properties/n/type\n",
        "schema none.json: fetch failed: there is no such file\n",
        "schema out/r.json: ok (s.json)\n",
        "warning: ./a.json was not downloaded: it does not satisfy its schema\n",
        "artifact schema validation failed: a.json (2 check(s))\n",
    ] {
        assert!(bad.err.contains(line), "{line:?} in {}", bad.err);
    }
    assert!(!bad.err.contains("secret\\u") && !lease.place.path("repo/got").exists());
    assert!(lease.place.path("repo/other").exists(), "{}", bad.err);
    let timing = bad.err.lines().find(|line| line.starts_with('{')).unwrap();
    let timing: serde_json::Value = serde_json::from_str(timing).unwrap();
    let validations = &timing["schemaValidations"];
    assert_eq!(
        (
            &validations[0]["artifact"],
            &validations[0]["schema"],
            &validations[0]["valid"]
        ),
        (&"a.json".into(), &"s.json".into(), &false.into())
    );
    assert_eq!(validations[0]["violations"].as_array().unwrap().len(), 2);
    assert_eq!(validations[1]["error"], "fetch failed");
    assert_eq!(validations[2]["valid"], true);

    let missing = run(&lease, &[&flags("none.json")], "true");
    assert_eq!(missing.code, 7);
    let told = "require artifact schema: fetch none.json: there is no such file\n";
    assert!(missing.err.contains(told), "{}", missing.err);
    let large = run(&lease, &[&flags("l.json")], "head -c 6000000 /dev/zero > l.json");
    assert_eq!(large.code, 7);
    assert!(large.err.contains("it is larger than 5 MiB"), "{}", large.err);
}

#[test]
fn a_flag_or_schema_that_makes_no_sense_is_refused_before_anything_runs() {
    let lease = entered();
    lease.place.write("repo/s.json", SCHEMA);
    lease
        .place
        .write("repo/away.json", r#"{"$ref": "https://example.invalid/s.json"}"#);
    for (value, why) in [
        ("a.json", "--require-artifact-schema expects remote=schema.json\n"),
        (
            "*.json=s.json",
            "--require-artifact-schema requires a safe relative artifact path: *.json\n",
        ),
        (
            "/a.json=s.json",
            "--require-artifact-schema requires a safe relative artifact path: /a.json\n",
        ),
        (
            "a.json=none.json",
            "--require-artifact-schema: read schema none.json\n",
        ),
        (
            "a.json=away.json",
            "--require-artifact-schema: invalid schema away.json: the reference",
        ),
    ] {
        let answer = run(&lease, &["--require-artifact-schema", value], "touch ran");
        assert_eq!(answer.code, 2, "{}", answer.err);
        assert!(answer.err.contains(why), "{why:?} in {}", answer.err);
    }
    let both = [
        "--require-artifact-schema",
        "a=s.json",
        "--require-artifact-schema",
        "./a=s.json",
    ];
    let twice = run(&lease, &both, "touch ran");
    assert_eq!(
        (twice.code, twice.err.as_str()),
        (2, "--require-artifact-schema lists \"a\" more than once\n")
    );
    let ran = run(&lease, &[], "test ! -e ran");
    assert_eq!(ran.code, 0, "nothing ran: {}", ran.err);
}
