//! The crate's own list of forbidden calls must contain the workspace's list, because clippy reads only one of them.

#![expect(clippy::disallowed_methods, reason = "the lists in the repository")]

#[test]
fn the_crates_walls_are_the_workspaces_and_more() {
    let dir = env!("CARGO_MANIFEST_DIR");
    let read = |path: String| std::fs::read_to_string(path).unwrap();
    let ours = read(format!("{dir}/clippy.toml"));
    let workspace = read(format!("{dir}/../../clippy.toml"));
    for line in workspace.lines().filter(|line| !line.starts_with('#')) {
        assert!(
            ours.contains(line),
            "crates/crabbox-image/clippy.toml lacks {line:?}"
        );
    }
    for call in [
        "std::fs::set_permissions",
        "std::os::unix::fs::chown",
        "std::fs::write",
    ] {
        assert!(ours.contains(&format!("\"{call}\"")), "{call} is not forbidden");
    }
}
