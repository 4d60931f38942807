//! A host made of files: programs that change accounts are scripts over a passwd file, everything else is
//! real.

use std::os::unix::fs::symlink;

use crabbox_core::fault::{Fault as _, Kind};
use crabbox_ssh::keys;
use crabbox_store::places::Places;

use super::super::lock;
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
    tool(
        "getent",
        // By number it prints only the first match, like the real one.
        &format!(
            "test $# = 1 && exec cat {passwd}; grep -m 1 -E \"^$2:|^[^:]*:[^:]*:$2:\" {passwd} || exit 2"
        ),
    );
    // The arguments are recognised by their positions.
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
        let wanted = ServeRequest {
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
        let (mut record, lock) = Record::open(&self.engine.places, &lock::now).unwrap();
        steps
            .iter()
            .try_for_each(|step| apply(&self.engine, &self.ground, &mut record, step))?;
        lock.remove_while_held().unwrap();
        Ok(())
    }

    #[track_caller]
    fn set_up(&self, owners: &[(&str, &str)], removed: &[&str]) {
        let steps = self.plan(owners, removed).unwrap();
        self.apply(&steps).unwrap();
        // A second run has nothing to do.
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
        assert!(!error.hints().is_empty(), "{told}");
    }

    fn remove(&self, part: Part) -> Vec<Removal> {
        let mut told = Vec::new();
        remove(&self.engine, &self.ground, (part, false), &mut |removal| {
            told.push(removal.clone());
        })
        .unwrap();
        told
    }

    /// Every file and directory, with its content.
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

    /// Adds `line` to the passwd file.
    fn with_account(&self, line: &str) {
        let text = self.read("passwd").unwrap() + line + "\n";
        std::fs::write(self.at("passwd"), text).unwrap();
    }
}

/// The path of the `authorized_keys` file.
const KEYS: &str = "lib/serve/.ssh/authorized_keys";

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
    // A removed owner has neither a key nor a sudo command left.
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
fn an_account_that_setup_did_not_make_is_refused_and_stays() {
    let world = world();
    let home = world.at("home").display().to_string();
    std::fs::create_dir_all(world.at("home/.ssh")).unwrap();
    world.with_account(&format!("crabbox:x:4294967294:4294967294:CI:{home}:/bin/bash"));
    let before = world.tree();
    world.refusal(&[("alice", &key())], &[], "was not created by setup");
    assert_eq!(world.tree(), before);
    // An account that looks like ours but is not on record is not ours either.
    let world = self::world();
    world.set_up(&[("alice", &key())], &[]);
    std::fs::remove_file(world.engine.places.state.join("setup.json")).unwrap();
    world.refusal(&[("bob", &key())], &[], "was not created by setup");
}

#[test]
fn the_lines_of_others_stay_to_the_last_byte() {
    let world = world();
    world.set_up(&[("alice", &key())], &[]);
    let theirs = format!("# by hand\ncommand=\"x\" {}", key());
    let ours = world.read(KEYS).unwrap();
    std::fs::write(world.at(KEYS), format!("{ours}{theirs}")).unwrap();
    world.set_up(&[("bob", &key())], &[]);
    let text = world.read(KEYS).unwrap();
    assert!(
        text.starts_with(&format!("{ours}{theirs}\n")) && text.lines().count() == 4,
        "{text}"
    );
    assert!(world.remove(Part::Everything).contains(&Removal::Account));
    assert_eq!(world.read(KEYS).unwrap(), theirs);
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
    world.refusal(&[("bob", &one)], &[], "is already in use by alice");
    world.refusal(&[("bob", &two), ("carol", &two)], &[], "is already in use by bob");
    world.refusal(
        &[],
        &["bob"],
        "no owner \"bob\" is set up here; those that are: alice",
    );
    // A key can be handed to another owner in one run.
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
    world.refusal(&[("carol", &two)], &[], "already admits carol");
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
        &|world| {
            let mode = std::fs::Permissions::from_mode(0o777);
            std::fs::set_permissions(world.at("crabbox"), mode).unwrap();
        },
        "may write there",
    );
    with(
        &|world| std::fs::write(world.at("sudoers.d/crabbox"), "# mine\n").unwrap(),
        "is not as setup wrote it",
    );
}

#[test]
fn an_account_of_ours_that_was_changed_is_written_into_no_more() {
    let given = key();
    let owners = [("bob", given.as_str())];
    let with = |spoil: &dyn Fn(&World), said: &str| {
        let world = world();
        world.set_up(&[("alice", &key())], &[]);
        spoil(&world);
        let before = world.tree();
        world.refusal(&owners, &[], said);
        assert_eq!(world.tree(), before);
    };
    let mode = |path: PathBuf, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let aside = |world: &World, name: &str| {
        std::fs::rename(world.at(name), world.at("aside")).unwrap();
        symlink(world.at("aside"), world.at(name)).unwrap();
    };
    for name in ["lib/serve", "lib/serve/.ssh", KEYS] {
        with(&|world| mode(world.at(name), 0o777), "may write there");
        with(&|world| aside(world, name), "is a link");
    }
    with(
        &|world| {
            let text = world.read("passwd").unwrap();
            std::fs::write(
                world.at("passwd"),
                text.replace("serve:/bin/sh", "serve:/sbin/nologin"),
            )
            .unwrap();
        },
        "runs no commands",
    );
}

#[test]
fn a_program_that_moved_takes_every_owner_along() {
    let mut world = world();
    let before = world.tree();
    world.set_up(&[("alice", &key()), ("bob", &key())], &[]);
    let old = world.engine.exe.clone();
    let new = world.at("lib/crabbox");
    script(&new, "exit 0");
    world.engine.exe = new.clone();
    let steps = world.plan(&[], &[]).unwrap();
    let rewrites = |step: &&ServeStep| matches!(step, ServeStep::Rewrite { .. });
    assert_eq!(steps.iter().filter(rewrites).count(), 2, "{steps:?}");
    world.set_up(&[("carol", &key())], &[]);
    let (lines, rule) = (
        world.read(KEYS).unwrap(),
        world.read("sudoers.d/crabbox").unwrap(),
    );
    for owner in ["alice", "bob", "carol"] {
        let command = format!("{} __serve --as {owner}", new.display());
        assert!(
            lines.contains(&command) && rule.contains(&command),
            "{lines}{rule}"
        );
    }
    assert!(
        !lines.contains(&format!("{} ", old.display())) && lines.lines().count() == 3,
        "{lines}"
    );
    // A hand-changed line would be left behind, so nothing at all is done.
    world.engine.exe = old;
    std::fs::write(world.at(KEYS), lines.replacen("restrict", "restrict,no-pty", 1)).unwrap();
    world.refusal(&[], &[], "was changed by hand");
    std::fs::write(world.at(KEYS), lines).unwrap();
    world.set_up(&[], &[]);
    world.remove(Part::Everything);
    std::fs::remove_file(new).unwrap();
    assert_eq!(world.tree(), before);
}

#[test]
fn an_owner_who_goes_leaves_what_others_wrote_and_no_entry_behind() {
    let world = world();
    let bobs = key();
    world.set_up(&[("alice", &key()), ("bob", &bobs)], &[]);
    let theirs = format!("from=\"192.0.2.1\" {}", bobs.trim());
    let text = world.read(KEYS).unwrap();
    std::fs::write(world.at(KEYS), format!("{text}{theirs}")).unwrap();
    let steps = world.plan(&[], &["bob"]).unwrap();
    // All consequences come before the record's entry is removed, because the next setup learns of them from
    // it.
    assert!(
        matches!(
            steps.as_slice(),
            [
                ServeStep::Expel { .. },
                ServeStep::Sudoers { .. },
                ServeStep::End { .. },
                ServeStep::Forget { .. }
            ]
        ),
        "{steps:?}"
    );
    // If it is killed after the first step, the next plan has the remaining steps even though the owner is
    // not named again.
    world.apply(&steps[..1]).unwrap();
    assert_eq!(world.plan(&[], &[]).unwrap(), steps[1..]);
    world.set_up(&[], &[]);
    let text = world.read(KEYS).unwrap();
    assert!(text.ends_with(&theirs) && !text.contains("--as bob"), "{text}");
    let record = Record::read(&world.engine.places).unwrap();
    assert_eq!(known(&record).len(), 1);
    world.refusal(&[("bob", &bobs)], &[], "which setup did not write");
}

#[test]
fn who_came_in_with_a_key_that_was_exchanged_goes() {
    let world = world();
    let [first, second] = [key(), key()];
    world.set_up(&[("bob", &first)], &[]);
    let steps = world.plan(&[("bob", &second)], &["bob"]).unwrap();
    let ends = |step: &ServeStep| matches!(step, ServeStep::End { owner } if owner == "bob");
    assert!(steps.iter().any(ends), "{steps:?}");
    world.apply(&steps).unwrap();
    assert_eq!(world.plan(&[], &[]).unwrap(), []);
}

#[test]
fn a_line_that_was_changed_by_hand_is_not_forgotten() {
    let world = world();
    world.set_up(&[("bob", &key())], &[]);
    let text = world.read(KEYS).unwrap();
    std::fs::write(
        world.at(KEYS),
        text.replace("restrict", "restrict,from=\"192.0.2.1\""),
    )
    .unwrap();
    world.refusal(&[], &["bob"], "was changed by hand");
    // While he stays, the line is his, and he may get another key.
    assert_eq!(world.plan(&[], &[]).unwrap(), []);
    world.set_up(&[("bob", &key())], &[]);
    // An unknown line does not make anyone an owner.
    let line = authorized::line(&world.engine.exe, "eve", key().trim());
    let text = world.read(KEYS).unwrap();
    std::fs::write(world.at(KEYS), format!("{text}{line}\n")).unwrap();
    world.refusal(&[("eve", &key())], &[], "which setup did not write");
}

#[test]
fn a_rule_that_somebody_wrote_meanwhile_stays() {
    let world = world();
    world.set_up(&[("bob", &key())], &[]);
    let steps = world.plan(&[], &["bob"]).unwrap();
    std::fs::write(world.at("sudoers.d/crabbox"), "theirs").unwrap();
    let error = world.apply(&steps).unwrap_err();
    assert!(matches!(error, ServeSetupError::Changed { .. }), "{error}");
    assert_eq!(world.read("sudoers.d/crabbox").as_deref(), Some("theirs"));
}

#[test]
fn processes_of_an_account_with_the_same_number_are_not_ended() {
    let world = world();
    world.set_up(&[("bob", &key())], &[]);
    let accounts = world.read("passwd").unwrap();
    let other = "postgres:x:4294967294:4294967294::/var/lib/postgresql:/bin/sh";
    for both in [
        format!("{other}\n{accounts}"),
        format!("{}\n{other}\n", accounts.trim_end()),
    ] {
        std::fs::write(world.at("passwd"), both).unwrap();
        let error = world.apply(&world.plan(&[], &["bob"]).unwrap()).unwrap_err();
        assert!(
            matches!(&error, ServeSetupError::SharedNumber { other, .. } if other == "postgres"),
            "{error}"
        );
    }
}

#[test]
fn a_file_of_keys_that_cannot_be_read_is_told_and_the_rule_goes_all_the_same() {
    let world = world();
    world.set_up(&[("alice", &key())], &[]);
    std::fs::write(world.at(KEYS), [0xff, b'\n']).unwrap();
    let told = world.remove(Part::Serving);
    assert!(matches!(told.first(), Some(Removal::File { path }) if *path == world.ground.sudoers));
    assert!(
        told.iter().any(|one| matches!(one, Removal::KeysLeft { .. })),
        "{told:?}"
    );
    assert_eq!(world.read("sudoers.d/crabbox"), None);
    assert!(!world.read("passwd").unwrap().contains("crabbox"));
    assert_eq!(std::fs::read(world.at(KEYS)).unwrap(), [0xff, b'\n']);
}

#[test]
fn a_lease_that_came_while_owners_were_shut_out_keeps_the_rest() {
    let world = world();
    world.set_up(&[("alice", &key())], &[]);
    // The lease appears while the first things are removed; since its record cannot be read, it may be an
    // owner's.
    let leases = world.engine.places.leases();
    let mut told = Vec::new();
    let removed = remove(
        &world.engine,
        &world.ground,
        (Part::Serving, false),
        &mut |removal| {
            std::fs::create_dir_all(leases.join("cbx_0123456789ab")).unwrap();
            std::fs::write(leases.join("cbx_0123456789ab/metadata.json"), "{").unwrap();
            told.push(removal.clone());
        },
    );
    assert!(
        matches!(removed, Err(super::super::SetupError::InUse { .. })),
        "{removed:?}"
    );
    assert!(!told.contains(&Removal::Account));
    assert_eq!(world.read("sudoers.d/crabbox"), None);
    assert!(world.read("passwd").unwrap().contains("crabbox"));
    std::fs::remove_dir_all(&leases).unwrap();
    assert!(world.remove(Part::Serving).contains(&Removal::Account));
    assert_eq!(world.read("lib/serve/.ssh/authorized_keys"), None);
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
