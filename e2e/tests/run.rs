//! Failures during a run on a real microVM: the machine goes down, a client dies, two runs at once, a full
//! disk, Ctrl-C.
//!
//! Tests that need no real guest use an sshd on loopback, in `crates/crabbox/tests`.

use crabbox_core::shell::single_quoted;
use crabbox_e2e::{Done, Host, SMALL, assert_nothing_left};

/// Sends Ctrl-C; `$1` and the following arguments are the command.
const CTRL_C: &str = include_str!("run/ctrl_c.py");
/// Prints `began`, but spelled so that the command line itself, which is shown, does not contain it.
const BEGAN: &str = "echo be\"\"gan";

/// Shell words that wait until `condition` holds, for at most two minutes.
fn until(condition: &str) -> String {
    format!("for i in $(seq 600); do {condition} && break; sleep 0.2; done; {condition}")
}

/// Shell words that start a run of `script` in the background and wait until it prints `began`; its streams
/// and exit code go to `/tmp/out`, `/tmp/err` and `/tmp/code`.
fn background(slug: &str, script: &str) -> String {
    format!(
        "rm -f /tmp/out /tmp/err /tmp/code; \
         (crabbox run --id {slug} -- sh -c {} >/tmp/out 2>/tmp/err; echo $? >/tmp/code) & \
         {}",
        single_quoted(script),
        until("grep -q began /tmp/out 2>/dev/null")
    )
}

/// Shell words that run `script` in the guest over a separate connection, bypassing crabbox and its locks.
fn inside(slug: &str, script: &str) -> String {
    format!(
        "eval \"$(crabbox ssh {slug}) \"{}",
        single_quoted(&single_quoted(script))
    )
}

/// Checks that a machine that went down is reported in one line, with 255, with the end of its console, and
/// with a digest that does not suggest entering it.
#[track_caller]
fn assert_told_as_down(run: &Done) {
    assert_eq!(run.code, Some(255), "{}", run.stderr);
    assert!(
        run.stderr
            .ends_with("the machine of the lease went down while the command ran\n"),
        "{}",
        run.stderr
    );
    assert!(
        run.stderr.contains("\nconsole tail last ") && run.stderr.contains("\n  crabbox: the VMM "),
        "{}",
        run.stderr
    );
    assert!(
        run.stderr.contains("\n  area: ssh_connectivity\n") && !run.stderr.contains("next: crabbox ssh"),
        "{}",
        run.stderr
    );
}

#[test]
fn a_machine_that_goes_down_is_told_apart_from_a_command_that_fails() {
    let host = Host::alone();
    let repo = host.repository("down");
    let before = host.residue();

    // From outside: kill the VMM.
    let lease = host.warmup(&repo, "e2e-down", "").lease();
    let failed = host.sh(&format!(
        "cd {repo} && crabbox run --id e2e-down -- sh -c 'exit 255'"
    ));
    let failed = failed.exits(255);
    assert!(
        failed.stderr.ends_with("remote command exited 255\n"),
        "{}",
        failed.stderr
    );
    let record = host.sh(&format!(
        "cat .config/crabbox/state/firecracker/leases/{lease}/metadata.json"
    ));
    let pid = &record.json()["pid"];
    let killed = host.sh(&format!(
        "cd {repo} && {} && kill -9 {pid} && {} && cat /tmp/out && cat /tmp/err >&2 && exit $(cat /tmp/code)",
        background("e2e-down", "echo began; sleep 1000"),
        until("test -s /tmp/code")
    ));
    assert_eq!(killed.stdout, "began\n");
    assert_told_as_down(&killed);
    let gone = until("! test -e $HOME/.config/crabbox/state/firecracker/leases/$0");
    drop(
        host.sh(&format!("sh -c {} {lease}", single_quoted(&gone)))
            .exits(0),
    );
    drop(host.crabbox("status --id e2e-down").exits(4));
    assert_nothing_left(&before, &host.residue());

    // The same during a transfer: the first file has arrived, the last one cannot have.
    let lease = host.warmup(&repo, "e2e-down", "").lease();
    let large = format!("{}/base.ext4", host.image("default"));
    let arrives = inside("e2e-down", &format!("test -e /work/crabbox/{lease}/down/a-big"));
    let killed = host.sh(&format!(
        "cd {repo} && head -c 1M /dev/zero | tr '\\0' x > a-big && cp {large} b-big && \
         pid=$(jq .pid $HOME/.config/crabbox/state/firecracker/leases/{lease}/metadata.json) && \
         {{ crabbox run --id e2e-down --sync-only >/tmp/out 2>/tmp/err & client=$!; }} && \
         {} && kill -9 $pid; wait $client; code=$?; rm a-big b-big; cat /tmp/err >&2; exit $code",
        until(&arrives)
    ));
    let killed = killed.exits(6);
    assert!(
        killed
            .stderr
            .contains("warning: the machine of the lease went down while files were sent\n"),
        "{}",
        killed.stderr
    );
    drop(
        host.sh(&format!("sh -c {} {lease}", single_quoted(&gone)))
            .exits(0),
    );
    assert_nothing_left(&before, &host.residue());

    // From inside, in a lease that the run would give back: a reboot, a power-off, and a kernel panic.
    for end in ["reboot -f", "poweroff", "sh -c \"echo c > /proc/sysrq-trigger\""] {
        let ended = host.sh(&format!(
            "cd {repo} && crabbox run {SMALL} --no-sync -- sh -c 'echo began; sudo {end}; sleep 1000'"
        ));
        assert_eq!(ended.stdout, "began\n", "{end}: {}", ended.stderr);
        assert_told_as_down(&ended);
        assert_nothing_left(&before, &host.residue());
    }
}

/// The tree as the command sees it.
const TREE: &str = "cat tracked; find . -name .git -prune -o -type f -print | sort; git status --short";

/// A lease that survives everything that happens to its clients.
struct Lease<'a> {
    host: &'a Host,
    repo: &'a str,
    slug: &'a str,
}

impl Lease<'_> {
    /// Runs a script on the host, in the repository.
    #[track_caller]
    fn here(&self, script: &str) -> Done {
        self.host.sh(&format!("cd {} && {script}", self.repo))
    }

    /// Runs `script` in the lease after the local change.
    #[track_caller]
    fn run(&self, change: &str, script: &str) -> Done {
        let (slug, script) = (self.slug, single_quoted(script));
        self.here(&format!("{change}; crabbox run --id {slug} -- sh -c {script}"))
    }

    /// Processes of this name in the guest.
    #[track_caller]
    fn processes(&self, name: &str) -> String {
        let found = self.here(&inside(self.slug, &format!("grep -lx {name} /proc/[0-9]*/comm")));
        found.stdout
    }
}

#[test]
fn a_lease_outlives_its_clients_and_a_full_disk_and_the_tree_is_exact() {
    let host = Host::alone();
    let repo = host.repository("clients");
    let before = host.residue();
    let id = host.warmup(&repo, "e2e-clients", "").lease();
    let lease = Lease {
        host: &host,
        repo: &repo,
        slug: "e2e-clients",
    };
    killed_while_it_sends(&lease, &id);
    killed_while_the_command_runs(&lease);
    two_at_once(&lease);
    interrupted(&lease);
    full(&lease);
    drop(host.crabbox("stop e2e-clients").exits(0));
    assert_nothing_left(&before, &host.residue());
}

fn killed_while_it_sends(lease: &Lease<'_>, id: &str) {
    let meta = format!("/work/crabbox/{id}/.crabbox-sync/clients");
    let arrives = inside(lease.slug, &format!("test -e /work/crabbox/{id}/clients/big"));
    // The remote side holds this lock while it works.
    let idle = inside(lease.slug, &format!("flock -n {meta}/lock true"));
    let large = format!("{}/base.ext4", lease.host.image("default"));
    let killed = lease.here(&format!(
        "cp {large} big && chmod 600 big; \
         crabbox run --id {} --sync-only >/dev/null 2>/tmp/err & client=$!; \
         {} && kill -9 $client && {}",
        lease.slug,
        until(&arrives),
        until(&idle)
    ));
    drop(killed.exits(0));
    let next = lease.run("rm big; echo two > tracked", TREE).exits(0);
    assert_eq!(
        next.stdout, "two\n./sub/file\n./tracked\n M tracked\n",
        "{}",
        next.stderr
    );
    let left = lease.here(&inside(lease.slug, &format!("ls -A {meta}/tmp")));
    assert_eq!(
        (left.stdout.as_str(), lease.processes("python3").as_str()),
        ("", "")
    );
}

fn killed_while_the_command_runs(lease: &Lease<'_>) {
    let killed = lease.here(&format!(
        "{} && pkill -9 -f '^crabbox run --id' && {}",
        background(lease.slug, "echo began; sleep 1000"),
        until("test -s /tmp/code")
    ));
    drop(killed.exits(0));
    let next = lease.run("echo three > tracked", TREE).exits(0);
    assert!(next.stderr.contains(" recovered=true\n"), "{}", next.stderr);
    assert_eq!(next.stdout, "three\n./sub/file\n./tracked\n M tracked\n");
    assert_eq!(lease.processes("sleep"), "");
}

/// The second run waits for the first, and neither sees the other's tree.
fn two_at_once(lease: &Lease<'_>) {
    let first = "echo began; sleep 4; cat tracked; date +%s%N";
    let both = lease.here(&format!(
        "{} && echo four > tracked && crabbox run --id {} -- sh -c 'date +%s%N; cat tracked' && cat /tmp/out",
        background(lease.slug, first),
        lease.slug
    ));
    let both = both.exits(0);
    let lines: Vec<&str> = both.stdout.lines().collect();
    assert!(
        matches!(lines.as_slice(), [second, "four", "began", "three", first] if first < second),
        "{both:?}"
    );
}

/// Ctrl-C stops everything that the command has started, and the lease stays.
fn interrupted(lease: &Lease<'_>) {
    let command = single_quoted(&format!("sleep 1001 & sleep 1002 & {BEGAN}; wait"));
    let words = format!("crabbox run --id {} -- sh -c {command}", lease.slug);
    let feed = lease.host.feed(
        &format!("cd {} && python3 - {words}", lease.repo),
        CTRL_C.as_bytes(),
    );
    let feed = feed.exits(130);
    assert!(
        feed.stdout
            .contains("interrupted; the command in the lease was stopped"),
        "{}",
        feed.stdout
    );
    assert_eq!(lease.processes("sleep"), "");
}

fn full(lease: &Lease<'_>) {
    // The remaining space is reserved for root.
    let fill = "sudo fallocate -l $(($(df --output=avail -B1 . | tail -1) - 3000000)) /var/tmp/fill";
    drop(lease.run("true", fill).exits(0));
    let sync = format!("crabbox run --id {} --sync-only", lease.slug);
    let full = lease
        .here(&format!("head -c 8M /dev/urandom > big && {sync}"))
        .exits(6);
    assert!(full.stderr.contains("No space left on device"), "{}", full.stderr);
    // The lease still works, and a command can free space.
    let room = format!(
        "crabbox run --id {} --no-sync -- sudo rm /var/tmp/fill",
        lease.slug
    );
    drop(lease.here(&room).exits(0));
    let look = "sha256sum < big; git status --short";
    let next = lease.run("true", look).exits(0);
    assert_eq!(next.stdout, lease.here(look).stdout);
}

#[test]
fn ctrl_c_gives_back_the_lease_that_the_run_made() {
    let host = Host::alone();
    let repo = host.repository("ctrl-c");
    let before = host.residue();
    let command = single_quoted(&format!("{BEGAN}; sleep 1000"));
    let words = format!("crabbox run {SMALL} --slug of-ctrl-c --no-sync -- sh -c {command}");
    let ended = host
        .feed(&format!("cd {repo} && python3 - {words}"), CTRL_C.as_bytes())
        .exits(130);
    // A terminal gets the short wording; the `key=value` block is for programs.
    assert!(ended.stdout.contains("released of-ctrl-c"), "{}", ended.stdout);
    assert_nothing_left(&before, &host.residue());
}
