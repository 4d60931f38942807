//! A run on a real microVM when something goes wrong: the machine goes down, a client dies, two come at once, the disk fills, Ctrl-C.
//!
//! What needs no real guest is tested against a sshd on loopback, in `crates/crabbox/tests`.

use crabbox_e2e::{Done, Host, SMALL, assert_nothing_left};

/// Presses Ctrl-C; `$1` and what follows is the command.
const CTRL_C: &str = include_str!("run/ctrl_c.py");
/// Says `began` in a way that the command line, which is shown, does not.
const BEGAN: &str = "echo be\"\"gan";

/// Shell words that wait until `condition` holds, for at most two minutes.
fn until(condition: &str) -> String {
    format!("for i in $(seq 600); do {condition} && break; sleep 0.2; done; {condition}")
}

/// A script as one word of a shell.
fn quoted(script: &str) -> String {
    format!("'{}'", script.replace('\'', r"'\''"))
}

/// Shell words that start a run of `script` in the background and wait until it says `began`; its streams and its exit code go to
/// `/tmp/out`, `/tmp/err` and `/tmp/code`.
fn background(slug: &str, script: &str) -> String {
    format!(
        "rm -f /tmp/out /tmp/err /tmp/code; \
         (crabbox run --id {slug} -- sh -c {} >/tmp/out 2>/tmp/err; echo $? >/tmp/code) & \
         {}",
        quoted(script),
        until("grep -q began /tmp/out 2>/dev/null")
    )
}

/// Shell words that run `script` in the guest over a connection of their own, past crabbox and its locks.
fn inside(slug: &str, script: &str) -> String {
    format!("eval \"$(crabbox ssh {slug}) \"{}", quoted(&quoted(script)))
}

/// A machine that went down is told in one line, with 255, and a digest that sends nobody into it.
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

    // From outside: the VMM is killed.
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
    drop(host.sh(&format!("sh -c {} {lease}", quoted(&gone))).exits(0));
    drop(host.crabbox("status --id e2e-down").exits(4));
    assert_nothing_left(&before, &host.residue());

    // The same while files are on their way: the first of them is there, and the last one cannot be.
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
    drop(host.sh(&format!("sh -c {} {lease}", quoted(&gone))).exits(0));
    assert_nothing_left(&before, &host.residue());

    // From inside, in a lease that the run would give back: the guest turns itself off, and its kernel panics.
    for end in ["reboot -f", "sh -c \"echo c > /proc/sysrq-trigger\""] {
        let ended = host.sh(&format!(
            "cd {repo} && crabbox run {SMALL} --no-sync -- sh -c 'echo began; sudo {end}; sleep 1000'"
        ));
        assert_eq!(ended.stdout, "began\n", "{end}: {}", ended.stderr);
        assert_told_as_down(&ended);
        assert_nothing_left(&before, &host.residue());
    }
}

/// The tree as a command sees it.
const TREE: &str = "cat tracked; find . -name .git -prune -o -type f -print | sort; git status --short";

/// A lease that lives through all that happens to its clients.
struct Lease<'a> {
    host: &'a Host,
    repo: &'a str,
    slug: &'a str,
}

impl Lease<'_> {
    /// On the host, in the repository.
    #[track_caller]
    fn here(&self, script: &str) -> Done {
        self.host.sh(&format!("cd {} && {script}", self.repo))
    }

    /// A run of `script` after a change here.
    #[track_caller]
    fn run(&self, change: &str, script: &str) -> Done {
        let (slug, script) = (self.slug, quoted(script));
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
    // The far side holds this lock while it is at work.
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

/// The second one waits for the first, and neither sees the other's tree.
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

/// Ctrl-C stops all that the command has started, and the lease stays.
fn interrupted(lease: &Lease<'_>) {
    let command = quoted(&format!("sleep 1001 & sleep 1002 & {BEGAN}; wait"));
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
    // What is left beyond this is for root alone.
    let fill = "sudo fallocate -l $(($(df --output=avail -B1 . | tail -1) - 3000000)) /var/tmp/fill";
    drop(lease.run("true", fill).exits(0));
    let sync = format!("crabbox run --id {} --sync-only", lease.slug);
    let full = lease
        .here(&format!("head -c 8M /dev/urandom > big && {sync}"))
        .exits(6);
    assert!(full.stderr.contains("No space left on device"), "{}", full.stderr);
    // The lease is of use all the same, and a command makes room.
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
    let command = quoted(&format!("{BEGAN}; sleep 1000"));
    let words = format!("crabbox run {SMALL} --slug of-ctrl-c --no-sync -- sh -c {command}");
    let ended = host
        .feed(&format!("cd {repo} && python3 - {words}"), CTRL_C.as_bytes())
        .exits(130);
    // A terminal is told in the calm words; the block of `key=value` is for those who read with a program.
    assert!(ended.stdout.contains("released of-ctrl-c"), "{}", ended.stdout);
    assert_nothing_left(&before, &host.residue());
}
