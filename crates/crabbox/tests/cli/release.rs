//! `stop` and `cleanup`: nothing that may belong to a machine is lost track of, and what should be kept
//! stays.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use crabbox_host::command::Cmd;
use serde_json::{Value, json};

use crate::place::{Answer, Place};
use crate::world::{ID, OTHER, Record, claim, record};

/// A process with the arguments of the Go program's VMM; killed at the end of the test.
struct Vmm(Child);

impl Vmm {
    fn on(socket: &Path) -> Self {
        Self::from(Path::new("/"), socket)
    }

    /// One with this working directory.
    fn from(dir: &Path, socket: &Path) -> Self {
        let cmd = Cmd::new("sh")
            .args(["-c", "read line", "firecracker", "--api-sock"])
            .arg(socket)
            .cwd(dir);
        let mut command = cmd.to_std();
        command.stdin(Stdio::piped());
        Self(cmd.spawn(&mut command).unwrap())
    }

    /// Not a machine, but a process in this directory that names one in its arguments.
    fn looked_at_from(dir: &Path, vmid: &str) -> Self {
        let cmd = Cmd::new("sh").args(["-c", "read line", "watch", vmid]).cwd(dir);
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
        // A command that only looks is not referred to one that would refuse.
        let status = place.run(&["status", ID]);
        assert_eq!(status.code, 2, "{}", status.err);
        let restore = format!("hint: restore {}/metadata.json: ", dir.display());
        assert!(
            status.err.contains(&restore) && !status.err.contains("crabbox stop"),
            "{}",
            status.err
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

/// Ways in which a VMM may have been given its socket: its working directory and the path.
fn spellings(place: &Place, dir: &Path) -> Vec<(PathBuf, PathBuf)> {
    let leases = dir.parent().unwrap();
    let link = place.path("outside/link");
    std::os::unix::fs::symlink(leases, &link).unwrap();
    let below = |base: &Path, way: &str| (PathBuf::from("/"), base.join(way).join("firecracker.sock"));
    vec![
        below(&link, ID),
        below(leases, &format!("./../leases//{ID}")),
        below(leases, &format!("{ID}/../{ID}")),
        (leases.into(), Path::new(ID).join("firecracker.sock")),
        (link, Path::new("../leases").join(ID).join("firecracker.sock")),
    ]
}

#[test]
fn a_machine_is_found_however_the_path_of_its_socket_is_spelled() {
    for nth in 0..5 {
        let place = place();
        let dir = Record::new(ID, "jade-krill").label("keep", "true").write(&place);
        let (cwd, socket) = spellings(&place, &dir).swap_remove(nth);
        let mut vmm = Vmm::from(&cwd, &socket);
        let cleaned = place.run(&["cleanup"]);
        assert!(vmm.runs() && dir.exists(), "{socket:?}: {}", cleaned.out);
        let stopped = place.run(&["stop", ID]);
        assert_eq!(stopped.code, 0, "{socket:?}: {}", stopped.err);
        assert!(!vmm.runs() && !dir.exists(), "{socket:?}: {}", stopped.err);
        // Its lease is gone.
        let mut vmm = Vmm::from(&cwd, &socket);
        let name = format!("firecracker process name={} reason=no_lease", vmm.0.id());
        let cleaned = place.run(&["cleanup"]);
        assert!(cleaned.out.contains(&name), "{socket:?}: {}", cleaned.out);
        assert!(!vmm.runs(), "{socket:?}");
    }
}

#[test]
fn a_machine_is_found_from_a_state_directory_behind_a_link() {
    let place = place();
    let leases = Record::new(ID, "jade-krill")
        .write(&place)
        .parent()
        .unwrap()
        .to_owned();
    let state = place.path("outside/state");
    std::os::unix::fs::symlink(leases.parent().unwrap().parent().unwrap(), &state).unwrap();
    let mut vmm = Vmm::on(&leases.join(OTHER).join("firecracker.sock"));
    fs::create_dir(place.path("outside/base")).unwrap();
    std::os::unix::fs::symlink(&state, place.path("outside/base/crabbox")).unwrap();
    let base = place.path("outside/base");
    let place = place.env("XDG_STATE_HOME", base);
    let cleaned = place.run(&["cleanup"]);
    assert!(!vmm.runs(), "{}{}", cleaned.out, cleaned.err);
}

#[test]
fn a_machine_on_the_socket_that_the_record_names_is_the_lease_s_unless_it_is_another_s() {
    let place = place();
    let socket = place.path("outside/api.sock");
    let mut lease = Record::new(ID, "jade-krill");
    let mut other = Record::new(OTHER, "blue-crab");
    lease.0["socketPath"] = json!(socket);
    let dir = lease.write(&place);
    // It claims the first one's machine.
    let inside = dir.join("firecracker.sock");
    other.0["socketPath"] = json!(inside);
    other.write(&place);
    let (mut vmm, mut second) = (Vmm::on(&socket), Vmm::on(&inside));
    let mut near = Vmm::on(&place.path("outside/api.sock2"));
    // Of another state directory.
    let foreign = place.path("outside/leases/cbx_ffffffffffff");
    fs::create_dir_all(&foreign).unwrap();
    let mut elsewhere = Vmm::on(&foreign.join("firecracker.sock"));
    let mut third = Record::new("cbx_eeeeeeeeeeee", "red-crab");
    third.0["socketPath"] = json!(foreign.join("firecracker.sock"));
    third.write(&place);
    let stopped = place.run(&["stop", "cbx_eeeeeeeeeeee"]);
    assert_eq!(stopped.code, 0, "{}", stopped.err);
    assert!(elsewhere.runs());
    let stopped = place.run(&["stop", OTHER]);
    assert_eq!(stopped.code, 0, "{}", stopped.err);
    assert!(vmm.runs() && second.runs());
    let stopped = place.run(&["stop", ID]);
    assert_eq!(stopped.code, 0, "{}", stopped.err);
    assert!(!vmm.runs() && !second.runs() && near.runs());
}

/// In a jail the path of a lease's socket is another file.
#[test]
fn a_path_in_a_jail_is_not_taken_for_one_of_the_host() {
    let place = place();
    let dir = Record::new(ID, "jade-krill").write(&place);
    let jail = place.path("outside/jail");
    let socket = dir.join("firecracker.sock");
    fs::create_dir_all(jail.join(dir.strip_prefix("/").unwrap())).unwrap();
    let script = "set -e; for at in usr bin lib lib64; do [ -e /$at ] || continue; mkdir $0/$at; mount --rbind /$at $0/$at; done; \
        exec chroot $0 sh -c 'echo in; read line' firecracker --api-sock $1";
    let cmd = Cmd::new("unshare")
        .args(["--user", "--map-current-user", "--keep-caps", "--mount"])
        .args(["sh", "-c", script])
        .arg(&jail)
        .arg(&socket);
    let mut command = cmd.to_std();
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut jailed = Vmm(cmd.spawn(&mut command).unwrap());
    let mut said = [0; 3];
    std::io::Read::read_exact(jailed.0.stdout.as_mut().unwrap(), &mut said).unwrap();
    let stopped = place.run(&["stop", ID]);
    assert_eq!(stopped.code, 0, "{}", stopped.err);
    assert!(!dir.exists() && jailed.runs());
    let cleaned = place.run(&["cleanup"]);
    assert!(jailed.runs(), "{}", cleaned.out);
}

#[test]
fn a_lease_of_the_go_program_whose_identity_is_nobody_s_is_ended_by_its_socket() {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let earlier = "00000000-0000-4000-8000-000000000000";
    // No identity recorded; its own pid with another start time; a pid of another boot.
    for identity in [None, Some((true, boot.trim())), Some((false, earlier))] {
        let place = place();
        let mut lease = Record::new(ID, "jade-krill").label("keep", "true");
        let mut vmm = Vmm::on(&lease.write(&place).join("firecracker.sock"));
        if let Some((is_its_own, boot)) = identity {
            let pid = if is_its_own { vmm.0.id() } else { 99_999 };
            for (field, value) in [
                ("pid", json!(pid)),
                ("processStarted", json!("5")),
                ("bootID", json!(boot)),
            ] {
                lease.0[field] = value;
            }
        }
        let dir = lease.write(&place);
        fs::create_dir(dir.join("vm")).unwrap();
        let mut bystander =
            identity.map(|_| Vmm::looked_at_from(&dir.join("vm"), "crabbox-jade-krill-1a2b3c4d"));
        // `cleanup` does not end a running machine before its time.
        let cleaned = place.run(&["cleanup", "--provider", "firecracker"]);
        assert_eq!(cleaned.code, 0, "{identity:?}: {}", cleaned.err);
        assert!(vmm.runs() && dir.exists(), "{identity:?}: {}", cleaned.out);
        let stopped = place.run(&["stop", ID]);
        assert_eq!(stopped.code, 0, "{identity:?}: {}", stopped.err);
        assert!(
            stopped.err.starts_with(&format!("deleted lease={ID} ")),
            "{}",
            stopped.err
        );
        assert!(!vmm.runs(), "{identity:?}");
        assert!(bystander.as_mut().is_none_or(Vmm::runs), "{identity:?}");
        assert!(!dir.exists());
    }
}

#[test]
fn a_file_behind_a_link_that_leads_nowhere_is_not_taken_for_none() {
    for (name, code, told) in [
        ("metadata.json", 2, "was not changed: its record is unreadable"),
        ("journal.jsonl", 7, "cannot read journal "),
    ] {
        let place = place();
        let dir = Record::new(ID, "jade-krill").write(&place);
        fs::remove_file(dir.join(name)).ok();
        std::os::unix::fs::symlink("/nowhere/file", dir.join(name)).unwrap();
        let stopped = place.run(&["stop", ID]);
        assert_eq!(stopped.code, code, "{name}: {}", stopped.err);
        assert!(stopped.err.contains(told), "{name}: {}", stopped.err);
        place.run(&["cleanup"]);
        assert!(dir.join(name).is_symlink(), "{name} stays");
    }
}

#[test]
fn a_search_that_fails_hides_no_other() {
    let place = place();
    let leases = place.path("home/.config/crabbox/state/firecracker/leases");
    fs::create_dir_all(&leases).unwrap();
    let mut vmm = Vmm::on(&leases.join(ID).join("firecracker.sock"));
    let told = |answer: &Answer| -> Vec<(String, String, bool)> {
        let document: Value = serde_json::from_str(&answer.out).unwrap();
        let decisions = document["decisions"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let told = |one: &Value| {
            (
                text(&one["subject"]),
                text(&one["reason"]),
                one["error"].is_string(),
            )
        };
        decisions.map(told).collect()
    };
    let expect = |seen: &[(&str, &str, bool)]| -> Vec<(String, String, bool)> {
        let own = |one: &(&str, &str, bool)| (one.0.to_owned(), one.1.to_owned(), one.2);
        seen.iter().map(own).collect()
    };
    // A user who cannot change networks cannot have made links or rules, so this is not a problem.
    let answer = place.run_without_net_admin(&["cleanup", "--dry-run", "--json"]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    assert_eq!(
        told(&answer),
        expect(&[
            ("process", "no_lease", false),
            ("network", "needs_cap_net_admin", false)
        ])
    );
    // The contents of other state directories and the claims are unknown.
    fs::create_dir_all(place.path("registry/leases")).unwrap();
    fs::set_permissions(place.path("registry"), fs::Permissions::from_mode(0o777)).unwrap();
    place.write("home/.config/crabbox/state/claims", "");
    for dry in [&["--dry-run"][..], &[]] {
        let answer = place.run(&[&["cleanup", "--json"], dry].concat());
        assert_eq!(answer.code, 7, "{}", answer.err);
        assert_eq!(
            told(&answer),
            expect(&[
                ("claim", "not_looked_for", true),
                ("process", "no_lease", false),
                ("entry", "not_looked_for", true)
            ])
        );
        assert_eq!(vmm.runs(), !dry.is_empty());
    }
}

#[test]
fn a_disk_that_was_to_be_kept_stays_until_somebody_says_otherwise() {
    let place = place().env("CRABBOX_PROVIDER", "ssh");
    let mut lease = Record::new(ID, "jade-krill");
    lease.0["deleteOnRelease"] = json!(false);
    let dir = lease.write(&place);
    fs::write(dir.join("rootfs.ext4"), "disk").unwrap();
    // Without a claim, nothing but the flag says that it is not one of this provider's.
    let mut discard = String::new();
    for _ in 0..2 {
        let stopped = place.run(&["stop", "--provider", "firecracker", ID]);
        assert_eq!(stopped.code, 0, "{}", stopped.err);
        let kept = format!("kept lease={ID} disk in {}: ", dir.display());
        assert!(stopped.err.contains(&kept), "{}", stopped.err);
        assert_eq!(fs::read_to_string(dir.join("rootfs.ext4")).unwrap(), "disk");
        assert_eq!(record(&place, ID)["labels"]["state"], "released");
        stopped.err.split('`').nth(1).unwrap().clone_into(&mut discard);
    }
    let words: Vec<&str> = discard.strip_prefix("crabbox ").unwrap().split(' ').collect();
    let stopped = place.run(&words);
    assert_eq!(stopped.code, 0, "{}", stopped.err);
    assert!(!stopped.err.contains("kept"), "{}", stopped.err);
    assert!(!dir.exists());
}

/// The four `--expected-` flags of a program that made the lease.
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
    // The stored record is unchanged.
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
        // Commands that use the repository's values need all of them.
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
    // An invalid flag value in a job is reported with its place, and never shown as a line to paste.
    place.write(
        "repo/crabbox.yaml",
        "jobs:\n  x: {target: bsd, command: make}\n  y: {command: make, market: spot}\n",
    );
    for (job, says) in [
        (
            "x",
            ":2:15: jobs.x.target must be linux, macos, windows, or worker-runtime, found \"bsd\"",
        ),
        ("y", ":3:6)\n  caused by: --market is not in this program: "),
    ] {
        let bad = place.run(&["job", "run", "--dry-run", job]);
        assert_eq!((bad.code, bad.out.as_str()), (2, ""), "{}", bad.err);
        assert!(bad.err.contains(says), "{}", bad.err);
    }
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
