//! The checks that every provider has, and those of a static host.

use super::*;
use crate::provider::static_host::checks;

fn generic(variables: &[(&str, &str)], tools: &Tools, options: &Options) -> Vec<Check> {
    generic::checks(&settings(variables), options, tools)
}

#[test]
fn the_generic_checks_come_first_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        config_file: dir.path().join("config.yaml"),
        ..Options::default()
    };
    std::fs::write(&options.config_file, "").unwrap();
    let mode = |mode| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&options.config_file, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(0o600);
    let mut tools = healthy().tools;
    tools.insert("rsync", None);
    let checks = generic(&[("PROVIDER", "firecracker")], &tools, &options);
    let names: Vec<_> = checks.iter().map(|check| check.check).collect();
    assert_eq!(
        names,
        [
            "config",
            "provider-selection",
            "git",
            "ssh",
            "ssh-keygen",
            "rsync",
            "ssh-key"
        ]
    );
    let json = |check: &Check| serde_json::to_string(check).unwrap();
    assert_eq!(
        json(&checks[1]),
        r#"{"status":"ok","check":"provider-selection","provider":"firecracker","message":"provider=firecracker source=environment selected=true","details":{"provider":"firecracker","selected":"true","source":"environment"}}"#
    );
    assert_eq!(
        json(&checks[2]),
        r#"{"status":"ok","check":"git","message":"/usr/bin/git","details":{"path":"/usr/bin/git","tool":"git"}}"#
    );
    assert_eq!(
        json(&checks[5]),
        r#"{"status":"missing","check":"rsync","details":{"fix":"sudo apt-get install rsync","tool":"rsync"}}"#
    );
    assert_eq!(
        json(&checks[6]),
        r#"{"status":"ok","check":"ssh-key","message":"per-lease","details":{"mode":"per-lease"}}"#
    );
    assert!(!is_well(&checks));
    assert!(checks[0].message.ends_with("config.yaml permissions=0600"));
    mode(0o400);
    assert_eq!(generic(&[], &tools, &options)[0].status, Status::Ok);
    mode(0o700);
    assert_eq!(generic(&[], &tools, &options)[0].status, Status::Failed);
    mode(0o644);
    let checks = generic(&[], &tools, &options);
    assert_eq!(checks[0].status, Status::Failed);
    assert!(
        checks[0]
            .message
            .ends_with("config.yaml: permissions 0644 want 0600")
    );
    assert!(checks[0].details["fix"].starts_with("chmod 600 "));
    assert_eq!((checks[1].status, &checks[1].provider), (Status::Warning, &None));
    std::fs::remove_file(&options.config_file).unwrap();
    assert_eq!(generic(&[], &tools, &options)[0].check, "provider-selection");
}

#[test]
fn a_configuration_that_makes_no_sense_is_one_check_in_place_of_all() {
    let settings = settings(&[("PROVIDER", "firecracker"), ("FIRECRACKER_CPUS", "0")]);
    let error = firecracker::plan(&settings).unwrap_err();
    let check = generic::invalid("firecracker", &error);
    assert_eq!(
        check.message,
        "provider=firecracker class=config hint=check_provider_config provider=firecracker requires firecracker.cpus > 0"
    );
    let keys = ["provider", "class", "hint", "error"];
    assert!(keys.iter().all(|key| check.details.contains_key(*key)));
    assert_eq!((check.status, check.check), (Status::Failed, "provider"));
}

#[test]
fn a_static_host_is_described_and_a_missing_one_is_told() {
    let check = checks::configured(
        &settings(&[("PROVIDER", "ssh"), ("STATIC_HOST", "build.example")]),
        None,
    );
    assert_eq!(
        check.message,
        "provider=ssh timeout=10s target=linux windows_mode=normal host=build.example api=static_config mutation=false runtime=unchecked"
    );
    let macos = [
        ("PROVIDER", "ssh"),
        ("STATIC_HOST", "build.example"),
        ("TARGET", "macos"),
    ];
    let check = checks::configured(&settings(&macos), None);
    assert!(
        check.message.ends_with("provider=ssh supports target=linux only"),
        "{}",
        check.message
    );
    let check = checks::configured(&settings(&[("PROVIDER", "ssh")]), None);
    assert!(
        check.message.ends_with("missing static.host"),
        "{}",
        check.message
    );
    assert_eq!(
        (check.status, check.details["class"].as_str()),
        (Status::Failed, "config")
    );
}
