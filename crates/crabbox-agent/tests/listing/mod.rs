//! Tests of listing, sending and hashing files in a tree with links.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// What patterns find below a directory, sorted.
fn found(agent: &mut Agent, dir: &Path, patterns: &[&str], once: bool) -> Vec<String> {
    agent.say(&Request::List {
        dir: dir.to_str().unwrap().to_owned(),
        patterns: patterns.iter().map(ToString::to_string).collect(),
        skipped: vec![".git".to_owned()],
        written: false,
        once,
    });
    let list = String::from_utf8(agent.list().unwrap()).unwrap();
    let mut records: Vec<String> = list.split_terminator('\0').map(str::to_owned).collect();
    records.sort();
    records
}

/// For each name, the content that is sent, or the reason why there is none.
fn sent(agent: &mut Agent, dir: &Path, names: &[&str]) -> Vec<String> {
    agent.say(&Request::Fetch {
        dir: dir.to_str().unwrap().to_owned(),
        follow: true,
        within: true,
        limit: None,
    });
    agent.piece((names.join("\0") + "\0").as_bytes());
    agent.say(&Request::End {});
    let mut came = Vec::new();
    loop {
        match agent.frames.frame().unwrap().expect("the agent has gone") {
            Frame::Bytes(_, bytes) => {
                let text: &mut String = came.last_mut().unwrap();
                text.push_str(str::from_utf8(bytes).unwrap());
            }
            Frame::Message(tag, payload) => match Reply::take(tag, payload).unwrap() {
                Reply::File { .. } => came.push(String::new()),
                Reply::Problem { text, .. } => came.push(text),
                Reply::End {} => return came,
                other => panic!("{other:?}"),
            },
        }
    }
}

/// A tree with links of all kinds, and files that they must not lead to.
fn linked() -> (tempfile::TempDir, Agent) {
    let (home, agent) = copying();
    let at = |name: &str| home.path().join("tree").join(name);
    for dir in ["out", "build-1/deep", ".git"] {
        fs::create_dir_all(at(dir)).unwrap();
    }
    fs::create_dir(home.path().join("outside")).unwrap();
    fs::write(home.path().join("outside/r.xml"), "secret").unwrap();
    for file in [
        "out/app-1.2",
        "build-1/r.xml",
        "build-1/deep/r.xml",
        ".git/config",
    ] {
        fs::write(at(file), file).unwrap();
    }
    for (target, link) in [
        ("app-1.2", "out/app"),
        ("../../outside/r.xml", "out/escapes"),
        ("nowhere", "out/dangling"),
        ("loop", "out/loop"),
        ("../.git/config", "out/config"),
        ("build-1", "latest"),
        ("../outside", "away"),
        (".", "self"),
        ("..", "build-1/up"),
    ] {
        symlink(target, at(link)).unwrap();
    }
    symlink(at("build-1/r.xml"), at("out/absolute")).unwrap();
    let made = Program::new("mkfifo").arg(at("out/pipe")).status().unwrap();
    assert!(made.success());
    (home, agent)
}

#[test]
fn a_link_counts_as_what_it_leads_to_in_the_tree_and_the_rest_is_named() {
    let (home, mut agent) = linked();
    let tree = &home.path().join("tree");
    assert_eq!(
        found(&mut agent, tree, &["out/*"], false),
        [
            "fout/absolute",
            "fout/app",
            "fout/app-1.2",
            "pout/config: is a link into .git",
            "pout/dangling: is a link that leads nowhere (No such file or directory)",
            "pout/escapes: leads out of the tree",
            "pout/loop: is a link that leads nowhere (Too many levels of symbolic links)",
            "pout/pipe: is a pipe, not a regular file",
        ]
    );
    // When a whole directory is wanted, no pattern names its entries, so this is only a warning.
    assert!(
        found(&mut agent, tree, &["out"], false).contains(&"wout/escapes: leads out of the tree".to_owned())
    );
    for (pattern, expected) in [
        ("latest/*.xml", &["flatest/r.xml"][..]),
        // A directory that matches is listed whole, by whatever name.
        (
            "latest",
            &[
                "flatest/deep/r.xml",
                "flatest/r.xml",
                "wlatest/up: is a link to a directory, and followed only where a pattern names it",
            ],
        ),
        ("away/*.xml", &["waway: leads out of the tree"]),
        (
            "*/r.xml",
            &["fbuild-1/r.xml", "flatest/r.xml", "waway: leads out of the tree"],
        ),
        // `**` does not follow links.
        ("**/r.xml", &["fbuild-1/deep/r.xml", "fbuild-1/r.xml"]),
        ("self/**/r.xml", &[]),
        ("build-1/up/build-1/up/out/app", &[]),
    ] {
        assert_eq!(found(&mut agent, tree, &[pattern], false), expected, "{pattern}");
    }
    // Under its own name, and once.
    assert_eq!(
        found(&mut agent, tree, &["latest/*.xml", "*/r.xml", "out/a*"], true),
        [
            "dlatest/r.xml",
            "dout/absolute",
            "dout/app",
            "fbuild-1/r.xml",
            "fout/app-1.2",
            "waway: leads out of the tree",
        ]
    );
}

#[test]
fn a_directory_where_nothing_can_match_is_not_looked_into() {
    let home = tempfile::tempdir().unwrap();
    let tree = &home.path().join("tree");
    for dir in ["out", "pg/shut"] {
        fs::create_dir_all(tree.join(dir)).unwrap();
    }
    fs::write(tree.join("out/r.xml"), "").unwrap();
    // File modes apply to this agent although it runs as root.
    let caps = "--bounding-set=-dac_override,-dac_read_search";
    let mut agent = Agent::start(home.path(), &["setpriv", caps]);
    fs::set_permissions(tree.join("pg"), fs::Permissions::from_mode(0o000)).unwrap();
    let shut = |kind: &str| format!("{kind}pg: Permission denied");
    for (pattern, more) in [
        ("out/*.xml", None),
        ("**/*.xml", Some(shut("w"))),
        ("*/r.xml", Some(shut("p"))),
    ] {
        let mut expected = vec!["fout/r.xml".to_owned()];
        expected.extend(more);
        assert_eq!(found(&mut agent, tree, &[pattern], false), expected, "{pattern}");
    }
}

#[test]
fn nothing_outside_of_the_tree_is_sent_whatever_leads_there() {
    let (home, mut agent) = linked();
    let tree = &home.path().join("tree");
    let names = [
        "out/app",
        "out/absolute",
        "latest/r.xml",
        "out/escapes",
        "away/r.xml",
        "../outside/r.xml",
        "gone",
    ];
    assert_eq!(
        sent(&mut agent, tree, &names),
        [
            "out/app-1.2",
            "build-1/r.xml",
            "build-1/r.xml",
            "out/escapes: leads out of the tree",
            "away/r.xml: leads out of the tree",
            "../outside/r.xml: leads out of the tree",
            "gone: No such file or directory",
        ]
    );
}

#[test]
fn a_digest_is_of_what_stands_there_and_follows_no_link() {
    let (home, mut agent) = linked();
    let tree = home.path().join("tree");
    agent.say(&Request::Digest {
        dir: tree.to_str().unwrap().to_owned(),
    });
    let names = "out/app-1.2\0out/app\0latest/r.xml\0out/pipe\0out\0gone\0";
    agent.piece(names.as_bytes());
    agent.say(&Request::End {});
    let list = String::from_utf8(agent.list().unwrap()).unwrap();
    let told: Vec<&str> = list.split_terminator('\0').collect();
    // sha256sum of `out/app-1.2` and of `app-1.2`, neither with a line end.
    let expected = [
        "fa88ab50a6dd13debfc3a1f63eceeac7092dd8875411ce9756d1d6056f0f2b33b",
        "lbf1c5d0dcbd621410c4cba6de49131c02de0f050fb39c49180882adc0fd28fde",
        "-",
        "-",
        "-",
        "-",
    ];
    assert_eq!(told, expected);
}
