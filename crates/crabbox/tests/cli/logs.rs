//! `logs` of a lease: which file, which lines, and how following one ends.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};

use crabbox_host::clock;

use crate::place::Place;
use crate::world::{ID, Record, leased};

#[test]
fn logs_are_read_with_what_was_turned_over_and_by_their_last_lines() {
    let (place, machine) = leased();
    let mut lease = Record::new(ID, "jade-krill").on(&machine);
    let vmm = place.write("outside/vmm.log", "vmm\n");
    lease.0["logPath"] = vmm.to_str().unwrap().into();
    let dir = lease.write(&place);
    let missing = place.run(&["logs", "jade-krill"]);
    assert_eq!(missing.code, 5);
    assert!(
        missing
            .err
            .starts_with(&format!("lease {ID} has no console log: ")),
        "{}",
        missing.err
    );
    fs::write(dir.join("console.log.1"), "older\n").unwrap();
    fs::write(dir.join("console.log"), "new\n\u{1b}[31mred\n").unwrap();
    // A pipe gets the raw bytes.
    assert_eq!(
        place.run(&["logs", "jade-krill"]).out,
        "older\nnew\n\u{1b}[31mred\n"
    );
    assert_eq!(
        place.run(&["logs", "--tail", "2", "--console", "jade-krill"]).out,
        "new\n\u{1b}[31mred\n"
    );
    assert_eq!(place.run(&["logs", "--vmm", "jade-krill"]).out, "vmm\n");
    let unheard = place.run(&["logs", "--supervisor", "jade-krill"]);
    assert_eq!(unheard.code, 5);
    let told = format!("lease {ID} has no supervisor log: ");
    assert!(unheard.err.starts_with(&told), "{}", unheard.err);
    fs::write(dir.join("supervisor.log.1"), "first\n").unwrap();
    fs::write(dir.join("supervisor.log"), "second\n").unwrap();
    assert_eq!(
        place.run(&["logs", "--supervisor", "--id", "jade-krill"]).out,
        "first\nsecond\n"
    );
    let json = place.run(&["logs", "--json", "--tail", "1", "jade-krill"]);
    assert_eq!(
        json.out,
        "{\"lease\":\"jade-krill\",\"source\":\"console\",\"log\":\"\\u001b[31mred\\n\"}\n"
    );
    for two in [
        ["--vmm", "--console"],
        ["--supervisor", "--vmm"],
        ["--json", "--follow"],
    ] {
        let both = place.run(&["logs", two[0], two[1], "jade-krill"]);
        assert_eq!(both.code, 2);
        assert!(both.err.ends_with(" exclude each other\n"), "{}", both.err);
    }
    // A symlink put in place of the file is not followed.
    fs::remove_file(&vmm).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &vmm).unwrap();
    let link = place.run(&["logs", "--vmm", "jade-krill"]);
    assert_eq!((link.code, link.out.as_str()), (2, ""));
    assert!(link.err.contains("is not a regular file"), "{}", link.err);
}

/// Writes the first line of this log, and starts to follow it: the line has been read.
fn followed(place: &Place, log: &Path) -> (Child, ChildStdout) {
    fs::write(log, "one\n").unwrap();
    let mut command = place.command(&["logs", "--follow", "jade-krill"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut first = [0; 4];
    out.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"one\n");
    (child, out)
}

#[test]
fn a_followed_log_goes_on_over_a_turn_and_ends_with_the_lease() {
    let (place, machine) = leased();
    let dir = Record::new(ID, "jade-krill").on(&machine).write(&place);
    let log = dir.join("console.log");
    let (mut child, mut out) = followed(&place, &log);
    let mut open = fs::OpenOptions::new().append(true).open(&log).unwrap();
    std::io::Write::write_all(&mut open, b"two\n").unwrap();
    fs::rename(&log, dir.join("console.log.1")).unwrap();
    fs::write(&log, "three\n").unwrap();
    let mut seen = [0; 10];
    out.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"two\nthree\n");
    std::io::Write::write_all(
        &mut fs::OpenOptions::new().append(true).open(&log).unwrap(),
        b"last\n",
    )
    .unwrap();
    drop(machine);
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("last\n", Some(0)));
}

#[test]
fn a_followed_log_that_nobody_reads_ends_though_the_guest_is_silent() {
    let (place, machine) = leased();
    let dir = Record::new(ID, "jade-krill").on(&machine).write(&place);
    let (mut child, out) = followed(&place, &dir.join("console.log"));
    drop(out);
    let ended = clock::poll_until(std::time::Duration::from_secs(30), || child.try_wait().unwrap());
    if ended.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
}
