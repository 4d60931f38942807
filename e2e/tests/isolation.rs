//! What a guest can reach and do, tried from inside real guests: networks by sending packets, the jail by the
//! kernel's view of the VMM, limits by exceeding them.

use std::fmt::Write as _;

use crabbox_core::shell::single_quoted;
use crabbox_e2e::{Host, assert_nothing_left};

const SURROUNDINGS: &str = include_str!("isolation.sh");

/// Removes the test environment again.
const NO_SURROUNDINGS: &str = "pkill socat; pkill -f '^python3 /root/resolver'; rm -f /root/resolver.py; ip link del world; ip link del lan; ip netns del world; ip netns del lan; \
     ip addr del 169.254.169.254/32 dev lo; echo 'nameserver 10.0.2.3' > /etc/resolv.conf; true";

/// A shell line that prints `hello` if a test listener is reachable at `host`.
fn reach(host: &str) -> String {
    format!("timeout 5 bash -c 'exec 3<>/dev/tcp/{host}/7777 && head -n1 <&3' 2>/dev/null || echo no")
}

/// Runs a shell script in the guest of `slug` and returns what it printed.
#[track_caller]
fn guest(host: &Host, repo: &str, slug: &str, script: &str) -> String {
    let quoted = single_quoted(script);
    host.sh(&format!(
        "cd {repo} && exec crabbox run --id {slug} --no-sync -- bash -c {quoted}"
    ))
    .stdout
}

/// The address by which the host reaches a lease.
#[track_caller]
fn address(host: &Host, slug: &str) -> String {
    let document = host.crabbox(&format!("inspect --json {slug}")).exits(0).json();
    let address = document["host"].as_str().or(document["sshHost"].as_str());
    assert!(address.is_some(), "{document:#}");
    address.unwrap_or_default().to_owned()
}

#[test]
fn a_guest_reaches_the_internet_and_names_and_nothing_nearer() {
    let host = Host::alone();
    let repo = host.repository("isolation");
    drop(host.sh(NO_SURROUNDINGS).exits(0));
    let before = host.residue();
    drop(host.sh(SURROUNDINGS).exits(0));
    for mode in ["cni", "nat"] {
        let network = format!("--firecracker-network {mode}");
        drop(host.warmup(&repo, "inside", &network));
        drop(host.warmup(&repo, "neighbour", &network));
        // The neighbour listens, and the host can reach it.
        drop(guest(
            &host,
            &repo,
            "neighbour",
            "setsid python3 -m http.server 7777 </dev/null >/dev/null 2>&1 & \
             for i in $(seq 60); do curl -s http://127.0.0.1:7777/ >/dev/null && break; sleep 0.5; done",
        ));
        let neighbour = address(&host, "neighbour");
        let seen = host.sh(&format!(
            "curl -s -m 10 -o /dev/null -w '%{{http_code}}' http://{neighbour}:7777/"
        ));
        assert_eq!(seen.stdout, "200", "{mode}: the control: {seen:?}");
        let probed = guest(
            &host,
            &repo,
            "neighbour",
            "curl -s -m 10 -o /dev/null -w '%{http_code}' http://127.0.0.1:7777/",
        );
        assert_eq!(probed, "200", "{mode}: the control");

        let own = host
            .sh("ip -4 -o addr show | awk '{print $4}' | cut -d/ -f1")
            .exits(0);
        // Every address of the host and of its neighbour, the metadata service, the other lease.
        let mut closed: Vec<&str> = own
            .stdout
            .lines()
            .filter(|address| !address.starts_with("127."))
            .collect();
        closed.extend(["10.77.0.2", "169.254.169.254", "172.16.0.1"]);
        assert!(closed.len() > 5, "{closed:?}");
        let mut script = String::new();
        for target in ["9.9.9.2", "some.name.test"].iter().chain(&closed) {
            writeln!(script, "echo {target} $({})", reach(target)).unwrap();
        }
        writeln!(
            script,
            "echo neighbour $(curl -s -m 5 -o /dev/null -w '%{{http_code}}' http://{neighbour}:7777/)"
        )
        .unwrap();
        script += "echo resolved $(getent hosts other.name.test)\n";
        script += "echo v6 $(grep -v '^fe80\\|^ff00\\|^0*1 \\| lo$' /proc/net/ipv6_route | grep -vc '^0* 00 .* ffffffff ')\n";
        let told = guest(&host, &repo, "inside", &script);
        let mut wanted = "9.9.9.2 hello\nsome.name.test hello\n".to_owned();
        for target in &closed {
            writeln!(wanted, "{target} no").unwrap();
        }
        wanted += "neighbour 000\nresolved 9.9.9.2 other.name.test\nv6 0\n";
        assert_eq!(told, wanted, "{mode}");
        drop(host.crabbox("stop inside").exits(0));
        drop(host.crabbox("stop neighbour").exits(0));
    }
    drop(host.sh(NO_SURROUNDINGS).exits(0));
    assert_nothing_left(&before, &host.residue());
}

#[test]
fn a_vmm_has_no_rights_and_its_guest_cannot_take_more_than_its_share() {
    let host = Host::alone();
    let repo = host.repository("jail");
    let before = host.residue();
    drop(host.warmup(&repo, "jailed", ""));
    let facts = host
        .sh(
            "pid=$(pgrep -f '[f]irecracker --id' | head -1); \
             awk '/^(Uid|Gid|CapEff|CapPrm|CapBnd|NoNewPrivs|Seccomp):/ {print $1, $2}' /proc/$pid/status; \
             echo Root: $(ls /proc/$pid/root | tr '\\n' ' '); \
             test \"$(readlink /proc/$pid/ns/net)\" != \"$(readlink /proc/1/ns/net)\" && echo own network; \
             test \"$(readlink /proc/$pid/ns/mnt)\" != \"$(readlink /proc/1/ns/mnt)\" && echo own mounts; \
             group=/sys/fs/cgroup$(cut -d: -f3 /proc/$pid/cgroup); \
             for limit in memory.max memory.swap.max pids.max cpu.max; do echo $limit: $(cat $group/$limit); done",
        )
        .exits(0);
    let fact = |name: &str| {
        let line = facts
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name}: ")));
        assert!(line.is_some(), "no {name} in {facts:?}");
        line.unwrap_or_default().trim().to_owned()
    };
    for id in ["Uid", "Gid"] {
        assert!(fact(id).parse::<u32>().unwrap() >= 1_900_000_000, "{facts:?}");
    }
    assert_eq!(fact("CapEff"), "0000000000000000");
    assert_eq!(fact("CapPrm"), "0000000000000000");
    assert_eq!(fact("NoNewPrivs"), "1");
    assert_eq!(fact("Seccomp"), "2");
    let root = fact("Root");
    for foreign in ["home", "proc", "usr", "etc", "var"] {
        assert!(!root.split(' ').any(|name| name == foreign), "{root}");
    }
    assert!(
        facts.stdout.contains("own network") && facts.stdout.contains("own mounts"),
        "{facts:?}"
    );
    // 256 MiB for the guest and 128 for the VMM.
    assert_eq!(fact("memory.max"), (384_u64 << 20).to_string());
    assert_eq!(fact("memory.swap.max"), "0");
    assert!(fact("pids.max").parse::<u32>().unwrap() < 100, "{facts:?}");
    // One for the guest, one for the devices that the VMM emulates.
    assert_eq!(fact("cpu.max"), "200000 100000");

    let run = |command: &str| {
        host.sh(&format!(
            "cd {repo} && exec crabbox run --id jailed --no-sync -- {command}"
        ))
    };
    // A guest that wants more memory than it has is refused by its own kernel, and continues.
    let greedy = run("python3 -c 'print(len(bytearray(1 << 30)))'");
    assert_ne!(greedy.code, Some(0), "{greedy:?}");
    // The same with its disk: no more than 2 GiB.
    let full = run(
        "sh -c 'dd if=/dev/zero of=big bs=1M count=3000 status=none; df -BM --output=size . | tail -1; rm big'",
    );
    assert!(full.stderr.contains("No space left"), "{full:?}");
    let size: u32 = full.stdout.trim().trim_end_matches('M').parse().unwrap();
    assert!((1700..=2048).contains(&size), "{full:?}");
    let alive = run("echo alive").exits(0);
    assert_eq!(alive.stdout, "alive\n");
    drop(host.crabbox("stop jailed").exits(0));
    assert_nothing_left(&before, &host.residue());
}
