//! The `clippy.toml` of a crate against that of the workspace.
//!
//! clippy reads the nearest file only, so a crate's own file must repeat every line of the workspace's list.
//! Nothing is compared for the agent: it runs without the crates that the list names, and its file says so.

use std::path::Path;

use anyhow::{Context as _, Result};

/// The crates whose own list stands alone.
const ALONE: &[&str] = &["crabbox-agent"];

/// Calls that ARCHITECTURE.md and `docs/design` say a crate cannot make.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("crabbox-core", &["std::fs::read", "std::time::SystemTime::now"]),
    (
        "crabbox-image",
        &[
            "std::fs::set_permissions",
            "std::fs::write",
            "std::os::unix::fs::chown",
        ],
    ),
    ("crabbox-workspace", &["std::fs::File::create", "std::fs::write"]),
];

/// A line for each lint that the file of a crate lacks. `crates` are names and directories.
pub(super) fn missing(root: &Path, crates: &[(&str, &Path)]) -> Result<Vec<String>> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let workspace = read(&root.join("clippy.toml"))?;
    let mut wrong = Vec::new();
    for (name, dir) in crates {
        let own = dir.join("clippy.toml");
        let own = if own.exists() {
            read(&own)?
        } else {
            workspace.clone()
        };
        if !ALONE.contains(name) {
            wrong.extend(lacks(&workspace, &own).map(|line| format!("{name}: {line}")));
        }
        let forbidden = FORBIDDEN.iter().filter(|(of, _)| of == name);
        let calls = forbidden.flat_map(|(_, calls)| *calls);
        let allowed = calls.filter(|call| !own.contains(&format!("{{ path = \"{call}\"")));
        wrong.extend(allowed.map(|call| format!("{name}: {call} is not forbidden")));
    }
    Ok(wrong)
}

fn lacks<'a>(workspace: &'a str, own: &'a str) -> impl Iterator<Item = &'a str> {
    workspace
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter(|line| !own.lines().any(|ours| ours == *line))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_a_crate_s_own_contains_the_workspace_s() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
            std::fs::write(dir.path().join(path).join("clippy.toml"), text).unwrap();
        };
        write(
            "",
            "# workspace\nlimit = 80\nlist = [\n    { path = \"a\" },\n]\n",
        );
        write("own", "list = [\n    { path = \"b\" },\n]\n");
        write(
            "whole",
            "# more\nlimit = 80\nlist = [\n    { path = \"a\" },\n    { path = \"b\" },\n]\n",
        );
        write("alone", "");
        std::fs::create_dir(dir.path().join("without")).unwrap();
        let at = |name| dir.path().join(name);
        let (own, whole, alone, without) = (at("own"), at("whole"), at("alone"), at("without"));
        let crates = [
            ("crabbox-own", own.as_path()),
            ("crabbox-whole", &whole),
            ("crabbox-agent", &alone),
            ("crabbox-core", &without),
        ];
        assert_eq!(
            missing(dir.path(), &crates).unwrap(),
            [
                "crabbox-own: limit = 80",
                "crabbox-own: { path = \"a\" },",
                "crabbox-core: std::fs::read is not forbidden",
                "crabbox-core: std::time::SystemTime::now is not forbidden",
            ]
        );
    }
}
