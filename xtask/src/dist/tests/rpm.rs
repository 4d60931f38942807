//! The RPM package handled by rpm, in trees with nothing but a shell (needs root: scripts run in them).

use std::os::unix::fs::symlink;

use super::*;

/// The programs called by the package's scripts.
const TOOLS: [&str; 4] = ["sh", "rm", "rmdir", "sed"];

/// A substitute for the one that busybox lacks: nothing competes for the lock here; the tests of the Debian
/// package cover that.
const FLOCK: &str = "#!/bin/sh\nshift 2\nexec \"$@\"\n";

/// A system with its own package records.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test needs root: rpm changes its root to a tree and runs the package's scripts there"
        );
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        // Every system has these from its package `filesystem`.
        for of_the_system in [
            "dev",
            "usr/bin",
            "usr/share/doc",
            "usr/share/man/man1",
            "var/lib/rpm",
            "var/tmp",
        ] {
            fs::create_dir_all(dir.path().join(of_the_system)).unwrap();
        }
        // The package's scripts write there; a regular file will do.
        fs::write(dir.path().join("dev/null"), "").unwrap();
        let busybox = Path::new("/bin/busybox");
        assert!(
            busybox.is_file(),
            "this test needs busybox: apt-get install busybox-static"
        );
        Cmd::inheriting("cp").arg(busybox).arg(&bin).run().unwrap();
        for tool in TOOLS {
            symlink("busybox", bin.join(tool)).unwrap();
        }
        fs::write(bin.join("flock"), FLOCK).unwrap();
        fs::set_permissions(bin.join("flock"), fs::Permissions::from_mode(0o755)).unwrap();
        Self(dir)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// Dependencies are not installed, and are checked separately.
    fn rpm(&self, words: &[&str]) -> Captured {
        Cmd::new("rpm")
            .arg(format!("--root={}", self.0.path().display()))
            .args(["--dbpath=/var/lib/rpm", "--nodeps", "--nosignature"])
            .args(words)
            .capture()
            .unwrap()
    }

    /// All paths except the shell, devices and rpm's own records, including directories.
    fn paths(&self) -> Vec<String> {
        const NOT_OURS: [&str; 3] = ["./bin/", "./dev", "./var/lib/rpm/"];
        let found = Cmd::new("find").cwd(self.0.path()).run().unwrap().stdout_text();
        let ours = |path: &&str| !NOT_OURS.iter().any(|dir| path.starts_with(dir));
        let mut paths: Vec<String> = found.lines().filter(ours).map(str::to_owned).collect();
        paths.sort();
        paths
    }
}

/// The result of querying a package with this format.
fn asked(package: &Path, format: &str) -> String {
    Cmd::new("rpm")
        .args(["--query", "--nosignature", "--queryformat", format, "--package"])
        .arg(package)
        .run()
        .unwrap()
        .stdout_text()
}

#[test]
fn an_rpm_is_installed_replaced_kept_while_leases_live_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let components = components();
    let [this, later] = VERSIONS.map(|version| stand_in_part(version, &components, Part::Rpm, dir.path()));
    let needs = asked(&this, "[%{REQUIRES}\n]");
    for need in ["libc.so.6(GLIBC_2.34)(64bit)", "git-core", "openssh-clients"] {
        assert!(needs.lines().any(|line| line == need), "{need} in {needs}");
    }
    let told = asked(&this, "%{LICENSE} %{ARCH} %{BUILDHOST} %{BUILDTIME}");
    assert_eq!(told, "MIT OR Apache-2.0 x86_64 localhost 1700000000");

    let tree = Tree::new();
    let before = tree.paths();
    let [this, later] = [&this, &later].map(|path| path.to_str().unwrap());
    ok(&tree.rpm(&["--install", this]));
    let say = || {
        let said = Cmd::new(tree.at("usr/bin/crabbox")).arg("--version").run();
        said.unwrap().stdout_text()
    };
    assert_eq!(say(), VERSIONS[0]);
    for path in [
        "usr/share/man/man1/crabbox.1.gz",
        "usr/share/zsh/site-functions/_crabbox",
        "usr/share/doc/crabbox/LICENSES-DEPENDENCIES",
        "usr/share/doc/crabbox/examples/crabbox.yaml",
    ] {
        assert!(tree.at(path).is_file(), "{path}");
    }
    ok(&tree.rpm(&["--verify", "crabbox"]));

    // A lease continues through upgrade and downgrade, and protects the program.
    let entries = tree.at("var/lib/crabbox/registry/leases");
    fs::create_dir_all(&entries).unwrap();
    fs::write(entries.with_file_name("registry.lock"), "").unwrap();
    let entry = entries.join("cbx_0123456789ab.json");
    fs::write(&entry, "{}").unwrap();
    ok(&tree.rpm(&["--upgrade", later]));
    assert_eq!(say(), VERSIONS[1]);
    let refused = tree.rpm(&["--upgrade", this]);
    assert!(!refused.status.success() && refused.stderr_text().contains("is already installed"));
    ok(&tree.rpm(&["--upgrade", "--oldpackage", this]));
    assert_eq!(say(), VERSIONS[0]);
    let refused = tree.rpm(&["--erase", "crabbox"]);
    assert!(
        !refused.status.success() && refused.stderr_text().contains("cbx_0123456789ab"),
        "{}",
        refused.stderr_text()
    );
    assert!(entry.exists() && tree.at("usr/bin/crabbox").exists());

    fs::remove_file(entry).unwrap();
    ok(&tree.rpm(&["--erase", "crabbox"]));
    assert_eq!(tree.paths(), before);
}

/// Overlays this machine's macros with vendor or administrator ones, only for the command line that follows.
const FOREIGN: &str = "mount --bind \"$0\" /usr/lib/rpm/macros.d && exec rpmbuild \"$@\"";

#[test]
fn an_rpm_has_the_same_bytes_whatever_the_clock_and_the_macros_of_its_machine() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test needs root: it mounts macros of another machine where rpmbuild alone sees them"
    );
    let dir = tempfile::tempdir().unwrap();
    let components = components();
    let program = stand_in(dir.path(), VERSIONS[0]);
    let macros = dir.path().join("macros");
    fs::create_dir(&macros).unwrap();
    fs::write(
        macros.join("macros.vendor"),
        "%vendor Somebody\n%packager Somebody\n%distribution Something\n%disttag some1\n%bugurl some\n",
    )
    .unwrap();
    let there = || {
        let cmd = Cmd::inheriting("unshare").args(["--mount", "sh", "-c", FOREIGN]);
        cmd.arg(&macros)
    };
    let said = there().args(["--eval", "%vendor %distribution"]).run().unwrap();
    assert_eq!(
        said.stdout_text(),
        "Somebody Something",
        "the macros would be taken"
    );
    // The committer's clock is ahead of this machine's.
    let release = Release {
        epoch: 2_100_000_000,
        ..release(&program, VERSIONS[0], &components)
    };
    let made = [("plain", Cmd::inheriting("rpmbuild")), ("foreign", there())].map(|(name, rpmbuild)| {
        let scratch = dir.path().join(name);
        let contents = contents::all(&release, &scratch.join("spoken")).unwrap();
        crate::dist::rpm::package_by(rpmbuild, &release, &contents, &scratch).unwrap()
    });
    let times = asked(&made[0], "[%{FILEMTIMES}\n]");
    assert!(times.lines().all(|time| time == "2100000000"), "{times}");
    let told = asked(&made[1], "%{VENDOR}|%{PACKAGER}|%{DISTRIBUTION}|%{OPTFLAGS}");
    assert_eq!(told, "The crabbox developers|The crabbox developers|(none)|");
    let [plain, foreign] = made.map(|path| fs::read(path).unwrap());
    assert!(plain == foreign, "the bytes differ");
}
