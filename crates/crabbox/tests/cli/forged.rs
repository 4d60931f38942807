//! Agents of a lease that are not ours: scripts put in the place of the installed one.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::remote::Entered;
use crate::run::{entered, with_repository};

/// The start of every forged agent: `say` and `hear` frames. `hear` returns the tag.
const HEAD: &str = r#"#!/usr/bin/python3
import os, struct, sys, time
home = os.environ["HOME"]
def frame(tag, *fields):
    body = b"".join(fields)
    return b"\xfecb\xff" + bytes([tag]) + struct.pack(">I", len(body)) + body + b"\xffbc\xfe"
def say(tag, *fields):
    sys.stdout.buffer.write(frame(tag, *fields))
    sys.stdout.buffer.flush()
def hear():
    head = sys.stdin.buffer.read(9)
    if len(head) < 9: sys.exit()
    global body
    body = sys.stdin.buffer.read(struct.unpack(">I", head[5:])[0] + 4)[:-4]
    # What says only that we are there is no question.
    return head[4] if head[4] != 38 else hear()
def own():
    # The lock's name, the owner's, and perhaps a directory to make, which is answered by itself.
    at = 0
    for _ in range(2): at += 4 + struct.unpack(">I", body[at:at + 4])[0]
    say(67, b"\0")
    if body[at] == 1: say(84)
def text(words): return struct.pack(">I", len(words)) + words
def file(number, size, mode=0o644): return frame(82, struct.pack(">IIqQ", number, mode, 0, size))
def problem(number, words, lost=b"\1"): return frame(83, struct.pack(">I", number), text(words), lost)
OWN, RELEASE, END, CHANGES, RUN, LIST, FETCH, MAKE, TREE, PUT = 16, 17, 20, 28, 29, 31, 32, 33, 34, 35
say(64, b"crb2\0")
"#;

/// A forged agent that goes on with `rest` after its greeting.
pub(crate) fn forged(rest: &str) -> String {
    format!("{HEAD}{rest}")
}

/// A lease whose user has replaced the agent with this script; the real agent is beside it as `real`.
pub(crate) fn with_agent(script: &str) -> Entered {
    let lease = with_repository(entered());
    // The first run installs the real one.
    let first = lease.script(&[], "true");
    assert_eq!(first.code, 0, "{}", first.err);
    let dir = lease.sshd.home().join(".cache/crabbox/agents");
    let agent = fs::read_dir(&dir).unwrap().next().unwrap().unwrap().path();
    fs::hard_link(&agent, dir.join("real")).unwrap();
    in_place_of_the_agent(&lease, script);
    lease
}

/// Replaces the agent of a lease with this script.
pub(crate) fn in_place_of_the_agent(lease: &Entered, script: &str) {
    let dir = lease.sshd.home().join(".cache/crabbox/agents");
    let mut names = fs::read_dir(&dir).unwrap().flatten();
    let agent = names.find(|entry| entry.file_name() != "real").unwrap().path();
    // Not overwritten in place, because the file may still be running.
    fs::remove_file(&agent).unwrap();
    fs::write(&agent, script).unwrap();
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
}
