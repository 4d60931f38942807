//! What a misspelt key or variable was probably meant to be.
//!
//! A guess for a message only: nothing is ever read under a guessed name.

use super::key::KEYS;

/// The known key or section that is most like `path`, when one is near enough to be what was meant.
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
    // Short words are near to everything, so they have to be nearer.
    (edits <= 2.min(path.chars().count() / 3)).then_some(known)
}

/// The variable of a key that is most like `name`, when `name` is none itself and looks like a misspelt one.
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

/// Edits that turn one text into the other (Levenshtein), with long texts cut: they are no typing errors.
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
