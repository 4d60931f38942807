//! Failures in the middle of a run (a client killed while it syncs, a full disk, a broken connection), and a
//! killed build.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use crabbox_host::clock::poll_until;
use crabbox_host::command::Cmd;
use crabbox_host::process;

use crate::place::Place;
use crate::remote::Entered;
use crate::run::entered;
use crate::static_host::{ID, claimed, configure, connected, existing};

/// How long anything here may take.
const LONG: Duration = Duration::from_mins(1);

fn lease_dir(lease: &Entered) -> PathBuf {
    lease.sshd.dir().join("work/cbx_0123456789ab")
}

#[test]
fn a_client_killed_while_it_sends_leaves_nothing_running_and_the_next_one_converges() {
    let lease = entered();
    lease.place.write("repo/small", "x");
    let big = fs::File::create(lease.place.path("repo/big")).unwrap();
    // Files are hashed before they are sent: with two busy processors, a larger one would take a minute until
    // anything arrives.
    big.set_len(2 << 30).unwrap();
    let mut client = lease
        .place
        .command(&["run", "--id", "jade-krill", "--sync-only"])
        .env("CRABBOX_SYNC_ALLOW_LARGE", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let part = lease_dir(&lease).join("repo/big");
    let sending = || part.exists().then_some(());
    poll_until(LONG, sending).expect("nothing arrived");
    client.kill().unwrap();
    client.wait().unwrap();
    // The remote side holds this lock while it works.
    let lock = lease_dir(&lease).join(".crabbox-sync/repo/lock");
    let free = || Cmd::new("flock").arg("-n").arg(&lock).arg("true").run().ok();
    poll_until(LONG, free).expect("the far side goes on");
    fs::remove_file(lease.place.path("repo/big")).unwrap();
    lease.place.write("repo/small", "y");
    let next = lease
        .place
        .run(&["run", "--id", "jade-krill", "--shell", "--", "cat small; ls"]);
    assert_eq!((next.code, next.out.as_str()), (0, "ysmall\n"), "{}", next.err);
    assert!(sending().is_none(), "what had arrived of the file is gone");
}

/// A process that is killed when this is dropped, and reaped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Stands in for mmdebstrap: mounts something in the tree, as mmdebstrap does, says so, and keeps running in
/// a child.
const BOOTSTRAP: &str = r#"#!/bin/sh
tree=
for word; do case $word in */scratch-*/root) tree=$word ;; esac; done
[ -n "$tree" ] || exit 0
mkdir -p "$tree/proc" && mount -t tmpfs tmpfs "$tree/proc" && touch "$tree/proc/x" && echo "$tree" > "$HOME/mounted"
sh -c 'sleep 600; :' "$tree" & wait
"#;

/// Builds from packages. The guest's program is checked only after they are installed.
const BUILD: [&str; 4] = ["image", "build", "--guest-binary", env!("CARGO_BIN_EXE_crabbox")];

/// A place where mmdebstrap is this script.
fn with_bootstrap(script: &str) -> Place {
    let place = Place::new();
    let tool = place.write("outside/mmdebstrap", script);
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o700)).unwrap();
    let dir = place.path("outside");
    place.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", dir.display()))
}

#[test]
fn a_killed_build_ends_what_it_runs_leaves_no_mount_and_has_its_tree_swept_later() {
    let place = with_bootstrap(BOOTSTRAP);
    let build = Killed(place.start(&BUILD));
    let mounted = || {
        fs::read_to_string(place.path("home/mounted"))
            .ok()
            .filter(|tree| tree.ends_with('\n'))
    };
    let tree = poll_until(LONG, mounted).expect("the build did not get that far");
    let tree = Path::new(tree.trim());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(tree.to_str().unwrap()), "{mounts}");
    drop(build);
    let alone = || {
        let processes = process::list().unwrap();
        let of_the_build = |word: &std::ffi::OsString| {
            word.to_str()
                .is_some_and(|word| word.contains(tree.to_str().unwrap()))
        };
        let left = processes
            .iter()
            .any(|process| process.cmdline.iter().any(of_the_build));
        (!left).then_some(())
    };
    poll_until(LONG, alone).expect("the build's processes go on");
    assert!(tree.exists());
    let swept = place.run(&["image", "gc"]);
    assert_eq!(swept.code, 0, "{}", swept.err);
    assert!(!tree.parent().unwrap().exists());
}

#[test]
fn a_build_that_fails_says_what_mmdebstrap_said() {
    let place = with_bootstrap("#!/bin/sh\necho 'E: no such suite' >&2\nexit 25\n");
    let built = place.run(&BUILD);
    assert_ne!(built.code, 0);
    let told = "mmdebstrap failed with exit code 25: E: no such suite";
    assert!(built.err.contains(told), "{}", built.err);
}

/// A small file system under the machine's work root; needs root.
struct Small(PathBuf);

impl Small {
    fn new(dir: &Path, size: &str) -> Self {
        fs::create_dir_all(dir).unwrap();
        let options = format!("size={size}");
        Cmd::new("mount")
            .args(["-t", "tmpfs", "-o", options.as_str(), "crabbox-test"])
            .arg(dir)
            .run()
            .unwrap();
        Self(dir.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        Cmd::new("umount").args(["-l"]).arg(&self.0).run().ok();
    }
}

#[test]
fn a_disk_that_fills_in_the_guest_is_told_and_the_next_sync_converges() {
    let lease = entered();
    let _small = Small::new(&lease.sshd.dir().join("work"), "4m");
    lease.place.write("repo/small", "x");
    lease.place.write("repo/big", vec![7; 16 << 20]);
    let sync = || lease.place.run(&["run", "--id", "jade-krill", "--sync-only"]);
    let full = sync();
    assert_eq!(full.code, 6, "{}", full.err);
    assert!(full.err.contains("No space left on device"), "{}", full.err);
    fs::remove_file(lease.place.path("repo/big")).unwrap();
    let fits = sync();
    assert_eq!(fits.code, 0, "{}", fits.err);
    // The command itself fills the disk: that is the command's own failure, and the tree is still exact
    // afterwards.
    let fills = lease.place.run(&[
        "run",
        "--id",
        "jade-krill",
        "--shell",
        "--",
        "cat /dev/zero > zeros",
    ]);
    assert_eq!(fills.code, 1, "{}", fills.err);
    lease.place.write("repo/small", "now it does not fit, or does it");
    let no_room = sync();
    assert!(
        no_room.code == 6 && no_room.err.contains("No space left on device") || no_room.code == 0,
        "{}",
        no_room.err
    );
    fs::remove_file(lease_dir(&lease).join("repo/zeros")).unwrap();
    let last = lease
        .place
        .run(&["run", "--id", "jade-krill", "--", "cat", "small"]);
    assert_eq!(
        (last.code, last.out.as_str()),
        (0, "now it does not fit, or does it"),
        "{}",
        last.err
    );
}

#[test]
fn a_line_that_breaks_is_told_apart_from_a_command_that_fails() {
    let lease = entered();
    let mut broken = lease
        .place
        .command(&[
            "run",
            "--id",
            "jade-krill",
            "--shell",
            "--",
            "touch began; sleep 1000",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = lease_dir(&lease).join("repo/began");
    poll_until(LONG, || began.exists().then_some(())).expect("it never began");
    lease.sshd.kill_connections();
    let mut err = String::new();
    std::io::Read::read_to_string(&mut broken.stderr.take().unwrap(), &mut err).unwrap();
    assert_eq!(broken.wait().unwrap().code(), Some(255), "{err}");
    assert!(
        err.ends_with(
            "the connection to the lease was lost while the command ran; it may or may not have ended\n"
        ),
        "{err}"
    );
    let failed = lease
        .place
        .run(&["run", "--id", "jade-krill", "--shell", "--", "exit 255"]);
    assert_eq!(failed.code, 255, "{}", failed.err);
    assert!(
        failed.err.ends_with("remote command exited 255\n"),
        "{}",
        failed.err
    );
}

#[test]
fn a_killed_agent_is_told_apart_from_its_command_which_the_next_run_ends() {
    let lease = entered();
    let noted = lease_dir(&lease).join("repo/noted");
    let script = "trap '' PIPE; echo $PPID $$ > new; mv new noted; exec sleep 1000";
    let mut cut = lease
        .place
        .command(&["run", "--id", "jade-krill", "--shell", "--", script])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pids = poll_until(LONG, || fs::read_to_string(&noted).ok()).expect("it never began");
    let pids: Vec<u32> = pids
        .split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect();
    let [agent, command] = [pids[0], pids[1]].map(|pid| process::identify(pid).unwrap().unwrap());
    let handle = process::open(&agent).unwrap().unwrap();
    handle.signal(process::Signal::KILL).unwrap();
    let mut err = String::new();
    std::io::Read::read_to_string(&mut cut.stderr.take().unwrap(), &mut err).unwrap();
    assert_eq!(cut.wait().unwrap().code(), Some(137), "{err}");
    assert!(
        err.contains("crabbox's agent in the lease ended while the command ran; the command may still run\n"),
        "{err}"
    );
    assert!(err.contains("hint: memory may have run out there"), "{err}");
    assert!(process::is_alive(&command), "{err}");
    let next = lease.script(&[], "true");
    assert_eq!(next.code, 0, "{}", next.err);
    assert!(!process::is_alive(&command), "{}", next.err);
}

#[test]
fn a_signal_in_the_middle_of_a_sync_ends_it_and_gives_the_host_back() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    // Packing the repository takes as long as there is data; here it never ends.
    let marker = place.path("packs");
    fs::create_dir(place.path("bin")).unwrap();
    place.write(
        "bin/git",
        format!(
            "#!/bin/sh\ncase \"$*\" in *pack-objects*) touch '{}'; exec sleep 600;; esac\nexec /usr/bin/git \"$@\"\n",
            marker.display()
        ),
    );
    let git = place.path("bin/git");
    fs::set_permissions(&git, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!(
        "{}:/usr/sbin:/usr/bin:/sbin:/bin",
        git.parent().unwrap().display()
    );
    for signal in [process::Signal::TERM, process::Signal::HUP] {
        fs::remove_file(&marker).ok();
        let mut run = place
            .command_that_hears(&["run", "--full-resync", "--", "true"])
            .env("PATH", &path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        assert!(poll_until(LONG, || marker.exists().then_some(())).is_some());
        let id = process::identify(run.id()).unwrap().unwrap();
        process::open(&id).unwrap().unwrap().signal(signal).unwrap();
        let ended = poll_until(LONG, || run.try_wait().unwrap());
        if ended.is_none() {
            run.kill().unwrap();
        }
        let said = String::from_utf8(run.wait_with_output().unwrap().stderr).unwrap();
        assert_eq!(ended.and_then(|ended| ended.code()), Some(130), "{said}");
        assert!(said.contains("interrupted while the tree was sent"), "{said}");
        assert!(!claimed(&place, ID) && !connected(&place), "{said}");
    }
}
