//! The example configuration is healthy, and each fault put into it is found by the right check, with a fix.

use super::*;

const SLURM: &str = include_str!("../../../../../../docs/examples/slurm/slurm.conf");
const GRES: &str = include_str!("../../../../../../docs/examples/slurm/gres.conf");
const EPILOG: &str = include_str!("../../../../../../docs/examples/slurm/crabbox-epilog");

/// A change to the example, and the check that must find it.
const CHANGES: [(&str, &str, &str, Status); 28] = [
    ("GresTypes=lease,disk", "GresTypes=lease", "gres", Status::Failed),
    (
        "Gres=lease:40,disk:500\nNodeName=kvm3",
        "Gres=lease:40\nNodeName=kvm3",
        "gres",
        Status::Failed,
    ),
    ("select/cons_tres", "select/linear", "select", Status::Failed),
    ("CR_CPU_Memory", "CR_CPU", "select", Status::Failed),
    ("Epilog=/etc/slurm/crabbox-epilog", "", "epilog", Status::Failed),
    ("JobRequeue=0", "JobRequeue=1", "requeue", Status::Warning),
    ("proctrack/cgroup", "proctrack/pgid", "proctrack", Status::Warning),
    ("KillWait=30", "KillWait=2", "killwait", Status::Failed),
    ("KillWait=30", "KillWait=soon", "killwait", Status::Failed),
    (
        "SlurmdTimeout=60",
        "SlurmdTimeout=0",
        "slurmdtimeout",
        Status::Failed,
    ),
    (
        "SlurmdTimeout=60",
        "SlurmdTimeout=3600",
        "slurmdtimeout",
        Status::Failed,
    ),
    (
        "ReturnToService=2",
        "ReturnToService=1",
        "return",
        Status::Warning,
    ),
    ("ReturnToService=2", "", "return", Status::Failed),
    ("auth/munge", "auth/none", "auth", Status::Failed),
    (
        "JobRequeue=0",
        "JobRequeue=0\nPrologFlags=Alloc,Serial",
        "prolog",
        Status::Failed,
    ),
    (
        "JobRequeue=0",
        "JobRequeue=0\nProlog=/x",
        "prolog",
        Status::Warning,
    ),
    ("MinJobAge=86400", "MinJobAge=2", "minjobage", Status::Failed),
    ("MinJobAge=86400", "", "minjobage", Status::Failed),
    ("EnforcePartLimits=ALL", "", "limits", Status::Failed),
    (
        "EnforcePartLimits=ALL",
        "EnforcePartLimits=ANY",
        "limits",
        Status::Failed,
    ),
    (" AllowGroups=root", "", "submitters", Status::Failed),
    (
        "AllowGroups=root",
        "AllowGroups=root,staff",
        "submitters",
        Status::Failed,
    ),
    ("HealthCheckInterval=60", "", "health", Status::Warning),
    (
        "NodeName=kvm2 CPUs=32 RealMemory=60000",
        "NodeName=kvm2 CPUs=32 RealMemory=64000",
        "realmemory",
        Status::Failed,
    ),
    (
        "NodeName=kvm2 CPUs=32 RealMemory=60000",
        "NodeName=kvm2 CPUs=32",
        "realmemory",
        Status::Failed,
    ),
    (
        "PartitionName=lease",
        "PartitionName=other",
        "gateway",
        Status::Failed,
    ),
    ("NodeName=kvm3", "NodeName=kvm4", "gateway", Status::Failed),
    ("NodeName=kvm3", "NodeName=kvm[3-4]", "gateway", Status::Warning),
];

fn facts(slurm: &str) -> Facts {
    Facts {
        slurm: slurm.to_owned(),
        gres: GRES.to_owned(),
        epilog: Some(Ok(EPILOG.to_owned())),
        hostname: "kvm2".to_owned(),
        memory_mib: 64_000,
        reserve_mib: 2048,
        gateway: Some(GatewayFacts {
            partition: "lease".to_owned(),
            nodes: ["kvm1", "kvm2", "kvm3"].map(str::to_owned).into(),
        }),
    }
}

fn troubles(facts: &Facts) -> Vec<Check> {
    let all = judge(facts);
    all.into_iter()
        .filter(|check| check.status != Status::Ok)
        .collect()
}

#[test]
fn the_example_is_well() {
    assert_eq!(troubles(&facts(SLURM)), Vec::new());
    assert_eq!(judge(&facts(SLURM)).len(), 16);
}

#[test]
fn each_thing_that_a_lease_needs_is_missed_by_name_and_with_a_fix() {
    for (good, bad, check, status) in CHANGES {
        let slurm = SLURM.replacen(good, bad, 1);
        assert_ne!(slurm, SLURM, "{good}");
        let found = troubles(&facts(&slurm));
        assert_eq!(found.len(), 1, "{bad}: {found:?}");
        assert_eq!((found[0].check, found[0].status), (check, status), "{bad}");
        assert!(!found[0].details["fix"].is_empty(), "{bad}");
    }
}

#[test]
fn what_is_counted_and_what_takes_back_must_be_there_too() {
    let found = |facts: Facts| {
        troubles(&facts)
            .iter()
            .map(|check| check.check)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        found(Facts {
            gres: String::new(),
            ..facts(SLURM)
        }),
        ["gres"]
    );
    for epilog in [
        Err("it can be written by others".to_owned()),
        Ok("#!/bin/sh\nexit 0\n".to_owned()),
    ] {
        assert_eq!(
            found(Facts {
                epilog: Some(epilog),
                ..facts(SLURM)
            }),
            ["epilog"]
        );
    }
    // A host that is neither in the fleet nor its gateway, and a host that is only the gateway.
    assert_eq!(
        found(Facts {
            gateway: None,
            hostname: "gw".to_owned(),
            ..facts(SLURM)
        }),
        ["node"]
    );
    assert_eq!(
        found(Facts {
            hostname: "gw".to_owned(),
            ..facts(SLURM)
        }),
        Vec::<&str>::new()
    );
    // A node's name may differ from its host name; the host's memory must be checked anyway.
    let called = SLURM.replacen("NodeName=kvm2", "NodeName=k2 NodeHostname=kvm2", 1);
    let renamed = Facts {
        gateway: None,
        memory_mib: 1024,
        ..facts(&called)
    };
    assert_eq!(found(renamed), ["realmemory"]);
    assert_eq!(
        found(facts(&format!("{SLURM}\nInclude /etc/slurm/nodes.conf\n"))),
        ["include"]
    );
}
