//! Configuration files: which are read, which are trusted, and the results of invalid ones.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{PermissionsExt, symlink};

use crabbox_host::command::Cmd;

use crate::place::Place;

#[test]
fn files_of_the_current_directory_are_layered_over_the_users() {
    let place = Place::new();
    place.write(
        "home/.config/crabbox/config.yaml",
        "class: user\nprofile: user\ntarget: macos\n",
    );
    place.write("repo/crabbox.yaml", "class: plain\nprofile: plain\n");
    let hidden = place.write("repo/.crabbox.yaml", "class: hidden\n");
    assert_eq!(place.explain("class"), ("hidden".into(), "repo_config".into()));
    assert_eq!(place.explain("profile"), ("plain".into(), "repo_config".into()));
    assert_eq!(place.explain("target"), ("macos".into(), "user_config".into()));
    let text = place.run(&["config", "explain", "class"]).out;
    assert!(
        text.contains(&format!("source=repo_config from {}:1:8\n", hidden.display())),
        "{text}"
    );
    let unknown = place.run(&["config", "explain", "clas"]);
    assert_eq!(
        (unknown.code, unknown.err.as_str()),
        (
            2,
            "unknown configuration key \"clas\"\nhint: did you mean class?\n"
        )
    );
}

const EVIL: &str = "firecracker: {kernel: /evil}\n";

fn kernel(place: &Place) -> String {
    place.explain("firecracker.kernel").1
}

#[test]
fn a_repository_does_not_choose_what_runs_here() {
    let place = Place::new();
    let file = place.write("repo/crabbox.yaml", EVIL);
    assert_eq!(kernel(&place), "compiled_default");
    let answer = place.run(&["config", "show"]);
    let want = format!(
        "warning: {}:1:23: firecracker.kernel is ignored: a repository file must not choose what runs on this host; \
         set it in your own configuration file (crabbox config path), or with CRABBOX_FIRECRACKER_KERNEL, or with --firecracker-kernel\n",
        file.display()
    );
    assert_eq!((answer.code, answer.err), (0, want));
}

#[test]
fn a_file_that_the_environment_names_is_trusted_outside_the_repository_only() {
    let trusted = |named: &str, prepare: &dyn Fn(&Place)| {
        let mut place = Place::new();
        place.write("outside/c.yaml", EVIL);
        place.write("repo/c.yaml", EVIL);
        prepare(&place);
        let path = named
            .strip_prefix('/')
            .map_or_else(|| named.into(), |inside| place.path(inside));
        place = place.env("CRABBOX_CONFIG", path);
        kernel(&place) == "user_config"
    };
    let nothing: &dyn Fn(&Place) = &|_| {};
    assert!(trusted("/outside/c.yaml", nothing));
    assert!(trusted("../outside/c.yaml", nothing));
    assert!(!trusted("/repo/c.yaml", nothing));
    assert!(!trusted("c.yaml", nothing));
    assert!(!trusted("/outside/../repo/c.yaml", nothing));
    assert!(!trusted("../outside/../repo/c.yaml", nothing));
    assert!(!trusted("/outside/link.yaml", &|place| {
        symlink(place.path("repo/c.yaml"), place.path("outside/link.yaml")).unwrap();
    }));
    assert!(!trusted("/repo/link.yaml", &|place| {
        symlink(place.path("outside/c.yaml"), place.path("repo/link.yaml")).unwrap();
    }));
    assert!(!trusted("/outside/dir/c.yaml", &|place| {
        symlink(place.path("repo"), place.path("outside/dir")).unwrap();
    }));
    assert!(!trusted("/way/c.yaml", &|place| {
        symlink(place.path("repo"), place.path("way")).unwrap();
    }));
}

#[test]
fn the_whole_working_tree_counts_as_the_repository_not_only_the_current_directory() {
    let place = Place::new();
    let file = place.write("repo/c.yaml", EVIL);
    let place = place.env("CRABBOX_CONFIG", file);
    let mut command = place.command(&["config", "explain", "--json", "firecracker.kernel"]);
    let output = command.current_dir(place.path("repo/sub")).output().unwrap();
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("compiled_default")
    );
}

#[test]
fn bad_files_are_errors_of_one_kind_with_their_place() {
    let big = vec![b'#'; 10 * 1024 * 1024];
    let cases: &[(&[u8], &str)] = &[
        (&big, ": larger than 1048576 bytes\n"),
        (b"class: a\nprofile: \xff\xfe\n", ":2: not valid UTF-8\n"),
        (b"class: [a\n", ""),
        (
            b"firecracker:\n  cpus: x\n",
            ":2:9: firecracker.cpus must be a whole number, found \"x\"\n  |   cpus: x\n  |         ^\n",
        ),
    ];
    for (bytes, want) in cases {
        let place = Place::new();
        let file = place.write("repo/crabbox.yaml", bytes);
        let answer = place.run(&["config", "show"]);
        assert_eq!((answer.code, answer.out.as_str()), (2, ""), "{want}");
        let at = answer
            .err
            .find(file.to_str().unwrap())
            .expect("the file is named");
        assert!(
            answer.err[at + file.to_str().unwrap().len()..].starts_with(want),
            "{}",
            answer.err
        );
    }
}

#[test]
fn what_is_no_regular_file_is_refused_and_not_waited_for() {
    let place = Place::new();
    Cmd::new("mkfifo")
        .arg(place.path("repo/crabbox.yaml"))
        .run()
        .unwrap();
    let answer = place.run(&["config", "show"]);
    assert_eq!(answer.code, 2);
    assert!(
        answer.err.ends_with("crabbox.yaml: not a regular file\n"),
        "{}",
        answer.err
    );
    // Not even if the variable names it.
    let named = place.path("repo/crabbox.yaml");
    let answer = place.env("CRABBOX_CONFIG", named).run(&["config", "show"]);
    assert_eq!(answer.code, 2);
    assert!(answer.err.ends_with(": not a regular file\n"), "{}", answer.err);
    let directory = Place::new()
        .env("CRABBOX_CONFIG", "/tmp")
        .run(&["config", "show"]);
    assert_eq!(
        (directory.code, directory.err.as_str()),
        (2, "read config /tmp: not a regular file\n")
    );
}

#[test]
fn the_user_may_name_a_pipe_or_a_device_for_the_configuration() {
    let place = Place::new().env("CRABBOX_CONFIG", "/dev/null");
    let empty = place.run(&["config", "show"]);
    assert_eq!((empty.code, empty.err.as_str()), (0, ""));
    let zero = Place::new().env("CRABBOX_CONFIG", "/dev/zero");
    let zero = zero.run(&["config", "show"]);
    assert_eq!(
        (zero.code, zero.err.as_str()),
        (2, "read config /dev/zero: larger than 1048576 bytes\n")
    );
    // The pipe of a shell's `<(...)` has no name of its own. The user's own file is not read.
    let place = Place::new();
    place.write("home/.config/crabbox/config.yaml", "class: user\n");
    let line = r#"bash -c 'CRABBOX_CONFIG=<(echo "{ttl: 3h, firecracker: {kernel: /mine}}") crabbox config show --provider firecracker'"#;
    let shown = place.paste(line);
    assert_eq!((shown.code, shown.err.as_str()), (0, ""));
    for part in ["lease ttl=3h0m0s", " kernel=/mine ", " class=beast "] {
        assert!(shown.out.contains(part), "{part}: {}", shown.out);
    }
}

#[test]
fn a_file_that_others_can_read_is_remarked_on() {
    let place = Place::new();
    let file = place.write("home/.config/crabbox/config.yaml", "class: a\n");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let answer = place.run(&["config", "show"]);
    assert_eq!(answer.code, 0);
    let want = format!(
        "warning: {} has permissions 0644; chmod 600 it so that only you can read it\n",
        file.display()
    );
    assert_eq!(answer.err, want);
}

#[test]
fn variables_that_cannot_count_are_told() {
    let place = Place::new()
        .env("CRABBOX_FIRECRACKER_CPU", "8")
        .env("CRABBOX_CONFIG", "/nowhere/c.yaml");
    let mut command = place.command(&["config", "show"]);
    let output = command
        .env("CRABBOX_TTL", std::ffi::OsString::from_vec(vec![0xff]))
        .output()
        .unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        err,
        "warning: environment variable CRABBOX_TTL is ignored: not valid UTF-8\n\
         warning: environment variable CRABBOX_FIRECRACKER_CPU is unknown and ignored; did you mean CRABBOX_FIRECRACKER_CPUS?\n\
         warning: CRABBOX_CONFIG names /nowhere/c.yaml, which does not exist\n"
    );
}
