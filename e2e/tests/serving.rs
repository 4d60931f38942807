//! `setup firecracker --serve` on a pretended host with its own accounts, sudo and sshd: who may log in, as
//! whom, and what is left after removal, wherever it is killed. No microVM runs here.

use crabbox_e2e::afar::{NO_LEASE, host, until, with_host};
use crabbox_e2e::{Done, Host, assert_nothing_left};

/// The login of the owners.
const SERVED: &str = "crabbox@127.0.0.1:2223";

/// Gives the host a copy of this machine's `/etc` and an sshd configured as in Debian, except for its port
/// and host keys.
const ACCOUNTS: &str = r#"
set -e
mkdir /tmp/etc
cp -a /etc/. /tmp/etc/
mount --bind /tmp/etc /etc
echo "127.0.0.1 localhost $(hostname)" > /etc/hosts
sed -i 's#^root:\([^:]*\):0:0:\([^:]*\):[^:]*:.*#root:\1:0:0:\2:/srv:/bin/sh#; /^crabbox:/d' /etc/passwd
sed -i '/^crabbox:/d' /etc/group /etc/shadow /etc/gshadow
rm -f /etc/sudoers.d/crabbox
cat > /srv/sshd/served <<'C'
Port 2223
ListenAddress 127.0.0.1
HostKey /srv/sshd/host
UsePAM no
PidFile /srv/sshd/served.pid
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 100
LogLevel VERBOSE
C
/usr/sbin/sshd -f /srv/sshd/served -E /srv/sshd/served.log
ssh-keygen -A >/dev/null
mkdir -p -m 700 /srv/.config/crabbox/state
"#;

/// Sets up without a template, which is not possible on a pretended host.
const SETUP: &str = "CRABBOX_FIRECRACKER_WARM=off crabbox setup firecracker --provider firecracker";

fn accounts() -> Host {
    let host = host();
    drop(host.sh(ACCOUNTS).exits(0));
    host
}

/// The files that setup may write, and its record of them.
fn written(host: &Host) -> Vec<String> {
    let found = host
        .sh(
            "cat /etc/passwd /etc/group /etc/shadow /etc/gshadow; find /etc/sudoers.d /var/lib/crabbox-serve -printf '%m %u %p\n' 2>/dev/null | sort; \
             cat /var/lib/crabbox-serve/.ssh/authorized_keys 2>/dev/null; find /srv/.config/crabbox -name '*setup*'",
        );
    found.stdout.lines().map(str::to_owned).collect()
}

#[track_caller]
fn setup(host: &Host, words: &str) -> Done {
    host.sh(&format!("{SETUP} --serve --yes {words}")).exits(0)
}

/// Kills setup at this point.
#[track_caller]
fn kill(host: &Host, point: &str, words: &str) {
    let killed = format!("CRABBOX_TEST_FAILPOINT=cli:{point} {SETUP} --serve --yes {words}; test $? -gt 128");
    drop(host.sh(&killed).exits(0));
}

#[track_caller]
fn serve(host: &Host, who: &str, script: &str) -> Done {
    with_host(host, who, SERVED, script)
}

/// Removes bob as an owner.
fn shut_out(host: &Host) {
    // A removed owner cannot come back, not even over an open connection, and his server process is ended at
    // once.
    let serves_bob = "pgrep -f '^/srv/bin/crabbox __serve --as bob' >/dev/null";
    let bobs = serve(host, "bob", "crabbox warmup --slug his").exits(0).lease();
    drop(serve(
        host,
        "bob",
        "(crabbox run --id his --no-sync -- sleep 600 >/tmp/bob/out 2>&1; echo ended $? >>/tmp/bob/out) >/dev/null 2>&1 & echo",
    ));
    until(host, serves_bob);
    drop(setup(host, "--remove-owner bob"));
    drop(host.sh(&format!("! {serves_bob}")).exits(0));
    until(host, "grep -q '^ended [1-9]' /tmp/bob/out");
    drop(host.sh(&format!("exec crabbox stop {bobs}")).exits(0));
    // His connection is cut, and his key opens no new one.
    let gone = serve(host, "bob", "crabbox stop mine").exits(5);
    assert!(gone.stderr.contains("refused the SSH key"), "{gone:?}");
    // With another key he is admitted again, but not with the first key or a connection opened with it.
    drop(setup(host, "--owner bob=/tmp/bob/key.pub"));
    drop(serve(host, "bob", "crabbox list --provider firecracker").exits(0));
    drop(
        host.sh("ssh-keygen -q -t ed25519 -N '' -f /tmp/bob/other")
            .exits(0),
    );
    drop(setup(host, "--remove-owner bob --owner bob=/tmp/bob/other.pub"));
    let lost = serve(host, "bob", "crabbox stop mine").exits(5);
    assert!(lost.stderr.contains("refused the SSH key"), "{lost:?}");
    // A line changed by hand is still recognised; otherwise its holder would be admitted again with the next
    // key.
    let keys = "/var/lib/crabbox-serve/.ssh/authorized_keys";
    drop(
        host.sh(&format!("sed -i '/owner-bob/s/^/from=\"127.0.0.1\",/' {keys}"))
            .exits(0),
    );
    let changed = host
        .sh(&format!("{SETUP} --serve --yes --remove-owner bob"))
        .exits(2);
    assert!(changed.stderr.contains("by hand"), "{changed:?}");
    drop(host.sh(&format!("sed -i /owner-bob/d {keys}")).exits(0));
    drop(setup(host, "--remove-owner bob"));
}

#[test]
fn each_owner_comes_in_by_their_key_as_themselves_and_all_of_it_can_be_undone() {
    let host = accounts();
    let (before, residue) = (written(&host), host.residue());
    let planned = host
        .sh(&format!(
            "{SETUP} --serve --owner alice=/tmp/alice/key.pub --dry-run"
        ))
        .exits(0);
    for part in [
        "make the account crabbox",
        "restrict,command=\"sudo -n /srv/bin/crabbox __serve --as alice\" ssh-ed25519 ",
        "crabbox ALL=(root) NOPASSWD: CRABBOX_SERVE",
    ] {
        assert!(planned.stdout.contains(part), "{part}: {planned:?}");
    }
    let unasked = host.sh(&format!(
        "{SETUP} --serve --owner alice=/tmp/alice/key.pub </dev/null"
    ));
    assert!(unasked.exits(2).stderr.contains("--yes"));
    assert_nothing_left(&before, &written(&host));

    drop(setup(&host, "--owner alice=/tmp/alice/key.pub"));
    let asked = serve(&host, "alice", "crabbox doctor --provider firecracker");
    assert!(asked.stdout.contains("owner=alice"), "{asked:?}");
    let stranger = serve(&host, "bob", "crabbox warmup").exits(5);
    assert!(stranger.stderr.contains("refused the SSH key"), "{stranger:?}");
    drop(setup(&host, "--owner \"bob=$(cat /tmp/bob/key.pub)\""));
    let again = setup(
        &host,
        "--owner bob=/tmp/bob/key.pub --owner alice=/tmp/alice/key.pub",
    );
    assert_eq!(again.stdout, "nothing to do: this host is set up\n");
    // sudo allows the account these two commands only, without any other arguments.
    let as_account = |command: &str| {
        host.sh(&format!(
            "exec setpriv --reuid crabbox --regid $(id -g crabbox) --clear-groups env -i PATH=/usr/bin:/bin {command} </dev/null"
        ))
    };
    let bob = as_account("sudo -n /srv/bin/crabbox __serve --as bob").exits(0);
    assert!(bob.stdout.contains(r#""owner":"bob""#), "{bob:?}");
    for command in [
        "sudo -n /srv/bin/crabbox __serve --as eve",
        "sudo -n /srv/bin/crabbox __serve",
        "sudo -n /srv/bin/crabbox __serve --as bob --as alice",
        "sudo -n /srv/bin/crabbox list",
        "sudo -n id",
    ] {
        assert_eq!(as_account(command).code, Some(1), "{command}");
    }

    let lease = serve(&host, "alice", "crabbox warmup --slug mine")
        .exits(0)
        .lease();
    let ran = serve(
        &host,
        "alice",
        "crabbox run --id mine -- sh -c 'cat tracked; exit 7'",
    )
    .exits(7);
    assert_eq!(ran.stdout, "alice\n", "{ran:?}");
    assert_eq!(serve(&host, "bob", "crabbox list").exits(0).stdout, "");
    let hidden = serve(&host, "bob", &format!("crabbox stop {lease}")).exits(4);
    assert!(hidden.stderr.contains("not found"), "{hidden:?}");
    // A lease must not lose its owner.
    let held = host.sh(&format!("{SETUP} --serve --remove --yes")).exits(2);
    assert!(held.stderr.contains(&lease), "{held:?}");
    shut_out(&host);
    drop(serve(&host, "alice", "crabbox stop mine").exits(0));
    until(&host, NO_LEASE);
    // Alice's connection is still open, which does not prevent the removal.
    drop(host.sh("pgrep -u crabbox >/dev/null").exits(0));
    drop(host.sh(&format!("{SETUP} --serve --remove --yes")).exits(0));
    assert_nothing_left(&before, &written(&host));
    until(&host, "! pgrep -f '[c]rabbox __serve' >/dev/null");
    let left = host
        .residue()
        .into_iter()
        .filter(|line| !line.contains("crabbox-ssh-") && !line.contains("/tmp/crabbox-"));
    assert_nothing_left(&residue, &left.collect::<Vec<_>>());
}

#[test]
fn what_else_keeps_owners_out_is_told_with_what_would_let_them_in() {
    let host = accounts();
    let before = written(&host);
    // Hide this machine's own sshd configuration.
    drop(
        host.sh("printf 'UsePAM no\n' > /etc/ssh/sshd_config; cp /etc/ssh/sshd_config /tmp/usual")
            .exits(0),
    );
    let first = setup(&host, "--owner alice=/tmp/alice/key.pub");
    assert!(!first.stderr.contains("warning"), "{first:?}");
    for (told, says) in [
        (
            "AuthorizedKeysFile /etc/ssh/keys/%u",
            "`AuthorizedKeysFile /etc/ssh/keys/%u`",
        ),
        ("PubkeyAuthentication no", "`PubkeyAuthentication yes` is needed"),
        ("AllowUsers admin", "`AllowUsers admin`"),
        ("DenyUsers crab*", "`DenyUsers crab*`"),
        (
            "Match User crabbox\n    ForceCommand internal-sftp",
            "`ForceCommand internal-sftp`",
        ),
        ("No such keyword", "is not known"),
    ] {
        drop(
            host.sh(&format!(
                "cp /tmp/usual /etc/ssh/sshd_config; printf '%b\\n' '{told}' >> /etc/ssh/sshd_config"
            ))
            .exits(0),
        );
        let again = setup(&host, "");
        assert_eq!(again.stderr.matches("warning: ").count(), 1, "{told}: {again:?}");
        assert!(again.stderr.contains(says), "{told}: {again:?}");
    }
    let advice = host.sh(&format!("{SETUP} --serve --yes --json")).exits(0);
    assert!(advice.stdout.contains("is not known"), "{advice:?}");
    drop(host.sh("cp /tmp/usual /etc/ssh/sshd_config").exits(0));
    // sudo uses the last matching rule.
    for rule in [
        "crabbox ALL=(ALL) ALL",
        "crabbox ALL=(root) !/srv/bin/crabbox __serve --as alice",
    ] {
        drop(
            host.sh(&format!(
                "umask 337; echo '{rule}' > /etc/sudoers.d/zz-other; visudo -c >/dev/null"
            ))
            .exits(0),
        );
        let again = setup(&host, "");
        assert!(
            again.stderr.contains("sudo does not serve alice: ")
                && again.stderr.matches("warning: ").count() == 1,
            "{rule}: {again:?}"
        );
        drop(host.sh("rm -f /etc/sudoers.d/zz-other").exits(0));
    }
    let again = setup(&host, "");
    assert!(!again.stderr.contains("warning"), "{again:?}");
    drop(setup(&host, "--remove"));
    assert_nothing_left(&before, &written(&host));
}

#[test]
fn what_would_be_set_up_where_nobody_is_served_from_is_refused() {
    let host = accounts();
    let before = written(&host);
    drop(setup(&host, "--owner alice=/tmp/alice/key.pub"));
    let set_up = written(&host);
    for (variable, where_to) in [
        ("HOME=/tmp/other", "/tmp/other/.config/crabbox"),
        ("XDG_CONFIG_HOME=/tmp/other", "/tmp/other/crabbox"),
        ("XDG_STATE_HOME=/tmp/other", "/tmp/other/crabbox"),
        ("XDG_CACHE_HOME=/tmp/other", "/tmp/other/crabbox"),
        ("CRABBOX_REGISTRY_DIR=/tmp/other", "/tmp/other"),
    ] {
        for words in [
            "--owner bob=/tmp/bob/key.pub --yes",
            "--owner bob=/tmp/bob/key.pub --dry-run",
            "--remove-owner alice --yes",
            "--remove --yes",
        ] {
            let refused = host
                .sh(&format!("export {variable}; {SETUP} --serve {words}"))
                .exits(2);
            assert!(
                refused
                    .stderr
                    .contains(&format!("but this command would use {where_to}\n"))
                    && refused
                        .stderr
                        .contains("run it with HOME=/srv and without XDG_CONFIG_HOME"),
                "{variable} {words}: {refused:?}"
            );
        }
        drop(host.sh("! test -e /tmp/other").exits(0));
        assert_nothing_left(&set_up, &written(&host));
    }
    drop(setup(&host, "--remove"));
    assert_nothing_left(&before, &written(&host));
}

#[test]
fn a_setup_killed_anywhere_is_put_right_by_its_removal_and_by_itself() {
    let host = accounts();
    // Another user's account does not exist here, and the rest of this machine's sudo configuration does.
    let before = written(&host);
    for point in [
        "serve-account:begun",
        "serve-account:done",
        "serve-sudoers:begun",
        "serve-sudoers:made",
        "serve-sudoers:done",
        "serve-keys:begun",
        "serve-keys:made",
        "serve-keys:done",
    ] {
        for goes_on in [false, true] {
            kill(&host, point, "--owner alice=/tmp/alice/key.pub");
            drop(host.sh("visudo -c >/dev/null").exits(0));
            if goes_on {
                drop(setup(&host, "--owner alice=/tmp/alice/key.pub"));
                let asked = serve(&host, "alice", "crabbox doctor --provider firecracker");
                assert!(asked.stdout.contains("owner=alice"), "{point}: {asked:?}");
            }
            drop(setup(&host, "--remove"));
            assert_nothing_left(&before, &written(&host));
        }
    }
    for point in [
        "unserve-keys:done",
        "unserve-sudoers:done",
        "unserve-account:done",
    ] {
        drop(setup(
            &host,
            "--owner alice=/tmp/alice/key.pub --owner bob=/tmp/bob/key.pub",
        ));
        kill(&host, point, "--remove");
        drop(setup(&host, "--remove"));
        assert_nothing_left(&before, &written(&host));
    }
    // An owner is removed, and setup is killed between the file and its record.
    drop(setup(
        &host,
        "--owner alice=/tmp/alice/key.pub --owner bob=/tmp/bob/key.pub",
    ));
    for point in ["serve-expel:made", "serve-end:done"] {
        kill(&host, point, "--remove-owner bob");
        drop(setup(&host, ""));
        drop(
            host.sh("cat /etc/sudoers.d/crabbox /var/lib/crabbox-serve/.ssh/authorized_keys /srv/.config/crabbox/state/setup.json >/tmp/all && ! grep -q bob /tmp/all")
                .exits(0),
        );
        drop(setup(&host, "--owner bob=/tmp/bob/key.pub"));
    }
    drop(setup(&host, "--remove"));
    assert_nothing_left(&before, &written(&host));
}

#[test]
fn a_setup_killed_where_a_line_moves_or_the_rule_goes_is_put_right_by_itself() {
    let host = accounts();
    let before = written(&host);
    drop(setup(
        &host,
        "--owner alice=/tmp/alice/key.pub --owner bob=/tmp/bob/key.pub",
    ));
    // The program has moved, and setup is killed when the lines are updated and the record is not: either
    // program can continue from there.
    drop(
        host.sh("mkdir /srv/moved && cp /srv/bin/crabbox /srv/moved/crabbox")
            .exits(0),
    );
    let moved = |exe: &str| {
        // An open connection keeps running the command of its key's line at the time it was opened.
        drop(
            host.sh("pkill -u nobody -x ssh; pkill -u daemon -x ssh; true")
                .exits(0),
        );
        until(&host, "! pgrep -u nobody,daemon -x ssh >/dev/null");
        let lines = host
            .sh("cat /var/lib/crabbox-serve/.ssh/authorized_keys")
            .exits(0)
            .stdout;
        let rule = host.sh("cat /etc/sudoers.d/crabbox").exits(0).stdout;
        assert_eq!(
            lines.matches(&format!("sudo -n {exe} __serve")).count(),
            2,
            "{lines}"
        );
        assert_eq!(rule.matches(&format!("{exe} __serve")).count(), 2, "{rule}");
        for who in ["alice", "bob"] {
            let asked = serve(&host, who, "crabbox doctor --provider firecracker");
            assert!(asked.stdout.contains(&format!("owner={who}")), "{exe}: {asked:?}");
        }
    };
    for goes_on in ["/srv/moved/crabbox", "/srv/bin/crabbox"] {
        drop(setup(&host, ""));
        moved("/srv/bin/crabbox");
        let killed = format!(
            "CRABBOX_TEST_FAILPOINT=cli:serve-rewrite:made {} --serve --yes; test $? -gt 128",
            SETUP.replace("crabbox", "/srv/moved/crabbox")
        );
        drop(host.sh(&killed).exits(0));
        let again = format!("{} --serve --yes", SETUP.replace("crabbox", goes_on));
        drop(host.sh(&again).exits(0));
        moved(goes_on);
        let again = host.sh(&again).exits(0);
        assert_eq!(again.stdout, "nothing to do: this host is set up\n");
    }
    // The last owner is removed, and the sudo rule with her.
    kill(
        &host,
        "serve-nosudoers:done",
        "--remove-owner bob --remove-owner alice",
    );
    drop(
        host.sh("! test -e /etc/sudoers.d/crabbox && cat /var/lib/crabbox-serve/.ssh/authorized_keys >/tmp/all && ! grep -q __serve /tmp/all")
            .exits(0),
    );
    drop(setup(&host, ""));
    drop(
        host.sh("cat /srv/.config/crabbox/state/setup.json >/tmp/all && ! grep -qE 'alice|bob' /tmp/all")
            .exits(0),
    );
    let gone = serve(&host, "alice", "crabbox warmup").exits(5);
    assert!(gone.stderr.contains("refused the SSH key"), "{gone:?}");
    drop(setup(&host, "--owner alice=/tmp/alice/key.pub"));
    drop(serve(&host, "alice", "crabbox list").exits(0));
    drop(setup(&host, "--remove"));
    assert_nothing_left(&before, &written(&host));
}
