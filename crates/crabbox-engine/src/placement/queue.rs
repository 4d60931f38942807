//! Describes to a user what their queued lease is waiting for, with its position, in our own words.
//!
//! A reason that the table does not know is shown in the scheduler's word. We never predict a time.

use std::time::Duration;

use super::Node;

/// What a lease needs on a host.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Processors.
    pub cpus: u32,
}

/// The delay before the next look at a job that was submitted `waited` ago. A free host takes a job within a
/// second, but thousands of jobs may be waiting.
pub fn pause(waited: Duration) -> Duration {
    Duration::from_millis(match waited.as_secs() {
        0..10 => 1_000,
        10..60 => 5_000,
        _ => 15_000,
    })
}

/// Whether the scheduler has not considered the job yet. Most jobs get a host a moment later, and a position
/// would be wrong.
pub fn is_unseen(reason: &str) -> bool {
    ["", "None"].contains(&reason)
}

/// Whether the reason may be a shortage on the hosts, in which case their free resources make the description
/// more precise.
pub fn is_short(reason: &str) -> bool {
    ["Resources", "Priority"].contains(&reason)
}

/// The text to show, such as `queued: 3rd, waiting for memory`. The hosts' state is optional.
pub fn words(rank: Option<usize>, reason: &str, need: Need, nodes: Option<&[Node]>) -> String {
    if is_unseen(reason) {
        return "queued".to_owned();
    }
    let needs = waiting_for(reason, need, nodes);
    match rank {
        Some(rank) => format!("queued: {}, {needs}", ordinal(rank)),
        None => format!("queued, {needs}"),
    }
}

/// What a job waits for, by the scheduler's reason (squeue(1), field `%r` and "job reason codes").
fn waiting_for(reason: &str, need: Need, nodes: Option<&[Node]>) -> String {
    let limit = |of: &str| format!("waiting for your own limit of {of}");
    match reason {
        _ if is_short(reason) => {
            let scarce = |nodes| scarce(reason, need, nodes);
            nodes.map_or("waiting for room", scarce).to_owned()
        }
        "BeginTime" | "JobHeldAdmin" | "JobHeldUser" | "JobHoldMaxRequeue" => {
            "held by the administrator of the fleet".to_owned()
        }
        "PartitionDown" | "PartitionInactive" => "waiting for the fleet, which is closed".to_owned(),
        "ReqNodeNotAvail" | "NodeDown" => "waiting for hosts that are down or being drained".to_owned(),
        _ if reason.starts_with("ReqNodeNotAvail")
            || reason.starts_with("Nodes required for job are DOWN") =>
        {
            "waiting for hosts that are down or being drained".to_owned()
        }
        _ if reason.contains("Reservation") => "waiting for a maintenance that is planned".to_owned(),
        _ if is_limit(reason) && reason.contains("Mem") => limit("memory"),
        _ if is_limit(reason) && reason.contains("Cpu") => limit("processors"),
        _ if is_limit(reason) && (reason.contains("GRES") || reason.contains("Jobs")) => limit("leases"),
        _ if is_limit(reason) => limit(reason),
        _ => format!("waiting ({reason})"),
    }
}

/// Whether a job with this reason will never run, because it asks for more than its partition or account
/// allows a single job. Slurm refuses most of those at submission if `EnforcePartLimits` is `ALL`.
pub fn is_never(reason: &str) -> bool {
    [
        "PartitionTimeLimit",
        "PartitionNodeLimit",
        "AssocMaxWallDurationPerJobLimit",
        "QOSMaxWallDurationPerJobLimit",
        "BadConstraints",
    ]
    .contains(&reason)
}

/// Whether the reason is a limit of an account, association or quality of service.
fn is_limit(reason: &str) -> bool {
    ["QOS", "Assoc", "Account"]
        .iter()
        .any(|start| reason.starts_with(start))
}

/// What the running hosts are short of; the scheduler only says that something is missing.
fn scarce(reason: &str, need: Need, nodes: &[Node]) -> &'static str {
    let up: Vec<&Node> = nodes.iter().filter(|node| node.is_up()).collect();
    if up.is_empty() {
        return "waiting for a host: none is up";
    }
    let with_memory: Vec<&&Node> = up
        .iter()
        .filter(|node| node.free_memory_mib >= need.memory_mib)
        .collect();
    if with_memory.is_empty() {
        return "waiting for memory";
    }
    if !with_memory
        .iter()
        .any(|node| node.free_cpus >= u64::from(need.cpus))
    {
        return "waiting for processors";
    }
    match reason {
        // There is room, but other jobs come first.
        "Priority" => "waiting for those before it",
        _ => "waiting for a host with a free place",
    }
}

/// `1st`, `2nd`, `3rd`, `4th`, `11th`.
fn ordinal(number: usize) -> String {
    let ending = match (number % 10, number % 100) {
        (1, 1 | 21..) => "st",
        (2, 2 | 22..) => "nd",
        (3, 3 | 23..) => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, state: &str, free_memory_mib: u64, free_cpus: u64) -> Node {
        Node {
            name: name.to_owned(),
            state: state.to_owned(),
            free_memory_mib,
            free_cpus,
        }
    }

    const NEED: Need = Need {
        memory_mib: 256,
        cpus: 2,
    };

    #[test]
    fn who_waits_is_told_their_place_and_what_is_short() {
        let full = [node("h1", "allocated", 100, 8), node("h2", "down", 4096, 8)];
        let said = |rank, reason: &str, nodes: &[Node]| words(rank, reason, NEED, Some(nodes));
        for unseen in ["", "None"] {
            assert_eq!(said(Some(1), unseen, &full), "queued");
        }
        // The hosts' state is unknown.
        assert_eq!(
            words(Some(2), "Resources", NEED, None),
            "queued: 2nd, waiting for room"
        );
        assert_eq!(
            said(Some(3), "Resources", &full),
            "queued: 3rd, waiting for memory"
        );
        assert_eq!(
            said(Some(1), "Priority", &full),
            "queued: 1st, waiting for memory"
        );
        let busy = [node("h1", "mixed", 4096, 1), node("h2", "mixed", 100, 8)];
        assert_eq!(
            said(Some(2), "Resources", &busy),
            "queued: 2nd, waiting for processors"
        );
        let roomy = [node("h1", "mixed", 4096, 8)];
        assert_eq!(
            said(Some(2), "Resources", &roomy),
            "queued: 2nd, waiting for a host with a free place"
        );
        assert_eq!(
            said(Some(2), "Priority", &roomy),
            "queued: 2nd, waiting for those before it"
        );
        for none in [&[] as &[Node], &[node("h1", "drained", 4096, 8)]] {
            assert_eq!(
                said(None, "Resources", none),
                "queued, waiting for a host: none is up"
            );
        }
    }

    #[test]
    fn each_reason_has_its_words_and_an_unknown_one_is_shown() {
        for (reason, expected) in [
            ("QOSMaxMemoryPerUser", "waiting for your own limit of memory"),
            ("AssocGrpMemLimit", "waiting for your own limit of memory"),
            ("AssocGrpCpuLimit", "waiting for your own limit of processors"),
            ("AssocGrpGRES", "waiting for your own limit of leases"),
            ("QOSMaxJobsPerUserLimit", "waiting for your own limit of leases"),
            (
                "AssocGrpBillingLimit",
                "waiting for your own limit of AssocGrpBillingLimit",
            ),
            ("JobHeldAdmin", "held by the administrator of the fleet"),
            ("PartitionDown", "waiting for the fleet, which is closed"),
            (
                "ReqNodeNotAvail, UnavailableNodes:h3",
                "waiting for hosts that are down or being drained",
            ),
            ("Reservation", "waiting for a maintenance that is planned"),
            ("Licenses", "waiting (Licenses)"),
        ] {
            assert_eq!(waiting_for(reason, NEED, None), expected, "{reason}");
        }
    }

    #[test]
    fn what_no_end_of_another_lease_changes_is_not_waited_for() {
        for reason in [
            "PartitionTimeLimit",
            "PartitionNodeLimit",
            "AssocMaxWallDurationPerJobLimit",
            "BadConstraints",
        ] {
            assert!(is_never(reason), "{reason}");
        }
        for reason in [
            "Resources",
            "Priority",
            "None",
            "",
            "PartitionDown",
            "QOSMaxMemoryPerUser",
        ] {
            assert!(!is_never(reason), "{reason}");
        }
    }

    #[test]
    fn places_are_counted_as_people_do() {
        for (number, expected) in [
            (1, "1st"),
            (2, "2nd"),
            (3, "3rd"),
            (4, "4th"),
            (11, "11th"),
            (12, "12th"),
            (13, "13th"),
            (21, "21st"),
            (22, "22nd"),
            (103, "103rd"),
            (111, "111th"),
            (112, "112th"),
        ] {
            assert_eq!(ordinal(number), expected);
        }
    }

    #[test]
    fn a_job_is_looked_at_ever_less_often() {
        let pause = |seconds| pause(Duration::from_secs(seconds)).as_secs();
        assert_eq!(
            [pause(0), pause(9), pause(10), pause(59), pause(60), pause(86_400)],
            [1, 1, 5, 5, 15, 15]
        );
    }
}
