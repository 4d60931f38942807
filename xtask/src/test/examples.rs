//! Whether doc comments in the sources have examples that rustdoc would run.
//!
//! Finding out with rustdoc means processing every crate, and usually there are none. Anything that might be
//! an example counts as one: the step is only skipped if it could not run anything.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Whether a source below one of `dirs` has an example.
pub(super) fn are_below(dirs: &[&Path]) -> Result<bool> {
    let mut todo: Vec<_> = dirs.iter().map(|dir| dir.to_path_buf()).collect();
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source =
                    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
                if has_one(&source) {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

/// Whether `source` has one: a code block that is not marked as text, fenced or indented. A doc comment in
/// any other form than `///` or `//!` lines counts as one.
fn has_one(source: &str) -> bool {
    let mut is_in_text = false;
    for line in source.lines() {
        let line = line.trim_start();
        // If a macro passes on doc lines (`$`), they are checked where they are written.
        let attribute = line
            .split_once("#[doc = ")
            .or_else(|| line.split_once("doc = ").filter(|_| line.starts_with('#')));
        let is_given = attribute.is_some_and(|(_, given)| !given.starts_with('$'));
        if is_given || line.starts_with("/**") || line.starts_with("/*!") {
            return true;
        }
        let document = ["///", "//!"].iter().find_map(|mark| line.strip_prefix(mark));
        let Some(document) = document else {
            is_in_text = false;
            continue;
        };
        let text = document.trim();
        if text.starts_with("```") || text.starts_with("~~~") {
            if !is_in_text && text != "```text" {
                return true;
            }
            is_in_text = !is_in_text;
        } else if !is_in_text
            && !text.is_empty()
            && (document.starts_with("     ") || document.contains('\t'))
        {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_rustdoc_would_run_is_seen() {
        for example in [
            "/// ```\n/// run();\n/// ```\n",
            "    //! ```rust\n",
            "//! ~~~\n",
            "/// ```should_panic\n",
            "/// ```ignore\n",
            "/// ```text\n/// a\n/// ```\n/// ```\n/// run();\n",
            "/// ```text\n/// a\nfn f() {}\n/// ```\n",
            "/// As in:\n///\n///     run();\n",
            "///\trun();\n",
            "/**\n```\n*/",
            "#[doc = include_str!(\"x.md\")]",
            "$(#[doc = \"x\"] $name)",
            "#[cfg_attr(x, doc = \"y\")]",
        ] {
            assert!(has_one(example), "{example}");
        }
        for none in [
            "",
            "/// Text with `code`.\n",
            "//! ```text\n//!     a -> b\n//! ```\n//! more\n",
            "/// - a list\n///   that goes on\n",
            "// ```\n",
            "#[doc = $text]\n",
            "let pattern = \"a/**/b\";\n",
            "let x = \"```\";\n",
        ] {
            assert!(!has_one(none), "{none}");
        }
    }
}
