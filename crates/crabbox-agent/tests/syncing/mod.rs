//! Syncs spoken by hand: what a client that goes, or a guest that closes its directories, may cost.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command as Program;

use crabbox_agent_protocol::{Reply, Request, SyncRequest};

use super::{Agent, Mounted, names};

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

/// Begins to bring `d/f`, of this size.
fn begin(agent: &mut Agent, sync: SyncRequest, size: usize) {
    agent.say(&Request::Sync { sync });
    assert_eq!(agent.reply(), Reply::Differs {});
    let row = format!("{size:016x} f 644 {size} 1700000000000000000 d/f\0-\0");
    agent.send_list(row.as_bytes());
    agent.send_list(b"");
    let reply = agent.reply();
    assert!(matches!(reply, Reply::Stale { all: true, .. }), "{reply:?}");
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
fn a_directory_that_the_guest_has_closed_is_opened_again() {
    let home = tempfile::tempdir().unwrap();
    // Root is kept out of nothing.
    let copy = home.path().join("agent");
    // By a process of its own: what another test starts meanwhile must not hold it open for writing, or the kernel calls it busy.
    let copied = Program::new("cp")
        .arg(env!("CARGO_BIN_EXE_crabbox-agent"))
        .arg(&copy)
        .status();
    assert!(copied.unwrap().success());
    let as_nobody = "exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$0\"";
    let around = ["sh", "-c", as_nobody, copy.to_str().unwrap()];
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        std::os::unix::fs::chown(home.path(), Some(65534), Some(65534)).unwrap();
    }
    let start = || Agent::start(home.path(), if is_root { &around } else { &[] });
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
    std::fs::write(dir.join(".crabbox-new"), "hal").unwrap();
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
