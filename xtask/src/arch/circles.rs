//! Cycles of modules in a crate: modules that reach each other through `crate::` and `super::` paths.
//!
//! Sources are read as text formatted by rustfmt. A path from a module down to its submodules does not count,
//! since they belong together. Every reported cycle is real; it must never guess at the output of macros.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result};

/// Modules by their path from the crate's root (`lease::find`), each with its source.
type Sources = BTreeMap<String, String>;

/// Every cycle of the crate with its sources at `dir`: the modules of each, sorted.
pub(super) fn of(dir: &Path) -> Result<Vec<Vec<String>>> {
    let mut sources = Sources::new();
    read(dir, "", &mut sources)?;
    Ok(circles(&sources))
}

fn read(dir: &Path, above: &str, sources: &mut Sources) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry
            .with_context(|| format!("cannot list {}", dir.display()))?
            .path();
        let stem = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let below = if above.is_empty() {
            stem.clone()
        } else {
            format!("{above}::{stem}")
        };
        if path.is_dir() {
            read(&path, &below, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = if matches!(stem.as_str(), "lib" | "main" | "mod") {
                above.to_owned()
            } else {
                below
            };
            let text =
                std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            sources.entry(name).or_default().push_str(&text);
        }
    }
    Ok(())
}

fn circles(sources: &Sources) -> Vec<Vec<String>> {
    let edges: BTreeMap<&str, BTreeSet<&str>> = sources
        .iter()
        .map(|(name, text)| (name.as_str(), imports(sources, name, text)))
        .collect();
    let reached: BTreeMap<&str, BTreeSet<&str>> = edges
        .keys()
        .map(|from| (*from, reachable(&edges, from)))
        .collect();
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for (from, to) in &reached {
        if !to.contains(from) || seen.contains(from) {
            continue;
        }
        let circle: Vec<&str> = to
            .iter()
            .copied()
            .filter(|other| reached[other].contains(from))
            .collect();
        seen.extend(circle.iter().copied());
        found.push(circle.into_iter().map(str::to_owned).collect());
    }
    found
}

fn reachable<'a>(edges: &BTreeMap<&'a str, BTreeSet<&'a str>>, from: &str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<&str> = edges[from].iter().copied().collect();
    while let Some(next) = open.pop() {
        if reached.insert(next) {
            open.extend(edges[next].iter().copied());
        }
    }
    reached
}

/// The modules that `text`, the source of `name`, imports, except itself.
fn imports<'a>(sources: &'a Sources, name: &str, text: &str) -> BTreeSet<&'a str> {
    let mut paths = Vec::new();
    let (code, inline) = code_of(text);
    for (at, word) in code.match_indices("crate::") {
        tree(&code[at + word.len()..], "", &mut paths);
    }
    for (at, word) in code.match_indices("super::") {
        let before = &code[..at];
        // A chain of `super::` is handled at its first element.
        if before.ends_with("::") {
            continue;
        }
        let mut rest = &code[at + word.len()..];
        let mut up = 1;
        while let Some(more) = rest.strip_prefix(word) {
            (rest, up) = (more, up + 1);
        }
        let lines_before = before.matches('\n').count();
        // From a module inside this file, the first steps lead to the file itself.
        let up = up - inline.get(lines_before).copied().unwrap_or(0).min(up);
        if let Some(above) = ancestor(name, up) {
            tree(rest, above, &mut paths);
        }
    }
    paths
        .iter()
        .filter_map(|path| owner(sources, path))
        .filter(|module| *module != name)
        .collect()
}

/// The lines of `text` without comments, and for each line how many inline modules enclose it.
fn code_of(text: &str) -> (String, Vec<usize>) {
    let (mut code, mut depths) = (String::new(), Vec::new());
    let mut open: Vec<&str> = Vec::new();
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or_default().trim_end();
        let indent = &line[..line.len() - line.trim_start().len()];
        if open.last() == Some(&indent) && line.trim_start() == "}" {
            open.pop();
        }
        depths.push(open.len());
        let is_module = line.split(' ').any(|word| word == "mod") && line.ends_with(" {");
        if is_module {
            open.push(indent);
        }
        code.push_str(line);
        code.push('\n');
    }
    (code, depths)
}

/// The module `up` levels above `name`; `None` for itself, and above the root.
fn ancestor(name: &str, up: usize) -> Option<&str> {
    let mut above = name;
    for _ in 0..up {
        if above.is_empty() {
            return None;
        }
        above = above.rfind("::").map_or("", |end| &above[..end]);
    }
    (up > 0).then_some(above)
}

/// Parses the use tree at the beginning of `text` (`a::b`, `a::{b, c::d}`) and returns the rest.
fn tree<'a>(text: &'a str, above: &str, paths: &mut Vec<String>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        while !rest.is_empty() {
            rest = tree(rest, above, paths).trim_start();
            if let Some(end) = rest.strip_prefix('}') {
                return end;
            }
            // Skip to the comma, past a rename with `as`.
            let next = rest.find([',', '}']).unwrap_or(rest.len());
            rest = rest[next..]
                .strip_prefix(',')
                .unwrap_or(&rest[next..])
                .trim_start();
            if let Some(end) = rest.strip_prefix('}') {
                return end;
            }
        }
        return rest;
    }
    let end = text
        .find(|c: char| !(c.is_alphanumeric() || c == '_'))
        .unwrap_or(text.len());
    let path = if above.is_empty() {
        text[..end].to_owned()
    } else {
        format!("{above}::{}", &text[..end])
    };
    match text[end..].strip_prefix("::") {
        Some(rest) if end > 0 => tree(rest, &path, paths),
        _ => {
            paths.push(path);
            &text[end..]
        }
    }
}

/// The module that `path` refers to: its longest prefix that is a module. The root does not count.
fn owner<'a>(sources: &'a Sources, path: &str) -> Option<&'a str> {
    let mut path = path.trim_end_matches("::self");
    loop {
        if let Some((name, _)) = sources.get_key_value(path) {
            return Some(name);
        }
        path = &path[..path.rfind("::")?];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        circles(
            &files
                .iter()
                .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn a_circle_is_found_however_it_is_written() {
        for back in [
            "use crate::a::Name;",
            "use crate::{a::Name, c};",
            "use crate::{\n    c,\n    a::{self, Name as Other},\n};",
            "fn f() { crate::a::name() }",
        ] {
            let files = [("a", "use crate::b::{self, Name};"), ("b", back), ("c", "")];
            assert_eq!(found(&files), [["a", "b"]], "{back}");
        }
        let three = [
            ("lease", "use crate::net;"),
            ("net", "use crate::vmm::disk::Disk;"),
            ("vmm", ""),
            ("vmm::disk", "use crate::lease::Lease;"),
        ];
        assert_eq!(found(&three), [["lease", "net", "vmm::disk"]]);
    }

    #[test]
    fn a_circle_through_super_is_found() {
        for back in [
            "use super::b::Name;",
            "use super::{c, b};",
            "fn f() {\n    super::super::a::b::name();\n}",
            "mod tests {\n    use super::super::b::Name;\n}",
        ] {
            let files = [("a", ""), ("a::b", "use super::d;"), ("a::c", ""), ("a::d", back)];
            assert_eq!(found(&files), [["a::b", "a::d"]], "{back}");
        }
        let parent = [("a", "use crate::a::b::Name;"), ("a::b", "use super::Own;")];
        assert_eq!(found(&parent), [["a", "a::b"]]);
    }

    #[test]
    fn a_module_in_the_file_sees_the_file_through_super() {
        let inner = "#[cfg(test)]\nmod tests {\n    use super::*;\n    mod deep {\n        use super::super::*;\n    }\n}";
        let files = [("a", "use crate::a::b::Name;"), ("a::b", inner)];
        assert_eq!(found(&files), Vec::<Vec<String>>::new());
        // After the inline module, paths are relative to the file again.
        let after = format!("{inner}\nuse super::Own;");
        let files = [("a", "use crate::a::b::Name;"), ("a::b", after.as_str())];
        assert_eq!(found(&files), [["a", "a::b"]]);
        assert_eq!(ancestor("a::b", 2), Some(""));
        assert_eq!(ancestor("a::b", 3), None);
    }

    #[test]
    fn what_goes_one_way_is_no_circle() {
        let files = [
            ("", "mod a; use crate::a;"),
            ("a", "// see crate::b\nuse crate::c;"),
            ("b", "use crate::a;"),
            ("c", "use other::b; use crate::c::Own;"),
        ];
        assert_eq!(found(&files), Vec::<Vec<String>>::new());
    }
}
