//! Leases on another machine's KVM: the clients are users without any right on a pretended host, which they reach by a real sshd on loopback.
//! Who has what, what is left on either side, and what is said when the other end is away, dies or is somebody else. No microVM runs here.

use crabbox_e2e::{Done, Host, assert_nothing_left};

/// Where the sshd of the KVM host listens.
const KVM: &str = "root@127.0.0.1:2222";

/// A KVM host for alice and bob, each with a key, a home and a repository of their own, and nothing on the host but `crabbox __serve`.
const SERVE: &str = r#"
set -e
mkdir -p /run/sshd /tmp/bin /srv/sshd /srv/.config/crabbox
cp /srv/bin/crabbox /tmp/bin/crabbox
chmod 755 /tmp/bin /tmp/bin/crabbox
cat > /srv/.config/crabbox/config.yaml <<'Y'
firecracker:
  binary: /srv/fake/firecracker
  kernel: /srv/vmlinux
  rootfs: /srv/rootfs.ext4
  cniConfDir: /srv/cni
  cniBinDir: /usr/lib/cni
  network: nat
  user: root
  workRoot: /srv/work
  cpus: 1
  memoryMiB: 128
  diskMiB: 64
  launchTimeout: 30s
  maxLeasesPerOwner: 2
Y
chmod 600 /srv/.config/crabbox/config.yaml
ssh-keygen -q -t ed25519 -N '' -C host -f /srv/sshd/host
for who in alice bob; do
  mkdir -p /tmp/$who/repo
  ssh-keygen -q -t ed25519 -N '' -C $who -f /tmp/$who/key
  (cd /tmp/$who/repo && HOME=/srv git init -q && echo $who > tracked && HOME=/srv git add -A && HOME=/srv git commit -qm one)
  echo "restrict,command=\"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin exec crabbox __serve --as $who\" $(cat /tmp/$who/key.pub)"
done > /srv/sshd/authorized
chown -R nobody:nogroup /tmp/alice
chown -R daemon:daemon /tmp/bob
cat > /srv/sshd/config <<'C'
Port 2222
ListenAddress 127.0.0.1
HostKey /srv/sshd/host
AuthorizedKeysFile /srv/sshd/authorized
SetEnv HOME=/srv
UsePAM no
StrictModes no
PidFile /srv/sshd/pid
PermitRootLogin forced-commands-only
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 100
LogLevel VERBOSE
C
/usr/sbin/sshd -f /srv/sshd/config -E /srv/sshd/log
"#;

fn host() -> Host {
    let host = Host::pretend();
    drop(host.sh(SERVE).exits(0));
    host
}

/// Runs a shell script as `who`, in their repository, with the KVM host `at`.
#[track_caller]
fn with_host(host: &Host, who: &str, at: &str, script: &str) -> Done {
    let user = if who == "alice" { "nobody" } else { "daemon" };
    let quoted = script.replace('\'', r"'\''");
    host.sh(&format!(
        "cd /tmp/{who}/repo && exec setpriv --reuid {user} --regid $(id -g {user}) --clear-groups env -i HOME=/tmp/{who} \
         PATH=/tmp/bin:/usr/bin:/bin LC_ALL=C CRABBOX_PROVIDER=firecracker CRABBOX_SSH_KEY=/tmp/{who}/key \
         CRABBOX_FIRECRACKER_HOST={at} sh -c '{quoted}'"
    ))
}

#[track_caller]
fn with(host: &Host, who: &str, script: &str) -> Done {
    with_host(host, who, KVM, script)
}

/// Both have asked once, so that their connections to the host are there.
#[track_caller]
fn settled(host: &Host) -> Vec<String> {
    for who in ["alice", "bob"] {
        assert_eq!(with(host, who, "crabbox list").exits(0).stdout, "");
    }
    host.residue()
}

/// Waits on the host, up to 30 s, for a shell condition.
#[track_caller]
fn until(host: &Host, condition: &str) {
    let waited = host.sh(&format!(
        "for i in $(seq 600); do if {condition}; then exit 0; fi; sleep 0.05; done; ps ax -o pid,ppid,user,args; exit 1"
    ));
    assert_eq!(
        waited.code,
        Some(0),
        "never became true: {condition}\n{}",
        waited.stdout
    );
}

/// Bob, whom `who` names, sees none of the lease of alice.
#[track_caller]
fn learns_nothing(host: &Host, who: &str, lease: &str) {
    // Bob sees none of it, by no name, and the words are those for a lease that is none.
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
    // His key opens nothing but our program, and that for himself alone.
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
    // The private key is with its owner alone, and the lease says whose it is.
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
    // The claim leads there without the setting.
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
    // A client that is killed before it has claimed its lease has given it up, however it dies.
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
        until(
            &host,
            "! ls -d /srv/.config/crabbox/state/firecracker/leases/cbx_* >/dev/null 2>&1",
        );
        drop(with(&host, "alice", "crabbox list").exits(0));
    }
    // Killed between its claim and its keys, and before it could enter: one cleanup finds what is left here.
    for point in ["cli:keys:begun", "cli:keys:done"] {
        drop(
            with(
                &host,
                "alice",
                &format!("CRABBOX_TEST_FAILPOINT={point} crabbox warmup --slug gone; test $? -gt 128"),
            )
            .exits(0),
        );
        until(
            &host,
            "! ls -d /srv/.config/crabbox/state/firecracker/leases/cbx_* >/dev/null 2>&1",
        );
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
    // It is alice's alone.
    drop(with(&host, "bob", "crabbox warmup --slug bobs").exits(0));
    // What only the host decides is not asked for by anybody, and what makes no sense is refused there.
    let odd = with(&host, "alice", "crabbox warmup --slug four --firecracker-cpus 99").exits(2);
    assert!(odd.stderr.contains("cpus"), "{odd:?}");
    drop(with(&host, "alice", "crabbox stop one && crabbox stop two").exits(0));
    // One that ended without us is known to be gone: cleanup forgets it here.
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
    // Another host is away: one warning, and the list of the one that answers.
    let away = with_host(&host, "alice", "root@127.0.0.1:2", "crabbox list").exits(0);
    assert!(
        away.stdout.contains(&lease) && away.stderr.contains("root@127.0.0.1:2 are left out"),
        "{away:?}"
    );
    assert_eq!(away.stderr.matches("left out").count(), 1, "{away:?}");
    let new = with_host(&host, "alice", "root@127.0.0.1:2", "crabbox warmup").exits(5);
    assert!(new.stderr.contains("cannot reach the KVM host"), "{new:?}");
    // Another program is not told that its lease is gone.
    let release = r#"{"protocolVersion":1,"operation":"release","lease":{"leaseId":"cbx_0123456789ab"}}"#;
    let script = format!("printf %s '{release}' | crabbox adapter external");
    let unasked = with_host(&host, "alice", "root@127.0.0.1:2", &script).exits(5);
    assert!(
        unasked.stdout.contains("cannot be asked for leases"),
        "{unasked:?}"
    );
    // Somebody answers who is not our program.
    let other = r#"sed -i "s/exec crabbox __serve --as bob/echo welcome; echo no >\&2; exit 9/" /srv/sshd/authorized; pkill -u daemon -x ssh"#;
    drop(host.sh(other).exits(0));
    let none = with(&host, "bob", "crabbox list").exits(0);
    assert!(
        none.stderr.contains("no crabbox serves on") && none.stderr.contains("exit code 9"),
        "{none:?}"
    );
    // A host with another key is nobody whom we tell anything, and what it says is final.
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
    // Its claim stays, and so does the lease: once the host is known again, both are as they were.
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
    // Longer than the idle limit and the time between two looks at it.
    let silent = with(
        &host,
        "alice",
        "crabbox run --id mine --no-sync -- sh -c 'sleep 14; echo there'",
    )
    .exits(0);
    assert_eq!(silent.stdout, "there\n", "{silent:?}");
    // The connection to the guest stays open for ten minutes; the lease does not.
    drop(host.sh("pgrep -u nobody -f '[_]_proxy' >/dev/null").exits(0));
    until(
        &host,
        "! ls -d /srv/.config/crabbox/state/firecracker/leases/cbx_* >/dev/null 2>&1",
    );
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
    // It is a lease of alice's and nobody else's.
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
