use std::os::unix::fs::FileExt as _;

use super::*;

/// Changes something in the directory of a template.
type Damage = fn(&Path);

fn templates() -> (tempfile::TempDir, Templates) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("templates");
    (root, Templates { dir })
}

fn about() -> About {
    About {
        token: "0123456789abcdef0123456789abcdef".to_owned(),
        image: "sha256:1".to_owned(),
        host: "host".to_owned(),
        made_at: 1_754_000_000,
    }
}

/// Publishes a template with data in each part.
fn made(templates: &Templates, key: &str) -> Template {
    let lock = templates.try_make().unwrap().unwrap();
    let dir = templates.workplace(&lock).unwrap();
    for (name, length) in [(MEMORY, 1 << 20), (VMSTATE, 5000), (LAYER, 1 << 19)] {
        let mut bytes = vec![0; length];
        bytes[100] = 7;
        bytes[length - 1] = 9;
        std::fs::write(dir.join(name), bytes).unwrap();
    }
    let sealed = templates.seal(&dir, key, about(), &|| false).unwrap();
    templates.publish(sealed, &lock).unwrap()
}

fn key(templates: &Templates) -> String {
    templates.key("facts").unwrap()
}

#[test]
fn a_key_follows_from_the_facts_and_from_this_host_alone() {
    let (_one, templates) = templates();
    let first = key(&templates);
    assert_eq!(first, key(&templates));
    assert_ne!(first, templates.key("other facts").unwrap());
    let (_two, elsewhere) = self::templates();
    assert_ne!(first, key(&elsewhere));
    let secret = templates.dir.join("secret");
    assert_eq!(secret.metadata().unwrap().mode() & 0o777, 0o600);
    std::fs::write(&secret, "short").unwrap();
    assert!(matches!(
        templates.key("facts"),
        Err(TemplateError::Secret { .. })
    ));
}

#[test]
fn what_is_published_is_found_without_its_zeros() {
    let (_root, templates) = templates();
    let key = key(&templates);
    assert!(matches!(templates.find(&key), TemplateState::Absent));
    let template = made(&templates, &key);
    assert!(template.allocated < 1 << 19, "{template:?}");
    let TemplateState::Ready(found) = templates.find(&key) else {
        panic!("it is there");
    };
    assert_eq!((found.dir, found.about), (templates.dir.join(&key), about()));
    assert_eq!(templates.keys(), std::slice::from_ref(&key));
    templates.verify(&key).unwrap();
}

#[test]
fn a_template_of_which_anything_has_changed_is_not_used() {
    let (_root, templates) = templates();
    let key = key(&templates);
    let damages: [(&str, Damage); 9] = [
        ("another length", |dir| {
            let memory = std::fs::File::options()
                .write(true)
                .open(dir.join(MEMORY))
                .unwrap();
            memory.set_len(4096).unwrap();
        }),
        ("another file", |dir| {
            let memory = dir.join(MEMORY);
            let copy = dir.join("copy");
            std::fs::write(&copy, std::fs::read(&memory).unwrap()).unwrap();
            let modified = memory.metadata().unwrap().modified().unwrap();
            std::fs::File::open(&copy)
                .unwrap()
                .set_modified(modified)
                .unwrap();
            std::fs::rename(&copy, &memory).unwrap();
        }),
        ("written to", |dir| {
            let layer = std::fs::File::options()
                .write(true)
                .open(dir.join(LAYER))
                .unwrap();
            layer.write_all_at(b"x", 5).unwrap();
        }),
        ("another mode", |dir| {
            std::fs::set_permissions(dir.join(VMSTATE), std::fs::Permissions::from_mode(0o644)).unwrap();
        }),
        ("it is not a file", |dir| {
            std::fs::rename(dir.join(LAYER), dir.join("elsewhere")).unwrap();
            std::os::unix::fs::symlink("elsewhere", dir.join(LAYER)).unwrap();
        }),
        ("it is not there", |dir| {
            std::fs::remove_file(dir.join(VMSTATE)).unwrap();
        }),
        ("manifest", |dir| {
            std::fs::write(dir.join(MANIFEST), "{}").unwrap();
        }),
        ("manifest", |dir| {
            let text = std::fs::read_to_string(dir.join(MANIFEST)).unwrap();
            let forged = text.replace(dir.file_name().unwrap().to_str().unwrap(), "another");
            std::fs::write(dir.join(MANIFEST), forged).unwrap();
        }),
        ("other bytes", |dir| {
            // The modification time is reset to hide the change; the host has rebooted since.
            let path = dir.join(MEMORY);
            let modified = path.metadata().unwrap().modified().unwrap();
            let memory = std::fs::File::options().write(true).open(&path).unwrap();
            memory.write_all_at(b"x", 500_000).unwrap();
            memory.set_modified(modified).unwrap();
            std::fs::write(dir.join(CHECKED), "another boot").unwrap();
        }),
    ];
    for (what, damage) in damages {
        damage(&made(&templates, &key).dir);
        let TemplateState::Unusable(unusable) = templates.find(&key) else {
            panic!("{what}: it is used");
        };
        assert!(unusable.to_string().contains(what), "{what}: {unusable}");
    }
}

#[test]
fn every_byte_is_read_once_after_the_host_came_up() {
    let (_root, templates) = templates();
    let key = key(&templates);
    let dir = made(&templates, &key).dir;
    std::fs::write(dir.join(CHECKED), "another boot").unwrap();
    assert!(matches!(templates.find(&key), TemplateState::Ready(_)));
    assert_eq!(
        std::fs::read_to_string(dir.join(CHECKED)).unwrap(),
        process::boot_id().unwrap()
    );
}

#[test]
fn two_failures_one_after_the_other_set_a_template_aside() {
    let (_root, templates) = templates();
    let key = key(&templates);
    made(&templates, &key);
    templates.note_failure(&key, &about().token).unwrap();
    templates.note_success(&key);
    templates.note_failure(&key, &about().token).unwrap();
    assert!(matches!(templates.find(&key), TemplateState::Ready(_)));
    templates.note_failure(&key, &about().token).unwrap();
    assert!(matches!(
        templates.find(&key),
        TemplateState::Unusable(Unusable::SetAside { failures: 2 })
    ));
    made(&templates, &key);
    assert!(
        matches!(templates.find(&key), TemplateState::Ready(_)),
        "a new one starts anew"
    );
}

#[test]
fn what_died_in_the_making_goes_with_the_next_and_with_a_sweep() {
    let (_root, templates) = templates();
    let lock = templates.try_make().unwrap().unwrap();
    assert!(templates.try_make().unwrap().is_none(), "one at a time");
    let dead = templates.workplace(&lock).unwrap();
    std::fs::write(dead.join(MEMORY), "half").unwrap();
    let next = templates.workplace(&lock).unwrap();
    assert!(!dead.exists() && next.exists());
    assert_eq!(
        templates.sweep(&[], "host", false).unwrap(),
        None,
        "somebody makes one"
    );
    drop(lock);
    assert_eq!(templates.sweep(&[], "host", false).unwrap(), Some(Vec::new()));
    assert!(!next.exists());
}

#[test]
fn a_sweep_removes_what_is_of_no_use_and_a_dry_run_nothing() {
    let (_root, templates) = templates();
    let images = ["sha256:1".to_owned()];
    let key = key(&templates);
    let swept = |host: &str, images: &[String], dry_run| {
        let swept = templates.sweep(images, host, dry_run).unwrap().unwrap();
        swept.iter().map(|swept| swept.why).collect::<Vec<_>>()
    };
    let dir = made(&templates, &key).dir;
    assert!(swept("host", &images, false).is_empty());
    assert_eq!(swept("host", &[], true), ["its image is gone"]);
    assert_eq!(
        swept("other", &images, true),
        ["made on another host, kernel or microcode"]
    );
    assert!(dir.exists());
    assert_eq!(swept("host", &[], false), ["its image is gone"]);
    assert!(!dir.exists());
    let dir = made(&templates, &key).dir;
    let long_ago = SystemTime::now() - UNUSED_LIMIT - Duration::from_mins(1);
    std::fs::File::open(dir.join(CHECKED))
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    assert_eq!(swept("host", &images, true), ["unused"]);
    templates.note_success(&key);
    assert!(swept("host", &images, true).is_empty());
    std::fs::remove_file(dir.join(LAYER)).unwrap();
    assert_eq!(swept("host", &images, false), ["broken"]);
    assert!(templates.keys().is_empty());
}

#[test]
fn whoever_gives_up_while_it_is_sealed_is_heard_at_once_and_nothing_is_described() {
    let (_root, templates) = templates();
    let lock = templates.try_make().unwrap().unwrap();
    let dir = templates.workplace(&lock).unwrap();
    for name in [MEMORY, VMSTATE, LAYER] {
        std::fs::write(dir.join(name), vec![7; 8 << 20]).unwrap();
    }
    // `seal` polls `stop` 8 times per part while punching zeros and 8 times for the digest.
    for patience in [0, 4, 12, 20, 47] {
        let looks = std::cell::Cell::new(0);
        let stop = || looks.replace(looks.get() + 1) >= patience;
        let sealed = templates.seal(&dir, "key", about(), &stop);
        assert!(matches!(sealed, Err(TemplateError::Stopped)), "{sealed:?}");
        assert_eq!(looks.get(), patience + 1, "it goes on after that");
        assert!(!dir.join(MANIFEST).exists());
    }
    templates.seal(&dir, "key", about(), &|| false).unwrap();
}

#[test]
fn a_look_says_the_same_and_leaves_no_trace() {
    let (_root, templates) = templates();
    assert_eq!(templates.known_key("facts").unwrap(), None);
    assert!(!templates.dir.exists());
    let key = key(&templates);
    assert_eq!(templates.known_key("facts").unwrap().as_ref(), Some(&key));
    assert!(matches!(templates.look(&key), TemplateState::Absent));
    let template = made(&templates, &key);
    std::fs::remove_file(template.dir.join(CHECKED)).unwrap();
    assert!(matches!(templates.look(&key), TemplateState::Ready(_)));
    assert!(!template.dir.join(CHECKED).exists());
    std::fs::set_permissions(template.dir.join(LAYER), std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(
        templates.look(&key),
        TemplateState::Unusable(Unusable::Changed { .. })
    ));
}

#[test]
fn a_store_goes_when_it_has_nothing_left_and_nobody_is_at_it() {
    let (root, templates) = templates();
    templates.dissolve().unwrap();
    let key = key(&templates);
    made(&templates, &key);
    templates.program_digest(Path::new("/proc/self/exe")).unwrap();
    templates.dissolve().unwrap();
    assert!(
        matches!(templates.find(&key), TemplateState::Ready(_)),
        "it has one"
    );
    templates.remove(&key).unwrap();
    templates.remove(&key).unwrap();
    let lock = templates.try_make().unwrap().unwrap();
    templates.dissolve().unwrap();
    assert!(templates.dir.join(SECRET).exists(), "somebody makes one");
    drop(lock);
    templates.dissolve().unwrap();
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
}
