//! The first command on a host that was never set up, on pretended hosts: setup is offered, can be killed at
//! any moment and resumed, and can be undone completely.

use crabbox_core::shell::single_quoted;
use crabbox_e2e::{Host, assert_nothing_left};

/// A user's settings for a host with a fake VMM, and the bundle to set up from.
const USER: &str = "CRABBOX_FIRECRACKER_BINARY=/srv/fake/firecracker CRABBOX_FIRECRACKER_USER=root CRABBOX_FIRECRACKER_CPUS=1 \
     CRABBOX_FIRECRACKER_MEMORY_MIB=128 CRABBOX_FIRECRACKER_WORK_ROOT=/srv/work CRABBOX_FIRECRACKER_NETWORK=nat \
     CRABBOX_FIRECRACKER_LAUNCH_TIMEOUT=30s CRABBOX_SETUP_FROM=/srv/served/bundle.tar";

const URL: &str = "http://127.0.0.1:8099/bundle.tar";

/// A host without an image, and a bundle with one in /srv/served.
fn bare() -> Host {
    let host = Host::pretend();
    host.build_image("default", "word");
    let exported = host.sh(
        "mkdir /srv/served /srv/repo && crabbox image export default /srv/served/bundle.tar && rm -rf /srv/.cache /srv/.config && \
         cd /srv/repo && git init -q && echo one > tracked && git add -A && git commit -qm one",
    );
    drop(exported.exits(0));
    host
}

/// Everything that setup or a lease could leave in the home directory.
fn files(host: &Host) -> Vec<String> {
    let found = host.sh("find /srv/.cache /srv/.config 2>/dev/null | sort");
    found.stdout.lines().map(str::to_owned).collect()
}

fn serve(host: &Host) {
    let script = single_quoted(include_str!("../src/serve.py"));
    let started = host.sh(&format!(
        "printf '%s' {script} > /srv/served/serve.py && (python3 /srv/served/serve.py >/srv/served/log 2>&1 &) && \
         for i in $(seq 100); do python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 8099))' 2>/dev/null && exit 0; sleep 0.1; done; \
         cat /srv/served/log; exit 1"
    ));
    drop(started.exits(0));
}

/// The downloaded length so far.
const HERE: &str = "stat -c %s /srv/.cache/crabbox/downloads/*.part 2>/dev/null || echo 0";

/// Starts a setup from the server, and kills it when half of the bundle is downloaded.
fn killed_half_way(host: &Host) -> u64 {
    let half = host
        .sh("echo $(($(stat -c %s /srv/served/bundle.tar) / 2))")
        .exits(0);
    let half: u64 = half.stdout.trim().parse().unwrap_or_default();
    let killed = host.sh(&format!(
        "{USER} crabbox setup firecracker --yes --from {URL} >/dev/null 2>&1 & pid=$!
         for i in $(seq 200); do [ \"$({HERE})\" = {half} ] && break; sleep 0.1; done
         kill -9 $pid; wait $pid; echo code=$?; {HERE}"
    ));
    assert_eq!(killed.stdout, format!("code=137\n{half}\n"), "{killed:?}");
    half
}

#[test]
fn a_setup_whose_download_is_killed_goes_on_where_it_stopped() {
    let host = bare();
    serve(&host);
    let before = files(&host);
    let half = killed_half_way(&host);
    let list = host.crabbox("image list --json").exits(0).json();
    assert_eq!(list["images"].as_array().map(Vec::len), Some(0), "{list}");

    drop(
        host.sh(&format!("{USER} crabbox setup firecracker --yes --from {URL}"))
            .exits(0),
    );
    let asked = host.sh("cat /srv/served/asked").exits(0);
    assert_eq!(asked.stdout, format!("\nbytes={half}-\n"));
    drop(host.crabbox("image verify default").exits(0));
    let left = host
        .sh("ls -A /srv/.cache/crabbox /srv/.cache/crabbox/images")
        .exits(0);
    assert_eq!(
        left.stdout,
        "/srv/.cache/crabbox:\nimages\n\n/srv/.cache/crabbox/images:\nimages\nlock\nnames\n"
    );
    drop(
        host.sh(&format!("{USER} crabbox setup firecracker --remove --yes"))
            .exits(0),
    );
    assert_nothing_left(&before, &files(&host));
}

#[test]
fn a_setup_that_is_killed_half_way_can_be_taken_back() {
    let host = bare();
    serve(&host);
    let before = files(&host);
    killed_half_way(&host);
    drop(
        host.sh(&format!("{USER} crabbox setup firecracker --remove --yes"))
            .exits(0),
    );
    assert_nothing_left(&before, &files(&host));
}

#[test]
fn an_import_that_is_killed_leaves_nothing_that_is_used() {
    let host = bare();
    let import = "crabbox image import --name default /srv/served/bundle.tar";
    host.kill_at_every_moment(import, "crabbox image rm default >&2", |limit| {
        let list = host.crabbox("image list --json").exits(0).json();
        for image in list["images"].as_array().into_iter().flatten() {
            // It got far enough that at most the name was missing.
            let verified = format!("image verify {}", image["digest"].as_str().unwrap_or_default());
            drop(host.crabbox(&verified).exits(0));
        }
        assert_eq!(
            list["broken"].as_array().map(Vec::len),
            Some(0),
            "killed after {limit} s: {list}"
        );
    });
    drop(host.crabbox("image verify default").exits(0));
    let left = host.sh("ls -A /srv/.cache/crabbox/images").exits(0);
    assert_eq!(left.stdout, "images\nlock\nnames\n");
}

/// A run, preceded by `more`.
fn run(more: &str) -> String {
    format!(
        "cd /srv/repo && {USER} {more} crabbox run --provider firecracker --no-sync --firecracker-disk-mib 64"
    )
}

#[test]
fn ci_is_set_up_by_its_first_run() {
    let host = bare();
    let before = host.residue();
    // Without consent: neither a terminal nor CI.
    let refused = host.sh(&format!("{} -- echo ran", run("CI=false"))).exits(2);
    assert!(
        refused.stdout.is_empty() && refused.stderr.contains("crabbox setup firecracker"),
        "{refused:?}"
    );
    assert_nothing_left(&[], &files(&host));

    let first = host.sh(&format!("{} -- echo ran", run("CI=true"))).exits(0);
    assert_eq!(first.stdout, "ran\n", "the command's output only");
    for said in [
        "This host is not set up for leases yet",
        "take the guest image from /srv/served/bundle.tar",
    ] {
        assert!(first.stderr.contains(said), "{said} in {}", first.stderr);
    }
    let second = host.sh(&format!("{} -- echo ran", run("CI=true"))).exits(0);
    assert!(!second.stderr.contains("not set up"), "{}", second.stderr);
    drop(
        host.sh(&format!("{USER} crabbox setup firecracker --remove --yes"))
            .exits(0),
    );
    assert_nothing_left(&[], &files(&host));
    assert_nothing_left(&before, &host.residue());
}

#[test]
fn who_sits_at_a_terminal_is_asked() {
    let host = bare();
    let answered = |answer: &str| {
        host.sh(&format!(
            "printf '{answer}\\n' | TERM=xterm script -qec \"sh -c '{} -- echo ran'\" /dev/null",
            run("")
        ))
    };
    for no in ["n", "", "yesterday"] {
        let declined = answered(no);
        assert!(
            declined.code != Some(0) && declined.stdout.contains("Set it up now? [y/N]"),
            "{declined:?}"
        );
        assert_nothing_left(&[], &files(&host));
    }
    let accepted = answered("y").exits(0);
    assert!(accepted.stdout.contains("\nran\r\n"), "{accepted:?}");
    drop(host.crabbox("image verify default").exits(0));
}
