//! Labels of a lease: the string map that the Go program keeps in metadata and claims, and the values
//! computed from it.
//!
//! Times are Unix seconds as decimal text, durations are whole seconds. This module must never read the
//! clock: `now` is always an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::state::LeaseState;

/// Default idle timeout of a lease.
pub(crate) const DEFAULT_IDLE: Duration = Duration::from_mins(30);
/// Default time to live of a lease.
pub(crate) const DEFAULT_TTL: Duration = Duration::from_mins(90);
/// How long after its expiry cleanup spares a lease whose state is running or provisioning.
const STALE_GRACE: i64 = 12 * 3600;

/// The labels of one lease, sorted by name as the Go program writes them.
pub type Labels = BTreeMap<String, String>;

/// The values for a new lease's labels.
#[derive(Debug, Clone)]
pub struct NewLease<'a> {
    /// The lease id.
    pub lease: &'a str,
    /// Its slug.
    pub slug: &'a str,
    /// Its machine's name.
    pub name: &'a str,
    /// Provider name.
    pub provider: &'a str,
    /// Configuration profile.
    pub profile: &'a str,
    /// Machine class, kept as a label only.
    pub class: &'a str,
    /// Machine type.
    pub server_type: &'a str,
    /// Operating system of the machine.
    pub target: &'a str,
    /// Whether the user asked to keep the lease.
    pub keep: bool,
    /// Idle timeout.
    pub idle: Duration,
    /// Time to live.
    pub ttl: Duration,
    /// User to log in as.
    pub ssh_user: &'a str,
    /// Port of the guest's sshd.
    pub ssh_port: u16,
    /// Directory in which trees are synced; slashes are kept.
    pub work_root: &'a str,
    /// Network mode label.
    pub network: &'a str,
    /// CNI network name; empty for other modes.
    pub cni_network: &'a str,
    /// Ports that it is declared to offer, from [`exposed`]; empty for none.
    pub exposed: &'a str,
}

/// Ports in the form of the label: sorted, without duplicates, separated by hyphens, the only separator that
/// a label preserves.
pub fn exposed(ports: &[u16]) -> String {
    let sorted: BTreeSet<u16> = ports.iter().copied().collect();
    let texts: Vec<String> = sorted.iter().map(u16::to_string).collect();
    texts.join("-")
}

/// The labels of a lease created at `now`.
pub fn new_lease(new: &NewLease<'_>, now: i64) -> Labels {
    let (idle, ttl) = (seconds(new.idle), seconds(new.ttl));
    let mut labels = Labels::new();
    let mut put = |name: &str, value: &str| labels.insert(name.to_owned(), sanitise(value));
    for (name, value) in [
        ("class", new.class),
        ("crabbox", "true"),
        ("created_by", "crabbox"),
        ("instance", new.name),
        ("keep", if new.keep { "true" } else { "false" }),
        ("lease", new.lease),
        ("network", new.network),
        ("profile", new.profile),
        ("provider", new.provider),
        ("provider_key", ""),
        ("server_type", new.server_type),
        ("slug", new.slug),
        ("ssh_user", new.ssh_user),
        ("state", LeaseState::Leased.as_str()),
        ("target", new.target),
        ("vmid", new.name),
    ] {
        put(name, value);
    }
    for (name, value) in [
        ("cni_network", new.cni_network),
        ("crabbox_exposed_ports", new.exposed),
    ] {
        if !value.is_empty() {
            put(name, value);
        }
    }
    for (name, value) in [
        ("created_at", now),
        ("last_touched_at", now),
        ("idle_timeout", idle),
        ("idle_timeout_secs", idle),
        ("ttl_secs", ttl),
        ("ssh_port", i64::from(new.ssh_port)),
        ("expires_at", now.saturating_add(ttl.min(idle))),
    ] {
        put(name, &value.to_string());
    }
    labels.insert("work_root".to_owned(), new.work_root.to_owned());
    labels
}

/// Refreshes `labels` at `now`: `state` and `idle` replace the recorded values if given, and the expiry is
/// extended.
pub fn touch(labels: &mut Labels, state: Option<&LeaseState>, idle: Option<Duration>, now: i64) {
    let created = time(labels, "created_at").unwrap_or(now);
    let idle = idle.map_or_else(|| idle_seconds(labels), seconds);
    let ttl = number(labels, "ttl_secs").unwrap_or_else(|| seconds(DEFAULT_TTL));
    if let Some(state) = state {
        set_state(labels, state);
    }
    for (name, value) in [
        ("idle_timeout", idle),
        ("idle_timeout_secs", idle),
        ("last_touched_at", now),
        (
            "expires_at",
            created.saturating_add(ttl).min(now.saturating_add(idle)),
        ),
    ] {
        labels.insert(name.to_owned(), value.to_string());
    }
}

/// The idle timeout in the labels, in seconds.
pub fn idle_seconds(labels: &Labels) -> i64 {
    number(labels, "idle_timeout_secs")
        .or_else(|| number(labels, "idle_timeout"))
        .filter(|seconds| *seconds > 0)
        .unwrap_or_else(|| seconds(DEFAULT_IDLE))
}

/// A time label in Unix seconds; decimal seconds and RFC 3339 are accepted.
pub fn time(labels: &Labels, name: &str) -> Option<i64> {
    let text = labels.get(name)?.trim();
    text.parse().ok().or_else(|| {
        text.parse::<jiff::Timestamp>()
            .ok()
            .map(jiff::Timestamp::as_second)
    })
}

/// The state label, in lower case; an empty word if there is none.
pub fn state(labels: &Labels) -> LeaseState {
    let word = labels.get("state").map(|state| state.to_lowercase());
    LeaseState::from(word.unwrap_or_default().as_str())
}

/// Sets the state label.
pub fn set_state(labels: &mut Labels, state: &LeaseState) {
    labels.insert("state".to_owned(), sanitise(state.as_str()));
}

/// The label of an unclaimed pool member, with the key of its pool. It is removed when a client takes the
/// lease.
const POOL: &str = "pool";

/// The key of the pool of the lease; `None` once it is claimed.
pub fn pool(labels: &Labels) -> Option<&str> {
    labels.get(POOL).map(String::as_str)
}

/// Puts the lease into the pool with this key, which must be a valid label value.
pub fn set_pool(labels: &mut Labels, key: &str) {
    labels.insert(POOL.to_owned(), sanitise(key));
}

/// The label with the remote owner of a lease.
const OWNER: &str = "owner";

/// The remote owner of the lease, if it has one.
pub fn owner(labels: &Labels) -> Option<&str> {
    labels.get(OWNER).map(String::as_str)
}

/// Whether `name` is a valid owner name: one that a label stores unchanged, so that different names stay
/// different.
pub fn is_owner_name(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    name.len() <= 32 && edge(name.chars().next()) && edge(name.chars().next_back()) && sanitise(name) == name
}

/// An invalid owner name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid owner name {name:?}: use up to 32 letters, digits, '-', '_' and '.', with a letter or digit at both ends"
)]
pub struct OwnerNameError {
    /// The name, or its beginning if it is too long.
    name: String,
}

/// How much of an invalid name its error repeats, in characters: the text could be a private key that was
/// given by mistake.
const QUOTED: usize = 32;

/// Fails unless `name` is a valid owner name ([`is_owner_name`]).
pub fn check_owner_name(name: &str) -> Result<(), OwnerNameError> {
    if is_owner_name(name) {
        return Ok(());
    }
    let name = match name.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}...", &name[..end]),
        None => name.to_owned(),
    };
    Err(OwnerNameError { name })
}

/// Sets the owner; the name must satisfy [`is_owner_name`].
pub fn set_owner(labels: &mut Labels, name: &str) {
    labels.insert(OWNER.to_owned(), sanitise(name));
}

/// The label with the number of the scheduler's job that a lease belongs to.
const JOB: &str = "job";

/// The label with the scheduler's name of the host that a job's lease is on.
const NODE: &str = "node";

/// The scheduler's job that the lease belongs to, if any. Such a lease ends with its job and gets no second
/// supervisor.
pub fn job(labels: &Labels) -> Option<&str> {
    labels.get(JOB).map(String::as_str)
}

/// The scheduler's name of the host that a job's lease is on.
pub fn node(labels: &Labels) -> Option<&str> {
    labels.get(NODE).map(String::as_str)
}

/// Assigns the lease to the scheduler's job `job` on the host `node`, whose name is made a valid label value.
pub fn set_job(labels: &mut Labels, job: u32, node: &str) {
    labels.insert(JOB.to_owned(), job.to_string());
    labels.insert(NODE.to_owned(), sanitise(node));
}

/// Whether the user asked to keep the lease.
pub fn keep(labels: &Labels) -> bool {
    labels.get("keep").is_some_and(|keep| keep == "true")
}

/// A decision of cleanup about one lease, with its printed reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Remove it.
    Remove(String),
    /// Do not touch it.
    Skip(String),
}

/// Decides about a lease with a running machine by its labels only, with the rules and reasons of the Go
/// program's cleanup.
pub fn expired(labels: &Labels, now: i64) -> Verdict {
    use Verdict::{Remove, Skip};
    if labels.is_empty() {
        return Skip("missing labels".to_owned());
    }
    if keep(labels) {
        return Skip("keep=true".to_owned());
    }
    let state = state(labels);
    let expires = time(labels, "expires_at").or_else(|| time(labels, "ttl"));
    let past = |grace: i64| expires.is_some_and(|at| now > at.saturating_add(grace));
    match state {
        LeaseState::Running | LeaseState::Provisioning if past(STALE_GRACE) => {
            Remove(format!("stale state={state}"))
        }
        LeaseState::Leased | LeaseState::Ready | LeaseState::Active if past(0) => {
            Remove(format!("expired state={state}"))
        }
        LeaseState::Running
        | LeaseState::Provisioning
        | LeaseState::Leased
        | LeaseState::Ready
        | LeaseState::Active => Skip(format!("state={state}")),
        LeaseState::Failed | LeaseState::Released | LeaseState::Expired => Remove(format!("state={state}")),
        // The Go program's table has no other state, not even `stopped`: such a lease is judged by its time
        // alone.
        LeaseState::Pooled
        | LeaseState::Stopped
        | LeaseState::StoppedWithCode
        | LeaseState::Deleting
        | LeaseState::Missing
        | LeaseState::Terminated
        | LeaseState::Other(_) => match expires {
            None => Skip("missing expires_at".to_owned()),
            Some(_) if past(0) => Remove("expired".to_owned()),
            Some(_) => Skip("not expired".to_owned()),
        },
    }
}

fn number(labels: &Labels, name: &str) -> Option<i64> {
    labels.get(name)?.trim().parse().ok()
}

/// Whole seconds, and at least one: a limit of zero would be read back as none.
fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs().max(1)).unwrap_or(i64::MAX / 4)
}

/// Trims, replaces characters outside `[A-Za-z0-9_.-]` by `_`, truncates to 63 characters, and names an empty
/// value `unknown`.
pub(crate) fn sanitise(value: &str) -> String {
    let kept = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let folded: String = value
        .trim()
        .chars()
        .map(|c| if kept(c) { c } else { '_' })
        .take(63)
        .collect();
    let trimmed = folded.trim_matches(['_', '.', '-']);
    if trimmed.is_empty() {
        "unknown".to_owned()
    } else {
        trimmed.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_754_000_000;

    fn sample() -> Labels {
        new_lease(
            &NewLease {
                lease: "cbx_0123456789ab",
                slug: "jade-krill",
                name: "crabbox-jade-krill-1a2b3c4d",
                provider: "firecracker",
                profile: "default",
                class: "beast",
                server_type: "microvm",
                target: "linux",
                keep: false,
                idle: Duration::from_mins(30),
                ttl: Duration::from_mins(90),
                ssh_user: "crabbox",
                ssh_port: 22,
                work_root: "/work/crabbox",
                network: "cni",
                cni_network: "crabbox-firecracker",
                exposed: &exposed(&[9090, 80, 9090]),
            },
            NOW,
        )
    }

    #[test]
    fn new_labels_are_those_of_the_reference() {
        let labels = sample();
        let expect: &[(&str, &str)] = &[
            ("class", "beast"),
            ("cni_network", "crabbox-firecracker"),
            ("crabbox", "true"),
            ("crabbox_exposed_ports", "80-9090"),
            ("created_at", "1754000000"),
            ("created_by", "crabbox"),
            ("expires_at", "1754001800"),
            ("idle_timeout", "1800"),
            ("idle_timeout_secs", "1800"),
            ("instance", "crabbox-jade-krill-1a2b3c4d"),
            ("keep", "false"),
            ("last_touched_at", "1754000000"),
            ("lease", "cbx_0123456789ab"),
            ("network", "cni"),
            ("profile", "default"),
            ("provider", "firecracker"),
            ("provider_key", "unknown"),
            ("server_type", "microvm"),
            ("slug", "jade-krill"),
            ("ssh_port", "22"),
            ("ssh_user", "crabbox"),
            ("state", "leased"),
            ("target", "linux"),
            ("ttl_secs", "5400"),
            ("vmid", "crabbox-jade-krill-1a2b3c4d"),
            ("work_root", "/work/crabbox"),
        ];
        let got: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(got, expect);
    }

    #[test]
    fn touching_moves_the_expiry_but_never_past_the_ttl() {
        let mut labels = sample();
        touch(&mut labels, Some(&LeaseState::Running), None, NOW + 600);
        assert_eq!(
            (labels["state"].as_str(), labels["expires_at"].as_str()),
            ("running", "1754002400")
        );
        touch(&mut labels, None, None, NOW + 5000);
        assert_eq!(time(&labels, "expires_at"), Some(NOW + 5400));
        touch(&mut labels, None, Some(Duration::from_mins(1)), NOW + 100);
        assert_eq!(time(&labels, "expires_at"), Some(NOW + 160));
        // Less than a second is not none, which would be read as the default.
        touch(&mut labels, None, Some(Duration::from_millis(500)), NOW + 100);
        assert_eq!(idle_seconds(&labels), 1);
    }

    #[test]
    fn the_cleanup_table_of_the_reference() {
        let with = |state: &str, expires: Option<&str>| {
            let mut labels = sample();
            labels.insert("state".into(), state.into());
            match expires {
                Some(at) => labels.insert("expires_at".into(), at.into()),
                None => labels.remove("expires_at"),
            };
            expired(&labels, NOW)
        };
        let (past, future, long_past) = (
            Some("1753999999"),
            Some("1754000001"),
            Some((NOW - STALE_GRACE - 1).to_string()),
        );
        let remove = |reason: &str| Verdict::Remove(reason.to_owned());
        let skip = |reason: &str| Verdict::Skip(reason.to_owned());
        assert_eq!(expired(&Labels::new(), NOW), skip("missing labels"));
        assert_eq!(with("running", past), skip("state=running"));
        assert_eq!(
            with("Running", long_past.as_deref()),
            remove("stale state=running")
        );
        assert_eq!(with("ready", past), remove("expired state=ready"));
        assert_eq!(with("ready", future), skip("state=ready"));
        assert_eq!(with("released", future), remove("state=released"));
        assert_eq!(with("touched", None), skip("missing expires_at"));
        assert_eq!(with("touched", future), skip("not expired"));
        assert_eq!(with("touched", past), remove("expired"));
        let mut kept = sample();
        kept.insert("keep".into(), "true".into());
        kept.insert("state".into(), "failed".into());
        assert_eq!(expired(&kept, NOW), skip("keep=true"));
    }

    #[test]
    fn an_owner_s_name_is_one_that_a_label_keeps() {
        for good in ["alice", "ci.build-7", "a", "A_b"] {
            assert!(is_owner_name(good), "{good}");
            let mut labels = Labels::new();
            set_owner(&mut labels, good);
            assert_eq!(owner(&labels), Some(good));
        }
        let long = "x".repeat(33);
        for bad in ["", "-a", "a.", "a b", "a/b", "ä", "a\n", long.as_str()] {
            assert!(!is_owner_name(bad), "{bad:?}");
            assert!(check_owner_name(bad).is_err(), "{bad:?}");
        }
        assert_eq!(check_owner_name("alice"), Ok(()));
        let error = check_owner_name(&long).unwrap_err().to_string();
        let shown = format!("invalid owner name \"{}...\": use", "x".repeat(32));
        assert!(error.starts_with(&shown), "{error}");
    }

    #[test]
    fn label_values_are_sanitised() {
        assert_eq!(sanitise("  -a b/c- "), "a_b_c");
        assert_eq!(sanitise("///"), "unknown");
        assert_eq!(sanitise(&"x".repeat(80)).len(), 63);
    }

    #[test]
    fn times_are_read_in_both_spellings() {
        let labels = Labels::from([
            ("a".into(), "1754000000".into()),
            ("b".into(), "2025-07-31T22:13:20Z".into()),
        ]);
        assert_eq!(time(&labels, "a"), time(&labels, "b"));
    }
}
