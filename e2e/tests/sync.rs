//! Exact sync on a real microVM: compares the trees in the guest with the local working trees, byte for byte.
//!
//! The trees are made on this machine, and the expected result is computed here, too; the host only stores
//! them and runs crabbox.

#![expect(
    clippy::unwrap_used,
    reason = "the exception for tests does not reach their fixtures"
)]

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crabbox_core::shell::single_quoted;
use crabbox_e2e::{Host, assert_nothing_left};
use crabbox_host::command::Cmd;
use crabbox_sync::manifest::{Manifest, Scope};
use crabbox_sync::repo::Repo;
use crabbox_testkit::trees;
use sha2::{Digest as _, Sha256};

/// A working tree with every case that a sync must handle. `$1` is a repository for a submodule.
const CASES: &str = include_str!("sync/cases.sh");
/// Lists all files of a directory; run in the guest.
const PICTURE: &str = include_str!("sync/picture.py");
/// The number of generated trees.
const TREES: u8 = 12;
/// Prints git's view of the commit, the branch and the index.
const REPOSITORY: &str = "git rev-parse -q --verify HEAD; git symbolic-ref -q HEAD; git ls-files --stage";
/// The same, with git's status of the files.
const STATUS: &str = "git rev-parse -q --verify HEAD; git symbolic-ref -q HEAD; git ls-files --stage; \
                      git status --porcelain=v2 --untracked-files=all --no-renames";

/// Paths with kind, mode, size, time, content.
type Picture = BTreeMap<Vec<u8>, String>;

/// Local working trees, and their copies on the host.
struct Trees(tempfile::TempDir);

impl Trees {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A new repository, filled by `fill`.
    fn make(&self, name: &str, fill: impl FnOnce(&Path)) {
        let dir = self.path(name);
        std::fs::create_dir(&dir).unwrap();
        here(
            &dir,
            "git init -q --template= -b main . && printf '[user]\nname=t\nemail=t@t\n' >> .git/config",
        );
        fill(&dir);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Copies the trees to the host as they are now: names, modes, times, holes.
    fn carry(&self, host: &Host) {
        let packed = Cmd::new("tar")
            .args(["--format=pax", "--sparse", "-cf", "-", "-C"])
            .arg(self.0.path())
            .arg(".")
            .run()
            .unwrap();
        let unpack = "rm -rf e2e/trees && mkdir -p e2e/trees && tar -xpf - --no-same-owner -C e2e/trees";
        drop(host.feed(unpack, &packed.stdout).exits(0));
    }

    /// The expected contents of the tree `name` in the guest.
    fn expected(&self, name: &str) -> Picture {
        let root = self.path(name);
        let manifest = Manifest::build(&Repo::discover(&root).unwrap(), &Scope::default()).unwrap();
        let entries = manifest.entries.into_iter();
        entries
            .map(|entry| {
                let told = picture(&root.join(trees::bytes_path(&entry.path)));
                (entry.path, told)
            })
            .collect()
    }
}

/// Runs a script on this machine, without the configuration of its user.
fn here(dir: &Path, script: &str) -> String {
    let ran = Cmd::new("sh")
        .args(["-c", script, "sh"])
        .arg(dir.with_file_name("library"))
        .cwd(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .capture()
        .unwrap();
    ran.stdout_text()
}

fn picture(path: &Path) -> String {
    let at = path.symlink_metadata().unwrap();
    let hex = |bytes: &[u8]| -> String {
        let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        digits
            .filter_map(|digit| char::from_digit(u32::from(digit), 16))
            .collect()
    };
    let content = if at.is_symlink() {
        use std::os::unix::ffi::OsStrExt as _;
        hex(path.read_link().unwrap().as_os_str().as_bytes())
    } else {
        hex(&Sha256::digest(std::fs::read(path).unwrap()))
    };
    format!(
        "{:o} {} {}{:09} {content}",
        at.mode(),
        at.len(),
        at.mtime(),
        at.mtime_nsec()
    )
}

/// The trees in the guest, by name. Run from the tree that was synced last, which has claimed the lease.
#[track_caller]
fn found(host: &Host, lease: &str, last: &str) -> BTreeMap<String, Picture> {
    let look =
        format!("cd e2e/trees/{last} && eval \"$(crabbox ssh {lease}) python3 - /work/crabbox/{lease}\"");
    let told = host.feed(&look, PICTURE.as_bytes()).exits(0);
    let mut found: BTreeMap<String, Picture> = BTreeMap::new();
    for line in told.stdout.lines() {
        let (path, told): (String, String) = serde_json::from_str(line).unwrap();
        let bytes = path.as_bytes().chunks(2);
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        let path: Vec<u8> = bytes.map(byte).collect();
        let (name, rest) = path.split_at(path.iter().position(|byte| *byte == b'/').unwrap());
        let name = String::from_utf8(name.to_vec()).unwrap();
        found.entry(name).or_default().insert(rest[1..].to_vec(), told);
    }
    found
}

/// The errors in the guest's tree, which must contain `expected` and nothing else except for files made by
/// the guest (`…guest`).
fn differences(name: &str, expected: &Picture, found: &Picture) -> Vec<String> {
    let mut wrong = Vec::new();
    for (path, told) in expected {
        let path_told = path.escape_ascii();
        match found.get(path) {
            Some(there) if there == told => {}
            there => wrong.push(format!("{name}: {path_told}: {told} here, {there:?} there")),
        }
    }
    let more = found
        .keys()
        .filter(|path| !expected.contains_key(*path) && !path.ends_with(b"guest"));
    wrong.extend(more.map(|path| format!("{name}: {}: there only", path.escape_ascii())));
    wrong
}

/// Syncs the tree in `dir` and then runs `script` in the lease.
#[track_caller]
fn run(host: &Host, lease: &str, dir: &str, script: &str) -> crabbox_e2e::Done {
    let quoted = single_quoted(script);
    let ran = host.sh(&format!(
        "cd e2e/trees/{dir} && exec crabbox run --id {lease} --reclaim -- sh -c {quoted}"
    ));
    ran.exits(0)
}

/// The files of the hand-made tree that must arrive, without `links/…` and `modes/…`.
const ARRIVE: [&[u8]; 28] = [
    b"-rf",
    b".crabboxignore",
    b".gitattributes",
    b".gitignore",
    b".gitmodules",
    b"README",
    b"ReadMe",
    b"a b ",
    b"assets/pointer.bin",
    b"both",
    b"dist/tracked",
    b"empty",
    b"huge",
    b"kept",
    b"module/lib",
    b"new\nline",
    b"readme",
    b"renamed",
    b"staged",
    b"sub/.gitignore",
    b"sub/deep/keep.tmp",
    b"sub/deep/untracked",
    b"sub/file",
    b"unstaged",
    b"untracked",
    b"\xc3\xa4\xe2\x82\xac",
    b"\xe4\xff",
    b"links/up",
];

/// Compares git's output in the guest with the local one: only files excluded from the sync may differ, and
/// `of_the_guest`.
#[track_caller]
fn assert_same_repository(here: &str, there: &str, of_the_guest: &[&str]) {
    let only = |one: &str, other: &str| -> Vec<String> {
        let other: Vec<&str> = other.lines().collect();
        one.lines()
            .filter(|line| !other.contains(line))
            .map(|line| line.split(' ').skip(1).last().unwrap_or_default().to_owned())
            .collect()
    };
    assert_eq!(
        only(here, there),
        ["dist/built", "nested/", "secret/key", "x.bak"],
        "{here}\n{there}"
    );
    assert_eq!(only(there, here), of_the_guest, "{here}\n{there}");
}

#[test]
fn every_case_of_a_working_tree_arrives_byte_for_byte() {
    let host = Host::alone();
    let trees = Trees::new();
    trees.make("library", |dir| {
        here(dir, "echo lib > lib && git add lib && git commit -qm lib");
    });
    trees.make("cases", |dir| drop(here(dir, CASES)));
    let generated: Vec<String> = (0..TREES).map(|number| format!("tree-{number}")).collect();
    for (number, name) in (0..).zip(&generated) {
        trees.make(name, |dir| {
            std::fs::write(dir.join(".gitignore"), "*.log\n").unwrap();
            for step in trees::fixed(number) {
                step.apply(dir, false);
            }
        });
    }
    trees.carry(&host);
    let before = host.residue();
    let repo = host.repository("sync");
    let lease = host.warmup(&repo, "e2e-sync", "").lease();

    let expected = trees.expected("cases");
    let arrive = expected.keys().filter(|path| !path.starts_with(b"modes/"));
    let arrive: Vec<&[u8]> = arrive.map(Vec::as_slice).collect();
    for path in ARRIVE {
        assert!(arrive.contains(&path), "{}", path.escape_ascii());
    }
    assert_eq!(
        (arrive.len(), expected.len()),
        (ARRIVE.len() + 4, ARRIVE.len() + 9)
    );

    let cases = run(&host, &lease, "cases", STATUS);
    assert_same_repository(&here(&trees.path("cases"), STATUS), &cases.stdout, &[]);
    for name in &generated {
        let ran = run(&host, &lease, name, REPOSITORY);
        assert_eq!(
            ran.stdout.trim_end(),
            here(&trees.path(name), REPOSITORY),
            "{name}"
        );
    }
    let all: Vec<&str> = std::iter::once("cases")
        .chain(generated.iter().map(String::as_str))
        .collect();
    assert_as_here(&trees, &all, &found(&host, &lease, all[all.len() - 1]));

    again(&host, &lease, &trees, &all[..3]);
    drop(host.crabbox("stop e2e-sync").exits(0));
    assert_nothing_left(&before, &host.residue());
}

#[track_caller]
fn assert_as_here(trees: &Trees, names: &[&str], found: &BTreeMap<String, Picture>) {
    let nothing = Picture::new();
    let wrong: Vec<String> = names
        .iter()
        .flat_map(|name| differences(name, &trees.expected(name), found.get(*name).unwrap_or(&nothing)))
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The second time: nothing is sent if nothing changed, and changes by a command or a user in between are
/// reverted.
fn again(host: &Host, lease: &str, trees: &Trees, names: &[&str]) {
    let skipped = "No changes detected, skipping sync";
    // Run from a subdirectory; the command makes a mess: same size and time, a symlink in place of a
    // directory.
    let mess = "pwd; cp -p kept /tmp/stamp; printf five6 > kept; touch -r /tmp/stamp kept; rm -r sub; ln -s /tmp sub; rm README; \
                chmod 700 empty; mkdir -p dist; echo mine > dist/guest; git checkout -q -b guest; git add -A";
    let ran = run(host, lease, "cases/sub", mess);
    assert!(ran.stderr.contains(skipped), "{}", ran.stderr);
    assert_eq!(ran.stdout, format!("/work/crabbox/{lease}/cases\n"));
    let ran = run(host, lease, names[1], "true");
    assert!(ran.stderr.contains(skipped), "{}", ran.stderr);

    here(
        &trees.path("cases"),
        "git mv renamed again; rm -r links; echo file > links; chmod 755 sub/file",
    );
    for (number, name) in (100..).zip(&names[1..]) {
        for step in trees::fixed(number) {
            step.apply(&trees.path(name), false);
        }
    }
    trees.carry(host);
    for name in &names[1..] {
        let ran = run(host, lease, name, REPOSITORY);
        assert_eq!(
            ran.stdout.trim_end(),
            here(&trees.path(name), REPOSITORY),
            "{name}"
        );
    }
    let cases = run(
        host,
        lease,
        "cases",
        &format!("{STATUS}; ls /tmp/file /tmp/deep 2>&1 | wc -l"),
    );
    let (status, outside) = cases.stdout.trim_end().rsplit_once('\n').unwrap();
    // Nothing was written through the symlink.
    assert_eq!(outside, "2");
    assert_same_repository(&here(&trees.path("cases"), STATUS), status, &["dist/guest"]);
    let found = found(host, lease, "cases");
    assert!(found["cases"].contains_key(&b"dist/guest"[..]));
    assert_as_here(trees, names, &found);
}
