//! What the user's `ssh_config` does to a host of provider `ssh`: proxies, keys and forwards of their own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crabbox_host::clock::poll_until;
use crabbox_host::command::Cmd;
use crabbox_testkit::sshd::Sshd;

use crate::place::{Answer, Place};
use crate::static_host::{configure, existing};

/// An existing host whose client reads `home/.ssh/config`. (ssh itself takes the home from the password file.)
fn with_config() -> (Place, Sshd) {
    let (place, sshd) = existing();
    fs::create_dir(place.path("bin")).unwrap();
    let config = place.path("home/.ssh/config");
    let script = format!("#!/bin/sh\nexec /usr/bin/ssh -F '{}' \"$@\"\n", config.display());
    let program = place.write("bin/ssh", script);
    fs::set_permissions(program, fs::Permissions::from_mode(0o700)).unwrap();
    configure(&place, &sshd, "");
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", place.path("bin").display());
    (place.env("PATH", path), sshd)
}

/// A host named `bastion` in the configuration, which is the same sshd.
fn bastion(sshd: &Sshd, key: &Path, more: &str) -> String {
    format!(
        "Host bastion\n HostName 127.0.0.1\n Port {}\n User {}\n BatchMode yes\n UserKnownHostsFile /dev/null\n \
         IdentitiesOnly yes\n IdentityFile {}\n {more}\n",
        sshd.port(),
        sshd.user(),
        key.display(),
    )
}

/// The answer to a run under `config`, which blames neither the host's key nor ours.
fn refused(place: &Place, config: &str) -> Answer {
    place.write(
        "home/.ssh/config",
        format!("{config}\nHost *\n StrictHostKeyChecking no\n"),
    );
    let answer = place.run(&["run", "--", "true"]);
    assert_eq!(answer.code, 5, "{config}: {}", answer.err);
    for misleading in ["UNKNOWN port", "authorized_keys", "remove its old key"] {
        assert!(!answer.err.contains(misleading), "{config}: {}", answer.err);
    }
    answer
}

#[test]
fn a_proxy_that_fails_gives_its_own_reason() {
    let (place, sshd) = with_config();
    let over = |bastion: String| format!("Host 127.0.0.1\n ProxyJump bastion\n{bastion}");
    for (config, said, retry) in [
        (
            "Host 127.0.0.1\n ProxyJump nosuchhost.invalid\n".to_owned(),
            "Could not resolve hostname nosuchhost.invalid",
            "false",
        ),
        (
            // Nothing listens on port 1.
            "Host 127.0.0.1\n ProxyJump u@127.0.0.2:1\n".to_owned(),
            "connect to host 127.0.0.2 port 1: Connection refused",
            "true",
        ),
        (
            over(bastion(&sshd, &sshd.dir().join("host_key"), "")),
            "Permission denied (publickey).",
            "false",
        ),
        (
            over(bastion(&sshd, &sshd.client_key(), "StrictHostKeyChecking yes")),
            "Host key verification failed.",
            "false",
        ),
    ] {
        let answer = refused(&place, &config);
        for part in [
            said,
            "ProxyJump or ProxyCommand",
            &format!("retry_likely={retry}\n"),
        ] {
            assert!(answer.err.contains(part), "{config}: {}", answer.err);
        }
    }
}

#[test]
fn a_proxy_that_does_not_exist_is_told_at_once() {
    let (place, _sshd) = with_config();
    let begun = Instant::now();
    let answer = refused(&place, "Host 127.0.0.1\n ProxyCommand nosuchprogram %h %p\n");
    assert!(answer.err.contains("nosuchprogram: not found"), "{}", answer.err);
    assert!(answer.err.contains("retry_likely=false\n"), "{}", answer.err);
    // A connection that was cut off is tried for eight seconds.
    assert!(begun.elapsed() < Duration::from_secs(7), "{:?}", begun.elapsed());
}

/// Makes a key in `home/.ssh`.
fn make_key(place: &Place, name: &str, passphrase: &str) -> PathBuf {
    let path = place.path("home/.ssh").join(name);
    Cmd::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", passphrase, "-f"])
        .arg(&path)
        .run()
        .unwrap();
    path
}

#[test]
fn a_key_of_the_configuration_that_cannot_be_used_is_named_with_its_reason() {
    let (place, sshd) = with_config();
    let text = fs::read_to_string(place.path("home/.config/crabbox/config.yaml")).unwrap();
    let without: Vec<&str> = text.lines().filter(|line| !line.contains("key:")).collect();
    place.write(
        "home/.config/crabbox/config.yaml",
        without.join("\n").replace("ssh:\nstatic:", "static:"),
    );
    let (open, locked) = (make_key(&place, "open", ""), make_key(&place, "locked", "secret"));
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let public = place.path("home/.ssh/open.pub");
    let refused = |keys: &[&Path]| {
        let keys = keys
            .iter()
            .map(|key| format!(" IdentityFile {}\n", key.display()));
        let config = format!("Host *\n StrictHostKeyChecking no\n{}", keys.collect::<String>());
        place.write("home/.ssh/config", config);
        let answer = place.run(&["run", "--", "true"]);
        assert_eq!(answer.code, 5, "{}", answer.err);
        answer.err
    };
    for (key, reason) in [
        (&open, "Permissions 0644 for '"),
        (&locked, "is encrypted with a passphrase"),
        (&public, "is the public half"),
    ] {
        let said = refused(&[key]);
        assert!(
            said.contains(reason) && said.contains(key.to_str().unwrap()),
            "{said}"
        );
        assert!(
            !said.contains("authorized_keys"),
            "the server has not seen it: {said}"
        );
    }
    // With one that the host refused, either may be the one that was meant.
    let said = refused(&[&locked, &sshd.dir().join("host_key")]);
    for part in [
        "Permission denied (publickey).",
        "is encrypted with a passphrase",
        "authorized_keys",
    ] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn an_agent_that_does_not_sign_is_told_with_what_ssh_says_of_it() {
    let (place, _sshd) = with_config();
    place.write("home/.ssh/config", "");
    let socket = place.path("agent");
    let cmd = Cmd::new("ssh-agent").arg("-D").arg("-a").arg(&socket);
    let mut agent = cmd.spawn(cmd.to_std().stdout(Stdio::null())).unwrap();
    let listens = poll_until(Duration::from_secs(30), || socket.exists().then_some(()));
    // It would have to ask for each use, and nobody is there who could answer.
    let added = Cmd::new("ssh-add")
        .args(["-q", "-c"])
        .arg(place.path("home/.ssh/key"))
        .env("SSH_AUTH_SOCK", &socket)
        .capture();
    let place = place.env("SSH_AUTH_SOCK", &socket);
    let answer = place.run(&["run", "--", "true"]);
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert!(listens.is_some() && added.unwrap().status.success());
    assert_eq!(answer.code, 5, "{}", answer.err);
    for part in ["agent refused operation", "Permission denied (publickey)."] {
        assert!(answer.err.contains(part), "{}", answer.err);
    }
}
