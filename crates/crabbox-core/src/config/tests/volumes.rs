//! Cache volumes of the configuration.

use super::*;

#[test]
fn volumes_are_the_user_s_own_and_never_a_repository_s() {
    let volumes = |world: World| -> Vec<(String, u32, bool)> {
        let volumes = world.settings().cache.volumes;
        let facts = volumes.value.iter();
        facts
            .map(|volume| (volume.spec(), volume.size_gib, volume.required))
            .collect()
    };
    let ours = "cache: {npm: false, volumes: [{name: n, key: k, path: /data, sizeGB: 2, required: yes}]}";
    assert_eq!(volumes(world().user(ours)), [("n=k:/data".to_owned(), 2, true)]);
    // A repository's volume is not accepted, and its empty list does not clear ours.
    for theirs in [
        "cache: {volumes: [{key: theirs, path: /data}]}",
        "cache: {volumes: []}",
        "cache: {volumes: {nonsense: 1}}",
    ] {
        let both = world().user(ours).repo(theirs);
        assert_eq!(
            both.warnings(),
            [
                "/w/repo/crabbox.yaml:1:18: cache.volumes is ignored: a repository file must not choose what leases leave to each other; \
              set it in your own configuration file (crabbox config path), or with CRABBOX_CACHE_VOLUMES, or with --cache-volume"
            ]
        );
        assert_eq!(volumes(both).len(), 1);
    }
    // A variable replaces the file's volumes; a flag adds volumes or makes an existing one required.
    let variable = || world().user(ours).env("CRABBOX_CACHE_VOLUMES", "a:/a, m=b:/b");
    let both = [("a:/a".to_owned(), 10, false), ("m=b:/b".to_owned(), 10, false)];
    assert_eq!(volumes(variable()), both);
    let flagged = variable().flag(Name::CacheVolumes, &["b:/b", "c:/c"]);
    let facts = volumes(flagged);
    assert_eq!(
        facts.iter().map(|(_, _, required)| *required).collect::<Vec<_>>(),
        [false, true, true]
    );
    assert_eq!(volumes(world().user("cache: {volumes: []}")), []);
    // The short form of a variable also works in a file.
    for short in ["a:/a", "[a:/a]"] {
        let short = world().user(&format!("cache: {{volumes: {short}}}"));
        assert_eq!(volumes(short), [("a:/a".to_owned(), 10, false)]);
    }
}

#[test]
fn volumes_that_cannot_be_are_told_with_their_place() {
    for (odd, part) in [
        ("{a: b}", "cache.volumes must be a list of volumes"),
        ("[a]", "cache.volumes must be NAME=KEY:PATH or KEY:PATH"),
        ("[[a]]", "cache.volumes must be a mapping"),
        ("[{name: a, path: /d}]", "volumes that each have a key"),
        ("[{key: a}]", "volumes that each have a path"),
        (
            "[{key: a, path: /d, required: perhaps}]",
            "cache.volumes.required must be true or false",
        ),
        (
            "[{key: a, path: /etc/x}]",
            "cache.volumes.path must be a path below no directory of the system",
        ),
        (
            "[{key: a, path: /d/../e}]",
            "cache.volumes.path must be an absolute path without dots",
        ),
        (
            "[{key: a, path: /d, sizeGB: 2048}]",
            "cache.volumes.sizeGB must be a number of GiB from 1 to 1024",
        ),
        (
            "[{key: a, path: /d, sizeGB: many}]",
            "cache.volumes.sizeGB must be a number of GiB",
        ),
        (
            "[{key: 'a b', path: /d}]",
            "cache.volumes.key must be a text of at most",
        ),
        (
            "[{name: 'a b', key: a, path: /d}]",
            "cache.volumes.name must be a text of at most",
        ),
        (
            "[{key: a, path: /d}, {key: a, path: /e}]",
            "a key that no other volume of the lease has",
        ),
        ("[{key: a, path: /d}, {key: b, path: /d/e}]", "a path that is not"),
    ] {
        let said = world().user(&format!("cache: {{volumes: {odd}}}")).error();
        assert!(said.contains(part), "{odd}: {said}");
    }
    let flag = world()
        .flag(Name::CacheVolumes, &["a:/data", "b:/data/x"])
        .error();
    assert!(flag.contains("\"b:/data/x\" for flag -cache-volume"), "{flag}");
    let unknown = world().user("cache: {volumes: [{key: a, path: /d, sizeGb: 3}]}");
    assert_eq!(
        unknown.warnings(),
        ["/h/.config/crabbox/config.yaml:1:46: unknown key cache.volumes.sizeGb is ignored"]
    );
    let variable = world().env("CRABBOX_CACHE_VOLUMES", "a:data");
    assert_eq!(
        variable.warnings(),
        [
            "environment variable CRABBOX_CACHE_VOLUMES: cache.volumes is ignored: expected an absolute path without dots, blanks, commas and \
          colons, of at most 255 ASCII characters, found \"a:data\""
        ]
    );
}

#[test]
fn volumes_where_there_are_none_are_a_warning() {
    let ours = "cache: {volumes: [{key: k, path: /data}]}\n";
    for (more, part) in [
        ("provider: ssh", "keeps its own caches"),
        (
            "provider: firecracker\nfirecracker: {host: a@b}",
            "on another host",
        ),
    ] {
        let warnings = world().user(&format!("{ours}{more}")).warnings();
        assert!(
            matches!(warnings.as_slice(), [one] if one.contains("cache.volumes is ignored") && one.contains(part)),
            "{warnings:?}"
        );
    }
    assert!(
        world()
            .user(&format!("{ours}provider: firecracker"))
            .warnings()
            .is_empty()
    );
}
