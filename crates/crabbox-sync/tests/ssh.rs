//! Tests of the same sync through a real sshd on loopback: quoting, shared connections, a connection that
//! breaks.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    dead_code,
    reason = "the exception for tests does not reach their fixtures"
)]

mod world;

use std::sync::atomic::{AtomicBool, Ordering};

use crabbox_sync::transfer::{Options, TransferError};
use crabbox_sync::{Progress, Stage, SyncEvents};
use crabbox_testkit::sshd::Sshd;
use world::{Shared, World, settle, target};

#[test]
fn twenty_rounds_of_odd_changes_over_one_connection() {
    let sshd = Sshd::start();
    let shared = Shared::new(&sshd);
    let world = World::over(&shared.0);
    world.local("echo base > base; git add -A; git commit -qm base");
    let changes = [
        "echo 1 > 'x y'; echo 2 > '-rf'; echo 3 > '#c'; echo 4 > ';d'",
        "mkdir -p 'a b/c'; echo \"it's\" > \"a b/c/it's\"; ln -s '../x y' 'a b/l'",
        "printf x > \"$(printf 'new\\nline')\"; printf y > \"$(printf '\\377\\376')\"",
        "chmod 755 'x y'; rm -- '-rf'",
        "rm 'x y'; mkdir 'x y'; echo in > 'x y/in'",
        "git add -A; git commit -qm more",
        "rm -r 'x y'; ln -s nowhere 'x y'",
        "git mv base based; echo more >> based",
        "echo '$(touch /tmp/crabbox-pwned)' > '$(touch crabbox-pwned)'; echo w > '*'",
        "git rm -qf --cached based; git add -A",
    ];
    for change in changes {
        world.local(change);
        world.sync();
        world.guest("find . -name .git -prune -o -type f -print | head -n 1 | while read f; do echo x >> \"$f\" || true; done");
        world.sync();
    }
    assert_eq!(sshd.logins(), 1, "one connection carries everything");
    assert!(!world.workdir().join("crabbox-pwned").exists());
    settle();
    world.sync();
    assert!(world.sync().skipped);
}

#[test]
fn without_a_shared_connection_it_works_too() {
    let sshd = Sshd::start();
    let world = World::over(&target(&sshd));
    world.local("echo 1 > a; git add -A; git commit -qm x");
    settle();
    world.sync();
    let logins = sshd.logins();
    assert!(world.sync().skipped);
    assert_eq!(
        sshd.logins() - logins,
        1,
        "one remote process answers whether all is in sync"
    );
}

/// Breaks the connection at a certain moment of the sync.
struct Cutter<'a> {
    sshd: &'a Sshd,
    at: &'static str,
    done: AtomicBool,
}

impl Cutter<'_> {
    fn cut(&self, now: &str) {
        if self.at == now && !self.done.swap(true, Ordering::SeqCst) {
            self.sshd.kill_connections();
        }
    }
}

impl SyncEvents for Cutter<'_> {
    fn stage(&self, stage: Stage) {
        match stage {
            Stage::Send { .. } => self.cut("send"),
            Stage::Seed => self.cut("seed"),
            Stage::Finish => self.cut("finish"),
            Stage::Compare => {}
        }
    }

    fn progress(&self, progress: Progress) {
        if progress.files.is_some_and(|files| files > 20) {
            self.cut("progress");
        }
    }
}

#[test]
fn a_line_that_dies_in_the_middle_fails_and_the_next_sync_converges() {
    let sshd = Sshd::start();
    let moments = ["send", "progress", "seed", "finish"];
    for (at, compress) in moments.iter().flat_map(|at| [(*at, false), (*at, true)]) {
        let world = World::over(&target(&sshd));
        world.local(
            "for d in 1 2 3 4; do mkdir d$d; for f in $(seq 100); do head -c 30000 /dev/urandom > d$d/f$f; done; done; \
             git add -A; git commit -qm x",
        );
        let cutter = Cutter {
            sshd: &sshd,
            at,
            done: AtomicBool::new(false),
        };
        let options = Options {
            compress,
            ..Options::default()
        };
        let error = world.sync_as(&world.manifest(), &options, &cutter).unwrap_err();
        assert!(cutter.done.load(Ordering::SeqCst));
        let sending = match error {
            TransferError::Direct { .. } => Some(false),
            TransferError::Rsync { .. } => Some(true),
            _ => None,
        };
        // With rsync, the files use a session of their own, which opens after the cut at "send".
        let expected = (at == "progress" || (at == "send" && !compress)).then_some(compress);
        assert_eq!(sending, expected, "{at}: {error:?}");
        world.local("rm -r d1; echo new > d2/f1");
        world.sync();
        assert!(!world.workdir().join("d1").exists());
        assert_eq!(world.files_there().len(), 300);
    }
}

#[test]
fn a_line_that_dies_while_an_edit_is_sent_early_is_told_as_one_that_did() {
    let sshd = Sshd::start();
    for at in ["send", "progress", "finish"] {
        let world = World::over(&target(&sshd));
        world.local("for f in $(seq 30); do echo old > f$f; done; git add -A; git commit -qm x");
        settle();
        world.sync();
        world.local("for f in $(seq 30); do echo new > f$f; done");
        settle();
        let manifest = world.manifest();
        assert!(manifest.since.is_some(), "it would not be sent early");
        let cutter = Cutter {
            sshd: &sshd,
            at,
            done: AtomicBool::new(false),
        };
        let error = world
            .sync_as(&manifest, &Options::default(), &cutter)
            .unwrap_err();
        assert!(cutter.done.load(Ordering::SeqCst));
        // This is the case in which a run retries.
        assert!(error.lost_connection(), "{at}: {error:?}");
        for file in 1..=30 {
            let text = std::fs::read_to_string(world.workdir().join(format!("f{file}"))).unwrap();
            assert!(
                ["old\n", "new\n"].contains(&text.as_str()),
                "{at}: f{file}: {text:?}"
            );
        }
        world.sync();
        assert!(world.sync().skipped);
    }
}

#[test]
fn a_machine_that_is_not_there_is_a_remote_error() {
    let mut sshd = Sshd::start();
    let target = target(&sshd);
    sshd.stop();
    let world = World::over(&target);
    world.local("echo 1 > a; git add -A");
    let error = world.try_sync(&Options::default()).unwrap_err();
    assert!(error.is_remote(), "{error:?}");
}

/// Syncs with start-up files of several login shells.
#[test]
fn startup_files_and_login_shells_of_every_kind_are_no_part_of_the_conversation() {
    for (shell, file, text) in [
        (
            "bash",
            ".bashrc",
            "echo WELCOME; echo warned >&2; printf 'no end'",
        ),
        ("bash", ".bashrc", "read line; read another"),
        ("bash", ".bashrc", "exec dash"),
        ("tcsh", ".tcshrc", "echo WELCOME"),
    ] {
        let forced = format!("ForceCommand exec {shell} -c \"$SSH_ORIGINAL_COMMAND\"");
        let sshd = Sshd::start_with(&forced);
        std::fs::write(sshd.home().join(file), text).unwrap();
        let shared = Shared::new(&sshd);
        let mut world = World::over(&shared.0);
        // With and without checksums: with them it is rsync, whose protocol tolerates no other output.
        for checksum in [false, true] {
            world.checksum = checksum;
            world.local(&format!(
                "echo \"it's $(date +%N)\" > 'a b'; echo {checksum} > c; git add -A; git commit -qm x"
            ));
            world.sync();
        }
        assert_eq!(
            std::fs::read_to_string(world.workdir().join("c")).unwrap(),
            "true\n"
        );
    }
}

#[test]
fn a_login_shell_that_does_something_else_is_told_with_what_it_printed() {
    let sshd = Sshd::start_with("ForceCommand echo only backups here; exit 3");
    let world = World::over(&target(&sshd));
    world.local("echo 1 > a; git add -A");
    let error = world.try_sync(&Options::default()).unwrap_err();
    assert!(error.is_remote(), "{error:?}");
    let TransferError::Compare { source, .. } = error else {
        panic!("{error:?}")
    };
    let said = crabbox_core::fault::chain(&source);
    assert!(
        said.contains("exited with 3") && said.contains("only backups here"),
        "{said}"
    );
}
