//! A host of files: programs that change accounts are scripts over a passwd file, and everything else is as it would be.

use std::os::unix::fs::symlink;

use crabbox_core::fault::{Fault as _, Kind};
use crabbox_ssh::keys;
use crabbox_store::places::Places;

use super::super::remove::{Part, Removal, remove};
use super::*;

struct World {
    dir: tempfile::TempDir,
    engine: Engine,
    ground: Ground,
}

/// Writes an executable script.
fn script(path: &Path, text: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["bin", "sudoers.d", "lib"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    let passwd = at("passwd").display().to_string();
    std::fs::write(at("passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
    let tool = |name: &str, text: &str| script(&at("bin").join(name), text);
    tool("getent", &format!("grep \"^$2:\" {passwd} || exit 2"));
    // The words that it is called with are told apart by their places.
    tool(
        "useradd",
        &format!("test \"$9\" = '*' && echo \"${{12}}:x:4294967294:4294967294:${{11}}:$5:$7\" >> {passwd}"),
    );
    tool("userdel", &format!("sed -i \"/^$1:/d\" {passwd}"));
    tool(
        "visudo",
        "! grep -q REFUSED \"$4\" || { echo 'syntax error' >&2; exit 1; }",
    );
    tool("sudo", "exit 1");
    tool("sshd", "exit 1");
    script(&at("crabbox"), "exit 0");
    let ground = Ground {
        home: at("lib/serve"),
        sudoers: at("sudoers.d/crabbox"),
        path: at("bin").into_os_string(),
        processes: at("no-processes"),
    };
    let places = Places {
        state: at("state"),
        config: at("config"),
        cache: at("cache"),
        registry: at("registry"),
    };
    let engine = Engine {
        places,
        exe: at("crabbox"),
        ..crate::fixture::engine(dir.path())
    };
    World { dir, engine, ground }
}

fn key() -> String {
    keys::generate("somebody").unwrap().public_openssh
}

impl World {
    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.at(name)).ok()
    }

    fn plan(&self, owners: &[(&str, &str)], removed: &[&str]) -> Result<Vec<ServeStep>, ServeSetupError> {
        let wanted = WantedServe {
            owners: owners
                .iter()
                .map(|(owner, key)| format!("{owner}={key}"))
                .collect(),
            removed: removed.iter().map(|name| (*name).to_owned()).collect(),
        };
        plan(
            &self.engine,
            &self.ground,
            &Record::read(&self.engine.places).unwrap(),
            &wanted,
        )
    }

    fn apply(&self, steps: &[ServeStep]) -> Result<(), ServeSetupError> {
        let mut record = Record::open(&self.engine.places).unwrap();
        steps
            .iter()
            .try_for_each(|step| apply(&self.engine, &self.ground, &mut record, step))
    }

    #[track_caller]
    fn set_up(&self, owners: &[(&str, &str)], removed: &[&str]) {
        let steps = self.plan(owners, removed).unwrap();
        self.apply(&steps).unwrap();
        // What was done once is not done again.
        assert_eq!(self.plan(owners, &[]).unwrap(), []);
    }

    #[track_caller]
    fn refusal(&self, owners: &[(&str, &str)], removed: &[&str], said: &str) {
        let error = self.plan(owners, removed).unwrap_err();
        let told = crabbox_core::fault::chain(&error);
        assert!(
            told.contains(said) && error.kind() == Kind::Usage,
            "{said}: {told}"
        );
        assert!(!error.hints().is_empty() || said.contains("link"), "{told}");
    }

    fn remove(&self, part: Part) -> Vec<Removal> {
        let mut told = Vec::new();
        remove(&self.engine, &self.ground, (part, false), &mut |removal| {
            told.push(removal.clone());
        })
        .unwrap();
        told
    }

    /// Every file and directory, with what is in it.
    fn tree(&self) -> Vec<(PathBuf, Option<Vec<u8>>)> {
        fn walk(dir: &Path, into: &mut Vec<(PathBuf, Option<Vec<u8>>)>) {
            for entry in std::fs::read_dir(dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                into.push((path.clone(), std::fs::read(&path).ok()));
                walk(&path, into);
            }
        }
        let mut found = Vec::new();
        walk(self.dir.path(), &mut found);
        found.sort();
        found
    }

    /// An account that somebody else made.
    fn with_account(&self, shell: &str) {
        let line = format!(
            "crabbox:x:4294967294:4294967294:CI:{}:{shell}\n",
            self.at("home").display()
        );
        let text = self.read("passwd").unwrap() + &line;
        std::fs::write(self.at("passwd"), text).unwrap();
        std::fs::create_dir_all(self.at("home/.ssh")).unwrap();
    }
}

#[test]
fn owners_come_and_go_and_all_of_it_goes_without_a_trace() {
    let world = world();
    let before = world.tree();
    let (one, two, three) = (key(), key(), key());
    world.set_up(&[("alice", &one)], &[]);
    let exe = world.engine.exe.display().to_string();
    let line = world.read("lib/serve/.ssh/authorized_keys").unwrap();
    let body = |key: &str| authorized::key_of(key).unwrap().to_owned();
    assert_eq!(
        line,
        format!(
            "restrict,command=\"sudo -n {exe} __serve --as alice\" ssh-ed25519 {} crabbox-owner-alice\n",
            body(&one)
        )
    );
    // A second owner, and a second key of the first.
    world.set_up(&[("bob", &two), ("alice", &three)], &[]);
    let rule = world.read("sudoers.d/crabbox").unwrap();
    assert!(rule.contains("--as alice") && rule.contains("--as bob"), "{rule}");
    let mode = |name: &str| std::fs::metadata(world.at(name)).unwrap().mode() & 0o7777;
    let modes = [
        "sudoers.d/crabbox",
        "lib/serve/.ssh/authorized_keys",
        "lib/serve/.ssh",
    ]
    .map(mode);
    assert_eq!(modes, [0o440, 0o644, 0o755]);
    // Whoever goes may not come any more, neither by a key nor by sudo.
    world.set_up(&[], &["alice"]);
    let lines = world.read("lib/serve/.ssh/authorized_keys").unwrap();
    assert!(
        lines.contains(&body(&two)) && lines.lines().count() == 1,
        "{lines}"
    );
    assert!(!world.read("sudoers.d/crabbox").unwrap().contains("alice"));
    world.set_up(&[], &["bob"]);
    assert_eq!(world.read("sudoers.d/crabbox"), None);
    world.set_up(&[("bob", &two)], &[]);
    assert!(world.remove(Part::Serving).contains(&Removal::Account));
    assert_eq!(world.remove(Part::Serving), []);
    world.remove(Part::Everything);
    assert_eq!(world.tree(), before);
}

#[test]
fn an_account_that_was_there_and_the_lines_of_others_stay_to_the_last_byte() {
    let world = world();
    world.with_account("/bin/bash");
    let theirs = format!("# by hand\ncommand=\"x\" {}", key());
    std::fs::write(world.at("home/.ssh/authorized_keys"), &theirs).unwrap();
    let before = world.tree();
    world.set_up(&[("alice", &key()), ("bob", &key())], &[]);
    let text = world.read("home/.ssh/authorized_keys").unwrap();
    assert!(text.starts_with(&theirs) && text.lines().count() == 4, "{text}");
    assert!(!world.remove(Part::Everything).contains(&Removal::Account));
    assert_eq!(world.tree(), before);
}

#[test]
fn what_was_changed_by_hand_is_told_and_stays() {
    let world = world();
    world.set_up(&[("alice", &key()), ("bob", &key())], &[]);
    let path = "lib/serve/.ssh/authorized_keys";
    let text = world.read(path).unwrap();
    let (first, rest) = text.split_once('\n').unwrap();
    std::fs::write(world.at(path), format!("from=\"10.0.0.0/8\",{first}\n{rest}")).unwrap();
    std::fs::write(world.at("sudoers.d/crabbox"), "# mine\n").unwrap();
    world.refusal(&[("eve", &key())], &[], "is not as setup wrote it");
    let told = world.remove(Part::Serving);
    let is_told = |wanted: &dyn Fn(&Removal) -> bool| told.iter().any(wanted);
    assert!(is_told(
        &|one| matches!(one, Removal::ChangedKey { owner, .. } if owner == "alice")
    ));
    assert!(is_told(&|one| matches!(one, Removal::Changed { .. })));
    assert_eq!(
        world.read(path).unwrap(),
        format!("from=\"10.0.0.0/8\",{first}\n")
    );
    assert_eq!(world.read("sudoers.d/crabbox").unwrap(), "# mine\n");
    assert_eq!(world.remove(Part::Serving), []);
}

#[test]
fn a_key_is_one_owner_s_and_opens_nothing_else() {
    let world = world();
    let (one, two) = (key(), key());
    world.set_up(&[("alice", &one)], &[]);
    world.refusal(&[("bob", &one)], &[], "is the key of alice already");
    world.refusal(
        &[("bob", &two), ("carol", &two)],
        &[],
        "is the key of bob already",
    );
    world.refusal(
        &[],
        &["bob"],
        "no owner \"bob\" is set up here; those that are: alice",
    );
    // Handed on in one go.
    world.set_up(&[("bob", &one)], &["alice"]);
    let path = world.at("lib/serve/.ssh/authorized_keys");
    std::fs::write(
        &path,
        format!(
            "{}{two} root@laptop\n",
            world.read("lib/serve/.ssh/authorized_keys").unwrap()
        ),
    )
    .unwrap();
    world.refusal(&[("carol", &two)], &[], "by line 2 of");
}

#[test]
fn a_host_on_which_it_would_not_work_or_not_be_safe_is_refused_and_left_as_it_is() {
    let given = key();
    let owners = [("alice", given.as_str())];
    let with = |spoil: &dyn Fn(&World), said: &str| {
        let world = world();
        spoil(&world);
        let before = world.tree();
        world.refusal(&owners, &[], said);
        assert_eq!(world.tree(), before);
    };
    for tool in ["sudo", "visudo", "sshd", "useradd"] {
        with(
            &|world| std::fs::remove_file(world.at("bin").join(tool)).unwrap(),
            &format!("{tool} is not installed"),
        );
    }
    with(
        &|world| world.with_account("/usr/sbin/nologin"),
        "runs no command",
    );
    with(
        &|world| {
            let mode = std::fs::Permissions::from_mode(0o777);
            std::fs::set_permissions(world.at("crabbox"), mode).unwrap();
        },
        "may write there",
    );
    with(
        &|world| {
            world.with_account("/bin/sh");
            symlink("/etc/passwd", world.at("home/.ssh/authorized_keys")).unwrap();
        },
        "is a link",
    );
    with(
        &|world| {
            world.with_account("/bin/sh");
            std::fs::remove_dir(world.at("home/.ssh")).unwrap();
            symlink("/tmp", world.at("home/.ssh")).unwrap();
        },
        "is a link",
    );
    with(
        &|world| std::fs::write(world.at("sudoers.d/crabbox"), "# mine\n").unwrap(),
        "is not as setup wrote it",
    );
}

#[test]
fn a_rule_that_visudo_refuses_is_never_in_place() {
    let world = world();
    let steps = world.plan(&[("REFUSED", &key())], &[]).unwrap();
    let error = world.apply(&steps).unwrap_err();
    assert!(
        crabbox_core::fault::chain(&error).contains("syntax error"),
        "{error:?}"
    );
    assert_eq!(std::fs::read_dir(world.at("sudoers.d")).unwrap().count(), 0);
    assert_eq!(world.read("lib/serve/.ssh/authorized_keys"), None);
    world.remove(Part::Serving);
    assert!(!world.read("passwd").unwrap().contains("crabbox"));
}
