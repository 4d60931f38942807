//! The probe of this machine's KVM, from outside: the developers' tasks choose a host by it.

use std::fs;

use crate::place::Place;

#[test]
fn the_developers_probe_says_no_without_a_guest_and_leaves_its_verdict_at_most() {
    let place = Place::new();
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("probe");
    let file = |name: &str| {
        let path = dir.path().join(name);
        fs::write(&path, name).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (kernel, guest) = (file("kernel"), file("guest"));
    let answer = place.run(&[
        "__probe",
        "--cache",
        cache.to_str().unwrap(),
        "--firecracker",
        "/bin/false",
        "--kernel",
        &kernel,
        "--guest",
        &guest,
        "--limit-millis",
        "2000",
    ]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    let judged: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(judged["works"], false, "{judged}");
    assert!(judged["words"].as_str().unwrap().contains("KVM"), "{judged}");
    let mut left: Vec<_> = fs::read_dir(&cache)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.retain(|name| !["kvm-verdict.json", "kvm-probe.lock"].contains(&name.as_str()));
    assert_eq!(left, [""; 0]);
}
