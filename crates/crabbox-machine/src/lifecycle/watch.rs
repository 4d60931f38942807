//! The watch over a lease: waits for the end of its VMM, its expiry, a signal, or a request to end it.
//!
//! It also refreshes a lease that is in use. It must never end a lease itself: it returns the reason, and the
//! lock under which that was decided.

use std::time::{Duration, Instant};

use crabbox_core::fault;
use crabbox_core::labels::Verdict;
use crabbox_host::clock;
use crabbox_host::lock::FileLock;
use crabbox_host::process::ProcessHandle;
use crabbox_host::signals::Interrupts;
use crabbox_store::journal;
use crabbox_store::leases::{self, StoredLease};
use crabbox_store::locks;
use crabbox_store::places::{LeaseDir, Places};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::control::server::Control;
use crate::lease::activity::{self, Watchpoint};

/// Interval at which the record is checked for expiry.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Why a lease ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// Its VMM ended.
    MachineGone,
    /// It expired.
    Expired(String),
    /// The supervisor was asked to end it.
    Asked,
    /// Another process tore it down.
    LeaseGone,
    /// Its acquisition or teardown was interrupted by the death of a process.
    Unfinished,
}

/// Waits for something that ends the lease.
///
/// For an expired lease the lock is returned too: the decision was made under it, so no heartbeat can
/// intervene.
pub(super) fn observe(
    places: &Places,
    dir: &LeaseDir,
    vmm: &ProcessHandle,
    interrupts: &Interrupts,
    control: &Control,
) -> (End, Option<FileLock>) {
    let mut look = Instant::now() + LOOK_EVERY;
    let mut readable = true;
    loop {
        let left = look.saturating_duration_since(Instant::now());
        let wait = Timespec::try_from(left).unwrap_or(Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        });
        let mut fds = [
            PollFd::new(vmm, PollFlags::IN),
            PollFd::new(interrupts, PollFlags::IN),
            PollFd::new(control, PollFlags::IN),
        ];
        if poll(&mut fds, Some(&wait)).is_ok_and(|count| count > 0) {
            let end = if fds[0].revents().is_empty() {
                End::Asked
            } else {
                End::MachineGone
            };
            return (end, None);
        }
        if Instant::now() < look {
            continue;
        }
        look = Instant::now() + LOOK_EVERY;
        match leases::read(dir) {
            Ok(stored) => {
                readable = true;
                if let Some(reason) = expired(places, &stored)
                    && let Ok(Some(guard)) = locks::try_lease(places, &stored.record.lease_id)
                    && leases::read(dir).is_ok_and(|stored| expired_now(&stored))
                {
                    return (End::Expired(reason), Some(guard));
                }
            }
            Err(leases::RecordError::Missing { .. }) if dir.is_gone() => {
                return (End::LeaseGone, None);
            }
            // An unreadable record is left for `cleanup` to report; the machine goes on. Log it once, not at
            // every check.
            Err(error) => {
                if std::mem::take(&mut readable) {
                    tracing::warn!("the record cannot be read: {}", fault::chain(&error));
                }
            }
        }
    }
}

/// Refreshes a lease that is in use; returns the reason if it has expired. The time to live ends the lease
/// even if it is in use.
fn expired(places: &Places, stored: &StoredLease) -> Option<String> {
    // If activity cannot be determined, assume that the lease is in use: better that it lives until its time
    // to live than that work is interrupted.
    let in_use = match journal::read(&stored.dir.journal()) {
        Ok(Some(journal)) => Watchpoint::of(&stored.record, &journal)
            .is_some_and(|watchpoint| watchpoint.in_use().unwrap_or(true)),
        Ok(None) | Err(_) => true,
    };
    let labels = if in_use {
        activity::renew(places, &stored.dir, &stored.record.lease_id);
        leases::read(&stored.dir).ok()?.record.labels
    } else {
        stored.record.labels.clone()
    };
    match activity::expiry(&labels, clock::unix_seconds()) {
        Verdict::Remove(reason) => Some(reason),
        Verdict::Skip(_) => None,
    }
}

fn expired_now(stored: &StoredLease) -> bool {
    matches!(
        activity::expiry(&stored.record.labels, clock::unix_seconds()),
        Verdict::Remove(_)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crabbox_core::journal::{Entry, VERSION};
    use crabbox_core::record::LeaseRecord;

    /// A lease that was not refreshed for longer than its idle timeout, with the journal `text`.
    fn idle(home: &std::path::Path, text: &str) -> (Places, StoredLease) {
        let places = Places::below(home);
        let id = "cbx_0123456789ab";
        let dir = LeaseDir::at(places.leases().join(id));
        std::fs::create_dir_all(dir.path()).unwrap();
        std::fs::write(dir.journal(), text).unwrap();
        let now = clock::unix_seconds();
        let labels = [
            ("state", "ready".to_owned()),
            ("created_at", (now - 100).to_string()),
            ("last_touched_at", (now - 100).to_string()),
            ("idle_timeout_secs", "20".to_owned()),
            ("ttl_secs", "3600".to_owned()),
            ("expires_at", (now - 80).to_string()),
        ];
        let record = LeaseRecord {
            lease_id: id.to_owned(),
            labels: labels
                .map(|(name, value)| (name.to_owned(), value))
                .into_iter()
                .collect(),
            ..LeaseRecord::default()
        };
        let mut stored = StoredLease::new(dir, record);
        stored.save().unwrap();
        (places, stored)
    }

    #[test]
    fn a_lease_that_cannot_be_looked_at_is_taken_for_in_use() {
        let home = tempfile::tempdir().unwrap();
        let open = Entry::Open {
            version: VERSION,
            lease: "cbx_0123456789ab".into(),
            at: 1,
            uid: None,
            subnet: None,
            memory_mib: None,
        };
        let whole = serde_json::to_string(&open).unwrap() + "\n";
        let (places, stored) = idle(home.path(), &whole);
        assert!(expired(&places, &stored).is_some(), "nobody uses it");
        let (places, stored) = idle(home.path(), "garbage\ngarbage\n");
        assert_eq!(expired(&places, &stored), None);
    }
}
