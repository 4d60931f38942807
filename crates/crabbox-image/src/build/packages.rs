//! The packages installed in a tree, from dpkg's own list (`dpkg(1)`, `/var/lib/dpkg/status`).
//!
//! The list may come from a foreign tree: it is read without following links, and no program may be run on
//! it.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use crabbox_host::files::FileError;
use crabbox_host::tree::Tree;

/// The path of the list.
const LIST: &str = "var/lib/dpkg/status";

/// Maximum size of the list, in bytes; all of Debian has some 100 MB.
const LIST_LIMIT: u64 = 128 << 20;

/// The installed packages and their versions; empty if there is no list.
pub(super) fn installed(tree: &Tree) -> Result<BTreeMap<String, String>, FileError> {
    let fail = |source| FileError::io("read", &tree.shown(Path::new(LIST)), source);
    let mut text = Vec::new();
    if let Some(list) = tree.plain_file(Path::new(LIST)).map_err(fail)? {
        list.take(LIST_LIMIT).read_to_end(&mut text).map_err(fail)?;
    }
    Ok(parse(&String::from_utf8_lossy(&text)))
}

/// A package is a group of lines, ended by an empty one.
fn parse(list: &str) -> BTreeMap<String, String> {
    let package = |lines: &str| {
        let field = |name: &str| {
            let value = |line: &str| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            };
            lines.lines().find_map(value)
        };
        let is_installed = field("Status")?.split(' ').next_back() == Some("installed");
        is_installed
            .then(|| Some((field("Package")?, field("Version")?)))
            .flatten()
    };
    list.split("\n\n").filter_map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &str = "Package: hello\nStatus: install ok installed\nArchitecture: all\nVersion: 1:2.0-1\n\
                         Maintainer: x <x@x>\nDescription: x\n Version: 3\n";

    fn tree(list: &str) -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::create(&dir.path().join("root")).unwrap();
        tree.make_directory(Path::new("var/lib/dpkg"), None).unwrap();
        tree.write(Path::new(LIST), list.as_bytes(), 0o644, 1).unwrap();
        (dir, tree)
    }

    #[test]
    fn the_package_list_is_that_of_the_tree() {
        let removed = HELLO
            .replace("hello", "gone")
            .replace("ok installed", "ok config-files");
        let (_dir, made) = tree(&format!("{HELLO}\n{removed}\nnonsense\n\nPackage: half"));
        let found = installed(&made).unwrap();
        assert_eq!(found, [("hello".to_owned(), "1:2.0-1".to_owned())].into());
    }

    #[test]
    fn a_list_behind_a_link_is_none() {
        let (dir, made) = tree(HELLO);
        std::fs::rename(made.path().join(LIST), dir.path().join("theirs")).unwrap();
        assert!(installed(&made).unwrap().is_empty());
        for target in ["../../../../theirs", "/dev/zero"] {
            std::os::unix::fs::symlink(target, made.path().join(LIST)).unwrap();
            assert!(installed(&made).unwrap().is_empty(), "{target}");
            made.remove_plain(Path::new(LIST)).unwrap();
        }
    }
}
