//! The doctor's check of templates.

use super::*;

/// A template that leases are restored from.
pub(super) fn ready() -> Warm {
    Warm {
        links: None,
        gives_tap: false,
        template: Ok(Frozen::Ready {
            key: "0123456789abcdef".into(),
            dir: "/state/firecracker/templates/0123456789abcdef".into(),
            made_at: 1_754_000_000,
            age: 3 * 3600 + 59,
            bytes: 74 << 20,
        }),
    }
}

fn warm(variables: &[(&str, &str)], change: fn(&mut World)) -> Check {
    let mut world = healthy();
    change(&mut world);
    let checks = judge::firecracker(&plan(variables), &world);
    let check = checks.into_iter().find(|check| check.check == "warm").unwrap();
    // The message and the details must agree.
    let mut words = check.message.split([' ', ':']);
    if let Some(told) = words.find_map(|word| word.strip_prefix("mutation=")) {
        assert_eq!(told, check.details["mutation"], "{check:?}");
    }
    check
}

#[test]
fn a_template_is_told_with_its_age_and_size_and_its_absence_with_the_reason() {
    let ready = warm(&[], |_| ());
    assert_eq!(
        (ready.status, ready.message.as_str()),
        (
            Status::Ok,
            "warm=ready template=0123456789ab age=3h size_mib=74 mutation=false"
        )
    );
    assert_eq!(ready.details["made_at"], "2025-07-31T22:13:20Z");
    assert_eq!(ready.details["allocated_bytes"], (74 << 20).to_string());
    for (variables, change, status, said) in [
        (
            &[("FIRECRACKER_WARM", "off")][..],
            (|_| ()) as fn(&mut World),
            Status::Skip,
            "warm=off",
        ),
        (
            &[],
            |w| w.warm.template = Ok(Frozen::Foreign),
            Status::Skip,
            "reason=foreign_image",
        ),
        (
            &[],
            |w| w.warm.gives_tap = true,
            Status::Skip,
            "reason=network_gives_tap",
        ),
        (
            &[],
            |w| w.warm.template = Err(ObserveError::new("no image")),
            Status::Skip,
            "warm=unchecked mutation=false: no image",
        ),
        (
            &[],
            |w| w.warm.template = Ok(Frozen::Absent),
            Status::Warning,
            "reason=no_template",
        ),
        (
            &[],
            |w| w.warm.template = Ok(Frozen::SetAside { failures: 2 }),
            Status::Warning,
            "reason=set_aside failures=2",
        ),
        (
            &[],
            |w| w.warm.links = Some(Ok(false)),
            Status::Warning,
            "reason=no_hard_links dir=/state",
        ),
        (
            &[],
            |w| w.vmm.firecracker.as_mut().unwrap().version = Ok("1.16.0".into()),
            Status::Warning,
            "firecracker=1.16.0",
        ),
    ] {
        let check = warm(variables, change);
        assert_eq!(check.status, status, "{said}: {check:?}");
        assert!(check.message.contains(said), "{said}: {check:?}");
        assert_eq!(
            check.details.contains_key("fix"),
            status == Status::Warning,
            "{check:?}"
        );
    }
    // An unknown capability is not a fault. An unnamed file was made to find out, though.
    let unknown = warm(&[], |w| w.warm.links = Some(Err(ObserveError::new("no"))));
    assert_eq!(
        (unknown.status, unknown.details["mutation"].as_str()),
        (Status::Ok, "unnamed-temporary-file")
    );
}
