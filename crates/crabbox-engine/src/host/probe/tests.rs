//! The probe with scripts in place of Firecracker; the real one is tested in the lab.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// A cache, a kernel, and a script in place of Firecracker.
    fn with(script: &str) -> Self {
        let place = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let program = place.path("firecracker");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(place.path("vmlinux"), "kernel").unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn probe(&self, limit: Duration) -> Verdict {
        self.judged(limit, &|_| false).verdict
    }

    fn judged(&self, limit: Duration, holds: &dyn Fn(&Kept) -> bool) -> Judged {
        let probe = Probe {
            cache: &self.path("cache"),
            firecracker: &self.path("firecracker"),
            kernel: &self.path("vmlinux"),
            guest: b"the guest",
            limit,
        };
        boot_and_keep(&probe, holds).unwrap()
    }

    fn remembered(&self) -> Option<Verdict> {
        let key = Key::of(&self.path("firecracker"), &self.path("vmlinux")).unwrap();
        remembered(&self.path("cache"), &key)
    }
}

const SECONDS: Duration = Duration::from_secs(30);

#[test]
fn a_guest_that_speaks_is_proof_and_is_told_what_to_do() {
    // The script never ends by itself: the probe must stop at the line and kill it.
    let place = Place::with(
        "cat machine.json >&2; cat vmlinux; grep -q 'the guest' initrd.img || exit 9; echo 'crabbox-guest: probe ok'; sleep 1000",
    );
    let started = Instant::now();
    assert!(place.probe(SECONDS).works());
    assert!(started.elapsed() < SECONDS);
    assert!(place.remembered().unwrap().works());
    assert!(!place.path("cache").join(SCRATCH).exists());
    let machine: serde_json::Value = serde_json::from_slice(&machine().unwrap()).unwrap();
    assert_eq!(machine["machine-config"]["mem_size_mib"], 128);
    assert!(
        machine["boot-source"]["boot_args"]
            .as_str()
            .unwrap()
            .ends_with(" crabbox.probe")
    );
}

#[test]
fn a_silent_guest_is_broken_and_its_whole_group_is_killed() {
    let place = Place::with("sleep 1000 & echo $! > ../../pid; echo '[    0.0] Linux'; wait");
    let Verdict::Broken { reason, console } = place.probe(Duration::from_millis(300)) else {
        panic!("it said nothing");
    };
    assert_eq!(reason, "the guest said nothing within 0.3 s");
    assert_eq!(console, ["[    0.0] Linux"]);
    let pid = std::fs::read_to_string(place.path("pid")).unwrap();
    let pid: u32 = pid.trim().parse().unwrap();
    // A killed process may remain a zombie until process 1, or a subreaper, reaps it.
    let gone = || {
        let lives = process::identify(pid)
            .unwrap()
            .is_some_and(|id| process::is_alive(&id));
        (!lives).then_some(())
    };
    assert!(clock::poll_until(SECONDS, gone).is_some());
    assert!(!place.path("cache").join(SCRATCH).exists());
}

#[test]
fn an_end_before_the_word_is_broken_and_says_what_firecracker_said() {
    let place = Place::with("echo 'x [p:fc_vcpu 0] Received KVM_EXIT_INTERNAL_ERROR signal'; exit 3");
    let Verdict::Broken { reason, console } = place.probe(SECONDS) else {
        panic!("it ended")
    };
    assert!(
        reason.contains("exit code 3") && reason.contains("KVM gave up on the guest"),
        "{reason}"
    );
    assert_eq!(console.len(), 1);
    assert_eq!(place.remembered(), Some(Verdict::Broken { reason, console }));
}

#[test]
fn a_verdict_does_not_hold_for_other_parts() {
    let place = Place::with("echo 'crabbox-guest: probe ok'");
    place.probe(SECONDS);
    assert!(place.remembered().is_some());
    std::fs::write(place.path("vmlinux"), "another kernel").unwrap();
    assert_eq!(place.remembered(), None);
    std::fs::write(place.path("cache").join(VERDICT), "{").unwrap();
    assert_eq!(place.remembered(), None, "a damaged file is no verdict");
}

#[test]
fn who_waited_while_another_one_probed_believes_its_verdict() {
    let place = Place::with("echo booted >> ../../boots; echo 'crabbox-guest: probe ok'");
    assert!(!place.judged(SECONDS, &|_| true).remembered);
    let second = place.judged(SECONDS, &|_| true);
    assert!(second.remembered && second.verdict.works());
    assert_eq!(std::fs::read_to_string(place.path("boots")).unwrap(), "booted\n");
}

#[test]
fn what_a_dead_probe_left_is_no_hindrance() {
    let place = Place::with("echo 'crabbox-guest: probe ok'");
    let scratch = place.path("cache").join(SCRATCH);
    std::fs::create_dir_all(&scratch).unwrap();
    std::fs::write(scratch.join("console"), "crabbox-guest: nothing").unwrap();
    assert!(place.probe(SECONDS).works());
}

#[test]
fn a_missing_firecracker_is_no_verdict_on_kvm() {
    let place = Place::with("");
    std::fs::remove_file(place.path("firecracker")).unwrap();
    let probe = Probe {
        cache: &place.path("cache"),
        firecracker: &place.path("firecracker"),
        kernel: &place.path("vmlinux"),
        guest: b"the guest",
        limit: SECONDS,
    };
    assert!(matches!(
        boot_and_keep(&probe, &|_| false),
        Err(ProbeError::File(_))
    ));
}
