//! Trees whose links lead out of them: nothing of this host is taken, changed or emptied.

use super::*;

#[test]
fn nothing_of_this_host_is_emptied_or_written_through_a_link_of_the_tree() {
    for path in [
        "var/log",
        "etc/ssh",
        "usr/local/bin",
        "work",
        "var/lib/crabbox",
        "etc/sudoers.d",
        "tmp",
    ] {
        let place = Place::new();
        place.kernel();
        let outside = place.dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("precious"), "x").unwrap();
        let link = place.tree().join(path);
        std::fs::remove_dir_all(&link).ok();
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(&outside, &link).unwrap();
        let error = place.refused(OwnInit::None);
        assert!(matches!(error, BuildError::Link { .. }), "{path}: {error:?}");
        assert!(error.to_string().starts_with(path), "{error}");
        let left: Vec<_> = std::fs::read_dir(&outside)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["precious"], "{path}");
    }
}

/// Every path that a build writes, removes or reads.
const TOUCHED: [&str; 29] = [
    "boot",
    "etc",
    "etc/fstab",
    "etc/group",
    "etc/hosts",
    "etc/machine-id",
    "etc/motd",
    "etc/os-release",
    "etc/passwd",
    "etc/resolv.conf",
    "etc/shadow",
    "etc/ssh/ssh_host_rsa_key",
    "etc/ssh/sshd_config",
    "etc/ssh/sshd_config.d/99-crabbox.conf",
    "etc/sudoers.d/crabbox",
    "lib",
    "usr/lib",
    "usr/lib/crabbox/init",
    "usr/lib/modules",
    "usr/lib/modules/6.1.0-own",
    "usr/lib/systemd/system-shutdown/crabbox",
    "usr/local/bin/crabbox-ready",
    "var/cache/crabbox/npm",
    "var/cache/crabbox/pnpm",
    "var/lib/crabbox/bootstrapped",
    "var/lib/dpkg/status",
    "var/log/old",
    "work",
    "work/crabbox",
];

#[test]
fn whatever_link_a_tree_has_nothing_of_this_host_changes_its_owner_mode_or_content() {
    use std::os::unix::fs::MetadataExt as _;
    for path in TOUCHED {
        for below in ["", "../".repeat(12).as_str()] {
            let place = Place::new();
            place.kernel();
            place.write("sbin/init", &elf(62));
            // The tree controls which owner its directories get.
            place.write("etc/passwd", b"crabbox:x:4242:4242::/:/bin/sh\n");
            let outside = place.dir.path().join("outside");
            std::fs::create_dir(&outside).unwrap();
            std::fs::write(outside.join("old"), "theirs").unwrap();
            let seen = |path: &Path| {
                let facts = path.symlink_metadata().unwrap();
                (
                    facts.uid(),
                    facts.gid(),
                    facts.mode(),
                    facts.len(),
                    facts.mtime_nsec(),
                )
            };
            let before = (seen(&outside), seen(&outside.join("old")));
            let link = place.tree().join(path);
            std::fs::remove_dir_all(&link).ok();
            std::fs::remove_file(&link).ok();
            std::fs::create_dir_all(link.parent().unwrap()).unwrap();
            let target = outside.strip_prefix("/").unwrap();
            symlink(Path::new("/").join(below).join(target), &link).unwrap();
            // Either result is allowed.
            place.build("tree", OwnInit::Systemd).ok();
            assert_eq!(before, (seen(&outside), seen(&outside.join("old"))), "{path}");
            assert_eq!(Small::names(&outside), ["old"], "{path}");
        }
    }
}

#[test]
fn a_cache_that_leads_elsewhere_is_refused_by_name() {
    for cache in ["var/cache/crabbox/pnpm", "var/cache/crabbox/npm"] {
        let place = Place::new();
        place.kernel();
        std::fs::create_dir_all(place.tree().join("var/cache/crabbox")).unwrap();
        symlink("/etc", place.tree().join(cache)).unwrap();
        let error = place.refused(OwnInit::None);
        assert!(error.to_string().starts_with(cache), "{error}");
    }
}

#[test]
fn a_program_of_this_host_behind_a_link_is_none_of_the_tree() {
    let place = Place::new();
    place.kernel();
    std::fs::remove_file(place.tree().join("usr/bin/git")).unwrap();
    let host = place.dir.path().join("git");
    std::fs::write(&host, "of this host").unwrap();
    symlink(&host, place.tree().join("usr/bin/git")).unwrap();
    let error = place.refused(OwnInit::None).to_string();
    assert!(error.contains("has no git:"), "{error}");
}
