//! Generated blocks inside hand-written documents.
//!
//! Only the lines between the two marks change. An unclosed block is an error, and never extends to the end
//! of the file.

use anyhow::{Context as _, Result};

const END: &str = "<!-- end -->";

/// The line that opens the block `what`.
pub(super) fn opening(what: &str) -> String {
    format!("<!-- generated: {what} -->")
}

/// `text` with the content of each block regenerated.
pub(super) fn replace(text: &str, mut generate: impl FnMut(&str) -> Result<String>) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut lines = text.split_inclusive('\n');
    while let Some(line) = lines.next() {
        out.push_str(line);
        let Some(what) = line
            .trim()
            .strip_prefix("<!-- generated: ")
            .and_then(|rest| rest.strip_suffix(" -->"))
        else {
            continue;
        };
        let end = lines
            .find(|line| line.trim() == END)
            .with_context(|| format!("the block {what:?} is not closed by {END}"))?;
        out.push_str(generate(what)?.trim_end());
        out.push('\n');
        out.push_str(end);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_in_a_block_changes() {
        let text = "a\n<!-- generated: x y -->\nold\nold\n<!-- end -->\nb";
        let new = replace(text, |what| Ok(format!("new {what}\n\n"))).unwrap();
        assert_eq!(new, "a\n<!-- generated: x y -->\nnew x y\n<!-- end -->\nb");
        assert_eq!(
            replace(&new, |what| Ok(format!("new {what}"))).unwrap(),
            new,
            "and then nothing"
        );
    }

    #[test]
    fn an_open_block_swallows_nothing() {
        let error = replace("<!-- generated: x -->\nprose\n", |_| Ok(String::new())).unwrap_err();
        assert!(error.to_string().contains("not closed"), "{error}");
    }
}
