//! `claims list` among files that are no claims.

use serde_json::Value;

use crate::place::Place;
use crate::world::claim_file;

fn problems(place: &Place) -> Vec<Value> {
    let told = place.run(&["claims", "list", "--json"]);
    assert_eq!((told.code, told.err.as_str()), (2, ""));
    let view: Value = serde_json::from_str(&told.out).unwrap();
    view["problems"].as_array().unwrap().clone()
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
