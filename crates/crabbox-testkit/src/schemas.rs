//! Validates JSON documents against the schemas in `docs/schemas`, as every black-box and end-to-end test
//! does.
//!
//! Readers must ignore fields that a schema does not name; these tests must not, because such a field is a
//! mistake.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "the exception for tests does not reach their fixtures"
)]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// Commands whose document is named differently.
const NAMES: [(&str, &str); 8] = [
    ("pool-list", "list"),
    ("inspect", "status"),
    ("warmup", "status"),
    ("cache-list", "cache-stats"),
    ("image-build", "image-made"),
    ("image-import", "image-made"),
    ("machine-cleanup", "cleanup"),
    ("setup-firecracker", "setup"),
];

/// Commands that are groups, so that the second word belongs to the name.
const GROUPS: [&str; 8] = [
    "bench", "cache", "claims", "config", "image", "machine", "pool", "setup",
];

/// The name of the schema for the document in `line`, printed by the command `words` with `--json`.
#[must_use]
pub fn of(words: &[&str], line: &str) -> String {
    let mut name = words[0].to_owned();
    let of_providers = ["describe", "filters", "recommend"];
    let groups = |word: &&str| {
        let below = words.get(1).is_some_and(|word| of_providers.contains(word));
        GROUPS.contains(word) || (*word == "providers" && below)
    };
    if words.first().is_some_and(groups) {
        name = format!("{name}-{}", words[1]);
    }
    if name == "doctor" && words.contains(&"--all") {
        name.push_str("-all");
    }
    if name == "providers-recommend" && line.starts_with("[\"") {
        return "providers-use-cases".to_owned();
    }
    if name == "config-explain" && line.starts_with('[') {
        name.push_str("-all");
    }
    NAMES
        .iter()
        .find(|(command, _)| *command == name)
        .map_or(name, |(_, schema)| (*schema).to_owned())
}

/// The violations of the schema `name` in `document`.
#[must_use]
pub fn problems(name: &str, document: &Value) -> Vec<String> {
    let path = directory().join(format!("{name}.json"));
    let text = fs::read_to_string(&path).expect("every command with --json has a schema");
    let mut schema = serde_json::from_str(&text).unwrap();
    close(&mut schema);
    let validator = jsonschema::validator_for(&schema).unwrap();
    validator
        .iter_errors(document)
        .map(|error| format!("{error} at {}", error.instance_path()))
        .collect()
}

/// Where the schemas are.
#[must_use]
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schemas")
}

/// Forbids fields that the schema does not name: readers must ignore them, but here they are a mistake.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.contains_key("properties") && !map.contains_key("additionalProperties") {
                map.insert("additionalProperties".to_owned(), json!(false));
            }
            map.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}
