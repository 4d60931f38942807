//! Jobs of the configuration.

use super::*;

#[test]
fn jobs_are_read_with_their_flags_and_their_trust() {
    let world = world()
        .user("jobs:\n  mine: {command: make, stop: never}\n  both: {command: user}\n")
        .repo(
            "jobs:\n  both:\n    command: 'cargo test'\n    shell: yes\n    noSync: false\n    ttl: 10m\n    type: big\n    \
             windows: {mode: normal}\n    artifactGlobs: ['*.log', b]\n    junit: r.xml\n    hydrate: {actions: true}\n    colour: red\n",
        );
    let jobs = world.resolve().unwrap().jobs;
    let (mine, both) = (jobs["mine"].as_ref().unwrap(), jobs["both"].as_ref().unwrap());
    assert!(mine.is_trusted && !both.is_trusted);
    assert_eq!(
        (mine.command.as_deref(), mine.stop.as_deref()),
        (Some("make"), Some("never"))
    );
    let flags: Vec<String> = both
        .flags
        .iter()
        .map(|(flag, value)| {
            value
                .as_ref()
                .map_or_else(|| (*flag).to_owned(), |value| format!("{flag}={value}"))
        })
        .collect();
    assert_eq!(
        flags,
        [
            "windows-mode=normal",
            "type=big",
            "ttl=10m",
            "shell",
            "junit=r.xml",
            "artifact-glob=*.log",
            "artifact-glob=b"
        ]
    );
    assert_eq!(both.foreign, ["hydrate.actions"]);
    assert_eq!(
        world.warnings(),
        ["/w/repo/crabbox.yaml:12:13: unknown key jobs.both.colour is ignored"]
    );
}

#[test]
fn jobs_that_make_no_sense_are_refused_at_their_place() {
    let error = world().repo("jobs: [a]\n").resolve().unwrap_err();
    assert!(
        matches!(&error, ConfigError::WrongType { key, .. } if key == "jobs"),
        "{error:?}"
    );
    for (text, want) in [
        ("jobs:\n  a: b\n", "jobs.a"),
        ("jobs:\n  a: {stop: maybe}\n", "jobs.a.stop"),
        ("jobs:\n  a: {shell: maybe}\n", "jobs.a.shell"),
        ("jobs:\n  a: {target: bsd}\n", "jobs.a.target"),
        ("jobs:\n  a: {windows: {mode: x}}\n", "jobs.a.windows.mode"),
        ("jobs:\n  a: {ttl: x}\n", "jobs.a.ttl"),
        ("jobs:\n  a: {idleTimeout: -5m}\n", "jobs.a.idleTimeout"),
        ("jobs:\n  a: {downloads: {x: y}}\n", "jobs.a.downloads"),
    ] {
        let text = text.to_owned() + "  b: {command: make}\n";
        for world in [world().repo(&text), world().user(&text)] {
            let jobs = world.resolve().unwrap().jobs;
            assert!(
                matches!(&jobs["a"], Err(ConfigError::WrongType { key, .. }) if key == want),
                "{jobs:?}"
            );
            assert!(jobs["b"].is_ok(), "{jobs:?}");
        }
    }
}
