//! `sync-plan`: the exact text and document for a small repository.

use std::fs;

use crabbox_host::command::Cmd;

use crate::place::{Place, run};

/// A repository with a committed file, a protected build product, a changed file, a deleted one and an
/// ignored one.
fn repository() -> Place {
    let place = Place::new().env("PATH", "/usr/bin:/bin");
    let repo = place.path("repo");
    fs::remove_dir_all(&repo).unwrap();
    fs::create_dir_all(repo.join("src")).unwrap();
    fs::create_dir_all(repo.join("dist")).unwrap();
    fs::write(repo.join("big"), [b'x'; 2048]).unwrap();
    fs::write(repo.join("gone"), "gone").unwrap();
    fs::write(repo.join("dist/kept.js"), "12345").unwrap();
    fs::write(repo.join("src/a"), "abc").unwrap();
    let script = "git init -q . && git add -A && git -c user.name=t -c user.email=t@t commit -q -m x";
    Cmd::new("sh")
        .args(["-ec", script])
        .cwd(&repo)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .run()
        .unwrap();
    fs::remove_file(repo.join("gone")).unwrap();
    fs::write(repo.join("src/a"), "abcdef").unwrap();
    fs::write(repo.join("src/line\nbreak"), "1").unwrap();
    fs::create_dir_all(repo.join("node_modules")).unwrap();
    fs::write(repo.join("node_modules/never"), "x").unwrap();
    place
}

#[test]
fn the_text_is_the_reference_s() {
    let place = repository();
    let answer = place.run(&["sync-plan"]);
    assert_eq!(
        (answer.code, answer.out.as_str(), answer.err.as_str()),
        (
            0,
            "sync candidate: 4 files, 2.0 KiB\n\
             warning: protected 1 tracked files from built-in artifact excludes: dist/kept.js (dist)\n\
             deleted tracked paths: 1\n\
             top files:\n  2.0 KiB    big\n  6 B        src/a\n  5 B        dist/kept.js\n  1 B        src/line\\nbreak\n\
             top dirs:\n  2.0 KiB    .\n  7 B        src\n  5 B        dist\n",
            ""
        )
    );
    let two = place.run(&["sync-plan", "--limit", "1"]).out;
    assert!(
        two.ends_with("top files:\n  2.0 KiB    big\ntop dirs:\n  2.0 KiB    .\n"),
        "{two}"
    );
}

#[test]
fn a_limit_that_forbids_the_sync_stands_before_the_one_that_warns() {
    let place = repository()
        .env("CRABBOX_SYNC_WARN_FILES", "1")
        .env("CRABBOX_SYNC_FAIL_FILES", "2");
    let answer = place.run(&["sync-plan", "--json"]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    let plan: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    let guardrail = &plan["guardrail"];
    assert_eq!(guardrail["status"], "failed");
    assert_eq!(guardrail["reasons"][0]["status"], "failed");
    assert_eq!(guardrail["reasons"][1]["status"], "warning");
}

#[test]
fn what_is_allowed_to_be_large_is_no_problem_and_is_no_warning() {
    let place = repository()
        .env("CRABBOX_SYNC_ALLOW_LARGE", "1")
        .env("CRABBOX_SYNC_FAIL_FILES", "2");
    fs::create_dir_all(place.path("repo/src/a1/b")).unwrap();
    fs::write(place.path("repo/src/a1/b/c"), "123").unwrap();
    let answer = place.run(&["sync-plan", "--json"]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    let plan: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(plan["guardrail"]["status"], "ok");
    assert_eq!(plan["guardrail"].get("reasons"), None);
    let dirs = plan["topDirs"].as_array().unwrap();
    let deep = dirs
        .iter()
        .find(|dir| dir["path"] == "src/a1")
        .expect("two levels");
    assert_eq!(deep["bytes"], 3);
}

#[test]
fn no_limit_is_no_list() {
    for limit in ["0", "-1"] {
        let answer = run(&["sync-plan", "--limit", limit]);
        assert_eq!((answer.code, answer.out.as_str()), (2, ""));
        assert!(
            answer.err.starts_with("sync-plan --limit must be positive\n"),
            "{}",
            answer.err
        );
    }
}

#[test]
fn the_document_is_the_reference_s() {
    let place = repository().env("CRABBOX_SYNC_WARN_FILES", "2");
    let answer = place.run(&["sync-plan", "--json", "--limit", "1"]);
    assert_eq!(
        (answer.code, answer.out.as_str(), answer.err.as_str()),
        (
            0,
            concat!(
                r#"{"candidate":{"files":4,"bytes":2060,"humanBytes":"2.0 KiB"},"#,
                r#""dirtyDelta":{"files":3,"bytes":7,"humanBytes":"7 B"},"deletedTrackedPaths":1,"#,
                r#""protectedTrackedFiles":{"count":1,"examples":[{"path":"dist/kept.js","pattern":"dist"}]},"#,
                r#""guardrail":{"scope":"dirty_delta","files":3,"bytes":7,"humanBytes":"7 B","#,
                r#""limits":{"warnFiles":2,"warnBytes":5368709120,"failFiles":150000,"failBytes":21474836480},"#,
                r#""allowLarge":false,"status":"warning","#,
                r#""reasons":[{"status":"warning","metric":"files","actual":3,"limit":2}]},"#,
                r#""topFiles":[{"path":"big","bytes":2048,"humanBytes":"2.0 KiB"}],"#,
                r#""topDirs":[{"path":".","bytes":2048,"humanBytes":"2.0 KiB"}]}"#,
                "\n"
            ),
            ""
        )
    );
}

#[test]
fn outside_a_repository_it_says_why_and_ends_as_a_sync_would() {
    let answer = run(&["sync-plan"]);
    assert_eq!((answer.code, answer.out.as_str()), (6, ""));
    assert!(answer.err.starts_with("build sync file list: "), "{}", answer.err);
}
