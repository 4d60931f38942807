//! The Debian package on a host with dpkg and apt: installed, used, replaced while there is a lease, removed,
//! purged, with nothing left behind.
//!
//! The program in it is the one built for the tests, packed as a release is; compressing it well would take
//! longer than everything else.

use crabbox_e2e::{Host, SMALL, assert_nothing_left};
use crabbox_host::command::Cmd;

/// The program as installed by the package; the host has another one earlier on its PATH.
const PROGRAM: &str = "/usr/bin/crabbox";

/// Makes the package, and returns its bytes.
fn package() -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    // <target>/<profile>/deps/<this test>
    let own = std::env::current_exe()?;
    let built = own.ancestors().nth(2).ok_or("a test that lies nowhere")?;
    let xtask = built.join("xtask");
    assert!(
        xtask.is_file(),
        "this test needs {}: cargo build --workspace --bin xtask",
        xtask.display()
    );
    let dir = tempfile::tempdir()?;
    let (program, out) = (dir.path().join("crabbox"), dir.path().join("out"));
    Cmd::inheriting("strip")
        .arg("-o")
        .args([&program, &built.join("crabbox")])
        .run()?;
    Cmd::inheriting(&xtask)
        .args(["dist", "--effort", "1", "--only", "deb", "--crabbox"])
        .arg(&program)
        .arg("--out")
        .arg(&out)
        .run()?;
    let made = std::fs::read_dir(&out)?.next().ok_or("xtask makes a package")??;
    Ok(std::fs::read(made.path())?)
}

/// What a package or its user could have left: files by name, and dpkg's records.
fn files(host: &Host) -> Vec<String> {
    let found = host.sh(
        "find /usr/bin /usr/share /etc -name '*crabbox*'; find /var/lib/crabbox ! -name '*.lock' ! -path '*/registry*'; \
         dpkg-query -W -f '${Package} ${db:Status-Status} ${Version}\\n' crabbox 2>/dev/null | sed 's/^/dpkg /'",
    );
    found.stdout.lines().map(str::to_owned).collect()
}

/// Runs the installed program with these words.
fn crabbox(host: &Host, words: &str) -> crabbox_e2e::Done {
    host.sh(&format!("exec {PROGRAM} {words}"))
}

/// Checks dpkg's records, and the version that the program reports.
#[track_caller]
fn assert_installed(host: &Host, version: &str) {
    let state = host.sh("dpkg-query -W -f '${db:Status-Status} ${Version}' crabbox");
    assert_eq!(state.exits(0).stdout, format!("installed {version}"));
    // dpkg exits with 0 in any case (1.21).
    assert_eq!(host.sh("dpkg --verify crabbox").exits(0).stdout, "");
}

/// Checks that leases live on, and can be used with the installed program.
#[track_caller]
fn assert_alive(host: &Host, repo: &str, supervisor: &str) {
    let ran = host.sh(&format!(
        "cd {repo} && exec {PROGRAM} run --id kept --no-sync -- echo alive"
    ));
    let ran = ran.exits(0);
    assert_eq!(ran.stdout, "alive\n");
    assert_eq!(host.sh("pgrep -f '[_]_supervise'").stdout, supervisor);
}

#[test]
fn a_package_is_installed_replaced_under_a_lease_removed_and_purged_and_leaves_nothing() {
    let deb = package().unwrap();
    let host = Host::lab();
    let repo = host.repository("packaged");
    let (before, residue) = (files(&host), host.residue());
    let version = env!("CARGO_PKG_VERSION");
    drop(
        host.feed(
            "rm -rf e2e/deb && mkdir -p e2e/deb && cat > e2e/deb/crabbox.deb",
            &deb,
        )
        .exits(0),
    );
    drop(
        host.sh("cd e2e/deb && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y ./crabbox.deb")
            .exits(0),
    );
    assert_installed(&host, version);
    let said = crabbox(&host, "--version").exits(0).stdout;
    assert_eq!(said.trim(), version);
    let first = host.sh(&format!("cd {repo} && {PROGRAM} run {SMALL} --yes -- uname -a"));
    let first = first.exits(0);
    assert!(first.stdout.starts_with("Linux crabbox-"), "{}", first.stdout);

    // Upgrade and downgrade while there is a lease; the later version differs only in its number.
    drop(
        host.sh(&format!(
            "cd {repo} && {PROGRAM} warmup {SMALL} --slug kept && cd ~/e2e/deb && dpkg-deb -R crabbox.deb tree && \
             sed -i 's/^Version: .*/Version: 99.0.0/' tree/DEBIAN/control && dpkg-deb -Znone -b tree later.deb"
        ))
        .exits(0),
    );
    let supervisor = host.sh("pgrep -f '[_]_supervise'").exits(0).stdout;
    drop(host.sh("dpkg -i e2e/deb/later.deb").exits(0));
    assert_installed(&host, "99.0.0");
    assert_alive(&host, &repo, &supervisor);
    let gone = host.sh("readlink /proc/$(pgrep -f '[_]_supervise')/exe").exits(0);
    assert!(
        gone.stdout.contains("(deleted)"),
        "the supervisor has the program that it began with: {}",
        gone.stdout
    );
    drop(host.sh("dpkg -i e2e/deb/crabbox.deb").exits(0));
    assert_installed(&host, version);
    assert_alive(&host, &repo, &supervisor);

    let lease = crabbox(&host, "list --provider firecracker --json")
        .exits(0)
        .lease();
    let refused = host.sh("dpkg --purge crabbox");
    assert!(
        refused.code != Some(0) && refused.stderr.contains(&lease) && refused.stderr.contains("crabbox stop"),
        "{refused:?}"
    );
    assert_installed(&host, version);
    drop(crabbox(&host, "stop kept").exits(0));
    drop(host.sh("dpkg --remove crabbox").exits(0));
    assert_eq!(host.sh(&format!("test -e {PROGRAM}")).code, Some(1));
    drop(host.sh("dpkg --purge crabbox && rm -rf e2e/deb").exits(0));
    let after: Vec<String> = files(&host);
    // Purging also removes the directory, which a lab has from the beginning.
    drop(host.sh("mkdir -p /var/lib/crabbox").exits(0));
    assert!(
        !after.iter().any(|line| line.starts_with("/var/lib/crabbox")),
        "{after:?}"
    );
    assert_nothing_left(&before, &files(&host));
    assert_nothing_left(&residue, &host.residue());
}
