//! Watching leases: `list --watch` and `status --watch`, for a person on a terminal and for a script.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use crabbox_host::clock::poll_until;
use crabbox_host::process::Signal;
use rustix::process::{Pid, kill_process};

use crate::place::Place;
use crate::world::{ID, OTHER, Record, leased};

/// How long a change may take to appear: many times the interval.
const PATIENCE: Duration = Duration::from_secs(30);

/// The lines of a stream as they come.
fn lines(out: ChildStdout) -> Receiver<String> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    receive
}

fn watching(place: &Place, words: &[&str]) -> (Child, Receiver<String>) {
    let mut command = place.command(words);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let out = child.stdout.take().unwrap();
    (child, lines(out))
}

/// Sends Ctrl-C and returns the exit code.
fn interrupted(mut child: Child) -> Option<i32> {
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    child.wait().unwrap().code()
}

#[test]
fn a_script_is_told_a_line_a_change_and_nothing_while_only_time_passes() {
    let (place, _machine) = leased();
    let (child, lines) = watching(&place, &["list", "--provider", "firecracker", "--watch"]);
    let next = || lines.recv_timeout(PATIENCE).unwrap();
    assert!(next().contains(&format!("lease={ID} slug=jade-krill")));
    let dir = Record::new(OTHER, "brisk-crab").write(&place);
    // The next line is about the new lease: the old one has not changed.
    assert!(next().contains(&format!("lease={OTHER} slug=brisk-crab")));
    fs::remove_dir_all(dir).unwrap();
    assert_eq!(next(), format!("gone lease={OTHER}"));
    assert_eq!(interrupted(child), Some(0));
    assert!(lines.recv_timeout(PATIENCE).is_err(), "nothing more was told");
}

#[test]
fn a_program_is_told_a_document_a_change_and_one_lease_s_watch_ends_with_it() {
    let (place, _machine) = leased();
    let dir = Record::new(OTHER, "brisk-crab").write(&place);
    let words = ["status", "--provider", "firecracker", "--watch", "--json", OTHER];
    let (mut child, lines) = watching(&place, &words);
    let first: serde_json::Value = serde_json::from_str(&lines.recv_timeout(PATIENCE).unwrap()).unwrap();
    assert_eq!(
        (&first["id"], &first["ready"]),
        (&OTHER.into(), &false.into()),
        "{first}"
    );
    fs::remove_dir_all(dir).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(lines.recv_timeout(PATIENCE).is_err(), "nothing more was told");
    let none = place.run(&["status", "--provider", "firecracker", "--watch", OTHER]);
    assert_eq!(none.code, 4, "{}", none.err);
    let both = place.run(&["status", "--watch", "--wait", ID]);
    assert_eq!(both.code, 2, "{}", both.err);
}

#[test]
fn an_unreadable_record_is_warned_of_once_and_silences_no_watch() {
    for json in [&[][..], &["--json"]] {
        let (place, _machine) = leased();
        let bad = Record::new("cbx_00000000bad0", "odd-crab").write(&place);
        let whole = fs::read_to_string(bad.join("metadata.json")).unwrap();
        let damaged = |text: &str| fs::write(bad.join("metadata.json"), text).unwrap();
        let words = [&["list", "--provider", "firecracker", "--watch"], json].concat();
        let mut command = place.command(&words);
        let said = fs::File::create(place.path("said")).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(said).spawn().unwrap();
        let lines = lines(child.stdout.take().unwrap());
        // The next line that contains this: a document has all leases, another line the one that changed.
        let until = |has: &str| loop {
            let line = lines.recv_timeout(PATIENCE).unwrap();
            if line.contains(has) {
                return line;
            }
        };
        until("odd-crab");
        damaged("{");
        let warned = poll_until(PATIENCE, || {
            let said = fs::read_to_string(place.path("said")).unwrap();
            said.contains("cbx_00000000bad0").then_some(())
        });
        assert!(warned.is_some());
        Record::new(OTHER, "brisk-crab").write(&place);
        let line = until("brisk-crab");
        // What could not be looked at is not gone.
        assert_eq!(line.contains("odd-crab"), !json.is_empty(), "{line}");
        let dir = Record::new("cbx_000000000003", "calm-clam").write(&place);
        until("calm-clam");
        fs::remove_dir_all(dir).unwrap();
        let once = fs::read_to_string(place.path("said")).unwrap();
        assert_eq!(once.matches("is left out").count(), 1, "{once}");
        damaged(&whole);
        assert_eq!(interrupted(child), Some(0));
    }
}

#[test]
fn a_person_has_one_screen_and_their_terminal_back_after_ctrl_c() {
    let (place, _machine) = leased();
    let script = "TERM=xterm; export TERM; script -qefc 'echo $$ > pid; exec crabbox list --provider firecracker --watch' seen >/dev/null & s=$!; \
         for i in $(seq 600); do grep -q 'slug=jade-krill' seen 2>/dev/null && break; sleep 0.05; done; kill -INT $(cat pid); wait $s; echo code=$?";
    let seen = place.paste(script);
    assert!(seen.out.ends_with("code=0\n"), "{} {}", seen.out, seen.err);
    let seen = fs::read_to_string(place.path("repo/seen")).unwrap();
    let entered = seen.find("\u{1b}[?1049h").expect("it has a screen of its own");
    let left = seen.find("\u{1b}[?25h\u{1b}[?1049l").expect("and gives it back");
    let row = seen.find("slug=jade-krill").unwrap();
    assert!(entered < row && row < left, "{seen:?}");
    assert!(
        seen.contains("1 lease, looked at every 2 s; Ctrl-C ends"),
        "{seen:?}"
    );
}

#[test]
fn a_person_sees_the_doctor_s_verdict_first_and_a_script_the_lines_of_the_reference() {
    let place = Place::new();
    let words = "crabbox doctor --provider firecracker";
    let person = place.paste(&format!("script -qefc '{words}' /dev/null"));
    assert!(
        person.out.starts_with("This host can lease machines: ")
            || person.out.starts_with("This host cannot lease machines yet: "),
        "{}",
        person.out
    );
    let script = place.paste(words);
    let first = script.out.lines().next().unwrap();
    assert!(
        ["ok ", "missing ", "failed ", "warning ", "skip "]
            .iter()
            .any(|status| first.starts_with(status)),
        "{first}"
    );
    assert!(!script.out.contains("This host"), "{}", script.out);
}

#[test]
fn a_watch_that_nobody_reads_ends_whether_or_not_anything_changes() {
    let list = ["list", "--provider", "firecracker", "--watch"];
    let status = ["status", "--provider", "firecracker", "--watch", ID];
    let json = ["list", "--provider", "firecracker", "--watch", "--json"];
    for (words, changes) in [(&list[..], false), (&list, true), (&status, true), (&json, true)] {
        let (place, _machine) = leased();
        let mut child = place.command(words).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        out.read_line(&mut first).unwrap();
        drop(out);
        if changes {
            // Of the watched lease and of another one.
            Record::new(ID, "jade-krill").write(&place);
            Record::new(OTHER, "brisk-crab").write(&place);
        }
        let ended = poll_until(PATIENCE, || child.try_wait().unwrap());
        child.kill().ok();
        child.wait().unwrap();
        assert!(first.contains(ID), "{words:?}: {first}");
        let code = ended.map(|status| status.code());
        assert_eq!(code, Some(Some(0)), "{words:?} changes={changes}");
    }
}
