//! What a repository may set, and what only the user.

use super::*;

#[test]
fn a_repository_sets_no_host_only_key_whatever_it_writes() {
    let untouched = world().resolve().unwrap();
    for key in KEYS.iter().filter(|key| !key.trust.is_open_to_repositories()) {
        let (section, leaf) = key.path.split_once('.').unwrap();
        for value in ["/evil", "[1]", "{a: b}", "''"] {
            let world = world().repo(&format!("{section}:\n  {leaf}: {value}\n"));
            let resolution = world.resolve().unwrap();
            assert_eq!(
                resolution.explain(key.name),
                untouched.explain(key.name),
                "{}",
                key.path
            );
            let warnings = world.warnings();
            let said = format!(
                "/w/repo/crabbox.yaml:2:{}: {} is ignored: a repository file must not",
                leaf.len() + 5,
                key.path
            );
            assert!(
                warnings.len() == 1 && warnings[0].starts_with(&said),
                "{warnings:?}"
            );
            assert!(warnings[0].contains(key.variables[0]), "{warnings:?}");
        }
        let mine = match key.kind {
            Kind::Integer | Kind::Port | Kind::Ports => "7",
            Kind::Choice(choice) => named(choice)[1],
            Kind::Duration => "7m",
            Kind::List => "mine:/data",
            _ => "/mine",
        };
        let set = world()
            .user(&format!("{section}: {{{leaf}: {mine}}}"))
            .resolve()
            .unwrap();
        assert_eq!(set.explain(key.name).layer(), Layer::UserFile, "{}", key.path);
    }
}

#[test]
fn paths_of_a_file_start_at_the_file_and_those_of_a_flag_at_the_current_directory() {
    let file = world()
        .user("firecracker: {kernel: boot/vmlinux, rootfs: ~/r.ext4, binary: firecracker}")
        .settings();
    assert_eq!(
        file.firecracker.kernel.value.as_path(),
        Path::new("/h/.config/crabbox/boot/vmlinux")
    );
    assert_eq!(file.firecracker.rootfs.value.as_path(), Path::new("/h/r.ext4"));
    assert_eq!(file.firecracker.binary.value.as_path(), Path::new("firecracker"));
    let flag = world().flag(Name::FirecrackerKernel, &["vmlinux"]).settings();
    assert_eq!(
        flag.firecracker.kernel.value.as_path(),
        Path::new("/w/repo/sub/vmlinux")
    );
}

#[test]
fn a_host_that_only_a_repository_names_is_refused_whatever_key_it_brings() {
    for key in [
        "",
        "ssh: {key: keys/id}\n",
        "ssh: {key: link-to-the-user-s}\n",
        "ssh: {key: ~/.ssh/id_ed25519}\n",
    ] {
        let world = world().repo(&format!("provider: ssh\nstatic: {{host: evil.example}}\n{key}"));
        let error = world.resolve().unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("provider=ssh refuses repository-configured static.host with inherited"),
            "{error}"
        );
        let hints = crate::fault::Fault::hints(&error).join("\n");
        assert!(hints.contains("/w/repo/crabbox.yaml:2:16"), "{hints}");
        assert!(hints.contains("into /h/.config/crabbox/config.yaml"), "{hints}");
    }
    // Another provider does not use it.
    let other = world().repo("provider: firecracker\nstatic: {host: h}\n");
    assert_eq!(other.settings().static_host.host.value, "");
    assert_eq!(other.warnings().len(), 1);
}

/// A host approved by the user, together with a port, user, key or directory chosen by a repository, is
/// another destination.
#[test]
fn nothing_of_a_repository_gets_into_a_destination() {
    let repository = "provider: ssh\nworkRoot: /evil\nssh: {user: evil, key: keys/id, port: 6666, fallbackPorts: [6666]}\n\
                      static: {id: evil, name: evil, host: evil, user: evil, port: 6666, workRoot: /evil}\n";
    let trusted = [
        world().user("provider: ssh\nstatic: {host: mine}\n"),
        world().env("CRABBOX_STATIC_HOST", "mine"),
        world().flag(Name::StaticHost, &["mine"]),
    ];
    for layers in trusted {
        let alone = layers.settings();
        let layers = layers.repo(repository);
        let settings = layers.settings();
        assert_eq!(settings.provider(), Ok(Provider::Ssh));
        assert_eq!(settings.static_host.host.value, "mine");
        for (ours, theirs) in [
            (&settings.static_host.id, &alone.static_host.id),
            (&settings.static_host.name, &alone.static_host.name),
            (&settings.static_host.user, &alone.static_host.user),
            (&settings.static_host.work_root, &alone.static_host.work_root),
            (&settings.static_host.ssh_user, &alone.static_host.ssh_user),
            (
                &settings.static_host.general_work_root,
                &alone.static_host.general_work_root,
            ),
        ] {
            assert_eq!(ours, theirs);
        }
        assert_eq!(settings.static_host.port, alone.static_host.port);
        assert_eq!(settings.static_host.ssh_port, alone.static_host.ssh_port);
        assert_eq!(settings.ssh.key, alone.ssh.key);
        assert_eq!(settings.ssh.fallback_ports, alone.ssh.fallback_ports);
        let warnings = layers.warnings();
        for (place, key) in [
            ("2:11", "workRoot"),
            ("3:13", "ssh.user"),
            ("3:24", "ssh.key"),
            ("3:39", "ssh.port"),
            ("3:60", "ssh.fallbackPorts"),
            ("4:14", "static.id"),
            ("4:26", "static.name"),
            ("4:38", "static.host"),
            ("4:50", "static.user"),
            ("4:62", "static.port"),
            ("4:78", "static.workRoot"),
        ] {
            let start = format!(
                "/w/repo/crabbox.yaml:{place}: {key} is ignored: a repository file must not choose where your files, secrets \
                 and logins go; set it in your own configuration file (crabbox config path)"
            );
            assert!(
                warnings.iter().any(|line| line.starts_with(&start)),
                "{start}\n{warnings:#?}"
            );
        }
        assert_eq!(warnings.len(), 11, "{warnings:#?}");
    }
}

#[test]
fn a_repository_may_still_say_how_a_machine_of_our_making_is_entered() {
    let settings = world()
        .repo("provider: firecracker\nworkRoot: /w\nssh: {user: u, port: 2200}\n")
        .settings();
    assert_eq!(
        (
            settings.ssh.user.value.as_str(),
            settings.ssh.port.value,
            settings.work_root.value.as_str()
        ),
        ("u", 2200, "/w")
    );
}

#[test]
fn a_repository_does_not_exchange_the_provider_that_the_user_chose() {
    for (mine, other) in [
        ("ssh", "firecracker"),
        ("firecracker", "static"),
        ("firecracker", "hetzner"),
    ] {
        let chosen = world().user(&format!("provider: {mine}\n"));
        let layers = chosen.repo(&format!("provider: {other}\n"));
        assert_eq!(layers.settings().provider.value, mine);
        assert_eq!(
            layers.warnings(),
            [format!(
                "/w/repo/crabbox.yaml:1:11: provider \"{other}\" is ignored: you chose {mine} \
                 (/h/.config/crabbox/config.yaml:1:11); --provider {other} takes it for once"
            )]
        );
        let flagged = layers.flag(Name::ProviderName, &[other]);
        assert_eq!(flagged.settings().provider.value, other);
    }
    let same = world().user("provider: ssh\n").repo("provider: static-ssh\n");
    assert_eq!(same.warnings(), [] as [String; 0]);
    let silent = world().repo("provider: firecracker\n").settings();
    assert_eq!(silent.provider(), Ok(Provider::Firecracker));
}
