//! The RPM package as rpm takes it, in trees with a shell and nothing else (root: scripts run in them).

use std::os::unix::fs::symlink;

use super::*;

/// The programs that the package's scripts call.
const TOOLS: [&str; 4] = ["sh", "rm", "rmdir", "sed"];

/// The one that busybox lacks: nobody else is at the lock here, which the Debian package's scripts are tried with.
const FLOCK: &str = "#!/bin/sh\nshift 2\nexec \"$@\"\n";

/// A system with its own records of packages.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let busybox = Path::new("/bin/busybox");
        assert!(
            busybox.is_file(),
            "this test needs busybox: apt-get install busybox-static"
        );
        Cmd::inheriting("cp").arg(busybox).arg(&bin).run().unwrap();
        for tool in TOOLS {
            symlink("busybox", bin.join(tool)).unwrap();
        }
        // Where scripts send what nobody wants to read; a file does.
        fs::create_dir(dir.path().join("dev")).unwrap();
        fs::write(bin.join("flock"), FLOCK).unwrap();
        fs::set_permissions(bin.join("flock"), fs::Permissions::from_mode(0o755)).unwrap();
        Self(dir)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// What it needs is not there, and is looked at apart.
    fn rpm(&self, words: &[&str]) -> Captured {
        Cmd::new("rpm")
            .arg(format!("--root={}", self.0.path().display()))
            .args(["--dbpath=/var/lib/rpm", "--nodeps", "--nosignature"])
            .args(words)
            .capture()
            .unwrap()
    }

    /// All that is there beside the shell and rpm's own records.
    fn files(&self) -> Vec<String> {
        const NOT_OURS: [&str; 3] = ["./bin/", "./dev/", "./var/lib/rpm/"];
        let all = files(self.0.path()).into_iter();
        all.filter(|file| !NOT_OURS.iter().any(|dir| file.starts_with(dir)))
            .collect()
    }
}

/// What rpm says of a package by this format.
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

    // A lease lives on through an upgrade and back, and holds the program.
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
    assert_eq!(tree.files(), Vec::<String>::new());
    assert!(!tree.at("var/lib/crabbox").exists());
    assert!(!tree.at("usr/share/doc/crabbox").exists());
}
