//! The doctor from outside: its document, lines and exit codes, and real faults.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crabbox_host::command::Cmd;
use crabbox_host::netlink::{Link, Netlink};
use crabbox_host::netns::{self, Scratch};
use crabbox_testkit::sshd::Sshd;

use crate::place::{Answer, Place};
use crate::world::{Machine, Record, claim};

/// Where the tools of a Debian host are.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

fn place() -> Place {
    Place::new().env("PATH", PATH)
}

fn doctor(place: &Place, more: &[&str]) -> (Answer, serde_json::Value) {
    let mut words = vec!["doctor", "--provider", "firecracker", "--json"];
    words.extend(more);
    let answer = place.run(&words);
    let document = serde_json::from_str(&answer.out).unwrap();
    (answer, document)
}

fn check<'a>(document: &'a serde_json::Value, name: &str) -> &'a serde_json::Value {
    let found = document["checks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|check| check["check"] == name);
    found.unwrap_or(&serde_json::Value::Null)
}

/// Everything below `dir`, with modification times.
fn tree(dir: &Path) -> Vec<(std::path::PathBuf, std::time::SystemTime)> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let facts = entry.metadata().unwrap();
            found.push((entry.path(), facts.modified().unwrap()));
            open.extend(facts.is_dir().then(|| entry.path()));
        }
    }
    found.sort();
    found
}

#[test]
fn the_document_is_one_line_of_the_reference_s_form_and_the_host_is_as_it_was() {
    let place = place().env("CRABBOX_CONFIG", "");
    place.write("home/.config/crabbox/config.yaml", "");
    let before = tree(&place.path("home"));
    let (answer, document) = doctor(&place, &["--firecracker-binary", "/nowhere/firecracker"]);
    assert_eq!(tree(&place.path("home")), before, "a doctor only looks");
    assert_eq!((answer.code, answer.err.as_str()), (1, "doctor found problems\n"));
    assert_eq!(answer.out.lines().count(), 1);
    let keys: Vec<_> = document.as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["ok", "provider", "checks"]);
    assert_eq!(
        (&document["ok"], &document["provider"]),
        (&false.into(), &"firecracker".into())
    );
    let names: Vec<_> = document["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|check| check["check"].as_str().unwrap())
        .collect();
    let first = [
        "config",
        "provider-selection",
        "git",
        "ssh",
        "ssh-keygen",
        "rsync",
        "ssh-key",
        "host",
        "kvm",
        "binary",
        "jailer",
        "kernel",
        "rootfs",
        "network",
    ];
    assert_eq!(names[..first.len()], first);
    let binary = check(&document, "binary");
    assert_eq!(
        binary["message"],
        "firecracker.binary unavailable: exec: \"/nowhere/firecracker\": stat /nowhere/firecracker: no such file or directory"
    );
    for check in document["checks"].as_array().unwrap() {
        if ["failed", "missing"].contains(&check["status"].as_str().unwrap()) {
            assert!(check["details"]["fix"].is_string(), "{check}");
        }
    }
}

#[test]
fn the_lines_say_the_same_and_the_fixes_are_not_among_them() {
    let answer = place().run(&[
        "doctor",
        "--provider",
        "firecracker",
        "--firecracker-binary",
        "/nowhere/firecracker",
    ]);
    assert_eq!(answer.code, 1);
    assert!(
        answer
            .out
            .contains("\nok      host     host=linux mutation=false\n"),
        "{}",
        answer.out
    );
    assert!(
        answer
            .out
            .contains("\nfailed  binary   firecracker.binary unavailable: "),
        "{}",
        answer.out
    );
    assert!(!answer.out.contains("fix:"));
    assert!(
        answer
            .err
            .contains("fix: `crabbox setup firecracker --firecracker-binary /nowhere/firecracker` "),
        "{}",
        answer.err
    );
    assert!(answer.err.ends_with("doctor found problems\n"), "{}", answer.err);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of faults, one row each")]
fn faults_that_are_really_there_are_found() {
    let place = place();
    let text = place.write("outside/text", "not a program");
    let chain = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"crabbox-no-such-plugin"}]}"#;
    place.write("outside/net.conflist", chain);
    let (text, dir) = (text.to_str().unwrap(), place.path("outside"));
    let dir = dir.to_str().unwrap();
    let cni = |more: &[&'static str]| [&["--firecracker-network", "cni"], more].concat();
    let blocked = "environment_blocked";
    let incomplete = "configuration_incomplete";
    let cases: Vec<(Vec<&str>, &str, &str, &str, &str)> = vec![
        (
            vec!["--firecracker-binary", text],
            "binary",
            "failed",
            blocked,
            "permission denied",
        ),
        (
            vec!["--firecracker-binary", "/bin/true"],
            "firecracker-version",
            "failed",
            blocked,
            "no version",
        ),
        (
            vec!["--firecracker-binary", "/bin/true", "--firecracker-jailer", "/x"],
            "jailer",
            "failed",
            blocked,
            "stat /x: no such file",
        ),
        (
            vec!["--firecracker-kernel", "/x"],
            "kernel",
            "failed",
            blocked,
            "firecracker.kernel unavailable: stat /x: no such file or directory",
        ),
        (
            vec!["--firecracker-kernel", "/tmp"],
            "kernel",
            "failed",
            incomplete,
            "firecracker.kernel must point to a file, got directory /tmp",
        ),
        (
            vec!["--firecracker-rootfs", "/tmp"],
            "rootfs",
            "failed",
            incomplete,
            "firecracker.rootfs must point to a file, got directory /tmp",
        ),
        (
            vec!["--firecracker-kernel", text, "--firecracker-rootfs", text],
            "image",
            "failed",
            incomplete,
            "not bootable",
        ),
        (
            cni(&["--firecracker-cni-conf-dir", "/nowhere"]),
            "network",
            "failed",
            blocked,
            "firecracker.cniConfDir stat /nowhere: no such file or directory",
        ),
        (
            [cni(&["--firecracker-cni-conf-dir"]), vec![text]].concat(),
            "network",
            "failed",
            blocked,
            "firecracker.cniConfDir must be a directory",
        ),
        (
            [
                cni(&["--firecracker-cni-network", "other", "--firecracker-cni-conf-dir"]),
                vec![dir],
            ]
            .concat(),
            "network",
            "failed",
            incomplete,
            "firecracker.cniNetwork \"other\" unavailable in",
        ),
        (
            [
                cni(&["--firecracker-cni-network", "net", "--firecracker-cni-conf-dir"]),
                vec![dir],
            ]
            .concat(),
            "cni-plugins",
            "missing",
            blocked,
            "no executable crabbox-no-such-plugin",
        ),
        (
            vec!["--firecracker-memory-mib", "16000000"],
            "memory",
            "failed",
            blocked,
            "does not fit",
        ),
        (
            vec!["--firecracker-network", "bridge"],
            "provider",
            "failed",
            "config",
            "provider=firecracker class=config hint=",
        ),
        (
            vec!["--firecracker-cpus", "0"],
            "provider",
            "failed",
            "config",
            "requires firecracker.cpus > 0",
        ),
    ];
    for (flags, name, status, class, words) in cases {
        let (answer, document) = doctor(&place, &flags);
        let check = check(&document, name);
        assert_eq!(
            (&check["status"], &check["details"]["class"]),
            (&status.into(), &class.into()),
            "{flags:?} {check}"
        );
        assert!(
            check["message"].as_str().unwrap().contains(words),
            "{flags:?} {check}"
        );
        assert_eq!((answer.code, &document["ok"]), (1, &false.into()));
    }
}

#[test]
fn a_configuration_that_makes_no_sense_replaces_the_checks_of_the_provider() {
    let (_, document) = doctor(&place(), &["--firecracker-cpus", "0"]);
    assert_eq!(check(&document, "provider")["details"]["provider"], "firecracker");
    assert!(check(&document, "host").is_null());
}

#[test]
fn a_missing_tool_has_no_message_and_a_missing_key_is_named() {
    let place = Place::new()
        .env("PATH", "/nowhere")
        .env("CRABBOX_SSH_KEY", "/nowhere/key");
    let (_, document) = doctor(&place, &[]);
    assert_eq!(check(&document, "rsync")["status"], "missing");
    assert!(check(&document, "rsync").get("message").is_none());
    assert_eq!(check(&document, "ssh-key")["status"], "failed");
}

#[test]
fn without_a_provider_only_what_belongs_to_none_is_looked_at() {
    let answer = place().run(&["doctor", "--json"]);
    let document: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(
        (answer.code, &document["provider"]),
        (0, &"".into()),
        "{}",
        answer.err
    );
    assert_eq!(check(&document, "provider-selection")["status"], "warning");
    assert!(check(&document, "host").is_null());
}

#[test]
fn a_static_host_is_described_and_a_missing_one_is_found() {
    let run = |place: Place| {
        let answer = place.run(&["doctor", "--json", "--provider", "ssh"]);
        let document: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
        (
            answer.code,
            check(&document, "provider")["message"]
                .as_str()
                .unwrap()
                .to_owned(),
        )
    };
    let (code, message) = run(place().env("CRABBOX_STATIC_HOST", "build.invalid"));
    assert_eq!(code, 0);
    assert!(
        message.contains("host=build.invalid api=static_config mutation=false"),
        "{message}"
    );
    let (code, message) = run(place());
    assert_eq!(code, 1);
    assert!(message.ends_with("missing static.host"), "{message}");
}

#[test]
fn the_knock_at_a_static_host_tells_whether_it_lets_us_in_and_leaves_nothing() {
    let sshd = Sshd::start();
    let place = place().env("CRABBOX_SSH_PORT", sshd.port().to_string());
    let knock = |user: &str| {
        let words = ["doctor", "--json", "--provider", "ssh", "--doctor-probe-ssh"];
        let host = ["--static-host", "127.0.0.1", "--static-user", user];
        let answer = place.run(&[&words[..], &host].concat());
        let document: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
        let details = check(&document, "provider")["details"].clone();
        (answer.code, details)
    };
    place.write("home/key", fs::read(sshd.client_key()).unwrap());
    let key = place.path("home/key");
    place.write(
        "home/.config/crabbox/config.yaml",
        format!("ssh: {{key: {}}}", key.display()),
    );
    let before = tree(&place.path("home"));
    let (code, details) = knock(sshd.user());
    assert_eq!(
        (code, &details["api"], &details["runtime"], &details["mutation"]),
        (0, &"ssh_probe".into(), &"ssh_reachable".into(), &"false".into()),
        "{details}"
    );
    assert_eq!(tree(&place.path("home")), before, "not even the host key is kept");
    let (code, details) = knock("nobody-of-that-name");
    assert_eq!((code, &details["class"]), (1, &"auth".into()), "{details}");
    drop(sshd);
    let (code, details) = knock("anyone");
    assert_eq!((code, &details["class"]), (1, &"network".into()), "{details}");
    assert!(details["fix"].is_string(), "{details}");
}

#[test]
fn what_a_lease_is_made_of_is_looked_for_on_request() {
    let place = place();
    let (answer, document) = doctor(
        &place,
        &["--prepare-check", "--firecracker-binary", "/nowhere/firecracker"],
    );
    let found = check(&document, "prepare");
    assert_eq!((answer.code, &found["status"]), (1, &"failed".into()), "{found}");
    let message = found["message"].as_str().unwrap();
    // Without KVM the doctor stops earlier.
    assert!(
        message.starts_with("firecracker.binary unavailable: /nowhere/firecracker")
            || message.starts_with("/dev/kvm"),
        "{message}"
    );
    let (_, without) = doctor(&place, &["--firecracker-binary", "/nowhere/firecracker"]);
    assert!(check(&without, "prepare").is_null());
}

#[test]
fn what_cleanup_would_take_away_is_named() {
    let place = place();
    let (_, document) = doctor(&place, &[]);
    assert_eq!(
        check(&document, "orphans")["details"]["orphans"],
        "0",
        "{document}"
    );
    let id = "cbx_0123456789ab";
    Record::new(id, "jade-krill").write(&place);
    claim(&place, "cbx_aaaaaaaaaaaa", "amber-crab", "firecracker");
    let before = tree(&place.path("home"));
    let (_, document) = doctor(&place, &[]);
    let orphans = check(&document, "orphans");
    assert_eq!(
        (&orphans["status"], &orphans["details"]["class"]),
        (&"warning".into(), &"residue".into())
    );
    let message = orphans["message"].as_str().unwrap();
    for one in [
        "orphans=2 ",
        "dead lease cbx_0123456789ab",
        "claim cbx_aaaaaaaaaaaa",
    ] {
        assert!(message.contains(one), "{message}");
    }
    assert_eq!(tree(&place.path("home")), before);
    assert_eq!(place.run(&["cleanup", "--provider", "firecracker"]).code, 0);
    let (_, document) = doctor(&place, &[]);
    assert_eq!(check(&document, "orphans")["status"], "ok");
}

#[test]
fn a_vmm_without_a_jail_is_warned_about() {
    let place = place();
    // Any program will do: the point is that it is not jailed.
    let flags = [
        "--firecracker-binary",
        "/bin/true",
        "--firecracker-jailer",
        "none",
    ];
    let (_, document) = doctor(&place, &flags);
    let jail = check(&document, "jail");
    assert_eq!(
        (&jail["status"], &jail["details"]["class"]),
        (&"warning".into(), &"hardening".into()),
        "{document}"
    );
    let machine = Machine::start();
    Record::new("cbx_0123456789ab", "jade-krill")
        .on(&machine)
        .write(&place);
    let status = place.run(&["status", "jade-krill"]);
    assert!(
        status
            .err
            .contains("warning: lease cbx_0123456789ab runs without a jail"),
        "{}",
        status.err
    );
    assert!(!status.out.contains("jail="), "{}", status.out);
}

#[test]
fn a_look_at_this_host_is_quick() {
    let place = place();
    // The best of three, because other tests run concurrently.
    let took = (0..3).map(|_| {
        let began = std::time::Instant::now();
        doctor(&place, &[]);
        began.elapsed()
    });
    let best = took.min().unwrap();
    assert!(best < std::time::Duration::from_secs(2), "{best:?}");
}

#[test]
fn what_cannot_be_done_is_refused_and_not_ignored() {
    let answer = place().run(&["doctor", "--provider", "firecracker", "--doctor-probe-ssh"]);
    assert_eq!(answer.code, 2, "{}", answer.err);
    assert!(
        answer.err.contains("--doctor-probe-ssh needs provider=ssh"),
        "{}",
        answer.err
    );
    let answer = place().run(&["doctor", "--provider", "firecracker", "--from-run", "x"]);
    assert_eq!(answer.code, 2);
    let answer = place().run(&["doctor", "--provider", "firecracker", "--id", "cbx_000000000000"]);
    assert_eq!(answer.code, 4, "{}", answer.err);
}

#[test]
fn all_providers_are_looked_at_as_if_each_were_chosen() {
    let place = place();
    let one = |provider: &str| -> serde_json::Value {
        let answer = place.run(&["doctor", "--provider", provider, "--json"]);
        serde_json::from_str(&answer.out).unwrap()
    };
    let all = place.run(&["doctor", "--all", "--json"]);
    let document: serde_json::Value = serde_json::from_str(&all.out).unwrap();
    let checks = |document: &serde_json::Value| -> Vec<(String, String)> {
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let checks = document["checks"].as_array().unwrap().iter();
        checks
            .map(|check| (text(&check["check"]), text(&check["status"])))
            .collect()
    };
    let providers = document["providers"].as_array().unwrap();
    assert_eq!(providers.len(), 2, "{document:#}");
    for (report, name) in providers.iter().zip(["firecracker", "ssh"]) {
        assert_eq!(report["provider"], name);
        let alone = one(name);
        assert_eq!((checks(report), &report["ok"]), (checks(&alone), &alone["ok"]));
    }
    // There is no static host here.
    assert_eq!((document["ok"].as_bool(), all.code), (Some(false), 1));
    assert_eq!(all.err, "doctor found problems\n");

    // A healthy provider suffices if only that one is asked for; the chosen provider does not matter.
    let sshd = Sshd::start();
    crate::static_host::configure(&place, &sshd, "");
    let lines = place.run(&["doctor", "--all", "--providers", "static,SSH"]);
    assert_eq!(lines.code, 0, "{}{}", lines.out, lines.err);
    assert!(lines.out.starts_with("provider=ssh\n"), "{}", lines.out);
    // Two names of one provider count as one.
    assert_eq!(lines.out.matches("provider=ssh\n").count(), 1, "{}", lines.out);
    for (words, told) in [
        (&["--providers", "ssh"][..], "--providers needs --all\n"),
        (&["--fleet", "--providers", "ssh"], "--providers needs --all\n"),
        (
            &["--all", "--provider", "firecracker"],
            "--all cannot be combined with --provider; ",
        ),
        (
            &["--fleet", "--provider", "ssh"],
            "--fleet needs provider=firecracker\n",
        ),
        (
            &["--doctor-probe-ssh", "--provider", "firecracker"],
            "--doctor-probe-ssh needs provider=ssh\n",
        ),
    ] {
        let refused = place.run(&[&["doctor"], words].concat());
        assert_eq!((refused.code, refused.out.as_str()), (2, ""), "{words:?}");
        assert!(refused.err.starts_with(told), "{words:?}: {}", refused.err);
    }
    let unknown = place.run(&["doctor", "--all", "--providers", "ssh,aws"]);
    assert_eq!((unknown.code, unknown.out.as_str()), (2, ""), "{}", unknown.err);
    assert!(
        unknown.err.contains("unknown provider \"aws\""),
        "{}",
        unknown.err
    );
}

/// The links and rules of the caller's network namespace, without the rules' counters.
fn network() -> (Vec<Link>, String) {
    let links = Netlink::open().unwrap().links().unwrap();
    let rules = Cmd::new("nft").args(["list", "ruleset"]).run().unwrap();
    let rules = rules.stdout_text();
    let words = rules.split(' ').filter(|word| word.parse::<u64>().is_err());
    (links, words.collect::<Vec<_>>().join(" "))
}

/// A link to an existing next hop, with forwarding on, as on a host that already routes.
fn uplink_to(internet: &Scratch) {
    let here = netns::current().unwrap();
    internet
        .within(|| {
            let mut netlink = Netlink::open().unwrap();
            netlink.add_veth("up0", "eth0").unwrap();
            netlink
                .add_address("eth0", "192.0.2.2/24".parse().unwrap())
                .unwrap();
            netlink.set_up("eth0").unwrap();
            netlink.move_to("up0", here.as_fd()).unwrap();
        })
        .unwrap();
    let mut netlink = Netlink::open().unwrap();
    netlink
        .add_address("up0", "192.0.2.1/24".parse().unwrap())
        .unwrap();
    netlink.set_up("up0").unwrap();
    netlink
        .add_route("0.0.0.0/0".parse().unwrap(), "192.0.2.2".parse().unwrap())
        .unwrap();
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
}

#[test]
fn the_fix_of_forwarding_lets_packets_pass_when_it_is_pasted() {
    let firewalld = "nft 'table inet firewalld {
        chain filter_FORWARD {
            type filter hook forward priority filter + 10; policy accept;
            ct state { established, related } accept
            reject with icmpx admin-prohibited
        }
    }'";
    let docker = "iptables-nft -P FORWARD DROP";
    let both = format!("{docker}; {firewalld}; iptables-legacy -A FORWARD -j REJECT");
    let place = place();
    // The user who pastes the fix may be root on a host without sudo.
    fs::create_dir(place.path("bin")).unwrap();
    let sudo = place.write("bin/sudo", "#!/bin/sh\nexec \"$@\"\n");
    fs::set_permissions(sudo, fs::Permissions::from_mode(0o700)).unwrap();
    let path = format!("{}:{PATH}", place.path("bin").display());
    let shell = |line: &str| {
        Cmd::new("sh")
            .args(["-c", line])
            .env("PATH", &path)
            .run()
            .unwrap()
    };
    // Rules that drop outgoing packets, by the real uplink's name and by the addresses of leases.
    let mangled = "iptables-nft -t mangle -A POSTROUTING -s 10.213.0.0/16 -j DROP";
    let legacy_mangled = "iptables-legacy -t mangle -A POSTROUTING -o up0 -j DROP";
    let uplink =
        "nft 'table inet f { chain c { type filter hook postrouting priority 0; oifname \"up0\" drop; }; }'";
    let replies =
        "nft 'table ip f { chain c { type filter hook forward priority 0; iifname \"up0\" reject; }; }'";
    let comes_in = "iptables-legacy -t raw -A PREROUTING -i cbx+ -j DROP";
    let legacy = "iptables-legacy -P FORWARD DROP";
    for firewall in [
        docker,
        firewalld,
        legacy,
        &both,
        mangled,
        legacy_mangled,
        uplink,
        replies,
        comes_in,
    ] {
        let netns = place.path("netns");
        netns::create(&netns).unwrap();
        let internet = Scratch::new().unwrap();
        netns::within(&netns, || {
            uplink_to(&internet);
            shell(firewall);
            let before = network();
            let document = doctor(&place, &[]).1;
            let found = check(&document, "forwarding");
            assert_eq!(found["status"], "warning", "{firewall}: {found}");
            assert_eq!(network(), before, "{firewall}: the doctor leaves something");
            shell(found["details"]["fix"].as_str().unwrap());
            let document = doctor(&place, &[]).1;
            let found = check(&document, "forwarding");
            assert_eq!(found["status"], "ok", "{firewall}: {found}");
            // iptables can still read the rules that nft inserted.
            shell("iptables-nft -S FORWARD; iptables-nft -t mangle -S POSTROUTING");
        })
        .unwrap();
        netns::remove(&netns).unwrap();
    }
}
