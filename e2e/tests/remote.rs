//! Leases on another machine's KVM: the clients are users without any rights on a pretended host, which they
//! reach through a real sshd on loopback. Tests who has what, what is left on either side, and the messages
//! when the other end is away, dies or is a different host. No microVM runs here.

use crabbox_e2e::afar::{KVM, NO_LEASE, host, settled, until, with, with_host};
use crabbox_e2e::{Host, assert_nothing_left};

/// Bob, the user `who`, sees nothing of alice's lease.
#[track_caller]
fn learns_nothing(host: &Host, who: &str, lease: &str) {
    // It is invisible to bob under any name, with the same messages as for a lease that does not exist.
    assert_eq!(with(host, who, "crabbox list").exits(0).stdout, "");
    for name in ["mine", lease] {
        for verb in ["status", "logs", "stop", "ssh", "run --no-sync --id"] {
            let tail = if verb.starts_with("run") { "-- true" } else { "" };
            let done = with(host, who, &format!("crabbox {verb} {name} {tail}")).exits(4);
            assert!(
                done.stderr.contains(&format!("not found: {name}")),
                "{verb}: {done:?}"
            );
        }
    }
    let guessed = with(
        host,
        who,
        &format!(
            "crabbox __proxy --host {KVM} --key /tmp/bob/key --known-hosts /tmp/bob/known_hosts {lease} </dev/null"
        ),
    );
    assert!(guessed.exits(4).stderr.contains("not found"));
    // His key can only start our program, and only for himself.
    let shell = with(
        host,
        who,
        "ssh -F none -o IdentitiesOnly=yes -i /tmp/bob/key -o UserKnownHostsFile=/tmp/bob/known_hosts -p 2222 root@127.0.0.1 \
         crabbox __serve --as alice </dev/null",
    );
    assert!(shell.stdout.contains(r#""owner":"bob""#), "{shell:?}");
}

#[test]
fn a_lease_on_another_host_is_its_owner_s_alone_from_warmup_to_stop() {
    let host = host();
    let before = settled(&host);
    let lease = with(
        &host,
        "alice",
        "crabbox warmup --slug mine --ttl 1h --idle-timeout 10m",
    )
    .exits(0)
    .lease();
    // Only the owner has the private key, and the lease names its owner.
    drop(
        host.sh(&format!(
            "test ! -e /srv/.config/crabbox/testboxes/{lease}/id_ed25519"
        ))
        .exits(0),
    );
    drop(
        host.sh(&format!(
            "test -e /tmp/alice/.config/crabbox/testboxes/{lease}/id_ed25519"
        ))
        .exits(0),
    );
    let listed = with(&host, "alice", "crabbox list").exits(0).stdout;
    assert!(
        listed.contains(&lease) && listed.contains(&format!("host={KVM}")),
        "{listed}"
    );
    let item = with(&host, "alice", "crabbox list --json").exits(0).json();
    assert_eq!(
        (&item[0]["HostID"], &item[0]["labels"]["owner"]),
        (&KVM.into(), &"alice".into()),
        "{item}"
    );
    let status = with(&host, "alice", "crabbox status --json mine").exits(0).json();
    assert_eq!(
        (&status["ready"], &status["state"]),
        (&true.into(), &"ready".into()),
        "{status}"
    );
    // The claim leads to the host without the setting.
    let ran = with_host(&host, "alice", "", "crabbox run --id mine -- cat tracked").exits(0);
    assert_eq!(ran.stdout, "alice\n", "{ran:?}");
    assert_eq!(
        with(
            &host,
            "alice",
            "crabbox run --id mine --no-sync -- sh -c 'exit 7'"
        )
        .code,
        Some(7)
    );
    let pasted = with(&host, "alice", "eval \"$(crabbox ssh mine) echo pasted\"").exits(0);
    assert_eq!(pasted.stdout, "pasted\n", "{pasted:?}");
    let copied = with(
        &host,
        "alice",
        "crabbox cp --id mine tracked SANDBOX:/tmp/copied && crabbox cp --id mine SANDBOX:/tmp/copied back && cat back",
    );
    assert_eq!(copied.exits(0).stdout.lines().last(), Some("alice"));
    drop(with(&host, "alice", "crabbox heartbeat mine").exits(0));
    let log = with(&host, "alice", "crabbox logs --supervisor mine").exits(0);
    assert!(log.stdout.contains("attached"), "{log:?}");
    learns_nothing(&host, "bob", &lease);
    drop(with_host(&host, "alice", "", "crabbox stop mine").exits(0));
    let left = host.sh("ls /tmp/alice/.config/crabbox/testboxes /tmp/alice/.config/crabbox/state/claims");
    assert!(!left.stdout.contains("cbx_"), "{left:?}");
    assert_nothing_left(&before, &host.residue());
}

#[test]
fn what_ends_on_the_way_leaves_nothing_and_each_owner_has_a_quota() {
    let host = host();
    let before = settled(&host);
    // A client killed before it has claimed its lease has abandoned it, however it dies.
    for kill in ["kill -9 $cli", "pkill -9 -u nobody -x ssh"] {
        let killed = with(
            &host,
            "alice",
            &format!(
                "crabbox warmup --slug gone >/dev/null 2>&1 & cli=$!; \
                 for i in $(seq 600); do cat /proc/[0-9]*/comm 2>/dev/null | grep -q '^firecracker' && break; sleep 0.02; done; \
                 cat /proc/[0-9]*/comm | grep -q '^firecracker' || exit 99; {kill}; wait $cli; true"
            ),
        );
        drop(killed.exits(0));
        until(&host, NO_LEASE);
        drop(with(&host, "alice", "crabbox list").exits(0));
    }
    // Killed between its claim and its keys, and before it could enter: one cleanup removes what is left
    // here.
    for point in ["cli:keys:begun", "cli:keys:done"] {
        drop(
            with(
                &host,
                "alice",
                &format!("CRABBOX_TEST_FAILPOINT={point} crabbox warmup --slug gone; test $? -gt 128"),
            )
            .exits(0),
        );
        until(&host, NO_LEASE);
        drop(with(&host, "alice", "crabbox cleanup").exits(0));
        let left = host.sh("find /tmp/alice/.config /tmp/alice/.local 2>/dev/null | grep cbx_; true");
        assert!(!left.stdout.contains("cbx_"), "{point}: {left:?}");
    }
    for slug in ["one", "two"] {
        drop(with(&host, "alice", &format!("crabbox warmup --slug {slug}")).exits(0));
    }
    let third = with(&host, "alice", "crabbox warmup --slug three").exits(5);
    assert!(
        third.stderr.contains("quota_exceeded") && third.stderr.contains("alice"),
        "{third:?}"
    );
    // It belongs to alice alone.
    drop(with(&host, "bob", "crabbox warmup --slug bobs").exits(0));
    // A client cannot set what only the host decides, and invalid values are refused there.
    let odd = with(&host, "alice", "crabbox warmup --slug four --firecracker-cpus 99").exits(2);
    assert!(odd.stderr.contains("cpus"), "{odd:?}");
    drop(with(&host, "alice", "crabbox stop one && crabbox stop two").exits(0));
    // A lease that ended on the host is known to be gone: cleanup forgets it here.
    let gone = host.sh("crabbox stop bobs").exits(0);
    assert!(gone.stderr.contains("deleted"), "{gone:?}");
    let cleaned = with(&host, "bob", "crabbox cleanup").exits(0);
    assert!(cleaned.stdout.contains("missing_state"), "{cleaned:?}");
    assert_nothing_left(&before, &host.residue());
    let left = host.sh("ls /tmp/*/.config/crabbox/testboxes /tmp/*/.config/crabbox/state/claims");
    assert!(!left.stdout.contains("cbx_"), "{left:?}");
}

#[test]
fn a_host_that_is_away_or_another_one_is_told_and_costs_no_other_lease() {
    let host = host();
    drop(settled(&host));
    let lease = with(&host, "alice", "crabbox warmup --slug mine")
        .exits(0)
        .lease();
    // If another host is away, there is one warning, and the list of the host that answers.
    let away = with_host(&host, "alice", "root@127.0.0.1:2", "crabbox list").exits(0);
    assert!(
        away.stdout.contains(&lease) && away.stderr.contains("root@127.0.0.1:2 are left out"),
        "{away:?}"
    );
    assert_eq!(away.stderr.matches("left out").count(), 1, "{away:?}");
    let new = with_host(&host, "alice", "root@127.0.0.1:2", "crabbox warmup").exits(5);
    assert!(new.stderr.contains("cannot reach the KVM host"), "{new:?}");
    // The other program must not be told that its lease is gone.
    let release = r#"{"protocolVersion":1,"operation":"release","lease":{"leaseId":"cbx_0123456789ab"}}"#;
    let script = format!("printf %s '{release}' | crabbox adapter external");
    let unasked = with_host(&host, "alice", "root@127.0.0.1:2", &script).exits(5);
    assert!(unasked.stdout.contains(" for its leases: "), "{unasked:?}");
    // Something other than our program answers.
    let other = r#"sed -i "s/exec .srv.sshd.serve --as bob/echo welcome; echo no >\&2; exit 9/" /srv/sshd/authorized; pkill -u daemon -x ssh"#;
    drop(host.sh(other).exits(0));
    let none = with(&host, "bob", "crabbox list").exits(0);
    assert!(
        none.stderr.contains("cannot start `crabbox __serve` on") && none.stderr.contains("exit code 9"),
        "{none:?}"
    );
    // A host with another key is not trusted: we send it nothing, and its refusal is final.
    let fresh = "kill $(cat /srv/sshd/pid); pkill -u nobody ssh; pkill -f '[s]shd: root'; rm -f /srv/sshd/host /srv/sshd/host.pub; \
                 ssh-keygen -q -t ed25519 -N '' -f /srv/sshd/host; /usr/sbin/sshd -f /srv/sshd/config -E /srv/sshd/log";
    drop(host.sh(fresh));
    until(
        &host,
        "test $(grep -c 'Server listening' /srv/sshd/log) = 2 && ! pgrep -u nobody -x ssh >/dev/null",
    );
    let changed = with(&host, "alice", "crabbox status mine").exits(5);
    assert!(
        changed.stderr.contains("host key") && changed.stderr.contains("/tmp/alice/known_hosts"),
        "{changed:?}"
    );
    // Its claim stays, and so does the lease: once the host is known again, both work as before.
    drop(host.sh("rm /tmp/alice/known_hosts").exits(0));
    let back = with(&host, "alice", "crabbox run --id mine --no-sync -- echo back").exits(0);
    assert_eq!(back.stdout, "back\n");
    drop(with(&host, "alice", "crabbox stop mine").exits(0));
}

#[test]
fn a_silent_command_keeps_a_lease_and_a_connection_that_only_lies_open_does_not() {
    let host = host();
    let before = settled(&host);
    drop(with(&host, "alice", "crabbox warmup --slug mine --idle-timeout 6s").exits(0));
    // Longer than the idle timeout and the interval of its checks.
    let silent = with(
        &host,
        "alice",
        "crabbox run --id mine --no-sync -- sh -c 'sleep 14; echo there'",
    )
    .exits(0);
    assert_eq!(silent.stdout, "there\n", "{silent:?}");
    // The connection to the guest would stay open for ten minutes; the lease ends anyway.
    drop(host.sh("pgrep -u nobody -f '[_]_proxy' >/dev/null").exits(0));
    until(&host, NO_LEASE);
    drop(with(&host, "alice", "crabbox cleanup").exits(0));
    assert_nothing_left(&before, &host.residue());
}

#[test]
fn another_program_s_lease_on_another_host_is_entered_through_it_and_given_back() {
    let host = host();
    let before = settled(&host);
    let ask = |who: &str, operation: &str, rest: &str| {
        let request = format!(r#"{{"protocolVersion":1,"operation":"{operation}",{rest}}}"#);
        with(
            &host,
            who,
            &format!("printf %s '{request}' | crabbox adapter external"),
        )
        .exits(0)
        .json()
    };
    let desired = r#""desired":{"leaseId":"cbx_0123456789ab","slug":"jade-krill","name":"krill"}"#;
    let made = &ask("alice", "acquire", desired)["lease"];
    assert_eq!(
        (&made["leaseId"], &made["status"]),
        (&"cbx_0123456789ab".into(), &"ready".into()),
        "{made}"
    );
    let ssh = |field: &str| made["ssh"][field].as_str().unwrap_or_default();
    // It belongs to alice alone.
    assert_eq!(
        ask("alice", "list", r#""all":true"#)["leases"][0]["cloudId"],
        made["cloudId"]
    );
    assert_eq!(
        ask("bob", "list", r#""all":true"#)["leases"],
        serde_json::json!([])
    );
    let entered = with(
        &host,
        "alice",
        &format!(
            "exec ssh -F none -i {key} -o IdentitiesOnly=yes -o BatchMode=yes -o UserKnownHostsFile=/tmp/alice/adapter_hosts \
             -o StrictHostKeyChecking=accept-new -o ProxyCommand=\"{proxy}\" {user}@{to} echo entered",
            key = ssh("key"),
            proxy = ssh("proxyCommand"),
            user = ssh("user"),
            to = ssh("host"),
        ),
    );
    assert_eq!(entered.exits(0).stdout, "entered\n");
    drop(ask(
        "alice",
        "release",
        r#""lease":{"leaseId":"cbx_0123456789ab"}"#,
    ));
    assert_eq!(with(&host, "alice", "crabbox list").exits(0).stdout, "");
    assert_nothing_left(&before, &host.residue());
}

#[test]
fn ports_trees_and_shells_of_a_lease_on_another_host_are_as_of_one_here() {
    let host = host();
    let before = settled(&host);
    drop(with(&host, "alice", "crabbox warmup --slug mine").exits(0));
    drop(
        with(
            &host,
            "alice",
            "crabbox run --id mine -- sh -c 'echo changed > tracked; echo new > made'",
        )
        .exits(0),
    );
    let pulled = with(&host, "alice", "crabbox pull --id mine && cat tracked made").exits(0);
    assert!(
        pulled.stdout.contains("M tracked") && pulled.stdout.ends_with("changed\nnew\n"),
        "{pulled:?}"
    );
    let shell = with(
        &host,
        "alice",
        "echo 'echo in-$(id -un); exit 5' | crabbox connect mine",
    )
    .exits(5);
    assert!(shell.stdout.contains("in-root"), "{shell:?}");
    // A server in the guest, for which the fake guest's namespace stands in.
    let server = "cat > /tmp/alice/serve.py <<'P'\n\
        import socket\n\
        s = socket.socket()\n\
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
        s.bind((\"127.0.0.1\", 8080))\n\
        s.listen()\n\
        while True:\n\
        \x20   c = s.accept()[0]\n\
        \x20   c.sendall(b\"from the guest\\n\")\n\
        \x20   c.close()\n\
        P\n\
        crabbox run --id mine --no-sync -- sh -c 'setsid python3 /tmp/alice/serve.py >/dev/null 2>&1 </dev/null &'";
    drop(with(&host, "alice", server).exits(0));
    let read = "python3 -c 'import socket,sys; print(socket.create_connection((\"127.0.0.1\", int(sys.argv[1]))).recv(99).decode(), end=\"\")'";
    let forwarded = with(
        &host,
        "alice",
        &format!(
            "crabbox ports --id mine add web 8080 && crabbox ports --id mine list && \
             {read} $(crabbox ports --id mine list | sed -n 's/^web http:..127.0.0.1:\\([0-9]*\\).*/\\1/p') && crabbox ports --id mine rm web"
        ),
    )
    .exits(0);
    assert!(
        forwarded.stdout.contains("remote=8080 state=open") && forwarded.stdout.contains("from the guest\n"),
        "{forwarded:?}"
    );
    let tunnelled = with(
        &host,
        "alice",
        &format!(
            "crabbox tunnel --id mine 8080 > /tmp/alice/tunnel & t=$!; \
             for i in $(seq 200); do grep -q http /tmp/alice/tunnel && break; sleep 0.05; done; \
             {read} $(sed -n 's/.*127.0.0.1:\\([0-9]*\\).*/\\1/p' /tmp/alice/tunnel); kill -INT $t; wait $t; true"
        ),
    )
    .exits(0);
    assert_eq!(tunnelled.stdout, "from the guest\n", "{tunnelled:?}");
    drop(with(&host, "alice", "crabbox stop mine").exits(0));
    // Templates and pools are managed on the host itself, and the message says so.
    for words in ["crabbox image warm", "crabbox pool fill"] {
        let told = with(&host, "alice", words).exits(2);
        assert!(told.stderr.contains(&format!("run it on {KVM}")), "{told:?}");
    }
    drop(host.sh("pkill -f '[s]erve.py'; true").exits(0));
    assert_nothing_left(&before, &host.settled());
}
