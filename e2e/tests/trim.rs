//! Blocks freed by a real guest are returned to the host, and nothing else of its disk is touched.

use crabbox_core::shell::single_quoted;
use crabbox_e2e::{Host, assert_nothing_left};
use crabbox_guest_protocol::TRIM_PORT;

const MIB: u64 = 1 << 20;

/// A lease with its disk file on the host.
struct Leased<'a> {
    host: &'a Host,
    repo: String,
    slug: &'static str,
    disk: String,
}

impl<'a> Leased<'a> {
    fn new(host: &'a Host, slug: &'static str) -> Self {
        let repo = host.repository(slug);
        let id = host.warmup(&repo, slug, "").lease();
        let found = host.sh(&format!(
            "find .config/crabbox/state/firecracker/leases/{id} -xdev -name disk.ext4"
        ));
        let disk = found.exits(0).stdout.trim().to_owned();
        assert!(disk.ends_with("/disk.ext4") && !disk.contains('\n'), "{disk}");
        Self {
            host,
            repo,
            slug,
            disk,
        }
    }

    /// Runs a script in the guest and returns its output.
    #[track_caller]
    fn guest(&self, script: &str) -> String {
        let Self { host, repo, slug, .. } = self;
        let quoted = single_quoted(script);
        let run = host.sh(&format!(
            "cd {repo} && crabbox run --no-sync --id {slug} -- sh -ec {quoted}"
        ));
        run.exits(0).stdout
    }

    /// The disk's allocated bytes on the host.
    #[track_caller]
    fn taken(&self) -> u64 {
        let told = self.host.sh(&format!("stat -c %b {}", self.disk)).exits(0);
        let blocks: Result<u64, _> = told.stdout.trim().parse();
        assert!(blocks.is_ok(), "{told:?}");
        blocks.unwrap_or_default() * 512
    }
}

/// Files that stay, in the overlay and beside it, written alternately with large ones that are deleted.
const FILL: &str = "sudo mkdir -p /var/keep /var/gone && sudo chown crabbox /var/keep /var/gone && mkdir -p /tmp/keep && \
     for i in 1 2 3 4 5 6 7 8; do head -c 25M /dev/zero > /var/gone/$i; head -c 500000 /dev/urandom > /var/keep/$i; \
     head -c 300000 /dev/urandom > /tmp/keep/$i; sync; done; sha256sum /var/keep/* /tmp/keep/* > /tmp/keep/sums; sync";

/// Writes and frees as much again.
const AGAIN: &str = "head -c 50M /dev/zero > /var/gone/again; sync; rm /var/gone/again; sync";

/// The same in a directory where the lease user may write.
const AGAIN_IN_TMP: &str = "head -c 50M /dev/zero > /tmp/again; sync; rm /tmp/again; sync";

/// Verifies the kept files, read from the disk and not from memory.
const CHECK: &str =
    "sudo sh -c 'echo 3 > /proc/sys/vm/drop_caches'; sha256sum --quiet -c /tmp/keep/sums && echo whole";

#[test]
fn freed_blocks_come_back_and_the_files_that_stay_are_whole() {
    let host = Host::alone();
    let before = host.residue();
    let lease = Leased::new(&host, "trim");
    lease.guest("sync");
    let start = lease.taken();
    lease.guest(FILL);
    let full = lease.taken();
    assert!(full >= start + 200 * MIB, "{start} {full}");
    lease.guest("rm -r /var/gone/*; sync");
    assert!(
        lease.taken() >= full - 8 * MIB,
        "the device has no discard: {}",
        lease.taken()
    );

    let said = lease.guest("sudo fstrim -v /");
    let after = lease.taken();
    assert!(after <= start + 24 * MIB, "{start} {full} {after}");
    let bytes: u64 = said
        .strip_prefix("/: ")
        .and_then(|rest| {
            rest.split_once('(')?
                .1
                .strip_suffix(" bytes) trimmed\n")?
                .parse()
                .ok()
        })
        .unwrap_or_else(|| panic!("{said}"));
    println!(
        "{} MiB at first, {} full, {} trimmed; {said}",
        start / MIB,
        full / MIB,
        after / MIB
    );
    assert!(bytes >= 190 * MIB && bytes <= full, "{bytes}");
    assert_eq!(lease.guest(CHECK), "whole\n");

    // Nothing is left to return; the other ways to ask; and file systems outside of the lease go to the
    // image's own program.
    let said = lease.guest(
        "sudo crabbox-trim; sudo fstrim -a -v; sudo fstrim -v /tmp; sudo fstrim /run 2>&1 || echo code=$?; \
         /usr/local/sbin/crabbox-trim 2>&1 || echo code=$?",
    );
    panic_unless(
        &said,
        &[
            " given back to the host\n",
            "trimmed on /dev/vdb\n",
            "/tmp: ",
            "fstrim: /run: ",
            "crabbox-trim: only root may; try: sudo crabbox-trim\ncode=1\n",
        ],
    );
    drop(host.crabbox("stop trim").exits(0));
    assert_nothing_left(&before, &host.residue());
}

#[track_caller]
fn panic_unless(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part:?} in {said}");
    }
}

#[test]
fn trims_that_meet_or_are_killed_leave_a_machine_that_writes() {
    let host = Host::alone();
    let before = host.residue();
    let lease = Leased::new(&host, "trims");
    lease.guest(FILL);
    lease.guest("rm -r /var/gone/*; sync");
    // Two trims at once, concurrent with writes.
    let said = lease.guest(
        "(for i in $(seq 200); do head -c 400000 /dev/urandom > /tmp/keep/busy$i; sha256sum /tmp/keep/busy$i >> /tmp/keep/busy; done; sync) & \
         writer=$!; sudo crabbox-trim & one=$!; sudo crabbox-trim & two=$!; wait $one; echo $?; wait $two; echo $?; wait $writer; \
         sha256sum --quiet -c /tmp/keep/busy && echo busy-whole",
    );
    panic_unless(&said, &["0\n", "busy-whole"]);
    assert_eq!(said.matches("given back to the host").count(), 2, "{said}");

    // A client that dies at any moment: process 1 continues, and thaws.
    for pause in ["0", "0.05", "0.2", "0.5"] {
        lease.guest(AGAIN);
        let said = lease.guest(&format!(
            "sudo sh -c 'crabbox-trim & pid=$!; sleep {pause}; kill -9 $pid 2>/dev/null; true'; \
             timeout 60 sh -c 'echo written > /var/keep/after && sync' && cat /var/keep/after"
        ));
        assert!(said.ends_with("written\n"), "{pause}: {said}");
    }

    // A supervisor dies in the middle, and another one takes its place.
    lease.guest(AGAIN);
    let said = host.sh(&format!(
        "cd {} && (crabbox run --no-sync --id trims -- sudo crabbox-trim > trim.out 2>&1; echo $? >> trim.out) & \
         sleep 1.5; kill -9 $(pgrep -f '[_]_supervise'); wait; crabbox list --provider firecracker > /dev/null; \
         cd {} && cat trim.out && rm trim.out",
        lease.repo, lease.repo
    ));
    println!("with a dead supervisor: {}", said.exits(0).stdout);
    assert_eq!(
        lease.guest("timeout 60 sh -c 'echo x > /var/keep/x && sync' && echo goes-on"),
        "goes-on\n"
    );
    lease.guest(AGAIN);
    let full = lease.taken();
    panic_unless(&lease.guest("sudo crabbox-trim"), &["given back to the host"]);
    assert!(lease.taken() + 40 * MIB <= full, "{full} {}", lease.taken());
    assert_eq!(lease.guest(CHECK), "whole\n");

    // After the machine has ended, its disk has a consistent file system with the same files.
    let sum = lease.guest("sha256sum < /var/keep/3");
    let ended = host.sh(&format!(
        "rm -f $HOME/e2e/trimmed.ext4; ln {} $HOME/e2e/trimmed.ext4 && cd {} && crabbox run --no-sync --id trims -- sudo poweroff; \
         for i in $(seq 60); do [ -e $HOME/{} ] || break; sleep 1; done; cd $HOME/e2e && e2fsck -f -n trimmed.ext4 && \
         debugfs -R 'dump /upper/var/keep/3 kept' trimmed.ext4 && sha256sum < kept; code=$?; rm -f kept trimmed.ext4; exit $code",
        lease.disk, lease.repo, lease.disk
    ));
    let ended = ended.exits(0);
    assert!(ended.stdout.ends_with(&sum), "{sum} {ended:?}");
    assert_nothing_left(&before, &host.residue());
}

/// A host that lets the guest name its blocks, and then never answers.
const SILENT: &str = r#"
import os, socket, sys, time
path, owner = sys.argv[1], int(sys.argv[2])
disk = os.stat(sys.argv[3]).st_size
here = os.getcwd()
os.chdir(os.path.dirname(path))
path = os.path.basename(path)
os.unlink(path)
server = socket.socket(socket.AF_UNIX)
server.bind(path)
os.chown(path, owner, owner)
server.listen()
open(here + "/listens", "w").close()
client, _ = server.accept()
client.sendall(b"go %d\n" % disk)
heard = b""
while not heard.endswith(b"end\n"):
    heard += client.recv(4096)
open(here + "/told", "w").write(heard.decode())
time.sleep(120)
"#;

#[test]
fn a_host_that_goes_silent_holds_the_guest_for_half_a_minute_and_no_longer() {
    let host = Host::alone();
    let before = host.residue();
    let lease = Leased::new(&host, "silent");
    lease.guest(AGAIN_IN_TMP);
    let socket = lease
        .disk
        .replace("/disk.ext4", &format!("/vsock.sock_{TRIM_PORT}"));
    let ran = host.sh(&format!(
        "cd {} && ssh=$(crabbox ssh silent) && kill -9 $(pgrep -f '[_]_supervise') && cat > silent.py <<'EOF'{SILENT}EOF
         python3 silent.py $HOME/{socket} $(stat -c %u $HOME/{disk}) $HOME/{disk} & silent=$!
         for i in $(seq 600); do [ -e listens ] && break; sleep 0.1; done; [ -e listens ] || {{ kill $silent; exit 8; }}
         (eval \"$ssh sudo crabbox-trim\" > trim.out 2>&1; echo code=$? >> trim.out) >/dev/null 2>&1 &
         for i in $(seq 600); do [ -e told ] && break; sleep 0.1; done; [ -e told ] || {{ kill $silent; cat trim.out; exit 9; }}
         begun=$(date +%s); eval \"$ssh 'echo written > /tmp/w && sync && cat /tmp/w'\"; echo waited $(($(date +%s) - begun)); wait %2
         kill $silent; cat trim.out; rm -f listens told silent.py trim.out",
        lease.repo,
        disk = lease.disk,
    ));
    let ran = ran.exits(0);
    println!("{}", ran.stdout);
    panic_unless(
        &ran.stdout,
        &[
            "written\n",
            "crabbox-trim: the host does not answer; try again later\n",
            "code=1\n",
        ],
    );
    let waited = ran.stdout.lines().find_map(|line| line.strip_prefix("waited "));
    let waited: u64 = waited.unwrap().parse().unwrap();
    assert!((15..60).contains(&waited), "{waited} s");
    // The next supervisor serves again.
    drop(host.crabbox("list --provider firecracker").exits(0));
    panic_unless(
        &lease.guest("sleep 2; sudo crabbox-trim"),
        &["MiB ", "given back to the host"],
    );
    drop(host.crabbox("stop silent").exits(0));
    assert_nothing_left(&before, &host.residue());
}
