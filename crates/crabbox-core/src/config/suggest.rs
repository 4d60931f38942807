//! Suggestions for a misspelt key or variable.
//!
//! They are used in messages only: a suggested name must never be used to read a value.

use super::key::KEYS;

/// The known key or section most similar to `path`, if one is similar enough.
pub fn suggest(path: &str) -> Option<&'static str> {
    let sections = KEYS
        .iter()
        .filter_map(|key| key.path.split_once('.').map(|(section, _)| section));
    let (edits, known) = KEYS
        .iter()
        .map(|key| key.path)
        .chain(sections)
        .map(|known| {
            (
                distance(&path.to_ascii_lowercase(), &known.to_ascii_lowercase()),
                known,
            )
        })
        .min()?;
    // A short word is similar to many others, so fewer edits are allowed.
    (edits <= 2.min(path.chars().count() / 3)).then_some(known)
}

/// The variable of a key most similar to `name`, if `name` is unknown and looks misspelt.
pub fn suggest_variable(name: &str) -> Option<&'static str> {
    const PREFIX: &str = "CRABBOX_";
    let word = name.strip_prefix(PREFIX)?;
    let known = || KEYS.iter().flat_map(|key| key.variables.iter().copied());
    if known().any(|variable| variable == name) {
        return None;
    }
    let (edits, variable) = known()
        .map(|variable| (distance(word, variable.trim_start_matches(PREFIX)), variable))
        .min()?;
    (edits <= 2.min(word.chars().count() / 4)).then_some(variable)
}

/// Edit distance of two texts (Levenshtein); long texts are truncated, because they are not typing errors.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}
