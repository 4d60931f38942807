//! The provider `ssh` against a real sshd: the whole life of a lease, and what it refuses.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crabbox_host::clock::poll_until;
use crabbox_host::command::Cmd;
use crabbox_testkit::sshd::Sshd;
use serde_json::{Value, json};

use crate::place::{Answer, Place};
use crate::world::{claim_file, read_claim};

pub(crate) const ID: &str = "static_127-0-0-1";

/// An existing host, a repository with one commit, and an empty configuration.
pub(crate) fn existing() -> (Place, Sshd) {
    let (sshd, place) = (Sshd::start(), Place::new());
    fs::create_dir(place.path("run")).unwrap();
    fs::set_permissions(place.path("run"), fs::Permissions::from_mode(0o700)).unwrap();
    let run = place.path("run");
    let place = place
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("XDG_RUNTIME_DIR", run);
    fs::remove_dir(place.path("repo/.git")).unwrap();
    let script = "git init -q -b main && echo committed > tracked && git add tracked && \
                  git -c user.name=t -c user.email=t@t commit -qm one && echo dirty > tracked && echo new > untracked";
    Cmd::new("sh")
        .args(["-ec", script])
        .cwd(place.path("repo"))
        .env("HOME", place.path("home"))
        .run()
        .unwrap();
    (place, sshd)
}

/// The settings of that host, with `more` lines.
pub(crate) fn configure(place: &Place, sshd: &Sshd, more: &str) {
    let work_root = sshd.dir().join("work");
    let text = format!(
        "provider: ssh\nssh:\n  key: {}\n{more}static:\n  host: 127.0.0.1\n  user: {}\n  port: {}\n  workRoot: {}\n",
        key(place, sshd),
        sshd.user(),
        sshd.port(),
        work_root.display()
    );
    place.write("home/.config/crabbox/config.yaml", text);
}

/// The user's key, in `~/.ssh`.
pub(crate) fn key(place: &Place, sshd: &Sshd) -> String {
    fs::create_dir_all(place.path("home/.ssh")).unwrap();
    let key = place.write("home/.ssh/key", fs::read(sshd.client_key()).unwrap());
    key.display().to_string()
}

pub(crate) fn claimed(place: &Place, id: &str) -> bool {
    place
        .path("home/.config/crabbox/state/claims")
        .join(format!("{id}.json"))
        .exists()
}

/// Whether a shared connection is left.
pub(crate) fn connected(place: &Place) -> bool {
    let sockets = fs::read_dir(place.path("run/crabbox"));
    sockets.is_ok_and(|mut sockets| sockets.next().is_some())
}

/// Checks that a run that could not log in says so in its timings, without a lease, and whether a retry may
/// help.
fn unentered(said: &str, retry: &str) {
    let class = format!("failure classification blocked_stage=ssh retry_likely={retry}\n");
    assert!(said.contains(&class), "{said}");
    let timing = said.lines().find(|line| line.starts_with('{'));
    let timing: Value = serde_json::from_str(timing.expect(said)).unwrap();
    for (name, value) in [
        ("provider", json!("ssh")),
        ("leaseId", Value::Null),
        ("exitCode", json!(5)),
        ("runStatus", json!("failed")),
        ("errorKind", json!("provider-error")),
        ("blockedStage", json!("ssh")),
        ("retryLikely", json!(retry)),
    ] {
        assert_eq!(timing[name], value, "{timing}");
    }
}

pub(crate) fn ended(answer: &Answer, code: i32, start: &str) {
    assert_eq!(answer.code, code, "{}{}", answer.out, answer.err);
    assert!(answer.err.starts_with(start), "{}", answer.err);
}

#[test]
fn a_host_that_exists_is_leased_used_and_given_back() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    let port = sshd.port();
    let warmup = place.run(&["warmup", "--slug", "My Box"]);
    ended(
        &warmup,
        0,
        &format!(
            "using static target lease={ID} slug=my-box target=linux windows_mode=normal host=127.0.0.1 keep=true\n"
        ),
    );
    let leased =
        format!("leased {ID} slug=my-box provider=ssh server={ID} type=ssh ip=127.0.0.1 idle_timeout=30m0s ");
    assert!(warmup.out.starts_with(&leased), "{}", warmup.out);
    let ready = format!("ready ssh={}@127.0.0.1:{port} network=public", sshd.user());
    assert!(warmup.out.contains(&ready), "{}", warmup.out);
    let claim = read_claim(&place, ID);
    let work_root = sshd.dir().join("work").display().to_string();
    for (field, value) in [
        ("provider", json!("ssh")),
        ("cloudID", json!(ID)),
        ("staticHost", json!("127.0.0.1")),
        ("staticUser", json!(sshd.user())),
        ("staticPort", json!(port.to_string())),
        ("staticWorkRoot", json!(work_root)),
        ("repoRoot", json!(place.path("repo"))),
    ] {
        assert_eq!(claim[field], value, "{field}");
    }
    assert!(
        place.path("home/.ssh/known_hosts").exists(),
        "the user's own file"
    );
    used(&place, &sshd);
    let stop = place.run(&["stop", "my-box"]);
    ended(&stop, 0, &format!("released static lease={ID} host=127.0.0.1\n"));
    assert_eq!(stop.out, "");
    assert!(!claimed(&place, ID) && !connected(&place));
    assert!(Path::new(&work_root).is_dir(), "nothing on the host is destroyed");
    assert!(place.path("home/.ssh/key").exists(), "the key is the user's");
}

/// Everything that can be done with a lease, under each of its names. No setting names the host, because its
/// claim does. The repository asks for another machine, which only affects new leases.
fn used(place: &Place, sshd: &Sshd) {
    let only_key = format!("ssh:\n  key: {}\n", key(place, sshd));
    place.write("home/.config/crabbox/config.yaml", only_key);
    let file = place.write("repo/crabbox.yaml", "target: macos\ndesktop: true\n");
    let new = place.run(&["warmup", "--provider", "ssh", "--static-host", "127.0.0.1"]);
    let says = format!(
        "provider=ssh supports target=linux only\nhint: it is set at {}:1:9\n",
        file.display()
    );
    ended(&new, 2, &says);
    let meant = place.run(&["ssh", "--target", "macos", ID]);
    ended(&meant, 2, "provider=ssh supports target=linux only\n");
    let status = place.run(&["status", "--wait", "--wait-timeout", "60s", "my-box"]);
    ended(&status, 0, "");
    assert!(
        status.out.contains("state=ready type=ssh host=127.0.0.1") && status.out.contains(" ready=true "),
        "{}",
        status.out
    );
    let run = place.run(&[
        "run",
        "--id",
        ID,
        "--shell",
        "cat tracked untracked; echo problem >&2; exit 7",
    ]);
    assert_eq!((run.code, run.out.as_str()), (7, "dirty\nnew\n"), "{}", run.err);
    assert!(run.err.contains("\nproblem\n"), "{}", run.err);
    place.write("repo/up [1]", "there and back");
    let there = sshd.dir().join("there [1]").display().to_string();
    let sandbox = format!("SANDBOX:{there}");
    ended(&place.run(&["cp", "--id", "my-box", "up [1]", &sandbox]), 0, "");
    ended(
        &place.run(&["cp", "--provider", "ssh", "--id", "127.0.0.1", &sandbox, "back"]),
        0,
        "",
    );
    assert_eq!(fs::read(place.path("repo/back")).unwrap(), b"there and back");
    let heartbeat = place.run(&["heartbeat", "--idle-timeout", "10m", ID]);
    ended(&heartbeat, 0, "");
    assert_eq!(read_claim(place, ID)["idleTimeoutSeconds"], 600);
    let list = place.run(&["list", "--json", "--provider", "static-ssh"]);
    ended(&list, 0, "");
    let list: Value = serde_json::from_str(&list.out).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(
        [
            &list[0]["CloudID"],
            &list[0]["Provider"],
            &list[0]["labels"]["slug"],
            &list[0]["server_type"]["name"]
        ],
        [&json!(ID), &json!("ssh"), &json!("my-box"), &json!("ssh")]
    );
    let inspect = place.run(&["inspect", ID]);
    assert!(inspect.out.contains("\nprovider=ssh\n"), "{}", inspect.out);
    assert_eq!(
        place.run(&["connect", ID]).code,
        0,
        "a shell at the end of its input"
    );
    let line = place.run(&["ssh", ID]).out;
    assert!(line.contains("'StrictHostKeyChecking=accept-new'"), "{line}");
    let again = Cmd::new("sh")
        .args(["-c", &format!("{} echo in", line.trim())])
        .run();
    assert_eq!(again.unwrap().stdout_text(), "in");
}

#[test]
fn a_run_without_a_lease_gives_the_host_back() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    let run = place.run(&["run", "--timing-json", "--", "cat", "tracked"]);
    assert_eq!((run.code, run.out.as_str()), (0, "dirty\n"), "{}", run.err);
    assert!(run.err.contains("keep=false\n"), "{}", run.err);
    let timing: Value = serde_json::from_str(run.err.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&timing["runStatus"], &timing["leaseStopped"]),
        (&json!("succeeded"), &json!(true))
    );
    assert!(!claimed(&place, ID) && !connected(&place));
    let names = |phases: &Value| -> Vec<String> {
        let phases = phases.as_array().unwrap();
        let name = |phase: &Value| phase["name"].as_str().unwrap().to_owned();
        phases.iter().map(name).collect()
    };
    assert_eq!(
        names(&timing["syncPhases"]),
        ["manifest", "manifest_write", "rsync", "git_seed", "finalize"]
    );
    assert_eq!(names(&timing["commandPhases"]), ["user-command"]);
    let ms = |name: &str| timing[name].as_u64().unwrap();
    assert!(ms("endToEndMs") >= ms("totalMs") + ms("leaseMs"), "{timing}");
    for absent in ["errorKind", "blockedStage", "retryLikely"] {
        assert!(timing.get(absent).is_none(), "{absent}: {timing}");
    }
    let again = place.run(&["run", "--timing-json", "--", "cat", "tracked"]);
    let timing: Value = serde_json::from_str(again.err.lines().last().unwrap()).unwrap();
    let last = timing["syncPhases"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&timing["syncSkipped"], last),
        (
            &json!(true),
            &json!({"name": "rsync", "skipped": true, "reason": "no changes"})
        )
    );
}

/// Waits for a file that a command creates when it has started.
fn appears(path: &Path) {
    let there = poll_until(Duration::from_mins(2), || path.exists().then_some(()));
    assert!(there.is_some(), "{} did not appear", path.display());
}

#[test]
fn the_last_run_on_a_host_gives_it_back() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    let file = |name: &str| sshd.dir().join(name);
    let start = |name: &str| {
        let script = format!(
            "touch {0}.started; until [ -e {0}.go ]; do sleep 0.1; done",
            file(name).display()
        );
        let errors = fs::File::create(file(&format!("{name}.err"))).unwrap();
        let words = ["run", "--no-sync", "--shell", "--", &script];
        let mut command = place.command(&words);
        command.stdout(Stdio::null()).stderr(errors).spawn().unwrap()
    };
    let said = |name: &str| fs::read_to_string(file(&format!("{name}.err"))).unwrap();
    let mut first = start("first");
    appears(&file("first.started"));
    // It waits for the tree, which the first run has locked.
    let mut second = start("second");
    let waits = poll_until(Duration::from_mins(2), || {
        said("second").contains("keep=false").then_some(())
    });
    assert!(waits.is_some(), "{}", said("second"));
    fs::write(file("first.go"), "").unwrap();
    assert!(first.wait().unwrap().success(), "{}", said("first"));
    assert!(said("first").contains("stopped=false"), "{}", said("first"));
    appears(&file("second.started"));
    assert!(claimed(&place, ID) && connected(&place), "{}", said("second"));
    fs::write(file("second.go"), "").unwrap();
    assert!(second.wait().unwrap().success(), "{}", said("second"));
    assert!(said("second").contains("stopped=true"), "{}", said("second"));
    assert!(!claimed(&place, ID) && !connected(&place));
}

#[test]
fn a_run_beside_a_kept_lease_leaves_it_as_it_was() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    let warm = place.run(&["warmup", "--slug", "kept"]);
    assert_eq!(warm.code, 0, "{}", warm.err);
    let run = place.run(&["run", "--slug", "mine", "--", "true"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.err.contains("stopped=false"), "{}", run.err);
    assert_eq!(read_claim(&place, ID)["slug"], "kept");
    let status = place.run(&["status", "kept"]);
    assert!(status.out.contains("state=ready"), "{}", status.out);
    let stop = place.run(&["stop", "kept"]);
    assert_eq!(stop.code, 0, "{}", stop.err);
    assert!(!claimed(&place, ID) && !connected(&place));
    // An explicit `--stop-after` is obeyed.
    for (when, command, ends) in [
        ("success", "false", false),
        ("always", "true", true),
        ("never", "true", false),
    ] {
        let warm = place.run(&["warmup"]);
        assert_eq!(warm.code, 0, "{}", warm.err);
        let run = place.run(&["run", "--no-sync", "--stop-after", when, "--", command]);
        let told = run
            .err
            .contains(&format!("lease cleanup stopped=true policy={when} "));
        assert_eq!((told, claimed(&place, ID)), (ends, !ends), "{when}: {}", run.err);
    }
}

#[test]
fn a_home_that_cannot_hold_the_lock_is_reported_in_its_own_words() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    // Tests run as root, to whom modes do not apply.
    fs::write(sshd.home().join(".crabbox"), "a file").unwrap();
    let run = place.run(&["run", "--", "true"]);
    assert_ne!(run.code, 0, "{}{}", run.out, run.err);
    let reason = run
        .err
        .lines()
        .find(|line| line.contains("cannot lock the workspace"));
    assert!(
        reason.is_some_and(|line| line.contains(".crabbox/workspace-owners: Not a directory")),
        "{}",
        run.err
    );
    assert!(
        run.err.contains("hint: the lock of a workspace is in ~/.crabbox"),
        "{}",
        run.err
    );
}

#[test]
fn a_home_that_cannot_take_the_agent_is_reported_in_its_own_words_and_keeps_nothing() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    fs::write(sshd.home().join(".cache"), "a file").unwrap();
    let run = place.run(&["run", "--", "true"]);
    assert_eq!(run.code, 7, "{}{}", run.out, run.err);
    for says in [
        "cannot install crabbox's agent in ~/.cache/crabbox of the lease",
        "hint: a small agent of crabbox's is installed",
    ] {
        assert!(run.err.contains(says), "{says}: {}", run.err);
    }
    assert_eq!(fs::read_to_string(sshd.home().join(".cache")).unwrap(), "a file");
}

#[test]
fn the_default_port_falls_back_to_the_one_that_answers() {
    let (place, sshd) = existing();
    // A free port stands in for 22, which belongs to the host's own sshd here; nothing listens on port 1.
    let text = format!(
        "provider: ssh\nssh:\n  key: {}\n  user: {}\n  port: 1\n  fallbackPorts: [{}]\nstatic:\n  host: 127.0.0.1\n",
        key(&place, &sshd),
        sshd.user(),
        sshd.port()
    );
    place.write("home/.config/crabbox/config.yaml", text);
    ended(&place.run(&["warmup"]), 0, "using static target");
    assert_eq!(read_claim(&place, ID)["staticPort"], sshd.port().to_string());
    ended(&place.run(&["run", "--id", ID, "--no-sync", "--", "true"]), 0, "");
    ended(&place.run(&["stop", "127.0.0.1"]), 0, "released static lease");
    // The doctor and what looks at a host without a claim knock at both, too.
    let probed = place.run(&["doctor", "--json", "--provider", "ssh", "--doctor-probe-ssh"]);
    assert_eq!(probed.code, 0, "{}{}", probed.out, probed.err);
    assert!(probed.out.contains("runtime=ssh_reachable"), "{}", probed.out);
    let shown = place.run(&["ssh", ID]);
    assert!(
        shown.out.contains(&format!("'-p' '{}'", sshd.port())),
        "{}",
        shown.out
    );
}

#[test]
fn what_cannot_be_done_with_a_host_says_why() {
    let (place, sshd) = existing();
    for words in [
        &["warmup", "--provider", "ssh"][..],
        &["list", "--provider", "static"],
    ] {
        ended(
            &place.run(words),
            2,
            "provider=ssh requires static.host or CRABBOX_STATIC_HOST\n",
        );
    }
    configure(&place, &sshd, "");
    let listed = place.run(&["list"]).out;
    assert!(
        listed.contains(&format!("lease={ID} slug=127-0-0-1 ")),
        "{listed}"
    );
    ended(
        &place.run(&["cleanup"]),
        2,
        "machine cleanup is not supported for provider=ssh\n",
    );
    ended(
        &place.run(&["logs", ID]),
        2,
        "provider=ssh does not support `crabbox logs`\n",
    );
    ended(
        &place.run(&["stop", "--reclaim", ID]),
        2,
        "provider=ssh does not support stop --reclaim\n",
    );
    ended(
        &place.run(&["status", "nobody"]),
        4,
        "lease/server not found: nobody\n",
    );
    let unclaimed = format!("lease {ID} is not claimed for provider=ssh; refusing heartbeat\n");
    ended(&place.run(&["heartbeat", ID]), 4, &unclaimed);
    ended(
        &place.run(&["warmup", "--target", "windows"]),
        2,
        "provider=ssh supports target=linux only\n",
    );
    // A wrong key is refused at once, not after the twenty minutes that a host may take to come up.
    let other = place.path("home/.ssh/other");
    Cmd::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&other)
        .run()
        .unwrap();
    let run = ["run", "--timing-json", "--", "true"];
    let refused = place
        .command(&run)
        .env("CRABBOX_SSH_KEY", &other)
        .output()
        .unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(5), "{said}");
    assert!(
        said.contains("cannot log in to 127.0.0.1\n") && said.contains("authorized_keys"),
        "{said}"
    );
    unentered(&said, "false");
    // A port without a listener is not waited for, either.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = nobody.local_addr().unwrap().port().to_string();
    drop(nobody);
    let begun = Instant::now();
    let closed = place.run(&[&["run", "--static-port", &port], &run[1..]].concat());
    assert_eq!(closed.code, 5, "{}", closed.err);
    unentered(&closed.err, "true");
    assert!(closed.err.contains("Connection refused"), "{}", closed.err);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert!(!claimed(&place, ID));
}

#[test]
fn a_claim_for_another_host_or_provider_is_left_alone() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    for (field, value) in [("staticHost", "elsewhere.invalid"), ("provider", "hetzner")] {
        let mut claim = json!({
            "leaseID": ID, "slug": "its-own", "provider": "ssh", "cloudID": ID, "staticHost": "127.0.0.1",
            "repoRoot": place.path("repo"), "claimedAt": "2025-07-31T22:13:20Z", "lastUsedAt": "2025-07-31T22:13:20Z",
        });
        claim[field] = value.into();
        claim_file(&place, &format!("{ID}.json"), &claim.to_string());
        let warmup = place.run(&["warmup"]);
        assert_eq!(warmup.code, 4, "{}", warmup.err);
        let said = format!("lease {ID} is claimed for another host than 127.0.0.1\n");
        assert!(warmup.err.contains(&said), "{}", warmup.err);
        assert_eq!(read_claim(&place, ID), claim, "{field}");
    }
    // Another repository's claim is only taken over if requested.
    let theirs = json!({
        "leaseID": ID, "slug": "its-own", "provider": "ssh", "cloudID": ID, "staticHost": "127.0.0.1",
        "repoRoot": "/elsewhere", "claimedAt": "2025-07-31T22:13:20Z", "lastUsedAt": "2025-07-31T22:13:20Z",
    });
    claim_file(&place, &format!("{ID}.json"), &theirs.to_string());
    let held = place.run(&["warmup"]);
    assert_eq!(held.code, 2, "{}", held.err);
    assert!(
        held.err.contains("is claimed by repo /elsewhere; use --reclaim"),
        "{}",
        held.err
    );
    ended(&place.run(&["warmup", "--reclaim"]), 0, "using static target");
    ended(&place.run(&["stop", ID]), 0, "released static lease");
}

/// `sudo -E` keeps the runtime directory of the calling user, who could put a socket of their own there.
#[test]
fn root_puts_no_socket_into_a_runtime_directory_of_another_user() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    let runtime = place.path("run");
    std::os::unix::fs::chown(&runtime, Some(65_534), None).expect("tests run as root");
    let warmup = place.run(&["warmup"]);
    assert_eq!(warmup.code, 0, "{}", warmup.err);
    assert_eq!(fs::read_dir(&runtime).unwrap().count(), 0);
    let stop = place.run(&["stop", ID]);
    assert_eq!(stop.code, 0, "{}", stop.err);
}

#[test]
fn waiting_for_a_host_that_does_not_answer_opens_few_connections() {
    let place = Place::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&count);
    // It accepts connections and says nothing; the thread ends with the test.
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            drop(connection);
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    });
    let text = format!(
        "provider: ssh\nssh:\n  port: {port}\n  fallbackPorts: [1]\nstatic:\n  host: 127.0.0.1\n  user: u\n  workRoot: /w\n"
    );
    place.write("home/.config/crabbox/config.yaml", text);
    let waited = place.run(&["status", "--wait", "--wait-timeout", "3s", ID]);
    ended(&waited, 5, "timed out waiting for");
    let count = count.load(std::sync::atomic::Ordering::SeqCst);
    assert!(count > 0 && count < 10, "{count} connections");
}

#[test]
fn an_unusable_claim_does_not_hide_the_other_hosts() {
    let place = Place::new();
    for (id, port) in [("static_a", "22"), ("static_b", "odd")] {
        let claim = json!({
            "leaseID": id, "revision": "0123456789abcdef0123456789abcdef", "slug": id, "provider": "ssh", "cloudID": id,
            "staticHost": format!("{id}.test"), "staticUser": "u", "staticPort": port, "staticWorkRoot": "/w",
            "labels": {"state": "ready"},
        });
        claim_file(&place, &format!("{id}.json"), &claim.to_string());
    }
    let list = place.run(&["list", "--provider", "ssh"]);
    ended(
        &list,
        0,
        "warning: lease static_b is left out: the claim of lease static_b has",
    );
    assert!(
        list.out.contains("lease=static_a ") && !list.out.contains("static_b"),
        "{}",
        list.out
    );
    // The claim of the configured host, too.
    let text = "static:\n  host: static_b.test\n  id: static_b\n";
    place.write("home/.config/crabbox/config.yaml", text);
    let list = place.run(&["list", "--provider", "ssh"]);
    ended(&list, 0, "warning: lease static_b is left out: ");
    assert_eq!(list.out, "");
}
