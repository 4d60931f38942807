use super::*;

/// The problems of a file's text within a small repository.
fn of(path: &str, text: &str) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let files = [
        ("ARCHITECTURE.md", "# House\n\n## How it's built: a view\n"),
        (
            "crates/crabbox-net/src/nat.rs",
            "fn attach() {}\n// fn only_in_a_comment() {}\n#[test]\nfn a_veth_is_named_by_its_tag() {}\n",
        ),
        ("crates/crabbox-net/tests/net/main.rs", "mod x;\n"),
        ("docs/design/lab.md", "# Lab\n"),
        ("target/debug/gone.rs", ""),
    ];
    for (name, text) in files {
        let file = dir.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }
    let tree = Tree::read(dir.path()).unwrap();
    let blocks = prose::blocks(path.as_ref(), text);
    blocks
        .iter()
        .flat_map(|block| of_block(block, path, &tree))
        .map(|(_, problem)| problem)
        .collect()
}

#[test]
fn what_exists_is_right() {
    for text in [
        "`crates/crabbox-net/src/nat.rs`, `nat.rs`, `src/nat.rs`, `docs/`, `docs/design/`, ARCHITECTURE.md.",
        "ARCHITECTURE.md#how-its-built-a-view (`docs/design/lab.md#lab`)",
        "`nat.rs::a_veth_is_named_by_its_tag`, `a_veth_is_named_by_its_tag`, `crabbox_net::nat::attach`, `crate::nat`",
        "RFC 4253, section 4.2; `/etc/gone.rs`, `~/gone.md`, `<name>.rs`, `target/debug/gone.rs`, `user.rs.bak`, `x_y_z`, `ENV_A_B_C`",
    ] {
        let text = format!("//! {text}\n");
        assert_eq!(
            of("crates/crabbox-net/src/lib.rs", &text),
            Vec::<String>::new(),
            "{text}"
        );
    }
    assert_eq!(of("README.md", "`net::nat::attach`\n"), Vec::<String>::new());
}

#[test]
fn what_leads_nowhere_is_named() {
    for text in [
        "`crates/crabbox-net/src/gone.rs`",
        "`gone.rs`",
        "`docs/gone`",
        "see GONE.md.",
        "(docs/gone.md)",
        "ARCHITECTURE.md#gone",
        "`docs/design/lab.md#gone`",
        "`nat.rs::gone`",
        "`gone.rs::attach`",
        "`a_test_that_is_gone`",
        "`only_in_a_comment_x`",
        "`crate::gone`",
        "`crabbox_net::nat::gone`",
        "`nat::gone_now`",
        "as the behaviour\n//! reference says",
        "(Behaviour reference)",
        "as reference 5.3 says",
        "section 4.2",
    ] {
        let text = format!("//! {text}\n");
        assert_eq!(of("crates/crabbox-net/src/lib.rs", &text).len(), 1, "{text}");
    }
    assert_eq!(of("README.md", "`net::nat::gone`\n").len(), 1);
}
