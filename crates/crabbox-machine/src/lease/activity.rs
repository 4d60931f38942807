//! Detects whether a lease is in use right now, so that the idle timeout never interrupts work.
//!
//! A lease is in use if there is a connection to the guest's SSH port other than our own idle shared
//! connection. A run, a shell, a tunnel, a copy and a plain `ssh` all hold one. The label `running` does not
//! count: a killed run leaves it behind. It must never report "not in use" because a check failed.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

use crabbox_core::fault;
use crabbox_core::journal::{Journal, Step};
use crabbox_core::labels::{self, Labels, Verdict};
use crabbox_core::record::LeaseRecord;
use crabbox_core::state::LeaseState;
use crabbox_core::timestamp;
use crabbox_host::clock;
use crabbox_host::sockets::{self, SocketTableError};
use crabbox_store::leases;
use crabbox_store::locks;
use crabbox_store::places::{LeaseDir, Places};

/// The longest time between two refreshes of a lease that is in use.
const RENEW_EVERY: Duration = Duration::from_mins(1);

/// Where to look for the activity of one lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watchpoint {
    peer: SocketAddrV4,
    control: Option<PathBuf>,
}

impl Watchpoint {
    /// The watchpoint of a lease that has an address. A lease of a remote owner has no watchpoint: a
    /// connection from another machine can stay open for as long as a laptop is on, so the process that
    /// relays its bytes refreshes the lease.
    pub fn of(record: &LeaseRecord, journal: &Journal) -> Option<Self> {
        if labels::owner(&record.labels).is_some() {
            return None;
        }
        let control = journal.live.iter().rev().find_map(|live| match &live.step {
            Step::Connection { control } => Some(control.into()),
            _ => None,
        });
        Some(Self {
            peer: SocketAddrV4::new(record.guest_ip.parse().ok()?, record.ssh_port.parse().ok()?),
            control,
        })
    }

    /// Whether the lease is in use.
    pub fn in_use(&self) -> Result<bool, SocketTableError> {
        let shared = match &self.control {
            Some(control) => sockets::unix_use(control)?,
            None => sockets::UnixUse::default(),
        };
        // The shared connection stays open for later commands; without a client of its own it is idle.
        Ok(shared.connected > 0 || sockets::established_to(self.peer)? > usize::from(shared.listening))
    }
}

/// Extends the expiry of a lease that is in use, as a command would. If the lease is locked by another
/// command, the next check does it.
pub fn renew(places: &Places, dir: &LeaseDir, id: &str) {
    let Ok(Some(_guard)) = locks::try_lease(places, id) else {
        return;
    };
    let Ok(mut stored) = leases::read(dir) else { return };
    let (seconds, nanoseconds) = clock::unix_now();
    if !is_due(&stored.record.labels, seconds) {
        return;
    }
    labels::touch(&mut stored.record.labels, None, None, seconds);
    stored.record.updated_at = timestamp::rfc3339_nano(seconds, nanoseconds);
    // If the record cannot be written now, the next check writes it; until then the lease only looks older
    // than it is.
    if let Err(error) = stored.save() {
        tracing::warn!(
            "the lease is in use and cannot be renewed: {}",
            fault::chain(&error)
        );
    }
}

/// Whether the last refresh is too long ago: a quarter of the idle timeout, at most a minute.
fn is_due(labels: &Labels, now: i64) -> bool {
    let most = i64::try_from(RENEW_EVERY.as_secs()).unwrap_or(i64::MAX);
    let pause = (labels::idle_seconds(labels) / 4).min(most);
    labels::time(labels, "last_touched_at").is_none_or(|last| now.saturating_sub(last) >= pause)
}

/// Whether a lease that is not in use, or was just renewed, has expired. `keep` does not extend a lease past
/// its printed `expires` time, and the label `running` of a dead run does not extend it past its idle
/// timeout.
pub fn expiry(labels: &Labels, now: i64) -> Verdict {
    let mut labels = labels.clone();
    labels.remove("keep");
    if labels::state(&labels) == LeaseState::Running {
        labels::set_state(&mut labels, &LeaseState::Ready);
    }
    labels::expired(&labels, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(state: &str) -> Labels {
        Labels::from(
            [
                ("keep", "true"),
                ("state", state),
                ("expires_at", "100"),
                ("last_touched_at", "80"),
                ("idle_timeout_secs", "20"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
        )
    }

    #[test]
    fn a_kept_lease_and_one_whose_run_died_expire_when_they_said_they_would() {
        for state in ["ready", "running"] {
            assert!(matches!(expiry(&labels(state), 100), Verdict::Skip(_)), "{state}");
            assert!(
                matches!(expiry(&labels(state), 101), Verdict::Remove(_)),
                "{state}"
            );
        }
    }

    #[test]
    fn a_lease_in_use_is_refreshed_often_enough_and_not_at_every_look() {
        assert!(!is_due(&labels("ready"), 84));
        assert!(is_due(&labels("ready"), 85));
        let mut long = labels("ready");
        long.insert("idle_timeout_secs".to_owned(), "7200".to_owned());
        assert!(!is_due(&long, 139) && is_due(&long, 140));
    }

    #[test]
    fn a_lease_is_watched_at_its_address_and_its_shared_connection() {
        let record = LeaseRecord {
            guest_ip: "192.168.127.5".to_owned(),
            ssh_port: "22".to_owned(),
            ..LeaseRecord::default()
        };
        let mut journal = Journal::default();
        assert_eq!(Watchpoint::of(&LeaseRecord::default(), &journal), None);
        let without = Watchpoint::of(&record, &journal).unwrap();
        assert_eq!(without.control, None);
        journal.live.push(crabbox_core::journal::Live {
            seq: 0,
            step: Step::Connection {
                control: "/c/x".to_owned(),
            },
            done: true,
            process: None,
        });
        let with = Watchpoint::of(&record, &journal).unwrap();
        assert_eq!(with.control.as_deref(), Some(std::path::Path::new("/c/x")));
        let mut owned = record.clone();
        labels::set_owner(&mut owned.labels, "alice");
        assert_eq!(Watchpoint::of(&owned, &journal), None);
        // No local process is connected to that address.
        assert!(!with.in_use().unwrap());
    }
}
