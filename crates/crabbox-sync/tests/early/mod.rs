//! Tests of failures with a small edit, which is sent before the agent asks for it. Whatever happens to the
//! file or the agent in between, the lease must never have half of the file in place of a complete one, and
//! the next sync must bring it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;

use crabbox_ssh::agent_client::{AgentError, End};
use crabbox_sync::transfer::{Options, TransferError};
use crabbox_sync::{DirectError, Progress, Stage, SyncEvents};
use rustix::process::{Pid, Signal};

use super::World;
use super::world::settle;

/// The initial content of `d/f`.
const OLD: &str = "old\n";

/// A synced tree in which `edit` has changed `d/f`; the next sync sends that early.
fn edited(edit: &str) -> World {
    let world = World::new();
    world.local(
        "mkdir d ../outside; echo old > d/f; echo other > g; echo secret > secret; echo secret > ../outside/f; \
         git add d g; printf 'secret\n' > .gitignore; git commit -qm x",
    );
    settle();
    world.sync();
    assert!(world.sync().skipped);
    world.local(edit);
    settle();
    world
}

/// Runs `act` once, when the edit is about to be sent or was written as far as the agent reads; and collects
/// the warnings.
struct Meanwhile<F> {
    at_send: bool,
    act: F,
    told: Mutex<(u32, Vec<String>)>,
}

impl<F: Fn() + Sync> Meanwhile<F> {
    fn new(at_send: bool, act: F) -> Self {
        Self {
            at_send,
            act,
            told: Mutex::default(),
        }
    }

    fn now(&self, is_send: bool) {
        // Progress is reported again after a while, and at the end.
        let is_first = self.at_send == is_send && {
            let mut told = self.told.lock().unwrap();
            told.0 += 1;
            told.0 == 1
        };
        if is_first {
            (self.act)();
        }
    }

    fn warned(&self, of: &str) -> bool {
        self.told.lock().unwrap().1.iter().any(|line| line.contains(of))
    }
}

impl<F: Fn() + Sync> SyncEvents for Meanwhile<F> {
    fn stage(&self, stage: Stage) {
        if let Stage::Send { files, .. } = stage {
            assert_eq!(files, 1);
            self.now(true);
        }
    }

    fn progress(&self, _progress: Progress) {
        self.now(false);
    }

    fn warning(&self, line: &str) {
        self.told.lock().unwrap().1.push(line.to_owned());
    }
}

/// The content of `d/f` in the lease.
fn there(world: &World) -> String {
    std::fs::read_to_string(world.workdir().join("d/f")).unwrap()
}

/// Checks that the next sync makes both sides equal, and that the one after it is skipped.
fn converges(world: &World) {
    settle();
    assert!(!world.sync().skipped);
    assert!(world.sync().skipped);
}

#[test]
fn a_file_that_is_not_what_was_seen_of_it_is_not_taken_for_it() {
    for (script, vanishes) in [
        ("rm d/f", true),
        ("rm d/f; mkdir d/f", true),
        ("rm d/f; mkfifo d/f", true),
        ("rm d/f; ln -s ../secret d/f", true),
        ("rm -r d; ln -s ../outside d", true),
        ("rm -r d; echo file > d", true),
        ("echo longer than it was > d/f", false),
        ("chmod 700 d/f", false),
        (": > d/f", false),
    ] {
        let world = edited("echo new > d/f");
        let manifest = world.manifest();
        assert!(manifest.since.is_some(), "it would not be sent early");
        let events = Meanwhile::new(true, || world.local(script));
        let outcome = world.sync_as(&manifest, &Options::default(), &events).unwrap();
        assert_eq!(events.told.lock().unwrap().0, 1, "{script}");
        assert_eq!((outcome.sent, outcome.unsettled), (1, 1), "{script}");
        assert_eq!(events.warned("vanished"), vanishes, "{script}");
        assert!(events.warned("the next sync sends them again"), "{script}");
        if vanishes {
            assert_eq!(there(&world), OLD, "{script}");
        } else {
            let here = std::fs::read_to_string(world.source().join("d/f")).unwrap();
            assert_eq!(there(&world), here, "{script}");
        }
        // A pipe is refused with its name.
        world.local("if test -p d/f; then rm d/f; fi");
        converges(&world);
    }
}

/// Kills the agents that are running in the workdir.
fn kill_agents(world: &World) {
    let workdir = world.workdir();
    let mut killed = 0;
    for entry in std::fs::read_dir("/proc").unwrap() {
        let Ok(pid) = entry.unwrap().file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let link = |name: &str| std::fs::read_link(Path::new("/proc").join(pid.to_string()).join(name));
        let is_agent =
            link("exe").is_ok_and(|exe| exe.parent().is_some_and(|dir| dir.ends_with("crabbox/agents")));
        if is_agent && link("cwd").is_ok_and(|cwd| cwd == workdir) {
            rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
            killed += 1;
        }
    }
    assert_eq!(killed, 1);
}

/// Whether the error says that the agent was killed: while data was sent, or when its reply was awaited.
fn is_death(error: &TransferError) -> bool {
    let (TransferError::Compare { source, .. }
    | TransferError::Direct {
        source: DirectError::Call { source },
        ..
    }) = error
    else {
        return false;
    };
    matches!(source, AgentError::Broke { end: End::Killed, .. })
}

#[test]
fn a_far_side_that_dies_has_the_whole_old_file_or_is_told_all_of_it_again() {
    let large = "head -c 900000 /dev/urandom | base64 -w 0 | head -c 1000000 > d/f";
    for (edit, at_send) in [
        ("echo new > d/f", true),
        ("echo new > d/f", false),
        (large, true),
        (large, false),
    ] {
        let world = edited(edit);
        let before: BTreeSet<_> = world.files_there();
        let manifest = world.manifest();
        assert!(manifest.since.is_some(), "it would not be sent early");
        let events = Meanwhile::new(at_send, || kill_agents(&world));
        let error = world
            .sync_as(&manifest, &Options::default(), &events)
            .unwrap_err();
        assert!(is_death(&error), "{error:?}");
        assert_eq!(there(&world), OLD);
        assert_eq!(world.files_there(), before);
        converges(&world);
    }
}

#[test]
fn a_new_file_of_which_half_has_come_is_sent_again() {
    let world = edited("head -c 900000 /dev/urandom | base64 -w 0 | head -c 1000000 > d/new; git add d/new");
    let manifest = world.manifest();
    let events = Meanwhile::new(false, || kill_agents(&world));
    let error = world
        .sync_as(&manifest, &Options::default(), &events)
        .unwrap_err();
    assert!(is_death(&error), "{error:?}");
    converges(&world);
    // A new file that is deleted here again is also removed there, however much of it has arrived.
    world.local("head -c 900000 /dev/urandom | base64 -w 0 | head -c 1000000 > d/newer");
    settle();
    let manifest = world.manifest();
    let events = Meanwhile::new(false, || kill_agents(&world));
    let error = world
        .sync_as(&manifest, &Options::default(), &events)
        .unwrap_err();
    assert!(is_death(&error), "{error:?}");
    world.local("rm d/newer");
    converges(&world);
    assert!(!world.workdir().join("d/newer").exists());
}
