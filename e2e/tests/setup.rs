//! From a bare host to a successful run in one command, and back: the host has no image, no Firecracker, no
//! CNI network.
//!
//! The bundle is made from the lab's files and served over HTTP on its loopback. "Bare" means a temporary
//! home and a `PATH` without Firecracker; the lab's CNI network is moved away during the test, which needs
//! the host for itself.

use crabbox_e2e::{Host, assert_nothing_left};

/// The test's home directory.
const HOME: &str = "/root/e2e/bare";

/// Variables of a new user; the port is that of [`serve`].
const BARE: &str = "env -i HOME=/root/e2e/bare PATH=/root/e2e/bare-bin:/usr/sbin:/usr/bin:/sbin:/bin \
                    CRABBOX_SETUP_FROM=http://127.0.0.1:8099/bundle.tar";

/// Skips the template, which costs an emulated host four boots; `templates.rs` covers making it.
const COLD: &str = "CRABBOX_FIRECRACKER_WARM=off";

/// Selects a network of CNI plugins.
const CNI: &str = "CRABBOX_FIRECRACKER_NETWORK=cni";
/// The file that setup writes for it.
const CONFLIST: &str = "/etc/cni/conf.d/10-crabbox.conflist";

/// Serves the bundle until the host is asked to stop it, and prepares a PATH with crabbox but without
/// Firecracker.
fn prepare(host: &Host) {
    let made = host.sh(
        "set -e; rm -rf /root/e2e/bare /root/e2e/bare-bin /root/e2e/served; mkdir -p /root/e2e/bare /root/e2e/bare-bin /root/e2e/served
         ln -s \"$(command -v crabbox)\" /root/e2e/bare-bin/crabbox
         mkdir -p /root/.cache/crabbox/firecracker
         for p in firecracker jailer; do install -m 755 \"$(command -v $p)\" /root/.cache/crabbox/firecracker/$p; done
         crabbox image export default /root/e2e/served/bundle.tar
         rm -r /root/.cache/crabbox/firecracker
         if [ -d /etc/cni ]; then mv /etc/cni /root/e2e/cni-aside; fi
         cd /root/e2e/served; (python3 -m http.server 8099 --bind 127.0.0.1 >/dev/null 2>&1 & echo $! > /root/e2e/served.pid)
         printf '[user]\\n\\tname = lab\\n\\temail = lab@example.invalid\\n' > /root/e2e/bare/.gitconfig",
    );
    drop(made.exits(0));
}

/// Restores the lab's own files, whatever the result of the test.
struct Tidy<'a>(&'a Host);

impl Drop for Tidy<'_> {
    fn drop(&mut self) {
        self.0.sh(
            "kill $(cat /root/e2e/served.pid); rm -rf /root/e2e/served /root/e2e/served.pid /root/e2e/bare-bin
             if [ -d /root/e2e/cni-aside ]; then rm -rf /etc/cni; mv /root/e2e/cni-aside /etc/cni; fi",
        );
    }
}

/// Every file of the home and of the CNI configuration, where setup may write.
fn files(host: &Host) -> Vec<String> {
    let found = host.sh(&format!("find {HOME} /etc/cni 2>/dev/null | sort"));
    found.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn the_first_command_on_a_bare_host_succeeds_and_all_of_it_can_be_undone() {
    let host = Host::alone();
    let repo = host.repository("bare-repo");
    let _tidy = Tidy(&host);
    prepare(&host);
    let (before, residue) = (files(&host), host.residue());

    // Without consent nothing happens, and the message says what to do.
    let refused = host.sh(&format!(
        "cd {repo} && {BARE} crabbox run --provider firecracker -- uname -a"
    ));
    let refused = refused.exits(2);
    assert!(
        refused.stderr.contains("crabbox setup firecracker"),
        "{}",
        refused.stderr
    );
    let planned = host
        .sh(&format!("{BARE} crabbox setup firecracker --dry-run"))
        .exits(0);
    for part in ["http://127.0.0.1:8099/bundle.tar", "provider firecracker"] {
        assert!(planned.stdout.contains(part), "{part} in {}", planned.stdout);
    }
    assert!(planned.stdout.contains("freeze a machine"), "{}", planned.stdout);
    // A CNI network is only set up on request.
    assert!(!planned.stdout.contains(CONFLIST), "{}", planned.stdout);
    let chained = host
        .sh(&format!("{BARE} {CNI} crabbox setup firecracker --dry-run"))
        .exits(0);
    assert!(chained.stdout.contains(CONFLIST), "{}", chained.stdout);
    assert_nothing_left(&before, &files(&host));

    let first = host.sh(&format!(
        "cd {repo} && {BARE} crabbox run --yes --firecracker-cpus 1 --firecracker-memory-mib 256 -- uname -a"
    ));
    let first = first.exits(0);
    assert!(first.stdout.starts_with("Linux crabbox-"), "{}", first.stdout);
    assert!(
        first.stderr.contains("downloading the bundle "),
        "{}",
        first.stderr
    );

    let made = files(&host);
    assert!(!made.iter().any(|file| file == CONFLIST));
    // A command does not wait for a template.
    assert!(!made.iter().any(|file| file.ends_with("/templates")), "{made:?}");
    drop(
        host.sh(&format!("{BARE} {CNI} {COLD} crabbox setup firecracker --yes"))
            .exits(0),
    );
    // The written network works for a lease.
    let second = host.sh(&format!(
        "cd {repo} && {BARE} {CNI} crabbox run --firecracker-cpus 1 --firecracker-memory-mib 256 --no-sync -- echo chained"
    ));
    assert_eq!(second.exits(0).stdout, "chained\n");

    let made = files(&host);
    assert!(made.iter().any(|file| file == CONFLIST), "{made:?}");
    let again = host
        .sh(&format!("{BARE} {CNI} {COLD} crabbox setup firecracker --yes"))
        .exits(0);
    assert_eq!(again.stdout, "nothing to do: this host is set up\n");
    assert_nothing_left(&made, &files(&host));
    drop(host.sh(&format!("{BARE} crabbox image verify")).exits(0));

    drop(
        host.sh(&format!("{BARE} crabbox setup firecracker --remove --yes"))
            .exits(0),
    );
    assert_nothing_left(&before, &files(&host));
    let again = host
        .sh(&format!("{BARE} crabbox setup firecracker --remove --yes"))
        .exits(0);
    assert!(
        again.stderr.contains("nothing to do") || again.stdout.contains("nothing to do"),
        "{again:?}"
    );
    // The plugins create their masquerading table if it is missing, and leave it in place.
    let left = host
        .residue()
        .into_iter()
        .filter(|line| line != "table ip nat" || residue.contains(line));
    assert_nothing_left(&residue, &left.collect::<Vec<_>>());
}

#[test]
fn a_bad_bundle_is_named_and_leaves_a_bare_host_bare() {
    let host = Host::alone();
    let _tidy = Tidy(&host);
    prepare(&host);
    let before = files(&host);
    drop(
        host.sh("cd /root/e2e/served && head -c 1000000 bundle.tar > cut.tar && echo text > text.tar")
            .exits(0),
    );
    let cases = [
        ("http://127.0.0.1:8099/cut.tar", "", "cut short"),
        ("http://127.0.0.1:8099/text.tar", "", "is no crabbox bundle"),
        ("http://127.0.0.1:8099/none.tar", "", "status 404"),
        ("http://127.0.0.1:9/bundle.tar", "", "cannot download"),
        ("/root/e2e/served/none.tar", "", "none.tar"),
        ("/root/e2e/served/cut.tar", "--sha256 00", "refusing"),
    ];
    for (from, more, said) in cases {
        let failed = host.sh(&format!(
            "{BARE} crabbox setup firecracker --yes --from {from} {more}"
        ));
        assert!(
            failed.code != Some(0) && failed.stderr.contains(said),
            "{from}: {failed:?}"
        );
        assert!(
            host.sh(&format!("{BARE} crabbox image list"))
                .exits(0)
                .stdout
                .is_empty()
        );
    }
    drop(
        host.sh(&format!("{BARE} crabbox setup firecracker --remove --yes"))
            .exits(0),
    );
    assert_nothing_left(&before, &files(&host));
}
