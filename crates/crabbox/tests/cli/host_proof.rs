//! `proof` without a lease: what it refuses, and how it checks a file.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;

use crate::place::Place;

#[test]
fn what_cannot_become_a_proof_is_refused_before_anything_is_leased() {
    let place = Place::new();
    let ssh = place.run(&["proof", "--provider", "ssh"]);
    assert!(
        ssh.code == 2 && ssh.err.contains("add --provider firecracker"),
        "{}",
        ssh.err
    );
    // The facts would describe this machine while the lease is on another.
    let elsewhere = Place::new().env("CRABBOX_FIRECRACKER_HOST", "me@kvm1");
    let elsewhere = elsewhere.run(&["proof", "--provider", "firecracker"]);
    assert!(
        elsewhere.code == 2
            && elsewhere
                .err
                .contains("proof runs on this machine only, but firecracker.host is set"),
        "{}",
        elsewhere.err
    );
    place.write("repo/there.md", "mine");
    let there = place.run(&["proof", "--output", "there.md"]);
    assert!(
        there.code == 2 && there.err.contains("there.md exists"),
        "{}",
        there.err
    );
    assert_eq!(fs::read_to_string(place.path("repo/there.md")).unwrap(), "mine");
    let both = place.run(&["proof", "--check", "there.md", "--output", "x"]);
    assert_eq!(both.code, 2, "{}", both.err);
    let line = r#"bash -c 'CRABBOX_CONFIG=<(echo "provider: firecracker") crabbox proof'"#;
    let piped = place.paste(line);
    assert!(
        piped.code == 2
            && piped
                .err
                .contains("CRABBOX_CONFIG names a pipe, which can be read only once"),
        "{}",
        piped.err
    );
    // A directory gets a file of the usual name; an existing file of that name is in the way as well.
    place.write("outside/crabbox-proof.md", "mine");
    let outside = place.run(&["proof", "--output", "../outside"]);
    assert!(
        outside.code == 2 && outside.err.contains("outside/crabbox-proof.md exists"),
        "{}",
        outside.err
    );
}

#[test]
fn a_configuration_that_is_trusted_here_is_trusted_by_a_proof_and_no_other() {
    let place = Place::new();
    place.write("repo/c.yaml", "provider: firecracker\n");
    place.write("home/c.yaml", "provider: firecracker\n");
    place.write("repo/there.md", "mine");
    symlink(place.path("repo"), place.path("outside/link")).unwrap();
    symlink(place.path("repo/c.yaml"), place.path("outside/c.yaml")).unwrap();
    let made = |config: &OsStr| {
        let mut command = place.command(&["proof", "--output", "there.md"]);
        let output = command.env("CRABBOX_CONFIG", config).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let path = |inside: &str| place.path(inside).into_os_string();
    for of_here in [
        path("outside/link/c.yaml"),
        path("outside/c.yaml"),
        path("repo/c.yaml"),
        "c.yaml".into(),
    ] {
        let said = made(&of_here);
        assert!(
            said.contains("names a file of this repository"),
            "{of_here:?}: {said}"
        );
    }
    let odd = OsStr::from_bytes(b"odd\xff.yaml");
    fs::write(place.path("repo").join(odd), "provider: firecracker\n").unwrap();
    let said = made(place.path("repo").join(odd).as_os_str());
    assert!(said.contains("names a file of this repository"), "{said}");
    let said = made(OsStr::new("~/c.yaml"));
    assert!(said.contains("there.md exists"), "{said}");
    let said = made(&path("outside/none.yaml"));
    assert!(said.contains("none.yaml, which does not exist"), "{said}");
}

#[test]
fn a_file_that_is_no_proof_is_refused_with_what_is_wrong() {
    let place = Place::new();
    for (text, told) in [
        (&b"hello"[..], "it has no document: no line is \"```json\""),
        (b"\xff", "it is not UTF-8 from byte 0 on"),
        (b"```json\n{}\n", "no line is \"```\""),
        (
            b"a\n```json\n{\"x\": 1, \"x\": 2}\n```\n",
            "which begins in line 3, cannot be read",
        ),
        (b"a\n```json\n{\n\"x\": 1}\n```\n", "line 4: unknown field `x`"),
        (
            b"```json\n{\"schemaVersion\": 9}\n```\n",
            "its schemaVersion is 9",
        ),
    ] {
        place.write("repo/p.md", text);
        let checked = place.run(&["proof", "--check", "p.md"]);
        assert_eq!((checked.code, checked.out.as_str()), (2, ""), "{}", checked.err);
        assert!(checked.err.contains(told), "{told}: {}", checked.err);
    }
    let missing = place.run(&["proof", "--check", "none.md"]);
    assert!(
        missing.code == 2 && missing.err.contains("read proof none.md"),
        "{}",
        missing.err
    );
    let file = fs::File::create(place.path("repo/large.md")).unwrap();
    file.set_len(5 << 20).unwrap();
    let large = place.run(&["proof", "--check", "large.md"]);
    assert_eq!((large.code, large.out.as_str()), (2, ""), "{}", large.err);
}
