//! The leases of the `firecracker` provider in the form that commands use.
//!
//! Computed from records and processes each time; nothing here may be stored or changed.

use crabbox_core::record::LeaseRecord;
use crabbox_machine::context::Engine;
use crabbox_machine::lease::capacity;
use crabbox_machine::lease::find::{Purpose, ResolveError, find, is_running, state};
use crabbox_machine::resource::connection::{self, ConnectionError};
use crabbox_store::leases::{self, RecordError};
use crabbox_store::locks;

use crate::provider::lease::Lease;
use crate::provider::{Leases, Unusable};

/// Whether the record's VMM is running as root. In a jail, each VMM has a uid of its own.
fn runs_as_root(record: &LeaseRecord) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    is_running(record)
        && std::fs::metadata(format!("/proc/{}", record.pid)).is_ok_and(|process| process.uid() == 0)
}

/// The lease of a record, for commands.
pub fn lease(engine: &Engine, record: &LeaseRecord) -> Result<Lease, ResolveError> {
    let target = if record.guest_ip.is_empty() {
        None
    } else {
        let dir = engine.control_dir().map_err(ConnectionError::from)?;
        Some(connection::shared(record, &engine.places, &dir)?)
    };
    let label = |name: &str| record.labels.get(name).cloned().unwrap_or_default();
    Ok(Lease {
        id: record.lease_id.clone(),
        slug: record.slug.clone(),
        name: record.name.clone(),
        cloud_id: record.name.clone(),
        provider: "firecracker",
        server_type: label("server_type"),
        state: state(&engine.places, record)?,
        labels: record.labels.clone(),
        address: record.guest_ip.clone(),
        target,
        work_root: label("work_root"),
        kvm_host: None,
        fallback_ports: Vec::new(),
        is_claimed: false,
        unjailed: runs_as_root(record),
    })
}

/// The lease of a record, for working in it: includes its capacity.
pub fn in_use(engine: &Engine, record: &LeaseRecord) -> Result<Lease, ResolveError> {
    let mut lease = lease(engine, record)?;
    if let Some(target) = &mut lease.target {
        target.capacity = capacity::of(record);
    }
    Ok(lease)
}

/// Finds a lease that can be used for `purpose`.
pub fn resolve(engine: &Engine, text: &str, purpose: Purpose) -> Result<Lease, ResolveError> {
    let found = find(&engine.places, text, purpose)?;
    let Some(stored) = found.stored else {
        return Err(ResolveError::StaleClaim { id: found.id });
    };
    let record = &stored.record;
    let mut lease = in_use(engine, record)?;
    lease.is_claimed = found.claim.is_some();
    if purpose == Purpose::Use {
        if !is_running(record) {
            return Err(ResolveError::NotRunning {
                name: record.name.clone(),
                id: record.lease_id.clone(),
            });
        }
        if record.guest_ip.is_empty() {
            return Err(ResolveError::NoAddress {
                id: record.lease_id.clone(),
            });
        }
    }
    Ok(lease)
}

/// Every lease of this host, and the unusable records with the reason. A readable record may still have
/// impossible values; it is then reported by itself and does not hide the others.
pub fn list(engine: &Engine) -> Result<Leases, ResolveError> {
    let listing = leases::list(&engine.places.leases())?;
    let mut leases = Leases::default();
    for stored in listing.leases {
        match lease(engine, &stored.record) {
            Ok(lease) => leases.leases.push(lease),
            // Without a place for sockets this host has a problem, not the record.
            Err(error @ ResolveError::Connection(ConnectionError::Control(_))) => return Err(error),
            Err(error) => leases.unusable.push(Unusable {
                name: stored.record.lease_id,
                error: error.into(),
            }),
        }
    }
    // A directory whose maker has not written its record yet is not a lease so far. Pool members can be made
    // at any time.
    let begins = |bad: &leases::Unreadable| {
        matches!(bad.error, RecordError::Missing { .. })
            && locks::is_busy(&engine.places, &bad.name).unwrap_or(false)
    };
    let unreadable = listing.unreadable.into_iter().filter(|bad| !begins(bad));
    leases.unusable.extend(unreadable.map(|bad| Unusable {
        name: bad.name,
        error: ResolveError::from(bad.error).into(),
    }));
    leases.unusable.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(leases)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crabbox_store::places::Places;
    use crabbox_testkit::mutate;
    use proptest::prelude::*;

    use super::*;

    const GOOD: [&str; 2] = ["cbx_000000000001", "cbx_000000000003"];
    const ODD: &str = "cbx_000000000002";

    fn record(id: &str) -> String {
        format!(
            r#"{{"schemaVersion":1,"leaseID":"{id}","slug":"jade-krill","name":"crabbox-jade-krill","vmid":"crabbox-jade-krill",
            "provider":"firecracker","guestIP":"192.168.127.5","sshUser":"crabbox","sshPort":"22","pid":4194305,
            "processStarted":"7","bootID":"b","labels":{{"state":"ready","work_root":"/work/crabbox","expires_at":"1754001800"}}}}"#
        )
    }

    fn engine(root: &Path) -> Engine {
        let places = Places::below(root);
        for id in GOOD {
            write(&places, id, record(id).as_bytes());
        }
        crate::fixture::engine(root)
    }

    fn write(places: &Places, id: &str, text: &[u8]) {
        let dir = places.leases().join(id);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("metadata.json"), text).unwrap();
    }

    fn names(all: &Leases) -> Vec<&str> {
        all.leases.iter().map(|lease| lease.id.as_str()).collect()
    }

    #[test]
    fn what_no_lease_can_have_costs_that_lease_alone() {
        let root = tempfile::tempdir().unwrap();
        let engine = engine(root.path());
        for (good, odd) in [
            (r#""sshPort":"22""#, r#""sshPort":"abc""#),
            (r#""sshPort":"22""#, r#""sshPort":"""#),
            (r#""sshPort":"22""#, r#""sshPort":"65536""#),
            (r#""sshUser":"crabbox""#, r#""sshUser":"-oProxyCommand=x""#),
            (r#""sshUser":"crabbox""#, r#""sshUser":"a b""#),
            (r#""guestIP":"192.168.127.5""#, r#""guestIP":"-oProxyCommand=x""#),
        ] {
            write(&engine.places, ODD, record(ODD).replace(good, odd).as_bytes());
            let all = list(&engine).unwrap();
            assert_eq!(names(&all), GOOD, "{odd}");
            let [bad] = all.unusable.as_slice() else {
                unreachable!("{odd}: {:?}", all.unusable);
            };
            assert_eq!(bad.name, ODD, "{odd}");
        }
    }

    #[test]
    fn a_lease_without_a_record_is_told_once_its_maker_is_not_at_it() {
        let root = tempfile::tempdir().unwrap();
        let engine = engine(root.path());
        std::fs::create_dir_all(engine.places.leases().join(ODD)).unwrap();
        let lock = locks::try_lease(&engine.places, ODD).unwrap().unwrap();
        assert_eq!(list(&engine).unwrap().unusable.len(), 0);
        drop(lock);
        assert_eq!(list(&engine).unwrap().unusable.len(), 1);
    }

    proptest! {
        #[test]
        fn no_damage_to_one_record_hides_another(text in mutate::damaged(vec![record(ODD).into_bytes()])) {
            let root = tempfile::tempdir().unwrap();
            let engine = engine(root.path());
            write(&engine.places, ODD, &text);
            let all = list(&engine).unwrap();
            for id in GOOD {
                prop_assert!(names(&all).contains(&id), "{all:?}");
            }
            // The third is in one of the lists, too.
            prop_assert_eq!(all.leases.len() + all.unusable.len(), 3, "{:?}", all);
        }
    }
}
