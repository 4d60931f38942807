//! `claims list`: claims, and files that are none.

use serde_json::Value;

use crate::place::Place;
use crate::world::{ID, claim, claim_file};

fn problems(place: &Place) -> Vec<Value> {
    let told = place.run(&["claims", "list", "--json"]);
    assert_eq!((told.code, told.err.as_str()), (2, ""));
    let view: Value = serde_json::from_str(&told.out).unwrap();
    view["problems"].as_array().unwrap().clone()
}

#[test]
fn claims_are_listed_with_what_is_wrong_among_them() {
    let place = Place::new();
    let head = "Local claims (unverified local state; provider backends were not queried)\n";
    let none = place.run(&["claims", "list"]);
    assert_eq!(
        (none.code, none.out),
        (0, format!("{head}No valid local claims found.\n"))
    );
    claim(&place, ID, "jade-krill", "firecracker");
    let repo = place.path("repo");
    let text = format!(
        "{head}- leaseId: \"{ID}\"\n  slug: \"jade-krill\"\n  provider: \"firecracker\"\n  repoRoot: \"{}\"\n  pond: \"\"\n  \
         targetOS: \"linux\"\n  windowsMode: \"\"\n  claimedAt: \"2025-07-31T22:13:20Z\"\n  \
         lastUsedAt: \"2025-07-31T22:13:20Z\"\n  idleTimeoutSeconds: 1800\n",
        repo.display()
    );
    let good = place.run(&["claims", "list"]);
    assert_eq!((good.code, good.out, good.err.as_str()), (0, text.clone(), ""));
    claim_file(&place, "cbx_broken.json", "[\"\u{1b}[2J\"]");
    claim_file(&place, "cbx_moved.json", &format!("{{\"leaseID\":\"{ID}\"}}"));
    let bad = place.run(&["claims", "list"]);
    assert_eq!((bad.code, bad.err.as_str()), (2, ""));
    assert!(
        bad.out.starts_with(&text) && !bad.out.contains('\u{1b}'),
        "{}",
        bad.out
    );
    assert!(
        bad.out.contains("Problems:\n- \"cbx_broken.json\": claim ") && bad.out.contains(" (invalid_json)\n"),
        "{}",
        bad.out
    );
    assert!(
        bad.out.contains(&format!(
            "cbx_moved.json belongs to lease {ID} (lease_id_mismatch)\n"
        )),
        "{}",
        bad.out
    );
    let bad = place.run(&["claims", "list", "--json"]);
    assert_eq!((bad.code, bad.err.as_str()), (2, ""));
    let golden = format!(
        r#"{{"version":1,"source":"local-claims","claims":[{{"leaseId":"{ID}","slug":"jade-krill","provider":"firecracker","repoRoot":"{}","pond":"","targetOS":"linux","windowsMode":"","claimedAt":"2025-07-31T22:13:20Z","lastUsedAt":"2025-07-31T22:13:20Z","idleTimeoutSeconds":1800}}],"problems":[{{"file":"cbx_broken.json","code":"invalid_json","message":""#,
        repo.display()
    );
    assert!(bad.out.starts_with(&golden), "{}", bad.out);
}

#[test]
fn a_problem_has_the_code_of_the_go_program_and_stands_in_one_line() {
    let place = Place::new();
    claim_file(&place, "CON.json", "{");
    claim_file(&place, "cbx_000000000001.json", "{\n");
    std::os::unix::fs::symlink(
        "/nowhere",
        place.path("home/.config/crabbox/state/claims/cbx_000000000002.json"),
    )
    .unwrap();
    let codes: Vec<(String, String)> = problems(&place)
        .iter()
        .map(|problem| {
            let text = |name: &str| problem[name].as_str().unwrap().to_owned();
            (text("file"), text("code"))
        })
        .collect();
    let coded = |file: &str, code: &str| (file.to_owned(), code.to_owned());
    assert_eq!(
        codes,
        [
            coded("CON.json", "invalid_filename"),
            coded("cbx_000000000001.json", "invalid_json"),
            coded("cbx_000000000002.json", "non_regular_file"),
        ]
    );
    let text = place.run(&["claims", "list"]);
    let lines: Vec<&str> = text.out.lines().skip_while(|line| *line != "Problems:").collect();
    assert_eq!(lines.len(), 4, "{}", text.out);
    assert!(
        lines[1].starts_with("- \"CON.json\": ") && lines[1].ends_with(" (invalid_filename)"),
        "{}",
        text.out
    );
}

#[test]
fn a_hundred_problems_are_listed_and_the_others_counted() {
    let place = Place::new();
    for number in 0..100 {
        claim_file(&place, &format!("bad{number:03}.json"), "{");
    }
    let hundred = problems(&place);
    assert_eq!(hundred.len(), 100);
    assert!(hundred.iter().all(|problem| problem["code"] == "invalid_json"));
    claim_file(&place, "bad100.json", "{");
    let more = problems(&place);
    assert_eq!(more.len(), 100);
    assert_eq!(more[98]["file"], "bad098.json");
    assert_eq!(
        more[99],
        serde_json::json!({"file": "", "code": "problems_truncated",
            "message": "2 additional malformed claim files omitted"})
    );
    let text = place.run(&["claims", "list"]);
    assert!(
        text.out
            .ends_with("\n- 2 additional malformed claim files omitted (problems_truncated)\n"),
        "{}",
        text.out
    );
}
