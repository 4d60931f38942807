//! Leases placed by Slurm: a gateway and three hosts behind it, each pretended in separate namespaces, with a
//! real Slurm between them. Tests who has what, what is left on every host, and the messages when something
//! dies. No microVM runs here.

use crabbox_e2e::assert_nothing_left;
use crabbox_e2e::fleet::{Fleet, fleet};

/// Shell: true if this host has no lease, and no process of a job.
const NO_LEASE: &str = "! ls -d /srv/.config/crabbox/state/firecracker/leases/cbx_* >/dev/null 2>&1 && ! pgrep -f '[_]_hold' >/dev/null";

/// The residue after both users and the gateway have connected to each host once, so that all shared
/// connections exist.
#[track_caller]
fn settled(fleet: &Fleet) -> Vec<String> {
    for who in ["alice", "bob"] {
        assert_eq!(fleet.with(who, "crabbox list").exits(0).stdout, "");
    }
    for number in 1..=fleet.nodes.len() {
        drop(fleet.as_gateway(number, "alice", r#"{"protocol":1,"verb":"list"}"#));
    }
    fleet.settled()
}

/// Bob learns nothing of the lease on that host, even when he names the host.
#[track_caller]
fn is_alice_s_alone(fleet: &Fleet, number: usize, lease: &str) {
    assert_eq!(fleet.with("bob", "crabbox list").exits(0).stdout, "");
    let guessed = fleet.with(
        "bob",
        &format!("crabbox __proxy --host root@127.0.0.1:2222/h{number} --key /tmp/bob/key --known-hosts /tmp/bob/known_hosts {lease} </dev/null"),
    );
    assert!(guessed.exits(4).stderr.contains("not found"));
    // The state of a job is only reported to a client that knows its lease.
    let job = fleet.gateway.sh("squeue -h -o %i").exits(0).stdout;
    for (asked, told) in [(lease, "\"RUNNING\""), ("cbx_000000000000", "null")] {
        let fate = fleet.with(
            "bob",
            &format!(
                "echo '{{\"protocol\":1,\"verb\":\"fate\",\"lease\":\"{asked}\",\"job\":{}}}' | ssh -F none -o IdentitiesOnly=yes \
                 -i /tmp/bob/key -o UserKnownHostsFile=/tmp/bob/known_hosts -p 2222 root@127.0.0.1",
                job.trim()
            ),
        );
        assert!(
            fate.stdout
                .contains(&format!(r#"{{"reply":"fate","how":{told}}}"#)),
            "{fate:?}"
        );
    }
    let nowhere = fleet.with(
        "bob",
        &format!("crabbox __proxy --host root@127.0.0.1:2222/h9 --key /tmp/bob/key --known-hosts /tmp/bob/known_hosts {lease} </dev/null"),
    );
    assert!(
        nowhere
            .exits(5)
            .stderr
            .contains("this gateway has no host \"h9\"")
    );
}

/// Leases unknown to this machine are reported by the gateway, which asks all hosts; if it cannot ask them
/// all, nothing is reported, because another program would make a missing lease again.
#[track_caller]
fn is_listed_without_a_claim(fleet: &Fleet, listed: &str) {
    let claims = "/tmp/alice/.config/crabbox/state/claims";
    let told = fleet.with(
        "alice",
        &format!("mv {claims} /tmp/alice/aside && crabbox list; code=$?; rm -rf {claims}; mv /tmp/alice/aside {claims}; exit $code"),
    );
    assert_eq!(told.exits(0).stdout, listed);
    let file = "/srv/.config/crabbox/fleet/gateway.json";
    let with_another =
        format!("cp {file} /tmp/gateway.json && sed -i 's/\"h1\":/\"h9\": \"root@10.77.9.2\", &/' {file}");
    drop(fleet.gateway.sh(&with_another).exits(0));
    let partial = fleet.with("bob", "crabbox list");
    assert!(
        partial
            .stderr
            .contains("cannot reach the KVM host root@10.77.9.2"),
        "{partial:?}"
    );
    drop(fleet.gateway.sh(&format!("cp /tmp/gateway.json {file}")).exits(0));
    assert_eq!(fleet.with("bob", "crabbox list").exits(0).stdout, "");
}

/// All three hosts are full. The next client waits, is told for what and behind whom, and gives up.
#[track_caller]
fn who_finds_no_room_waits(fleet: &Fleet) {
    let fill = "for i in 1 2 3 4 5; do crabbox warmup --slug fill$i >/dev/null 2>/tmp/bob/fill$i & done; wait; cat /tmp/bob/fill*; crabbox list | wc -l";
    let filled = fleet.with("bob", fill).exits(0);
    assert_eq!(filled.stdout.lines().last(), Some("5"), "{filled:?}");
    let queue = "crabbox warmup --slug first 2>/tmp/alice/first & first=$!; \
         for i in $(seq 300); do grep -q '1st, waiting for memory' /tmp/alice/first && break; sleep 0.1; done; \
         crabbox warmup --slug second 2>/tmp/alice/second & second=$!; \
         for i in $(seq 300); do grep -q '2nd, waiting for memory' /tmp/alice/second && break; sleep 0.1; done; \
         kill -TERM $second; wait $second; echo second $?; kill -9 $first; wait $first; cat /tmp/alice/first /tmp/alice/second >&2";
    let queued = fleet.with("alice", queue).exits(0);
    for line in [
        "queued: 1st, waiting for memory",
        "queued: 2nd, waiting for memory",
    ] {
        assert!(queued.stderr.contains(line), "{queued:?}");
    }
    assert!(queued.stdout.contains("second 130"), "{queued:?}");
    // Neither a client that gave up nor a killed one keeps its place in the queue.
    fleet.gateway.until("test -z \"$(squeue -h -t PENDING)\"");
    // A waiting client gets a host as soon as there is room.
    let moved = fleet.with(
        "alice",
        "crabbox warmup --slug next >/dev/null 2>/tmp/alice/next & next=$!; \
         for i in $(seq 300); do grep -q '1st, waiting for memory' /tmp/alice/next && break; sleep 0.1; done; crabbox stop mine; wait $next; cat /tmp/alice/next >&2",
    );
    assert!(moved.exits(0).stderr.contains("queued: 1st"));
}

/// The doctor checks the configuration used here, and finds no fault.
#[track_caller]
fn is_found_well(fleet: &Fleet) {
    for (host, row) in [
        (fleet.node(1), "ok      realmemory declared=600"),
        (&fleet.gateway, "ok      gateway  hosts=3"),
    ] {
        let found = host.sh("crabbox doctor --fleet").exits(0);
        assert!(found.stdout.contains(row), "{found:?}");
    }
    let wrong = "sed 's/^Epilog=.*//' /etc/slurm/slurm.conf > /srv/fleet/wrong && mount --bind /srv/fleet/wrong /etc/slurm/slurm.conf; \
         crabbox doctor --fleet; umount /etc/slurm/slurm.conf";
    let wrong = fleet.node(1).sh(wrong).exits(0);
    assert!(wrong.stdout.contains("failed  epilog"), "{wrong:?}");
}

#[test]
fn a_lease_of_a_fleet_is_placed_used_and_given_back_and_who_finds_no_room_waits() {
    let fleet = fleet(3);
    let before = settled(&fleet);
    let lease = fleet.with("alice", "crabbox warmup --slug mine").exits(0).lease();
    let status = fleet.with("alice", "crabbox status --json mine").exits(0).json();
    assert_eq!(
        (&status["ready"], &status["state"]),
        (&true.into(), &"ready".into()),
        "{status}"
    );
    let ran = fleet
        .with("alice", "crabbox run --id mine -- cat tracked")
        .exits(0);
    assert_eq!(ran.stdout, "alice\n", "{ran:?}");
    assert_eq!(
        fleet
            .with("alice", "crabbox run --id mine --no-sync -- sh -c 'exit 7'")
            .code,
        Some(7)
    );
    // The list shows its host, and scheduler and host agree.
    let number = fleet.host_of("alice", "mine");
    let listed = fleet.with("alice", "crabbox list").exits(0).stdout;
    assert!(
        listed.contains(&format!("host=root@127.0.0.1:2222/h{number}")),
        "{listed}"
    );
    let job = fleet.gateway.sh("squeue -h -o '%j %N %T'").exits(0).stdout;
    assert_eq!(job, format!("{lease} h{number} RUNNING\n"));
    drop(
        fleet
            .node(number)
            .sh(&format!(
                "test -d /srv/.config/crabbox/state/firecracker/leases/{lease}"
            ))
            .exits(0),
    );
    is_alice_s_alone(&fleet, number, &lease);
    is_listed_without_a_claim(&fleet, &listed);
    is_found_well(&fleet);
    who_finds_no_room_waits(&fleet);
    drop(fleet.with("alice", "crabbox stop next").exits(0));
    drop(
        fleet
            .with(
                "bob",
                "for i in 1 2 3 4 5; do crabbox stop fill$i || exit 1; done",
            )
            .exits(0),
    );
    fleet.idle();
    assert_nothing_left(&before, &fleet.settled());
}

/// A job makes one lease, for the client that knows its nonce, and a host makes none without a job.
#[track_caller]
fn who_knows_of_a_job(fleet: &Fleet) {
    // A request without a job, and one with the wrong nonce: no lease is made.
    let ask = |nonce: &str| {
        let key = fleet
            .gateway
            .sh("cut -d' ' -f1,2 /tmp/alice/key.pub")
            .exits(0)
            .stdout;
        format!(
            r#"{{"protocol":1,"verb":"acquire","key":"{}","settings":{{"firecracker.memoryMiB":"128","firecracker.diskMiB":"64","firecracker.cpus":"1"}},"job":{{"id":JOB,"lease":"cbx_0123456789ab","node":"h1","nonce":"{nonce}","seconds":1}}}}"#,
            key.trim()
        )
    };
    let jobless = fleet.as_gateway(1, "alice", &ask("right").replace("JOB", "4000000"));
    assert!(
        jobless.contains("job 4000000 does not accept a lease request")
            && jobless.contains("no job is listening"),
        "{jobless}"
    );
    let plain = fleet.as_gateway(
        1,
        "alice",
        &ask("right")
            .split(",\"job\"")
            .next()
            .map(|start| format!("{start}}}"))
            .unwrap_or_default(),
    );
    assert!(
        plain.contains("a lease without a job is not supported here"),
        "{plain}"
    );
    // A job without a valid request ends by itself. The first valid request gets it, and a second one comes
    // too late.
    let hold = "sbatch --parsable -w h1 --mem=128 -p lease --gres=lease:1 -o /dev/null --wrap 'exec /srv/bin/crabbox __hold --lease cbx_0123456789ab \
         --owner alice --nonce right --wait 8 \"$SLURM_JOB_ID\"'";
    let job = fleet.gateway.sh(hold).exits(0).stdout.trim().to_owned();
    fleet.node(1).until(&format!(
        "test -S /srv/.config/crabbox/state/firecracker/jobs/{job}.sock"
    ));
    for (who, nonce) in [("alice", "wrong"), ("bob", "right")] {
        let refused = fleet.as_gateway(1, who, &ask(nonce).replace("JOB", &job));
        assert!(refused.contains("it waits for another request"), "{refused}");
    }
    fleet
        .gateway
        .until(&format!("squeue -h -t all -j {job} -o %T | grep -q FAILED"));
    let job = fleet.gateway.sh(hold).exits(0).stdout.trim().to_owned();
    fleet.node(1).until(&format!(
        "test -S /srv/.config/crabbox/state/firecracker/jobs/{job}.sock"
    ));
    let (first, second) = fleet.twice_as_gateway(1, "alice", &ask("right").replace("JOB", &job));
    assert!(first.contains(r#""reply":"ready""#), "{first}");
    assert!(second.contains("it has already accepted a request"), "{second}");
}

#[test]
fn a_host_that_refuses_is_left_out_and_a_job_makes_one_lease_for_who_knows_of_it() {
    let fleet = fleet(3);
    let before = settled(&fleet);
    let reserve = |number: usize, mib: u64| {
        drop(fleet.node(number).sh(&format!("sed -i '/reserveMemoryMiB/d; $a\\  reserveMemoryMiB: {mib}' /srv/.config/crabbox/config.yaml")).exits(0));
    };
    // Slurm thinks that h1 has room, but the host refuses.
    reserve(1, 16_000_000);
    let lease = fleet.with("alice", "crabbox warmup --slug mine").exits(0);
    assert!(
        lease.stderr.contains("host h1 refused, trying another one"),
        "{lease:?}"
    );
    let held = fleet.host_of("alice", "mine");
    assert_ne!(held, 1);
    drop(fleet.with("alice", "crabbox stop mine").exits(0));
    reserve(2, 16_000_000);
    // Now no host can make it. A refusal may be one host's misconfiguration, so it only counts once every
    // host has refused.
    reserve(3, 99_000_000);
    let none = fleet.with("alice", "crabbox warmup --slug mine").exits(5);
    for host in ["h1: ", "h2: ", "h3: "] {
        assert!(
            none.stderr.contains("no host of the fleet could make the lease") && none.stderr.contains(host),
            "{none:?}"
        );
    }
    for number in [1, 2, 3] {
        reserve(number, 0);
    }
    // More than any host has is refused at once.
    let never = fleet
        .with("alice", "crabbox warmup --firecracker-memory-mib 4096")
        .exits(5);
    assert!(
        never
            .stderr
            .contains("no host of this fleet can run such a lease"),
        "{never:?}"
    );
    who_knows_of_a_job(&fleet);
    // The unclaimed lease is gone.
    fleet.idle();
    fleet.node(1).until(NO_LEASE);
    assert_nothing_left(&before, &fleet.settled());
}

/// An epilog that finds a supervisor which does not end by itself, as after the death of slurmstepd, kills
/// it; the epilog does not run a second time.
#[track_caller]
fn an_epilog_ends_what_still_runs(fleet: &Fleet) {
    drop(fleet.with("alice", "crabbox warmup --slug mine").exits(0));
    let number = fleet.host_of("alice", "mine");
    let ended = "pkill -STOP -f '[_]_hold'; job=$(basename $(ls /srv/.config/crabbox/state/firecracker/leases)) && number=$(squeue -h -n $job -o %i) && \
         crabbox __epilog $number && crabbox __epilog $number";
    let ended = fleet.node(number).sh(ended).exits(0);
    assert!(
        ended.stderr.contains("still ran and was ended") && ended.stderr.contains("was removed"),
        "{ended:?}"
    );
    assert_eq!(ended.stderr.matches("job ").count(), 2, "{ended:?}");
    drop(fleet.node(number).sh(NO_LEASE).exits(0));
    drop(fleet.with("alice", "crabbox cleanup").exits(0));
    fleet.idle();
}

/// If no epilog runs, leftovers stay, even when leases are listed, until the host's health check.
#[track_caller]
fn a_health_check_takes_back_what_no_epilog_did(fleet: &Fleet) {
    for number in 1..=3 {
        drop(fleet.node(number).sh("mv /etc/slurm/crabbox-epilog /srv/fleet/aside && printf '#!/bin/sh\\n' > /etc/slurm/crabbox-epilog && chmod 755 /etc/slurm/crabbox-epilog").exits(0));
    }
    drop(fleet.with("alice", "crabbox warmup --slug mine").exits(0));
    let number = fleet.host_of("alice", "mine");
    drop(
        fleet
            .node(number)
            .sh("crabbox __health --grace 0 && pkill -9 -f '[_]_hold'")
            .exits(0),
    );
    fleet.idle();
    let stays = fleet
        .node(number)
        .sh("crabbox list --provider firecracker && ! pgrep -f '[_]_supervise' && pgrep -f '[s]rv/fake/firecracker' >/dev/null");
    assert!(stays.exits(0).stdout.contains("slug=mine"));
    drop(
        fleet
            .node(number)
            .sh("crabbox __health && crabbox list --provider firecracker | grep mine && crabbox __health --grace 0")
            .exits(0),
    );
    drop(fleet.node(number).sh(NO_LEASE).exits(0));
    for number in 1..=3 {
        drop(
            fleet
                .node(number)
                .sh("mv /srv/fleet/aside /etc/slurm/crabbox-epilog")
                .exits(0),
        );
    }
    drop(fleet.with("alice", "crabbox cleanup").exits(0));
}

#[test]
fn whatever_dies_the_lease_and_its_job_end_together_and_nothing_is_left() {
    let fleet = fleet(3);
    let before = settled(&fleet);
    // The supervisor dies: its job is over, the epilog takes the lease back, and listing leases does not
    // revive it.
    drop(fleet.with("alice", "crabbox warmup --slug mine").exits(0));
    let number = fleet.host_of("alice", "mine");
    drop(
        fleet
            .node(number)
            .sh("pkill -9 -f '[_]_hold'; crabbox list --provider firecracker && ! pgrep -f '[_]_supervise'")
            .exits(0),
    );
    fleet.node(number).until(NO_LEASE);
    let gone = fleet.with("alice", "crabbox status mine").exits(4);
    assert!(gone.stderr.contains("not found"), "{gone:?}");
    drop(fleet.with("alice", "crabbox cleanup").exits(0));
    fleet.idle();
    an_epilog_ends_what_still_runs(&fleet);
    a_health_check_takes_back_what_no_epilog_did(&fleet);
    // slurmd dies: the lease lives, and can be used and given back.
    drop(fleet.with("alice", "crabbox warmup --slug mine").exits(0));
    let number = fleet.host_of("alice", "mine");
    drop(fleet.node(number).sh("pkill -9 -x slurmd").exits(0));
    let ran = fleet
        .with("alice", "crabbox run --id mine --no-sync -- echo there")
        .exits(0);
    assert_eq!(ran.stdout, "there\n");
    drop(fleet.with("alice", "crabbox stop mine").exits(0));
    drop(fleet.node(number).sh(&format!("slurmd -N h{number}")).exits(0));
    fleet.idle();
    fleet
        .gateway
        .until("test $(sinfo -h -N -o %T | grep -cx idle) = 3");
    // slurmctld ends: existing leases continue, and new ones are refused with a reason. It is ended in an
    // orderly way, because a slurmctld that is killed within seconds of a submission forgets it and starts
    // the job again.
    drop(fleet.with("alice", "crabbox warmup --slug mine").exits(0));
    drop(fleet.gateway.sh("pkill -x slurmctld; for i in $(seq 100); do pgrep -x slurmctld >/dev/null || exit 0; sleep 0.1; done; exit 1").exits(0));
    let new = fleet.with("bob", "crabbox warmup").exits(5);
    assert!(new.stderr.contains("the scheduler does not answer"), "{new:?}");
    let ran = fleet
        .with("alice", "crabbox run --id mine --no-sync -- echo there")
        .exits(0);
    assert_eq!(ran.stdout, "there\n");
    drop(fleet.with("alice", "crabbox stop mine").exits(0));
    drop(fleet.gateway.sh("slurmctld").exits(0));
    fleet.idle();
    assert_nothing_left(&before, &fleet.settled());
}

#[test]
fn a_lease_whose_host_is_gone_is_lost_and_is_said_to_be() {
    let mut fleet = fleet(2);
    drop(fleet.with("alice", "crabbox warmup --slug mine").exits(0));
    let number = fleet.host_of("alice", "mine");
    // Power is cut.
    drop(fleet.nodes.remove(number - 1));
    // Slurm gives the host up after its timeout.
    let given_up = fleet
        .gateway
        .sh("for i in $(seq 900); do squeue -h -t all -o %T | grep -q NODE_FAIL && exit 0; sleep 0.1; done; sinfo -N -l; exit 1");
    drop(given_up.exits(0));
    let lost = fleet.with("alice", "crabbox status mine").exits(5);
    assert!(lost.stderr.contains("is lost (node_fail)"), "{lost:?}");
    drop(fleet.with("alice", "crabbox stop mine").exits(0));
    let left = fleet
        .gateway
        .sh("ls /tmp/alice/.config/crabbox/testboxes /tmp/alice/.config/crabbox/state/claims")
        .exits(0);
    assert!(!left.stdout.contains("cbx_"), "{left:?}");
    // The other host has room.
    drop(
        fleet
            .with("alice", "crabbox warmup --slug again && crabbox stop again")
            .exits(0),
    );
}
