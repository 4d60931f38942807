//! Runs the table of the Go program's behaviour against the built binary, and checks that the table can fail.

use std::collections::BTreeSet;
use std::path::Path;

use crabbox_testkit::compat::{self, Case, Verdict};
use serde_json::json;

/// The minimum number of cases, so that a missing table does not pass.
const AT_LEAST: usize = 80;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_crabbox"))
}

fn judged(case: serde_json::Value, rows: &[&str]) -> Verdict {
    let case: Case = serde_json::from_value(case).unwrap();
    let rows: BTreeSet<String> = rows.iter().map(|row| (*row).to_owned()).collect();
    compat::judge(program(), &case, &rows).unwrap()
}

#[test]
fn this_program_does_what_the_go_program_does_and_differs_where_it_is_written_down() {
    let rows = compat::rows().unwrap();
    let cases = compat::cases(&compat::directory()).unwrap();
    assert!(cases.len() >= AT_LEAST, "{} cases", cases.len());
    let failed: Vec<String> = cases
        .iter()
        .filter_map(|case| match compat::judge(program(), case, &rows).unwrap() {
            Verdict::Failed(mismatches) => Some(compat::failure(case, &mismatches)),
            Verdict::Same | Verdict::Differs(_) => None,
        })
        .collect();
    assert!(failed.is_empty(), "{}", failed.concat());
}

#[test]
fn a_wrong_expectation_is_told_with_the_case_what_was_expected_and_what_was_got() {
    let case = json!({
        "name": "a version", "from": "cli/app.go", "args": ["config", "show", "--json", "--provider", "ssh"],
        "go": {"code": 3, "out": {"begins": "x"}, "json": {"/provider": "firecracker", "/none": 1}, "absent": ["/profile"]},
    });
    let case: Case = serde_json::from_value(case).unwrap();
    let Verdict::Failed(mismatches) = compat::judge(program(), &case, &BTreeSet::new()).unwrap() else {
        panic!("it holds");
    };
    let text = compat::failure(&case, &mismatches);
    for line in [
        "a version: crabbox config show --json --provider ssh\n",
        "  exit code: expected 3, got 0\n",
        "  stdout: expected \"x\" at its beginning, got \"{",
        "  /provider: expected \"firecracker\", got \"ssh\"\n",
        "  /none: expected 1, got nothing\n",
        "  /profile: expected nothing, got \"default\"\n",
    ] {
        assert!(text.contains(line), "{line:?} is not in {text}");
    }
    let table = compat::table(&[(case, Verdict::Failed(mismatches))]);
    assert!(table.starts_with("a version  FAILED\n"), "{table}");
}

#[test]
fn a_difference_needs_a_row_that_says_why_and_has_to_be_one() {
    let case = |go: i32, ours: i32| {
        json!({
            "name": "n", "from": "cli/app.go", "args": ["version"], "go": {"code": go}, "ours": {"code": ours}, "differs": "a row",
        })
    };
    assert_eq!(
        judged(case(9, 0), &["a row"]),
        Verdict::Differs("a row".to_owned())
    );
    let why = |verdict| match verdict {
        Verdict::Failed(mismatches) => mismatches[0].to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        why(judged(case(9, 0), &["another row"])),
        "the case: expected a row \"a row\" in docs/differences.md, got none"
    );
    assert_eq!(
        why(judged(case(0, 0), &["a row"])),
        "the case: expected a difference, got what the Go program does"
    );
    assert_eq!(
        why(judged(case(9, 8), &["a row"])),
        "exit code: expected 8, got 0"
    );
}
