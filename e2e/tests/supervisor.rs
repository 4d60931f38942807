//! The interfaces of a lease's supervisor, on pretended hosts with a fake VMM: its log and its socket.

use crabbox_e2e::{Host, PRETEND, assert_nothing_left};

/// The directory of the leases.
const LEASES: &str = "/srv/.config/crabbox/state/firecracker/leases";

fn lease(host: &Host, slug: &str, more: &str) {
    drop(
        host.crabbox(&format!("warmup {PRETEND} --slug {slug} {more}"))
            .exits(0),
    );
}

/// Waits on the host, up to 30 s, for a shell condition.
#[track_caller]
fn until(host: &Host, condition: &str) {
    let waited = host.sh(&format!(
        "for i in $(seq 600); do if {condition}; then exit 0; fi; sleep 0.05; done; exit 1"
    ));
    assert_eq!(waited.code, Some(0), "never became true: {condition}");
}

/// Writes a program that answers "done" to any request on the given socket.
const LIAR: &str = r#"cat > /srv/liar.py <<'P'
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen()
while True:
    c = s.accept()[0]
    c.recv(99)
    c.sendall(b'{"version":1,"reply":"done"}\n')
    c.close()
P"#;

#[test]
fn a_supervisor_logs_every_stage_of_its_lease_and_only_root_reads_it() {
    let host = Host::pretend();
    lease(&host, "heard", "");
    let log = host.crabbox("logs --supervisor heard").exits(0).stdout;
    for stage in [
        "allocate",
        "key",
        "namespace",
        "tap",
        "disk",
        "vmm",
        "network",
        "boot",
    ] {
        let line = log
            .lines()
            .find(|line| line.contains(&format!(":stage{{name=\"{stage}\"}}")));
        let line = line.unwrap_or_else(|| panic!("no stage {stage}:\n{log}"));
        assert!(line.contains(" INFO lease{id=cbx_"), "{line}");
    }
    assert!(log.contains("claimed; watching"), "{log}");
    let mode = host
        .sh(&format!("stat -c %a {LEASES}/cbx_*/supervisor.log"))
        .exits(0);
    assert_eq!(mode.stdout, "600\n");
    drop(host.crabbox("stop heard").exits(0));
}

#[test]
fn what_goes_wrong_after_the_hand_over_is_in_the_log() {
    let host = Host::pretend();
    lease(&host, "broken", "--ttl 8s");
    // An unexpected mount: the directory cannot be removed, and only the supervisor is there to notice.
    drop(
        host.sh(&format!(
            "cd {LEASES}/cbx_* && mkdir pinned && mount -t tmpfs tmpfs pinned"
        ))
        .exits(0),
    );
    until(&host, "! pgrep -f '[_]_supervise' >/dev/null");
    let log = host.crabbox("logs --supervisor broken").exits(0).stdout;
    assert!(log.contains("watch ended end=Expired"), "{log}");
    let errors: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert!(
        errors
            .iter()
            .any(|line| line.contains("left over") && line.contains("pinned")),
        "{errors:#?}\n{log}"
    );
}

#[test]
fn a_supervisor_that_cannot_read_its_record_removes_nothing_and_says_so() {
    let host = Host::pretend();
    lease(&host, "unread", "");
    drop(
        host.sh(&format!(
            "cd {LEASES}/cbx_* && cp metadata.json /srv/kept && echo '{{' > metadata.json && pkill -KILL -x firecracker"
        ))
        .exits(0),
    );
    until(&host, "! pgrep -f '[_]_supervise' >/dev/null");
    let log = host
        .sh(&format!("cat {LEASES}/cbx_*/supervisor.log"))
        .exits(0)
        .stdout;
    assert!(
        log.contains("ERROR") && log.contains("the lease was not changed: its record cannot be read: "),
        "{log}"
    );
    // With its record again it is given back.
    drop(
        host.sh(&format!("cd {LEASES}/cbx_* && cp /srv/kept metadata.json"))
            .exits(0),
    );
    drop(host.crabbox("stop unread").exits(0));
}

#[test]
fn a_supervisor_takes_a_log_level_and_no_key_of_its_lease_is_logged() {
    let host = Host::pretend();
    drop(
        host.sh(&format!(
            "CRABBOX_LOG=trace crabbox warmup {PRETEND} --slug heard -vv >/srv/out 2>/srv/err"
        ))
        .exits(0),
    );
    let shown = host.crabbox("logs --supervisor heard").exits(0);
    assert!(
        shown.stderr.contains(" phase=watching log=crabbox=trace"),
        "{shown:?}"
    );
    assert!(
        shown.stdout.contains("DEBUG") && shown.stdout.contains("step{name=\"key\"}"),
        "{shown:?}"
    );
    // The private keys of the lease and of its host, line by line.
    let leaked = host.sh(&format!(
        "for key in $(find /srv/.config/crabbox/testboxes {LEASES} -name 'id_ed25519'); do \
         grep -v -e '-----' $key | head -4 | while read line; do grep -rlF -e \"$line\" {LEASES}/cbx_*/supervisor.log /srv/out /srv/err; done; done; \
         find /srv/.config/crabbox/testboxes -name id_ed25519 | wc -l"
    ));
    assert_eq!(leaked.stdout.trim(), "1", "{leaked:?}");
    let quieter = host.crabbox("logs --supervisor --level warn heard").exits(0);
    assert!(quieter.stderr.contains(" log=crabbox=warn"), "{quieter:?}");
    for (flags, said) in [
        ("--supervisor --level loud", "invalid log filter \"loud\""),
        ("--level warn", "--level needs --supervisor"),
    ] {
        let refused = host.crabbox(&format!("logs {flags} heard")).exits(2);
        assert!(refused.stderr.contains(said), "{refused:?}");
    }
    let mode = host
        .sh(&format!("stat -c %a {LEASES}/cbx_*/supervisor.sock"))
        .exits(0);
    assert_eq!(mode.stdout, "600\n");
    drop(host.crabbox("stop heard").exits(0));
}

#[test]
fn a_lease_is_stopped_without_the_socket_of_its_supervisor_and_with_a_deaf_one() {
    let host = Host::pretend();
    lease(&host, "first", "");
    drop(host.crabbox("stop first").exits(0));
    let before = host.residue();
    drop(host.sh(LIAR).exits(0));
    // As made by a release without sockets, and then with a lying program that listens there.
    let lies = "(python3 /srv/liar.py supervisor.sock >/dev/null 2>&1 & echo $! >/srv/liar); \
                for i in $(seq 200); do [ -S supervisor.sock ] && break; sleep 0.05; done";
    for then in ["true", lies] {
        lease(&host, "old", "");
        drop(
            host.sh(&format!("cd {LEASES}/cbx_* && rm supervisor.sock && {then}"))
                .exits(0),
        );
        let shown = host.crabbox("logs --supervisor old").exits(0);
        assert!(!shown.stderr.contains("phase="), "{shown:?}");
        drop(host.crabbox("stop old").exits(0));
        until(&host, "! pgrep -f '[_]_supervise' >/dev/null");
        drop(host.sh("kill $(cat /srv/liar 2>/dev/null) 2>/dev/null; rm -f /srv/liar"));
        assert_nothing_left(&before, &host.residue());
    }
}

#[test]
fn a_stop_that_dies_is_finished_by_the_supervisor_that_it_asked() {
    let host = Host::pretend();
    lease(&host, "first", "");
    drop(host.crabbox("stop first").exits(0));
    let before = host.residue();
    // The VMM is not touched yet: only the request tells the supervisor to end this lease.
    lease(&host, "half", "");
    let died = host.sh("CRABBOX_TEST_FAILPOINT=cli:undo-claim:begun crabbox stop half");
    assert_eq!(died.code, Some(137), "{died:?}");
    until(&host, "! pgrep -f '[_]_supervise' >/dev/null");
    assert_nothing_left(&before, &host.residue());
}

#[test]
fn an_adopted_supervisor_can_be_asked_and_keeps_its_failpoint() {
    let host = Host::pretend();
    lease(&host, "first", "");
    drop(host.crabbox("stop first").exits(0));
    let before = host.residue();
    lease(&host, "orphan", "");
    drop(host.sh("kill -9 $(pgrep -f '[_]_supervise')").exits(0));
    // A lease is not adopted before its supervisor is completely dead.
    until(&host, "! pgrep -f '[_]_supervise' >/dev/null");
    drop(
        host.sh("CRABBOX_TEST_FAILPOINT=supervisor:undo-vmm:begun crabbox list --provider firecracker")
            .exits(0),
    );
    // Read the file directly: a command on leases would start another supervisor while the armed one is still
    // coming up.
    until(
        &host,
        &format!("grep -q 'the supervisor adopts the lease' {LEASES}/cbx_*/supervisor.log"),
    );
    let log = host.crabbox("logs --supervisor orphan").exits(0).stdout;
    assert!(log.contains("the supervisor adopts the lease"), "{log}");
    // Its machine ends, and the supervisor dies at its failpoint: the lease is half removed, and no process
    // works on it.
    drop(host.sh("pkill -9 -f '[f]irecracker --id'").exits(0));
    until(&host, "! pgrep -f '[_]_supervise' >/dev/null");
    assert!(host.sh(&format!("ls -d {LEASES}/cbx_*")).stdout.contains("cbx_"));
    drop(host.crabbox("cleanup --provider firecracker").exits(0));
    assert_nothing_left(&before, &host.residue());
}

#[test]
fn an_upgrade_finds_living_leases_alive_and_the_new_program_takes_them_over() {
    let host = Host::pretend();
    let before = host.residue();
    lease(&host, "lived", "");
    let pid = || host.sh("pgrep -f '[_]_supervise'").exits(0).stdout;
    let old = pid();
    // As a package upgrade does it: another file under the same name. The supervisor continues with the
    // deleted one.
    drop(
        host.sh("cp /srv/bin/crabbox /srv/bin/new && mv /srv/bin/new /srv/bin/crabbox")
            .exits(0),
    );
    let ran = host.crabbox("run --id lived --no-sync -- echo alive").exits(0);
    assert_eq!((ran.stdout.as_str(), pid() == old), ("alive\n", true));
    let status = host.crabbox("status --id lived --json").exits(0).json();
    assert_eq!(status["ready"].as_bool(), Some(true), "{status}");
    // The old one dies, and the next command starts a supervisor from the new program.
    drop(host.sh("kill -9 $(pgrep -f '[_]_supervise')").exits(0));
    until(&host, "! pgrep -f '[_]_supervise' >/dev/null");
    drop(host.crabbox("list --provider firecracker").exits(0));
    until(&host, "pgrep -f '[_]_supervise' >/dev/null");
    let program = host.sh("readlink /proc/$(pgrep -f '[_]_supervise')/exe").exits(0);
    assert_eq!(program.stdout, "/srv/bin/crabbox\n");
    let again = host.crabbox("run --id lived --no-sync -- echo alive").exits(0);
    assert_eq!(again.stdout, "alive\n");
    drop(host.crabbox("stop lived").exits(0));
    assert_nothing_left(&before, &host.residue());
}

#[test]
fn two_installations_share_a_lease_and_either_gives_back_what_the_other_made() {
    let host = Host::pretend();
    let before = host.residue();
    drop(
        host.sh("mkdir /srv/other && cp /srv/bin/crabbox /srv/other/crabbox")
            .exits(0),
    );
    let other = |words: &str| host.sh(&format!("exec /srv/other/crabbox {words}"));
    lease(&host, "shared", "");
    let listed = |done: crabbox_e2e::Done| done.exits(0).json();
    assert_eq!(
        listed(other("list --provider firecracker --json")),
        listed(host.crabbox("list --provider firecracker --json"))
    );
    let ran = other("run --id shared --no-sync -- echo alive").exits(0);
    assert_eq!(ran.stdout, "alive\n");

    // The first program is removed, and its last process dies.
    drop(
        host.sh("rm /srv/bin/crabbox && kill -9 $(pgrep -f '[_]_supervise')")
            .exits(0),
    );
    until(&host, "! pgrep -f '[_]_supervise' >/dev/null");
    let ran = other("run --id shared --no-sync -- echo alive").exits(0);
    assert_eq!(ran.stdout, "alive\n");
    until(&host, "pgrep -f '[_]_supervise' >/dev/null");
    let program = host.sh("readlink /proc/$(pgrep -f '[_]_supervise')/exe").exits(0);
    assert_eq!(program.stdout, "/srv/other/crabbox\n");
    drop(other("stop shared").exits(0));
    assert_nothing_left(&before, &host.residue());
}
