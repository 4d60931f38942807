//! The name of a command for the Go program, which is the start time that ps(1) prints, where there is no ps.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command as Program;

use crabbox_agent_protocol::{Reply, Request};

use super::Agent;

/// The start time of a process as ps prints it in a time zone, with single spaces. `zone` is an argument of
/// env(1).
fn by_ps(zone: &str, pid: u32) -> String {
    let mut ps = Program::new("env");
    ps.args([zone, "ps", "-o", "lstart=", "-p", &pid.to_string()]);
    let said = String::from_utf8(ps.output().unwrap().stdout).unwrap();
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn without_ps_a_command_is_named_in_the_local_time_that_ps_would_print() {
    let home = tempfile::tempdir().unwrap();
    // The first ps on its path says nothing, as where there is none.
    let bin = home.path().join("bin");
    fs::create_dir(&bin).unwrap();
    fs::write(bin.join("ps"), "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(bin.join("ps"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("PATH={}:{}", bin.display(), std::env::var("PATH").unwrap());
    let owners = home.path().join(".crabbox/workspace-owners");
    let child = owners.join("ab".repeat(32)).with_added_extension("child");
    for (zone, is_known) in [
        ("--unset=TZ", true),
        ("TZ=", true),
        ("TZ=UTC", true),
        ("TZ=Europe/Berlin", true),
        ("TZ=:Asia/Kathmandu", true),
        ("TZ=America/St_Johns", true),
        ("TZ=/usr/share/zoneinfo/Australia/Lord_Howe", true),
        // A rule, and no zone at all: rather no text than a wrong one.
        ("TZ=XXX-3:17", false),
        ("TZ=none", false),
    ] {
        let mut agent = Agent::start(home.path(), &["env", zone, &path]);
        agent.own();
        assert_eq!(agent.reply(), Reply::Owned { recovered: false }, "{zone}");
        agent.run(&["sh", "-c", "echo $$; exec sleep 20"]);
        let pid = agent.number();
        let text = fs::read_to_string(&child).unwrap();
        let named = text.lines().nth(1).unwrap();
        if is_known {
            assert_eq!(named, by_ps(zone, pid), "{zone}");
        } else {
            assert_eq!(named, "not asked yet", "{zone}");
        }
        agent.say(&Request::Stop {});
        assert_eq!(agent.reply(), Reply::Stopped { gone: true }, "{zone}");
        agent.say(&Request::Release {});
        assert_eq!(agent.reply(), Reply::Released {}, "{zone}");
    }
}
