//! Members of pools: finding them, reporting that their pool is used, and ending them.
//!
//! A member's record is read again under its lock: a lease that a client has taken meanwhile must never be
//! ended here.

use std::time::Duration;

use crabbox_core::fault;
use crabbox_core::id::LeaseId;
use crabbox_core::labels;
use crabbox_core::record::LeaseRecord;
use crabbox_core::state::LeaseState;
use crabbox_core::timestamp;
use crabbox_host::{clock, process};
use crabbox_store::leases::{self, RecordError, StoredLease};
use crabbox_store::places::Places;
use crabbox_store::{journal, locks};

use crate::control::client::{self, ReplyError};
use crate::control::{Reply, Verb};
use crate::lease::allocate::AllocateError;
use crate::lease::ownership::OwnedLease;
use crate::lease::relief;
use crate::lifecycle::release::ReleaseError;
use crate::lifecycle::teardown::{self, Actor, Extent};
use crate::request::AcquireRequest;
use crate::resource::network::SubnetError;

/// How long a newly started supervisor may take to open its control socket.
const TELL_LIMIT: Duration = Duration::from_secs(1);
/// How long a supervisor may take to roll back a member in the making.
const WAY_LIMIT: Duration = Duration::from_secs(30);

/// A pool member, finished or in the making.
#[derive(Debug, Clone)]
pub struct Member {
    /// The lease.
    pub stored: StoredLease,
    /// The key of its pool.
    pub pool: String,
    /// Start of its creation, in nanoseconds since 1970; 0 if its record does not say.
    pub made_at: i128,
    /// Whether it can be taken now.
    pub waits: bool,
}

/// Every unclaimed lease that was made for a pool, the oldest first.
pub fn members(places: &Places) -> Result<Vec<Member>, RecordError> {
    let mut members: Vec<Member> = leases::list(&places.leases())?
        .leases
        .into_iter()
        .filter_map(|stored| {
            let labels = &stored.record.labels;
            let pool = labels::pool(labels)?.to_owned();
            Some(Member {
                made_at: timestamp::parse_nano(&stored.record.created_at).unwrap_or_default(),
                waits: labels::state(labels) == LeaseState::Pooled && has_supervisor(&stored),
                pool,
                stored,
            })
        })
        .collect();
    members.sort_by_key(|member| member.made_at);
    Ok(members)
}

/// Whether the supervisor of a lease is alive.
pub(crate) fn has_supervisor(stored: &StoredLease) -> bool {
    let Ok(Some(journal)) = journal::read(&stored.dir.journal()) else {
        return false;
    };
    journal.process("supervisor").is_some_and(process::is_alive)
}

/// Whether `record` belongs to an unclaimed lease that was made for a pool.
pub fn is_member(record: &LeaseRecord) -> bool {
    labels::pool(&record.labels).is_some()
}

/// Tells the members of `pool` that the pool is in use, so that each is replaced when it ends by age.
pub fn tell_used(members: &[Member], pool: &str) {
    for member in members
        .iter()
        .filter(|member| member.waits && member.pool == pool)
    {
        if let Err(error) = client::ask(&member.stored.dir, &Verb::PoolUsed) {
            // The member will end without a successor; the next lease refills the pool.
            tracing::debug!("{}", fault::chain(&error));
        }
    }
}

/// Ends a member, unless a client has taken it or holds its lock; returns whether it has ended.
pub fn end(places: &Places, member: &Member, actor: Actor<'_>) -> Result<bool, ReleaseError> {
    let Ok(id) = LeaseId::parse(&member.stored.record.lease_id) else {
        return Ok(false);
    };
    let Some(guard) = locks::try_lease(places, id.as_str())? else {
        return Ok(false);
    };
    let lease = OwnedLease::prove(places, &id, guard)?;
    match leases::read(lease.dir()) {
        Ok(stored) if is_member(&stored.record) => {}
        Ok(_) => {
            lease.release();
            return Ok(false);
        }
        Err(_) => {
            if lease.dir().is_gone() {
                // It is gone already; remove the lock file that we created by locking it.
                lease.forget()?;
            }
            return Ok(false);
        }
    }
    if let Err(error) = client::ask(lease.dir(), &Verb::End) {
        tracing::debug!("{}", fault::chain(&error));
    }
    let leftovers = teardown::teardown(places, lease, Extent::Everything, actor).leftovers();
    if leftovers.is_empty() {
        Ok(true)
    } else {
        Err(ReleaseError::Leftovers {
            id: id.to_string(),
            leftovers,
        })
    }
}

/// Makes room for a refused lease: ends the oldest unclaimed lease whose end helps, waiting or in the making;
/// returns whether one has ended. None is ended if all of them together would not make enough room, or once
/// `gone` says that the client has gone away.
pub(crate) fn make_room(
    places: &Places,
    request: &AcquireRequest,
    error: &AllocateError,
    actor: Actor<'_>,
    gone: &dyn Fn() -> bool,
) -> bool {
    if !wants_room(error) {
        return false;
    }
    let members = members(places).unwrap_or_default();
    let spare = members.iter().map(|member| member.stored.clone()).collect();
    let useful = relief::useful(places, request, error, spare).unwrap_or_else(|error| {
        tracing::warn!(
            "cannot tell whether others can make room: {}",
            fault::chain(&error)
        );
        Vec::new()
    });
    let helps = |member: &&Member| {
        let mut useful = useful.iter();
        useful.any(|stored| stored.record.lease_id == member.stored.record.lease_id)
    };
    for member in members.iter().filter(helps) {
        if gone() {
            return false;
        }
        let lease = member.stored.record.lease_id.as_str();
        match end(places, member, actor) {
            Ok(false) if !give_way(member, gone) => {}
            Ok(_) => {
                tracing::info!(member = lease, "ended to make room for this lease");
                return true;
            }
            Err(error) => tracing::warn!(member = lease, "cannot make room: {}", fault::chain(&error)),
        }
    }
    false
}

/// Asks the supervisor of a member to end it: a member in the making ends, one that is being handed to a
/// client does not. Returns whether it is gone.
pub fn give_way(member: &Member, gone: &dyn Fn() -> bool) -> bool {
    let dir = &member.stored.dir;
    // Its record exists before its supervisor listens, so retry while nothing listens.
    let accepted = clock::poll_until(TELL_LIMIT, || match client::ask(dir, &Verb::GiveWay) {
        Ok(Reply::Done) => Some(true),
        Err(ReplyError::Absent(_)) if !dir.is_gone() && !gone() => None,
        _ => Some(false),
    });
    // It was not asked to end, but may have ended by itself.
    if accepted != Some(true) {
        return dir.is_gone();
    }
    clock::poll_until(WAY_LIMIT, || (gone() || dir.is_gone()).then_some(()));
    dir.is_gone()
}

/// Whether a lease failed for lack of a resource that the end of a member would free.
pub(crate) fn wants_room(error: &AllocateError) -> bool {
    match error {
        AllocateError::NoRoom(refusal) => !refusal.is_of_the_owner(),
        AllocateError::NoUid { .. } | AllocateError::Subnet(SubnetError::Full(_)) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use crabbox_core::admission::Refusal;
    use crabbox_host::netlink::NetlinkError;

    use super::*;

    #[test]
    fn an_owner_who_has_had_their_share_costs_no_lease_that_waits() {
        let owners = Refusal::OwnersLeases {
            owner: "alice".to_owned(),
            leases: 2,
            max: 2,
        };
        assert!(!wants_room(&owners.into()));
        let hosts = Refusal::Leases { leases: 2, max: 2 };
        assert!(wants_room(&hosts.into()));
    }

    #[test]
    fn nobody_makes_room_for_what_room_does_not_help() {
        let refused = Refusal::Leases { leases: 1, max: 1 };
        assert!(wants_room(&AllocateError::NoRoom(refused)));
        let uids = AllocateError::NoUid {
            first: 1,
            count: 1,
            others: Vec::new(),
        };
        assert!(wants_room(&uids));
        let exists = AllocateError::Exists { id: "i".to_owned() };
        assert!(!wants_room(&exists));
        let unread = NetlinkError::Open {
            source: std::io::ErrorKind::PermissionDenied.into(),
        };
        assert!(!wants_room(&AllocateError::Subnet(SubnetError::Routes(unread))));
    }
}
