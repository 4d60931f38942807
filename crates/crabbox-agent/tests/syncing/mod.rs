//! Syncs spoken by hand: what a client that goes, or a guest that closes its directories, may cost.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command as Program;

use crabbox_agent_protocol::{Reply, Request, SyncRequest};

use super::{Agent, Mounted, names, program};

/// A sync of the tree `w` in which nothing is known of an earlier one.
fn request(home: &Path, fingerprint: &str, reset: bool) -> SyncRequest {
    SyncRequest {
        lease_dir: home.join("lease").to_str().unwrap().to_owned(),
        fingerprint: fingerprint.to_owned(),
        base: String::new(),
        name: "w".to_owned(),
        delete: true,
        reset,
        distrust: false,
        seed: None,
    }
}

/// Brings the one file `d/f`, which is not there as it is to be.
fn bring(agent: &mut Agent, sync: SyncRequest, text: &str) {
    begin(agent, sync, text.len());
    agent.send_files([(0, text)].into_iter());
    agent.finish();
}

/// Has it found that `d/f`, of this size, is wanted; returns the name of the directory for what another
/// program brings.
fn compare(agent: &mut Agent, sync: SyncRequest, size: usize) -> String {
    agent.say(&Request::Sync { sync });
    assert_eq!(agent.reply(), Reply::Differs {});
    let row = format!("{size:016x} f 644 {size} 1700000000000000000 d/f\0-\0");
    agent.send_list(row.as_bytes());
    agent.send_list(b"");
    match agent.reply() {
        Reply::Stale { all: true, stage, .. } => stage,
        reply => panic!("{reply:?}"),
    }
}

/// Begins to bring `d/f`, of this size.
fn begin(agent: &mut Agent, sync: SyncRequest, size: usize) {
    compare(agent, sync, size);
    agent.say(&Request::Directory {
        path: b"d".to_vec(),
        mode: 0o755,
        seconds: None,
    });
}

#[test]
fn a_reset_takes_nothing_away_before_the_manifest_has_come_whole() {
    let home = tempfile::tempdir().unwrap();
    let kept = home.path().join("lease/w/kept");
    std::fs::create_dir_all(kept.parent().unwrap()).unwrap();
    std::fs::write(&kept, "kept").unwrap();
    let mut agent = Agent::start(home.path(), &[]);
    agent.say(&Request::Sync {
        sync: request(home.path(), "aa.1", true),
    });
    assert_eq!(agent.reply(), Reply::Differs {});
    // Out of their order, and so refused.
    agent.send_list(b"0 f 644 1 1700000000000000000 b\x000 f 644 1 1700000000000000000 a\x00-\x00");
    assert!(matches!(agent.reply(), Reply::Failed { .. }));
    assert_eq!(std::fs::read(&kept).unwrap(), b"kept");
    // And a client that goes.
    let mut agent = Agent::start(home.path(), &[]);
    agent.say(&Request::Sync {
        sync: request(home.path(), "aa.1", true),
    });
    assert_eq!(agent.reply(), Reply::Differs {});
    agent.piece(b"0 f 644 1 17000");
    drop(agent.input.take());
    agent.process.wait().unwrap();
    assert_eq!(std::fs::read(&kept).unwrap(), b"kept");
    // One that is heard to its end takes away what is not in it.
    let mut agent = Agent::start(home.path(), &[]);
    bring(&mut agent, request(home.path(), "aa.1", true), "x");
    assert!(!kept.exists());
}

#[test]
fn what_another_program_still_brings_for_a_client_that_went_gets_nowhere() {
    let home = tempfile::tempdir().unwrap();
    let tmp = home.path().join("lease/.crabbox-sync/w/tmp");
    let mut agent = Agent::start(home.path(), &[]);
    let stage = tmp.join(compare(&mut agent, request(home.path(), "aa.1", false), 3));
    // The receiver of an rsync, which is stopped in the middle of a file when its client falls silent and
    // loses the tree.
    let going_on =
        "exec 3> \"$1/.f.X1\"; kill -STOP $$; echo old >&3; mv -T \"$1/.f.X1\" \"$2\"; : > \"$1/.g.X1\"";
    let mut rsync = Program::new("sh")
        .args(["-c", going_on, "sh"])
        .args([&stage, &home.path().join("lease/w/f")])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let begun = (0..5000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        stage.join(".f.X1").exists()
    });
    assert!(begun, "it began no file in {}", stage.display());
    agent.process.kill().unwrap();
    agent.process.wait().unwrap();
    let mut other = Agent::start(home.path(), &[]);
    let theirs = tmp.join(compare(&mut other, request(home.path(), "bb.1", false), 3));
    assert_ne!(theirs, stage);
    assert!(theirs.is_dir(), "{}", theirs.display());
    let pid = rustix::process::Pid::from_child(&rsync);
    let ended = (0..400).any(|_| {
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(5));
        rsync.try_wait().unwrap().is_some()
    });
    if !ended {
        rsync.kill().unwrap();
    }
    assert!(ended, "it does not go on");
    assert!(!rsync.wait().unwrap().success(), "it brought something");
    assert!(!home.path().join("lease/w/f").exists());
    assert_eq!(std::fs::read_dir(&theirs).unwrap().count(), 0);
}

#[test]
fn a_directory_that_the_guest_has_closed_is_opened_again() {
    let home = tempfile::tempdir().unwrap();
    // Root is kept out of nothing.
    let copy = home.path().join("agent");
    // By a process of its own: what another test starts meanwhile must not hold it open for writing, or the
    // kernel calls it busy.
    let copied = Program::new("cp")
        .arg(program().last().unwrap())
        .arg(&copy)
        .status();
    assert!(copied.unwrap().success());
    let mut copied = program();
    *copied.last_mut().unwrap() = copy.to_str().unwrap().to_owned();
    let around = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        std::os::unix::fs::chown(home.path(), Some(65534), Some(65534)).unwrap();
    }
    let around: &[&str] = if is_root { &around } else { &[] };
    let start = || Agent::start_program(home.path(), around, &copied);
    bring(&mut start(), request(home.path(), "aa.1", false), "one");
    let dir = home.path().join("lease/w/d");
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o000)).unwrap();
    bring(&mut start(), request(home.path(), "bb.1", false), "other");
    assert_eq!(std::fs::read(dir.join("f")).unwrap(), b"other");
    let mode = dir.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
}

#[test]
fn what_does_not_fit_into_another_file_system_leaves_the_file_there_as_it_was() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("lease/w/d");
    std::fs::create_dir_all(&dir).unwrap();
    let _mounted = Mounted::with(dir.clone(), "size=64k");
    bring(
        &mut Agent::start(home.path(), &[]),
        request(home.path(), "aa.1", false),
        "one",
    );
    // Of one that was killed in the middle.
    std::fs::write(dir.join(".crabbox-new-5d41b6a2"), "hal").unwrap();
    bring(
        &mut Agent::start(home.path(), &[]),
        request(home.path(), "bb.1", false),
        "other",
    );
    assert_eq!(std::fs::read(dir.join("f")).unwrap(), b"other");
    assert_eq!(names(&dir), ["f"]);
    let meta = dir.join("f").metadata().unwrap();
    assert_eq!(
        (meta.permissions().mode() & 0o7777, meta.mtime()),
        (0o644, 1_700_000_000)
    );
    let mut agent = Agent::start(home.path(), &[]);
    let large = "x".repeat(128 << 10);
    begin(&mut agent, request(home.path(), "cc.1", false), large.len());
    agent.say(&Request::File {
        number: 0,
        mode: 0o644,
        seconds: 1_700_000_000,
        nanoseconds: 0,
    });
    agent.piece(large.as_bytes());
    agent.say(&Request::Received {});
    let reply = agent.reply();
    let Reply::Failed { why } = reply else {
        panic!("{reply:?}");
    };
    assert!(why.starts_with("d/f: No space left on device"), "{why}");
    assert_eq!(std::fs::read(dir.join("f")).unwrap(), b"other");
    assert_eq!(names(&dir), ["f"]);
}

#[test]
fn a_lease_is_closed_to_others_and_what_is_above_it_is_left_alone() {
    let home = tempfile::tempdir().unwrap();
    let lease = home.path().join("lease");
    let mode = |name: &str| home.path().join(name).metadata().unwrap().mode() & 0o7777;
    let set = |name: &str, mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(home.path().join(name), mode).unwrap();
    };
    let sync = |fingerprint: &str, text: &str| {
        let mut agent = Agent::start(home.path(), &[]);
        bring(&mut agent, request(home.path(), fingerprint, false), text);
    };
    // One that is made, one that stood there, and one that a run without a sync makes or finds.
    set(".", 0o755);
    sync("aa.1", "one");
    assert_eq!((mode("."), mode("lease"), mode("lease/w")), (0o755, 0o700, 0o700));
    set("lease", 0o2755);
    set("lease/w", 0o775);
    sync("bb.1", "other");
    assert_eq!(
        (mode("."), mode("lease"), mode("lease/w")),
        (0o755, 0o2700, 0o700)
    );
    set("lease", 0o755);
    set("lease/w", 0o755);
    let mut agent = Agent::start(home.path(), &[]);
    let dir = lease.join("w").to_str().unwrap().to_owned();
    agent.say(&Request::Make { dir });
    assert_eq!(agent.reply(), Reply::Made {});
    assert_eq!((mode("."), mode("lease"), mode("lease/w")), (0o755, 0o700, 0o700));
    // Who opens the tree behind it has a reason, and a link leads to what is not ours.
    set("lease/w", 0o755);
    sync("cc.1", "a third");
    assert_eq!((mode("lease"), mode("lease/w")), (0o700, 0o755));
    std::fs::rename(&lease, home.path().join("own")).unwrap();
    set("own", 0o755);
    std::os::unix::fs::symlink("own", &lease).unwrap();
    sync("dd.1", "four");
    assert_eq!((mode("own"), mode("own/w")), (0o755, 0o755));
}
