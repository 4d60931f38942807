//! `config show` and `config path`: the exact text and JSON, and the provider's checks.

use crate::place::{Place, run};

#[test]
fn config_show_prints_every_group() {
    let place = Place::new();
    let answer = place.run(&[
        "config",
        "show",
        "--provider",
        "firecracker",
        "-firecracker-cpus",
        "2",
        "--firecracker-host",
        "crabbox@kvm1",
    ]);
    let home = place.path("home");
    let home = home.display();
    let want = format!(
        "config={home}/.config/crabbox/config.yaml\n\
         provider=firecracker provider_selected=true provider_source=flag target=linux arch=amd64 os=- windows_mode=- class=beast type=microvm profile=default\n\
         ssh=crabbox@<host>:22 fallback_ports=- key={home}/.ssh/id_ed25519\n\
         lease ttl=1h30m0s idle_timeout=30m0s work_root=/work/crabbox\n\
         sync delete=true checksum=false git_seed=true fingerprint=true base_ref=- excludes=35 includes=0 timeout=15m0s\n\
         env allow=CI,NODE_OPTIONS\n\
         run preflight_tools=-\n\
         static id=- name=- host=- user=- port=- work_root=-\n\
         results junit=- auto=false fail_on_failures=false\n\
         cache pnpm=true npm=true docker=true git=true max_gb=80 purge_on_release=false volumes=0\n\
         firecracker binary=firecracker jailer=- kernel=/var/lib/crabbox/firecracker/vmlinux rootfs=/var/lib/crabbox/firecracker/rootfs.ext4 user=crabbox work_root=/work/crabbox cpus=2 memory_mib=4096 disk_mib=16384 network=auto cni_network=crabbox-firecracker cni_conf_dir=/etc/cni/conf.d cni_bin_dir=/opt/cni/bin launch_timeout=2m0s delete_on_release=true\n\
         firecracker host=crabbox@kvm1 image=- warm=auto pool=0 pool_max_age=30m0s max_leases=0 max_leases_per_owner=0 max_memory_mib_per_owner=0 reserve_memory_mib=256 reserve_disk_mib=512 first_uid=1900000000 uid_count=4096\n"
    );
    assert_eq!((answer.code, answer.out, answer.err), (0, want, String::new()));
}

#[test]
fn config_show_says_what_a_lease_of_the_static_host_is_entered_with() {
    let place = Place::new();
    place.write(
        "home/.config/crabbox/config.yaml",
        "provider: static\nssh: {user: other, port: 2200}\nworkRoot: /other\nsync: {exclude: [mine]}\n\
         static: {host: 192.0.2.1, user: me, port: 22022, workRoot: /srv/trees}\n",
    );
    let shown = |words: &[&str]| -> serde_json::Value {
        let answer = place.run(&[&["config", "show", "--json"], words].concat());
        assert_eq!((answer.code, answer.err.as_str()), (0, ""));
        serde_json::from_str(&answer.out).unwrap()
    };
    let json = shown(&[]);
    assert_eq!(json["provider"], "ssh");
    assert_eq!(
        [&json["sshUser"], &json["sshPort"], &json["workRoot"]],
        ["me", "22022", "/srv/trees"]
    );
    let excludes = json["sync"]["exclude"].as_array().unwrap();
    assert_eq!(
        (excludes.len(), &excludes[0], &excludes[35]),
        (36, &".git".into(), &"mine".into())
    );
    assert!(excludes.contains(&".crabbox/runs".into()), "{excludes:?}");
    // A host without its own value uses the general one; a microVM uses none of the host's.
    place.write(
        "home/.config/crabbox/config.yaml",
        "provider: ssh\nssh: {user: other, port: 2200}\nstatic: {host: 192.0.2.1, workRoot: /srv/trees}\n",
    );
    let json = shown(&[]);
    assert_eq!(
        [&json["sshUser"], &json["sshPort"], &json["workRoot"]],
        ["other", "2200", "/srv/trees"]
    );
    let json = shown(&["--provider", "firecracker"]);
    assert_eq!(json["workRoot"], "/work/crabbox");
}

#[test]
fn config_show_json_is_one_line_with_the_go_programs_keys() {
    let place = Place::new();
    place.write(
        "home/.config/crabbox/config.yaml",
        "profile: a<b>&c\nfirecracker: {launchTimeout: 90s}\n",
    );
    let answer = place.run(&["config", "show", "--json"]);
    assert_eq!((answer.code, answer.out.matches('\n').count()), (0, 1));
    assert!(answer.out.starts_with(r#"{"profile":"a\u003cb\u003e\u0026c","provider":"","providerSelected":false,"providerSource":"compiled_default","target":"linux","#), "{}", answer.out);
    let json: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(json["sshPort"], "2222");
    assert_eq!(json["sshFallbackPorts"], serde_json::json!(["22"]));
    assert_eq!(json["sync"]["timeout"], "15m0s");
    let keys: Vec<&String> = json["firecracker"].as_object().unwrap().keys().collect();
    assert_eq!(
        keys,
        [
            "binary",
            "jailer",
            "kernel",
            "rootfs",
            "user",
            "workRoot",
            "cpus",
            "memoryMiB",
            "diskMiB",
            "network",
            "cniNetwork",
            "cniConfDir",
            "cniBinDir",
            "launchTimeout",
            "deleteOnRelease",
            // This program's own keys, after those of the Go program.
            "host",
            "image",
            "warm",
            "pool",
            "poolMaxAge",
            "maxLeases",
            "maxLeasesPerOwner",
            "maxMemoryMiBPerOwner",
            "reserveMemoryMiB",
            "reserveDiskMiB",
            "firstUid",
            "uidCount",
        ]
    );
    assert_eq!(json["firecracker"]["launchTimeout"], "1m30s");
}

#[test]
fn config_show_has_the_volumes_and_jobs_and_words_as_they_are_understood() {
    let place = Place::new();
    place.write(
        "home/.config/crabbox/config.yaml",
        "provider: firecracker\nfirecracker: {network: CNI, warm: 'OFF '}\n\
         cache: {volumes: [{name: pnpm, key: k, path: /data, sizeGB: 3, required: true}]}\n",
    );
    place.write(
        "repo/crabbox.yaml",
        "jobs:\n  all: {target: linux, windows: {mode: normal}, ttl: 1h, shell: true, junit: [a.xml, b.xml], downloads: [x=y], \
         command: make, stop: always, hydrate: {actions: true}}\n  less: {syncOnly: true}\n  bad: {shell: maybe}\n",
    );
    let answer = place.run(&["config", "show", "--json"]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    assert!(answer.err.contains("jobs.bad.shell"), "{}", answer.err);
    let json: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(
        json["cache"]["volumes"],
        serde_json::json!([{"name": "pnpm", "key": "k", "path": "/data", "sizeGB": 3, "required": true}])
    );
    let network = [&json["firecracker"]["network"], &json["firecracker"]["warm"]];
    assert_eq!(network, ["cni", "off"]);
    let names: Vec<&String> = json["jobs"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["all", "less"]);
    let job = &json["jobs"]["all"];
    for (field, value) in [
        ("target", serde_json::json!("linux")),
        ("windowsMode", "normal".into()),
        ("ttl", "1h".into()),
        ("shell", true.into()),
        ("noSync", false.into()),
        ("junit", serde_json::json!(["a.xml", "b.xml"])),
        ("downloads", serde_json::json!(["x=y"])),
        ("command", "make".into()),
        ("stop", "always".into()),
        ("provider", "".into()),
        (
            "hydrate",
            serde_json::json!({"actions": true, "githubRunner": false}),
        ),
    ] {
        assert_eq!(job[field], value, "{field}");
    }
    let text = place.run(&["config", "show"]).out;
    assert!(
        text.contains(" purge_on_release=false volumes=1\njobs=all,less\nfirecracker ")
            && text.contains(" network=cni "),
        "{text}"
    );
}

#[test]
fn config_show_checks_what_the_provider_would_check() {
    let cases: &[(&[&str], &str)] = &[
        (
            &["--firecracker-cpus", "0"],
            "provider=firecracker requires firecracker.cpus > 0\n",
        ),
        (
            &["--firecracker-cpus=-4"],
            "provider=firecracker requires firecracker.cpus > 0\n",
        ),
        (
            &["--firecracker-disk-mib", "9223372036854775807"],
            "provider=firecracker requires firecracker.diskMiB between 1 and 16777216, found 9223372036854775807\n",
        ),
        (
            &["--firecracker-memory-mib", "99999999999999999999"],
            "invalid value \"99999999999999999999\" for flag -firecracker-memory-mib: expected a whole number\n",
        ),
    ];
    for (flags, want) in cases {
        let words: Vec<&str> = ["config", "show", "--provider", "firecracker"]
            .iter()
            .chain(*flags)
            .copied()
            .collect();
        let answer = run(&words);
        assert_eq!((answer.code, answer.err.as_str()), (2, *want), "{flags:?}");
    }
    assert_eq!(run(&["config", "show", "--provider", "hetzner"]).code, 2);
}

#[test]
fn config_path_is_the_users_file_whatever_the_environment_names() {
    let place = Place::new().env("CRABBOX_CONFIG", "/nowhere/else.yaml");
    let answer = place.run(&["config", "path"]);
    assert_eq!(
        answer.out.trim(),
        place.path("home/.config/crabbox/config.yaml").to_str().unwrap()
    );
}

#[test]
fn a_missing_home_is_told() {
    let place = Place::new();
    let output = place
        .command(&["config", "path"])
        .env_remove("HOME")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        err,
        "neither $XDG_CONFIG_HOME nor $HOME are defined\nhint: set HOME to your home directory\n"
    );
}

#[test]
fn the_user_s_file_counts_despite_other_directories_and_is_never_skipped_silently() {
    let place = Place::new();
    place.write("home/.config/crabbox/config.yaml", "ttl: 17m\n");
    let shown = |prepare: &dyn Fn(&mut std::process::Command)| {
        let mut command = place.command(&["config", "explain", "ttl"]);
        prepare(&mut command);
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let config = place.path("home/.config");
    for variable in ["XDG_CACHE_HOME", "XDG_STATE_HOME"] {
        let (code, text) = shown(&|command| {
            command.env(variable, "relative");
        });
        assert!(code == Some(0) && text.contains("17m"), "{variable}: {text}");
    }
    let (code, text) = shown(&|command| {
        command.env_remove("HOME").env("XDG_CONFIG_HOME", &config);
    });
    assert!(code == Some(0) && text.contains("17m"), "{text}");
    let (code, text) = shown(&|command| {
        command.env("XDG_CONFIG_HOME", "relative");
    });
    assert!(
        code == Some(2) && text.starts_with("path in $XDG_CONFIG_HOME is relative: relative\n"),
        "{text}"
    );
    let (code, text) = shown(&|command| {
        command.env_remove("HOME");
    });
    assert!(
        code == Some(2) && text.starts_with("neither $XDG_CONFIG_HOME nor $HOME are defined\n"),
        "{text}"
    );
}
