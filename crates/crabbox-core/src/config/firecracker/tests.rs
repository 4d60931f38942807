//! Normalisation and checks, with the exact messages.

use std::path::Path;

use super::super::key::Name;
use super::super::tests::{World, world};
use super::*;

fn planned(world: &World) -> FirecrackerPlan {
    plan(&world.settings()).unwrap()
}

fn refusal(world: &World) -> String {
    plan(&world.settings()).unwrap_err().to_string()
}

#[test]
fn defaults_make_a_lease() {
    let plan = planned(&world());
    assert_eq!(
        (plan.user.as_str(), plan.work_root.as_str(), plan.ssh_port),
        ("crabbox", "/work/crabbox", 22)
    );
    assert_eq!((plan.cpus, plan.memory_mib, plan.disk_mib), (4, 4096, 16384));
    assert_eq!(
        (plan.jailer, plan.network, plan.server_type.as_str()),
        (Jailer::Auto, None, "microvm")
    );
    assert!(plan.kernel.is_default() && plan.rootfs.is_default());
    assert_eq!(plan.launch_timeout.to_string(), "2m0s");
}

#[test]
fn user_and_work_root_fall_back_to_the_generic_ones() {
    let generic = planned(&world().user("ssh: {user: ann}\nworkRoot: /srv/w"));
    assert_eq!(
        (generic.user.as_str(), generic.work_root.as_str()),
        ("ann", "/srv/w")
    );
    let own = planned(
        &world().user("ssh: {user: ann}\nworkRoot: /srv/w\nfirecracker: {user: bob, workRoot: /srv/b}"),
    );
    assert_eq!((own.user.as_str(), own.work_root.as_str()), ("bob", "/srv/b"));
}

#[test]
fn an_explicit_port_is_kept_even_if_it_is_the_generic_default() {
    assert_eq!(planned(&world().env("CRABBOX_SSH_PORT", "2222")).ssh_port, 2222);
    assert_eq!(planned(&world().user("ssh: {port: 2200}")).ssh_port, 2200);
}

#[test]
fn a_jailer_is_automatic_off_or_a_program() {
    let jailer = |value| planned(&world().flag(Name::FirecrackerJailer, &[value])).jailer;
    assert_eq!(jailer("none"), Jailer::Off);
    assert_eq!(jailer(""), Jailer::Auto);
    match jailer("/opt/jailer") {
        Jailer::Program(path) => assert_eq!(path.as_path(), Path::new("/opt/jailer")),
        other => panic!("{other:?}"),
    }
    // A repository can neither choose the jailer program nor disable the jail.
    assert_eq!(
        planned(&world().repo("firecracker: {jailer: none}")).jailer,
        Jailer::Auto
    );
}

#[test]
fn network_modes_are_known() {
    let mode =
        |value| plan(&world().flag(Name::FirecrackerNetwork, &[value]).settings()).map(|plan| plan.network);
    assert_eq!(mode("cni"), Ok(Some(NetworkMode::Cni)));
    assert_eq!(mode("nat"), Ok(Some(NetworkMode::Nat)));
    for unset in ["auto", ""] {
        assert_eq!(mode(unset), Ok(None));
    }
    assert_eq!(
        mode("bridge"),
        Err(InvalidFirecracker::Network {
            network: "bridge".into()
        })
    );
}

#[test]
fn a_work_root_that_our_guest_refuses_is_refused_before_there_is_one() {
    for path in ["//", "/.", "/work/.", &format!("/{}", "x".repeat(MAX_WORK_ROOT))] {
        assert_eq!(
            refusal(&world().user(&format!("firecracker: {{workRoot: {path}}}"))),
            "provider=firecracker requires firecracker.workRoot to lie below / without dots in up to 1024 bytes",
            "{path}"
        );
    }
    for path in ["/work/crabbox", "/work/", "/.cache", "/a..b"] {
        let world = world().user(&format!("firecracker: {{workRoot: {path}}}"));
        assert_eq!(planned(&world).work_root, path);
    }
}

#[test]
fn refusals_have_the_go_programs_words() {
    let firecracker = |text: &str| world().user(&format!("firecracker: {{{text}}}"));
    let cases = [
        (
            world().user("target: windows"),
            "provider=firecracker supports target=linux only",
        ),
        (
            world().user("network: tailscale"),
            "provider=firecracker does not support tailscale-managed networking",
        ),
        (
            world().flag(Name::FirecrackerUser, &[""]),
            "provider=firecracker requires firecracker.user",
        ),
        (
            firecracker("workRoot: work"),
            "provider=firecracker requires firecracker.workRoot to be an absolute POSIX path",
        ),
        (
            firecracker("workRoot: /a/../../etc"),
            "provider=firecracker requires firecracker.workRoot to be an absolute POSIX path",
        ),
        (
            firecracker("cpus: 0"),
            "provider=firecracker requires firecracker.cpus > 0",
        ),
        (
            firecracker("memoryMiB: -1"),
            "provider=firecracker requires firecracker.memoryMiB > 0",
        ),
        (
            firecracker("diskMiB: 0"),
            "provider=firecracker requires firecracker.diskMiB > 0",
        ),
        (
            firecracker("cpus: 33"),
            "provider=firecracker requires firecracker.cpus between 1 and 32, found 33",
        ),
        (
            firecracker("memoryMiB: 9223372036854775807"),
            "provider=firecracker requires firecracker.memoryMiB between 64 and 16777216, found 9223372036854775807",
        ),
        (
            world().flag(Name::Class, &["beast"]),
            "--class is not supported for provider=firecracker; use --firecracker-cpus, --firecracker-memory-mib, and --firecracker-disk-mib",
        ),
        (
            world().flag(Name::ServerType, &["x"]),
            "--type is not supported for provider=firecracker; use explicit Firecracker kernel, rootfs, and sizing flags",
        ),
        (
            world().env("CRABBOX_DESKTOP", "1"),
            "desktop/VNC is not supported for provider=firecracker",
        ),
        (
            world().env("CRABBOX_BROWSER", "1"),
            "browser provisioning is not supported for provider=firecracker",
        ),
        (
            world().env("CRABBOX_CODE", "1"),
            "web code is not supported for provider=firecracker",
        ),
        (
            world().user("architecture: arm64"),
            "provider=firecracker does not support architecture=arm64",
        ),
    ];
    for (world, want) in cases {
        assert_eq!(refusal(&world), want);
    }
}

#[test]
fn a_volume_that_cannot_be_there_is_refused_by_name() {
    let cases = [
        (
            world().user(
                "firecracker: {host: a@b}\ncache: {volumes: [{key: a, path: /a}, {name: deps, key: k, path: /d, required: true}]}",
            ),
            "a lease on another host (firecracker.host) does not support required cache volume \"deps\"",
        ),
        (
            world().user("cache: {volumes: [{key: k, path: /work/crabbox/x}]}"),
            "provider=firecracker requires cache volume \"k\" to be mounted neither in nor around firecracker.workRoot /work/crabbox",
        ),
        (
            world().user("firecracker: {workRoot: //work//crabbox/}\ncache: {volumes: [{key: k, path: /work}]}"),
            "provider=firecracker requires cache volume \"k\" to be mounted neither in nor around firecracker.workRoot //work//crabbox/",
        ),
    ];
    for (world, want) in cases {
        assert_eq!(refusal(&world), want);
    }
    let ours = planned(&world().user("cache: {volumes: [{key: k, path: /work/other, required: true}]}"));
    assert_eq!(ours.volumes.len(), 1);
}

#[test]
fn class_and_type_of_a_file_are_labels() {
    let plan = planned(&world().user("class: small\nserverType: mine"));
    assert_eq!(
        (plan.class.as_str(), plan.server_type.as_str()),
        ("small", "mine")
    );
}

#[test]
fn a_user_that_could_be_taken_for_an_option_is_refused() {
    for user in [
        "-oProxyCommand=x",
        "a b",
        "Ann",
        "a;b",
        "1a",
        "a\u{e9}",
        &"a".repeat(33),
    ] {
        let error = plan(&world().flag(Name::FirecrackerUser, &[user]).settings()).unwrap_err();
        assert_eq!(error, InvalidFirecracker::UserName { user: user.into() });
    }
}
