//! A fleet: a gateway and the hosts behind it, each pretended in separate namespaces, with a real Slurm
//! between them and a fake VMM on each.
//!
//! Slurm and munge come from the system's packages; a test that does not find them fails. The configuration
//! is the example given to users, with the changes needed to run three hosts on one machine.

use std::path::PathBuf;

use crabbox_host::command::Cmd;

use crate::{Done, Host, afar};

/// Makes a host a member of a fleet.
const JOIN: &str = include_str!("fleet.sh");

const CONF: &str = include_str!("../../docs/examples/slurm/slurm.conf");

/// The example's epilog.
pub const EPILOG: &str = include_str!("../../docs/examples/slurm/crabbox-epilog");

/// What `gres.conf` says of each host of a test.
pub const GRES: &str = "Name=lease Count=8\nName=disk Count=100\n";

/// Memory of each host as configured in Slurm, in MiB: enough for two leases of 128 MiB with the overhead of
/// their VMMs, but not for a third.
const MEMORY: u32 = 600;

/// The gateway's address, which all hosts reach.
const GATEWAY: &str = "10.77.0.1";

/// A fleet.
#[derive(Debug)]
pub struct Fleet {
    /// The host on which clients log in and slurmctld runs; it makes no leases.
    pub gateway: Host,
    /// The hosts `h1`, `h2`, ..
    pub nodes: Vec<Host>,
}

/// The line by which a gateway names the owner that it speaks for.
fn speaks_for(who: &str) -> String {
    format!(
        "{}\n",
        serde_json::json!({"protocol": 1, "verb": "speak_for", "owner": who})
    )
}

/// The address of the host `number`, counted from 1.
fn address(number: usize) -> String {
    format!("10.77.{number}.2")
}

/// The example's configuration with these values in place of its own, for `nodes`, each a name with its
/// address and memory in MiB, whatever memory it has.
pub fn conf(changed: &[(&str, &str)], nodes: &[(String, String, u32)]) -> String {
    for (key, _) in changed {
        let is_it = |line: &&str| line.split_once('=').is_some_and(|(found, _)| found == *key);
        assert_eq!(CONF.lines().filter(is_it).count(), 1, "{key} in the example");
    }
    let mut lines: Vec<String> = CONF
        .lines()
        .filter(|line| !line.starts_with("NodeName=") && !line.starts_with("HealthCheck"))
        .map(|line| {
            let key = line.split_once('=').map(|(key, _)| key);
            match changed.iter().find(|(changed, _)| key == Some(*changed)) {
                Some((key, value)) => format!("{key}={value}"),
                None => line.to_owned(),
            }
        })
        .collect();
    lines.push("SlurmdParameters=config_overrides".to_owned());
    for (name, address, memory) in nodes {
        lines.push(format!(
            "NodeName={name} NodeAddr={address} CPUs=8 RealMemory={memory} Gres=lease:8,disk:100"
        ));
    }
    lines.join("\n") + "\n"
}

/// The configuration of `count` pretended hosts.
fn conf_of_pretended(count: usize) -> String {
    let changed = [
        ("SlurmctldHost", &*format!("gw({GATEWAY})")),
        ("SlurmUser", "root"),
        ("SlurmctldLogFile", "/srv/fleet/slurmctld.log"),
        ("SlurmdLogFile", "/srv/fleet/slurmd.log"),
        // cgroups belong to the machine, not to a pretended host.
        ("ProctrackType", "proctrack/linuxproc"),
        // With a shorter timeout, a host on a busy machine is considered dead, with its leases.
        ("SlurmdTimeout", "15"),
        ("KillWait", "10"),
    ];
    let nodes: Vec<_> = (1..=count)
        .map(|number| (format!("h{number}"), address(number), MEMORY))
        .collect();
    conf(&changed, &nodes)
}

/// A fleet of `count` hosts, all ready for leases.
#[track_caller]
pub fn fleet(count: usize) -> Fleet {
    for program in ["slurmctld", "slurmd", "sbatch", "munged"] {
        let found = ["/usr/sbin", "/usr/bin"].map(|dir| PathBuf::from(dir).join(program));
        assert!(
            found.iter().any(|path| path.is_file()),
            "this test needs {program}: apt-get install slurmctld slurmd slurm-client munge"
        );
    }
    let gateway = afar::host();
    let nodes: Vec<Host> = (0..count).map(|_| Host::pretend()).collect();
    let fleet = Fleet { gateway, nodes };
    fleet.connect();
    fleet.join();
    fleet
        .gateway
        .until(&format!("test $(sinfo -h -N -o %T | grep -c idle) = {count}"));
    fleet
}

impl Fleet {
    /// The host `h{number}`.
    pub fn node(&self, number: usize) -> &Host {
        &self.nodes[number - 1]
    }

    /// Connects the gateway and each host by a veth pair, so that the gateway notices at once when a host is
    /// gone.
    #[track_caller]
    fn connect(&self) {
        let gateway = self.gateway.first_process();
        drop(
            self.gateway
                .sh(&format!(
                    "ip addr add {GATEWAY}/32 dev lo && ip route add unreachable 10.77.0.0/16"
                ))
                .exits(0),
        );
        for (node, number) in self.nodes.iter().zip(1..) {
            let inner = node.first_process().to_string();
            let made = Cmd::new("nsenter")
                .args([
                    "-t",
                    &gateway.to_string(),
                    "-n",
                    "ip",
                    "link",
                    "add",
                    &format!("h{number}"),
                ])
                .args(["type", "veth", "peer", "name", "fleet", "netns", &inner])
                .run();
            assert!(made.is_ok(), "no cable between two pretended hosts: {made:?}");
            let near = format!("ip addr add 10.77.{number}.1/24 dev h{number} && ip link set h{number} up");
            drop(self.gateway.sh(&near).exits(0));
            let far = format!(
                "ip addr add {}/24 dev fleet && ip link set fleet up && ip route add {GATEWAY}/32 via 10.77.{number}.1",
                address(number)
            );
            drop(node.sh(&far).exits(0));
        }
    }

    /// Starts Slurm, and configures the gateway.
    #[track_caller]
    fn join(&self) {
        let gateway = &self.gateway;
        let keys = gateway.sh(
            "mkdir -p -m 700 /srv/fleet /srv/.config/crabbox/fleet && head -c 128 /dev/urandom | od -An -tx1 | tr -d ' \\n' > /srv/fleet/munge.key && \
             ssh-keygen -q -t ed25519 -N '' -C fleet -f /srv/.config/crabbox/fleet/key && \
             cat /srv/fleet/munge.key && echo && cat /srv/.config/crabbox/fleet/key.pub",
        );
        let keys = keys.exits(0).stdout;
        let (munge, key) = keys.split_once('\n').unwrap_or_default();
        let conf = conf_of_pretended(self.nodes.len());
        // Root's home directory is different here.
        let epilog = EPILOG.replace("HOME=/root", "HOME=/srv");
        for (host, number) in std::iter::once(gateway).chain(&self.nodes).zip(0..) {
            for (name, text) in [
                ("munge.key", munge),
                ("key.pub", key),
                ("slurm.conf", &conf),
                ("gres.conf", GRES),
                ("crabbox-epilog", &epilog),
            ] {
                let put = format!("mkdir -p -m 700 /srv/fleet && cat > /srv/fleet/{name}");
                drop(host.feed(&put, text.as_bytes()).exits(0));
            }
            let words = if number == 0 {
                format!("gw {GATEWAY} gateway")
            } else {
                format!("h{number} {}", address(number))
            };
            drop(host.sh(&format!("set -- {words}\n{JOIN}")).exits(0));
        }
        let mut known = Vec::new();
        let mut nodes = Vec::new();
        for (node, number) in self.nodes.iter().zip(1..) {
            let key = node.sh("cut -d' ' -f1,2 /srv/sshd/host.pub").exits(0).stdout;
            known.push(format!("{} {key}", address(number)));
            nodes.push(format!(r#""h{number}": "root@{}""#, address(number)));
        }
        let text = format!(
            r#"{{"partition": "lease", "request_seconds": 8, "nodes": {{{}}}}}"#,
            nodes.join(", ")
        );
        drop(
            gateway
                .feed(
                    "cat > /srv/.config/crabbox/fleet/known_hosts",
                    known.concat().as_bytes(),
                )
                .exits(0),
        );
        drop(
            gateway
                .feed("cat > /srv/.config/crabbox/fleet/gateway.json", text.as_bytes())
                .exits(0),
        );
        drop(gateway.sh("slurmctld").exits(0));
    }

    /// Runs a shell script as alice or bob on their laptop.
    #[track_caller]
    pub fn with(&self, who: &str, script: &str) -> Done {
        afar::with(&self.gateway, who, script)
    }

    /// The number of the host on which the lease `slug` of alice or bob is.
    #[track_caller]
    pub fn host_of(&self, who: &str, slug: &str) -> usize {
        let listed = self.with(who, "crabbox list --json").exits(0);
        let all = listed.json();
        let found = all.as_array().into_iter().flatten();
        let node = found
            .filter(|lease| lease["labels"]["slug"] == slug)
            .find_map(|lease| lease["labels"]["node"].as_str()?.strip_prefix('h')?.parse().ok());
        node.unwrap_or_else(|| {
            let said = self
                .gateway
                .sh("sinfo -N -l; squeue -t all; tail -n 30 /srv/fleet/slurmctld.log")
                .stdout;
            panic!("lease {slug} names no host: {listed:?}\n{said}")
        })
    }

    /// The answer of host `h{number}` to the gateway when it speaks for `who` and sends `line`; the gateway
    /// hangs up after the first answer.
    #[track_caller]
    pub fn as_gateway(&self, number: usize, who: &str, line: &str) -> String {
        let said = format!("{}{line}\n", speaks_for(who));
        let speak = Self::speak(number);
        let script = format!(
            "rm -f /tmp/heard; {{ cat; for i in $(seq 300); do grep -q '\"reply\"' /tmp/heard && break; sleep 0.1; done; }} | {speak} > /tmp/heard; \
             cat /tmp/heard"
        );
        self.gateway.feed(&script, said.as_bytes()).stdout
    }

    /// The same, with a second request sent once the first has been told that its lease is ready; returns
    /// both answers.
    #[track_caller]
    pub fn twice_as_gateway(&self, number: usize, who: &str, line: &str) -> (String, String) {
        let said = format!("{}{line}\n", speaks_for(who));
        drop(self.gateway.feed("cat > /tmp/said", said.as_bytes()).exits(0));
        let speak = Self::speak(number);
        let first = self.gateway.sh(&format!(
            "rm -f /tmp/first; {{ cat /tmp/said; for i in $(seq 300); do grep -q ready /tmp/first && break; sleep 0.1; done; \
             {{ cat /tmp/said; for i in $(seq 300); do grep -q '\"reply\"' /tmp/second && break; sleep 0.1; done; }} | {speak} > /tmp/second; }} | {speak} > /tmp/first; cat /tmp/first"
        ));
        (first.stdout, self.gateway.sh("cat /tmp/second").stdout)
    }

    fn speak(number: usize) -> String {
        format!(
            "ssh -F none -o BatchMode=yes -o IdentitiesOnly=yes -o UserKnownHostsFile=/srv/.config/crabbox/fleet/known_hosts \
             -i /srv/.config/crabbox/fleet/key root@{}",
            address(number)
        )
    }

    /// What leases could leave behind, on every host, after waiting for what ends by itself.
    #[track_caller]
    pub fn settled(&self) -> Vec<String> {
        let all = std::iter::once(&self.gateway).chain(&self.nodes);
        let mut lines: Vec<String> = Vec::new();
        for (host, number) in all.zip(0..) {
            lines.extend(host.settled().into_iter().map(|line| format!("{number} {line}")));
        }
        lines
    }

    /// Waits until there are no jobs any more, including completing ones.
    #[track_caller]
    pub fn idle(&self) {
        let waited = self.gateway.sh("for i in $(seq 300); do test -z \"$(squeue -h)\" && exit 0; sleep 0.1; done; squeue; sinfo -N -l; exit 1");
        assert_eq!(waited.code, Some(0), "jobs stay\n{}", waited.stdout);
    }
}
