//! How far a host is trusted: only about the lease that it was asked for, and only if it takes us for that
//! lease's owner.
//!
//! Nothing that it says may affect the keys or the claim of another lease.

use crabbox_core::claim::Claim;
use crabbox_core::id::LeaseId;
use crabbox_core::labels;

use super::error::RemoteError;
use crate::fleet::address::KvmHost;
use crate::fleet::client::FleetError;
use crate::provider::firecracker;

pub(super) fn nonsense(host: &KvmHost) -> FleetError {
    FleetError::Nonsense {
        host: host.clone(),
        source: None,
    }
}

/// Whether a host that was asked for `text` may answer with the lease `id`. If `text` is an id, the answer
/// must have the same id.
pub(super) fn is_answer(text: &str, id: &str) -> bool {
    LeaseId::parse(text).is_err() || text == id
}

/// Checks that `now`, the owner that `host` takes us for, is the owner of the lease of `claim`.
pub(super) fn is_its_owner(host: &KvmHost, claim: &Claim, now: Option<String>) -> Result<(), RemoteError> {
    let owner = labels::owner(&claim.labels).unwrap_or_default();
    match now {
        Some(now) if now == owner => Ok(()),
        now => Err(RemoteError::AnotherOwner {
            id: claim.lease_id.clone(),
            owner: owner.to_owned(),
            host: host.clone(),
            now: now.unwrap_or_default(),
        }),
    }
}

/// Whether to delete this machine's files of the lease `id`, which `host` has reported as released. `asked`
/// is the claim that led to the request, `standing` the current claim of that lease. A host must not decide
/// about any other lease, because its keys are here.
pub(super) fn is_to_forget(
    host: &KvmHost,
    (text, asked): (&str, Option<&Claim>),
    id: &str,
    standing: Option<&Claim>,
) -> Result<bool, FleetError> {
    match asked {
        Some(claim) if claim.lease_id == id => Ok(true),
        Some(_) => Err(nonsense(host)),
        None if !is_answer(text, id) => Err(nonsense(host)),
        None => match standing {
            Some(claim) if claim.provider == firecracker::NAME && claim.provider_scope == host.scope() => {
                Ok(true)
            }
            Some(_) => Err(nonsense(host)),
            // It was made from another machine, which has its files.
            None => Ok(false),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_a_say_about_the_lease_that_was_asked_for_and_no_other() {
        let (host, other) = (KvmHost::parse("a@h").unwrap(), KvmHost::parse("b@h").unwrap());
        let claim = |id: &str, scope: String| Claim {
            lease_id: id.to_owned(),
            provider: firecracker::NAME.to_owned(),
            provider_scope: scope,
            ..Claim::default()
        };
        let (one, two) = ("cbx_000000000001", "cbx_000000000002");
        assert!(is_answer("mine", one) && is_answer(one, one) && !is_answer(one, two));
        let ours = claim(one, host.scope());
        let forget = |asked: Option<&Claim>, text: &str, id: &str, standing: Option<&Claim>| {
            is_to_forget(&host, (text, asked), id, standing).ok()
        };
        assert_eq!(forget(Some(&ours), "mine", one, Some(&ours)), Some(true));
        assert_eq!(forget(Some(&ours), "mine", two, None), None);
        // Without a claim: if an id was asked for, only that lease may be answered; and this host cannot end
        // a claim of another host or of this machine.
        assert_eq!(forget(None, "name", one, Some(&ours)), Some(true));
        assert_eq!(forget(None, two, one, Some(&ours)), None);
        assert_eq!(forget(None, "name", one, None), Some(false));
        for scope in [other.scope(), String::new()] {
            assert_eq!(forget(None, "name", one, Some(&claim(one, scope))), None);
        }
    }

    #[test]
    fn only_to_a_lease_s_owner_a_host_can_say_that_it_is_gone() {
        let host = KvmHost::parse("a@h").unwrap();
        let mut claim = Claim::default();
        let is_owner =
            |claim: &Claim, now: Option<&str>| is_its_owner(&host, claim, now.map(str::to_owned)).is_ok();
        assert!(!is_owner(&claim, None) && !is_owner(&claim, Some("alice")));
        labels::set_owner(&mut claim.labels, "alice");
        assert!(is_owner(&claim, Some("alice")));
        assert!(!is_owner(&claim, Some("alice2")) && !is_owner(&claim, None));
    }
}
