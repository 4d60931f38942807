//! `stop` and `cleanup`: nothing that could name a machine is forgotten, and what was to be kept stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use crabbox_host::command::Cmd;
use serde_json::json;

use crate::place::Place;
use crate::world::{Record, claim, record};

const ID: &str = "cbx_0123456789ab";
const OTHER: &str = "cbx_ba9876543210";

/// A process with the arguments of the Go program's VMM; it ends with the test.
struct Vmm(Child);

impl Vmm {
    fn on(socket: &Path) -> Self {
        let cmd = Cmd::new("sh")
            .args(["-c", "read line", "firecracker", "--api-sock"])
            .arg(socket);
        let mut command = cmd.to_std();
        command.stdin(Stdio::piped());
        Self(cmd.spawn(&mut command).unwrap())
    }

    fn runs(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn place() -> Place {
    let place = Place::new();
    fs::create_dir(place.path("run")).unwrap();
    let run = place.path("run");
    Cmd::new("chmod").arg("700").arg(&run).run().unwrap();
    place
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("XDG_RUNTIME_DIR", run)
        .env("CRABBOX_PROVIDER", "firecracker")
}

fn broken(place: &Place, text: &str) -> PathBuf {
    let dir = Record::new(ID, "jade-krill").write(place);
    claim(place, ID, "jade-krill", "firecracker");
    fs::write(dir.join("metadata.json"), text).unwrap();
    dir
}

#[test]
fn a_record_that_cannot_be_read_is_not_forgotten_while_it_may_name_a_machine() {
    let other = Record::new(OTHER, "jade-krill").0.to_string();
    for text in ["{", "", "[]", r#"{"schemaVersion":1,"pid":"7"}"#, &other] {
        let place = place();
        let dir = broken(&place, text);
        let mut vmm = Vmm::on(&dir.join("firecracker.sock"));
        for name in [ID, "jade-krill"] {
            let stopped = place.run(&["stop", name]);
            assert_eq!(
                (stopped.code, stopped.out.as_str()),
                (2, ""),
                "{text:?}: {}",
                stopped.err
            );
            assert!(!stopped.err.contains("deleted"), "{}", stopped.err);
            let process = format!("(process {} has its socket)", vmm.0.id());
            assert!(stopped.err.contains(&process), "{}", stopped.err);
        }
        assert!(vmm.runs(), "nothing is ended on a guess");
        assert_eq!(fs::read_to_string(dir.join("metadata.json")).unwrap(), text);
        assert!(
            place
                .path(&format!("home/.config/crabbox/state/claims/{ID}.json"))
                .exists()
        );
        let swept = place.run(&["cleanup", "--dry-run"]);
        let want = format!("skip firecracker lease={ID} vmid=- reason=unreadable_record");
        assert!(swept.err.contains(&want), "{}", swept.err);
    }
}

#[test]
fn a_machine_whose_lease_is_gone_is_found_by_its_socket() {
    let place = place();
    let dir = broken(&place, "{");
    let vmm = Vmm::on(&dir.join("firecracker.sock"));
    let line = format!(
        "would remove firecracker process name={} reason=no_lease\n",
        vmm.0.id()
    );
    let sweep = || place.run(&["cleanup", "--dry-run"]).out;
    assert!(!sweep().contains(&line), "its lease is there");
    fs::rename(&dir, place.path("outside/lease")).unwrap();
    assert!(sweep().contains(&line), "{}", sweep());
}

#[test]
fn a_lease_of_the_go_program_without_an_identity_is_ended_by_its_socket() {
    let place = place();
    let dir = Record::new(ID, "jade-krill").write(&place);
    let mut vmm = Vmm::on(&dir.join("firecracker.sock"));
    let stopped = place.run(&["stop", ID]);
    assert_eq!(stopped.code, 0, "{}", stopped.err);
    assert!(
        stopped.err.starts_with(&format!("deleted lease={ID} ")),
        "{}",
        stopped.err
    );
    assert!(!vmm.runs());
    assert!(!dir.exists());
}

#[test]
fn a_disk_that_was_to_be_kept_stays_until_somebody_says_otherwise() {
    let place = place();
    let mut lease = Record::new(ID, "jade-krill");
    lease.0["deleteOnRelease"] = json!(false);
    let dir = lease.write(&place);
    fs::write(dir.join("rootfs.ext4"), "disk").unwrap();
    for _ in 0..2 {
        let stopped = place.run(&["stop", ID]);
        assert_eq!(stopped.code, 0, "{}", stopped.err);
        let kept = format!("kept lease={ID} disk in {}: ", dir.display());
        assert!(stopped.err.contains(&kept), "{}", stopped.err);
        assert_eq!(fs::read_to_string(dir.join("rootfs.ext4")).unwrap(), "disk");
        assert_eq!(record(&place, ID)["labels"]["state"], "released");
    }
    let stopped = place.run(&["stop", "--firecracker-delete-on-release", ID]);
    assert_eq!(stopped.code, 0, "{}", stopped.err);
    assert!(!stopped.err.contains("kept"), "{}", stopped.err);
    assert!(!dir.exists());
}

/// The four fences of a program that made the lease.
fn fences(id: &str, slug: &str, name: &str) -> [String; 4] {
    [
        format!("--expected-provider-lease-id={id}"),
        format!("--expected-attempt-lease-id={id}"),
        format!("--expected-slug={slug}"),
        format!("--expected-resource-id={name}"),
    ]
}

#[test]
fn only_the_lease_that_is_expected_is_stopped() {
    let place = place();
    let dir = Record::new(ID, "jade-krill").write(&place);
    let name = "crabbox-jade-krill-1a2b3c4d";
    let stop = |fences: &[String]| {
        let fences = fences.iter().map(String::as_str);
        let words: Vec<&str> = ["stop"].into_iter().chain(fences).chain([ID]).collect();
        place.run(&words)
    };
    for (fences, code, want) in [
        (
            fences(OTHER, "jade-krill", name),
            4,
            "refusing to stop: expected provider-lease-id=cbx_ba9876543210, found",
        ),
        (
            fences(ID, "amber-crab", name),
            4,
            "refusing to stop: expected slug=amber-crab, found slug=jade-krill",
        ),
        (
            fences(ID, "jade-krill", "x"),
            4,
            "refusing to stop: expected resource-id=x, found",
        ),
        (
            fences(ID, "", name),
            2,
            "--expected-provider-lease-id, --expected-attempt-lease-id, --expected-slug and",
        ),
    ] {
        let refused = stop(&fences);
        assert_eq!(refused.code, code, "{}", refused.err);
        assert!(refused.err.starts_with(want), "{}", refused.err);
        assert!(dir.exists());
    }
    let stopped = stop(&fences(ID, "jade-krill", name));
    assert_eq!(stopped.code, 0, "{}", stopped.err);
    assert!(!dir.exists());
}

#[test]
fn a_dead_lease_is_stopped_in_its_labels_too() {
    let place = place();
    Record::new(ID, "jade-krill").write(&place);
    for words in [
        &["list", "--json"][..],
        &["status", "--json", ID],
        &["inspect", "--json", ID],
    ] {
        let shown = place.run(words);
        assert_eq!(shown.code, 0, "{}", shown.err);
        assert!(
            shown.out.contains(r#""state":"stopped""#),
            "{words:?}: {}",
            shown.out
        );
        assert!(
            !shown.out.contains(r#""state":"ready""#),
            "{words:?}: {}",
            shown.out
        );
    }
    // What is stored stays as it was.
    assert_eq!(record(&place, ID)["labels"]["state"], "ready");
}

#[test]
fn a_provider_that_does_not_exist_is_no_finding_of_the_doctor() {
    for words in [&["doctor"][..], &["doctor", "--json"]] {
        let words = [words, &["--provider", "hetzner"]].concat();
        let asked = place().run(&words);
        assert_eq!((asked.code, asked.out.as_str()), (2, ""), "{}", asked.err);
        assert!(
            asked.err.starts_with("unknown provider \"hetzner\""),
            "{}",
            asked.err
        );
    }
}

#[test]
fn a_line_that_a_repository_has_keeps_nobody_from_giving_a_machine_back() {
    for (text, told) in [
        ("jobs:\n  x: {stop: sometimes, command: make}\n", ""),
        ("ssh:\n  fallbackPorts: [none]\n", ""),
        (
            "firecracker:\n  cpus: many\n",
            ":2:9: firecracker.cpus must be a whole number",
        ),
        ("ttl: [1]\nclass: {}\n", ":2:8: class must be a text"),
        ("class: [a\n", "parse config "),
        ("- a\n", ":1:1: a configuration file must be"),
    ] {
        let place = place();
        let dir = Record::new(ID, "jade-krill").write(&place);
        claim(&place, ID, "jade-krill", "firecracker");
        place.write("repo/crabbox.yaml", text);
        for words in [&["list"][..], &["status", ID], &["stop", "jade-krill"]] {
            let answer = place.run(words);
            assert_eq!(answer.code, 0, "{text:?} {words:?}: {}", answer.err);
            assert!(answer.err.contains(told), "{text:?} {words:?}: {}", answer.err);
        }
        assert!(!dir.exists());
        // Whoever works by the repository's values needs all of them.
        let warmed = place.run(&["config", "show"]);
        assert_eq!(
            warmed.code,
            if told.is_empty() { 0 } else { 2 },
            "{text:?}: {}",
            warmed.err
        );
    }
}

#[test]
fn a_job_that_makes_no_sense_is_in_the_way_of_itself_alone() {
    let place = place();
    place.write(
        "repo/crabbox.yaml",
        "jobs:\n  x: {stop: sometimes, command: make}\n  y: {command: make}\n",
    );
    let good = place.run(&["job", "run", "--dry-run", "y"]);
    assert_eq!(good.code, 0, "{}", good.err);
    let bad = place.run(&["job", "run", "--dry-run", "x"]);
    assert_eq!((bad.code, bad.out.as_str()), (2, ""), "{}", bad.err);
    assert!(
        bad.err.contains(":2:13: jobs.x.stop must be auto, always"),
        "{}",
        bad.err
    );
    for (words, want) in [
        (
            &["--stop", "never"][..],
            "crabbox run --stop-after=never -- make\n",
        ),
        (&["--stop=auto", "--no-hydrate"], "crabbox run -- make\n"),
    ] {
        let told = place.run(&[&["job", "run", "--dry-run"], words, &["y"]].concat());
        assert_eq!(
            (told.code, told.out.as_str()),
            (0, want),
            "{words:?}: {}",
            told.err
        );
    }
    let list = place.run(&["job", "list"]);
    assert_eq!(list.code, 0, "{}", list.err);
    assert!(
        list.out.starts_with("y provider=") && list.out.lines().count() == 1,
        "{}",
        list.out
    );
    assert!(list.err.contains("jobs.x.stop must be"), "{}", list.err);
}

#[test]
fn two_names_for_one_lease_are_none() {
    let place = place();
    let dir = Record::new(ID, "jade-krill").write(&place);
    for command in ["stop", "ssh", "connect", "status", "inspect", "heartbeat", "logs"] {
        let answer = place.run(&[command, "--id", ID, OTHER]);
        assert_eq!(
            (answer.code, answer.out.as_str()),
            (2, ""),
            "{command}: {}",
            answer.err
        );
        assert!(
            answer.err.contains("usage: crabbox "),
            "{command}: {}",
            answer.err
        );
    }
    assert!(dir.exists());
}
