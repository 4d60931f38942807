//! Validates JSON documents against the schemas in `docs/schemas`: every answer to `--json` and
//! `--timing-json` in these tests goes through [`check`].

use std::fs;
use std::path::PathBuf;

use crabbox_testkit::schemas;
use serde_json::{Value, json};

use crate::place::{Answer, Place};

/// Checks that the answer to a command with `--json` is one document on one line and matches its schema.
pub(crate) fn check(words: &[&str], answer: &Answer) {
    let ours = words.split(|word| *word == "--").next().unwrap();
    if ours.contains(&"--json-events") && answer.err.starts_with('{') {
        return events(words, answer);
    }
    if ours.contains(&"--timing-json") && answer.err.contains('{') {
        // Only the reason of a failure may follow it.
        let line = answer.err.lines().rfind(|line| line.starts_with('{')).unwrap();
        hold("timing", words, line);
    }
    // A command that failed before it had a result has reported that on standard error.
    if !ours.contains(&"--json") || (answer.code != 0 && answer.out.is_empty()) {
        return;
    }
    let (line, rest) = answer.out.split_once('\n').expect("a whole line");
    assert_eq!(rest, "", "{words:?}: more than one line on standard output");
    hold(&schemas::of(ours, line), words, line);
}

/// Checks that every line is an event, except for requested timings, and that the last one has the exit code.
fn events(words: &[&str], answer: &Answer) {
    for line in answer.err.lines() {
        let is_timing = words.contains(&"--timing-json") && line.starts_with("{\"provider\"");
        hold(if is_timing { "timing" } else { "run-events" }, words, line);
    }
    let last = answer.err.lines().last().unwrap();
    let last: Value = serde_json::from_str(last).unwrap();
    assert_eq!(
        last,
        json!({"event": "ended", "exit_code": answer.code}),
        "{words:?}"
    );
}

fn hold(name: &str, words: &[&str], line: &str) {
    let document = serde_json::from_str(line).unwrap();
    let problems = schemas::problems(name, &document);
    assert!(
        problems.is_empty(),
        "{words:?} against {name}: {problems:#?}\n{line}"
    );
}

#[test]
fn a_document_that_is_not_as_its_schema_says_is_found() {
    let answer = Place::new().run(&["providers", "describe", "firecracker", "--json"]);
    let good: Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(schemas::problems("providers-describe", &good), [""; 0]);
    let broken = |change: fn(&mut Value)| {
        let mut document = good.clone();
        change(&mut document);
        schemas::problems("providers-describe", &document).len()
    };
    assert_eq!(broken(|document| document["more"] = json!(1)), 1);
    assert_eq!(broken(|document| document["runnable"] = json!("yes")), 1);
    assert_eq!(
        broken(|document| document["providerFlags"][0]["more"] = json!(1)),
        1
    );
    assert_eq!(
        broken(|document| drop(document.as_object_mut().unwrap().remove("kind"))),
        1
    );
}

#[test]
fn the_schemas_in_the_documents_are_those_of_this_program() {
    let place = Place::new();
    let answer = place.run(&["__reference", "reference"]);
    assert_eq!(
        (answer.code, answer.out, answer.err),
        (0, String::new(), String::new())
    );
    let files = |dir: PathBuf| {
        let mut files: Vec<(String, String)> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                let name = entry.file_name().into_string().unwrap();
                (name, fs::read_to_string(entry.path()).unwrap())
            })
            .collect();
        files.sort();
        files
    };
    let made = files(place.path("repo/reference/schemas"));
    let names = |files: &[(String, String)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let kept = files(schemas::directory());
    assert_eq!(names(&made), names(&kept), "`cargo xtask docs` writes them");
    for (made, kept) in made.iter().zip(&kept) {
        assert_eq!(made, kept, "`cargo xtask docs` writes them");
    }
    for (name, text) in kept {
        let schema = serde_json::from_str(&text).unwrap();
        assert!(jsonschema::meta::is_valid(&schema), "{name}");
    }
}

#[test]
fn every_command_in_the_help_has_a_man_page() {
    let place = Place::new();
    assert_eq!(place.run(&["__reference", "reference"]).code, 0);
    let help = place.run(&["--help"]).out;
    let commands = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next());
    let mut count = 0;
    for command in commands {
        let page = place.path(&format!("repo/reference/man/crabbox-{command}.1"));
        let text = fs::read_to_string(&page).unwrap();
        let usage = format!(".SH SYNOPSIS\n.nf\ncrabbox {}", command.replace('-', "\\-"));
        assert!(
            text.contains(&format!(".TH crabbox-{command} 1")) && text.contains(&usage),
            "{text}"
        );
        count += 1;
    }
    assert!(count > 15, "{help}");
    for entry in fs::read_dir(place.path("repo/reference/man")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(!name.contains("__") && name.ends_with(".1"), "{name}");
    }
}
