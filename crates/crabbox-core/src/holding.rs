//! What one lease holds of this host that no other lease on it may have, whichever state directory it belongs to: an entry of the
//! host's registry, and the judgement whether it is held still.
//!
//! Pure. It must never call an entry given up because it is old, and never one of whose lease anything was seen.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::id::LeaseId;

/// An entry of the registry. Fields that a later version adds are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The lease. Its tag, by which its objects on the host are named, follows from the id.
    pub lease: LeaseId,
    /// Whose lease it is.
    pub owner: Owner,
    /// uid and gid of its VMM, when it is jailed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its block of addresses with built-in networking, as `10.213.0.0/30`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<String>,
}

/// A state directory, told apart from any other that has its path in another mount namespace or had it at another time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Its path, without links.
    pub state: PathBuf,
    /// `st_dev` of the directory.
    pub device: u64,
    /// `st_ino` of the directory.
    pub inode: u64,
}

/// Why a text is no entry.
#[derive(Debug, thiserror::Error)]
pub enum HoldingError {
    /// It does not have the form of one.
    #[error("not an entry of the registry")]
    Form(#[source] serde_json::Error),
    /// It is the entry of another lease than its name says.
    #[error("it is the entry of lease {found}")]
    Misplaced {
        /// The lease that it names.
        found: LeaseId,
    },
    /// Its block is none.
    #[error("{block:?} is not a block of IPv4 addresses")]
    Block {
        /// The text in the block's place.
        block: String,
    },
    /// Its owner is no absolute path.
    #[error("{} is not the path of a state directory", state.display())]
    Owner {
        /// The path.
        state: PathBuf,
    },
}

impl Holding {
    /// Reads the entry of `lease`.
    pub fn parse(lease: &LeaseId, text: &[u8]) -> Result<Self, HoldingError> {
        let holding: Self = serde_json::from_slice(text).map_err(HoldingError::Form)?;
        if holding.lease != *lease {
            return Err(HoldingError::Misplaced { found: holding.lease });
        }
        if let Some(block) = holding.block.as_deref().filter(|block| !is_block(block)) {
            return Err(HoldingError::Block {
                block: block.to_owned(),
            });
        }
        if !holding.owner.state.is_absolute() {
            return Err(HoldingError::Owner {
                state: holding.owner.state,
            });
        }
        Ok(holding)
    }
}

/// Whether `arg`, an argument of a process, names the machine of `lease` ([`LeaseId::vm_name`]).
pub fn names_machine(lease: &LeaseId, arg: &str) -> bool {
    arg.ends_with(&format!("-{}", lease.tag()))
}

fn is_block(text: &str) -> bool {
    text.split_once('/').is_some_and(|(network, prefix)| {
        network.parse::<Ipv4Addr>().is_ok() && prefix.parse::<u8>().is_ok_and(|prefix| prefix <= 32)
    })
}

/// What was seen of a lease that has an entry, in this order: its lock before its directory, since its maker holds the one until the
/// other is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sight {
    /// Somebody holds its lock: it is being made, or taken back.
    pub locked: bool,
    /// Its directory is there, or could not be looked for.
    pub directory: bool,
    /// A process runs under its uid, or is its machine by name.
    pub process: bool,
}

impl Sight {
    /// Whether the lease holds what its entry says. `own` says that the entry is the looking state directory's own: then the place
    /// where the lease's directory would be is the right one, and a process that outlived it has nobody who answers for it. Of
    /// another's, the place may be out of sight here (a mount that is missing, another mount namespace), so a process counts.
    pub fn is_held(self, own: bool) -> bool {
        self.locked || self.directory || (!own && self.process)
    }
}

impl Owner {
    /// The directory of one of its leases.
    pub fn lease_dir(&self, lease: &LeaseId) -> PathBuf {
        self.state.join("firecracker/leases").join(lease.as_str())
    }

    /// The lock of one of its leases.
    pub fn lease_lock(&self, lease: &LeaseId) -> PathBuf {
        self.state.join("firecracker/locks").join(format!("{lease}.lock"))
    }
}

/// The lease whose namespace is mounted at `mount`: `<state>/firecracker/leases/<id>/netns`, as leases of every version have it.
pub fn lease_of_namespace(mount: &Path) -> Option<(LeaseId, &Path)> {
    let dir = mount
        .parent()
        .filter(|_| mount.file_name().is_some_and(|name| name == "netns"))?;
    let leases = dir.parent()?;
    if !leases.ends_with("firecracker/leases") {
        return None;
    }
    Some((LeaseId::parse(dir.file_name()?.to_str()?).ok()?, dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lease() -> LeaseId {
        LeaseId::from_random([1, 2, 3, 4, 5, 6])
    }

    fn holding(block: Option<&str>) -> Holding {
        Holding {
            lease: lease(),
            owner: Owner {
                state: "/s/crabbox".into(),
                device: 1,
                inode: 2,
            },
            uid: Some(1_900_000_000),
            block: block.map(str::to_owned),
        }
    }

    #[test]
    fn an_entry_comes_back_and_one_that_is_not_whole_or_not_its_own_does_not() {
        let whole = holding(Some("10.213.0.0/30"));
        let text = serde_json::to_vec(&whole).unwrap();
        assert_eq!(Holding::parse(&lease(), &text).unwrap(), whole);
        for end in 0..text.len() {
            assert!(Holding::parse(&lease(), &text[..end]).is_err(), "{end}");
        }
        let other = LeaseId::from_random([9; 6]);
        assert!(matches!(
            Holding::parse(&other, &text),
            Err(HoldingError::Misplaced { .. })
        ));
        for bad in ["", "10.213.0.0", "10.213.0.0/33", "fd00::/64", "x/30"] {
            let text = serde_json::to_vec(&holding(Some(bad))).unwrap();
            assert!(
                matches!(Holding::parse(&lease(), &text), Err(HoldingError::Block { .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn the_lease_of_a_namespace_is_read_from_its_place_alone() {
        let id = lease();
        let good = format!("/h/.config/crabbox/state/firecracker/leases/{id}/netns");
        let (found, dir) = lease_of_namespace(Path::new(&good)).unwrap();
        assert_eq!((found, dir), (id.clone(), Path::new(&good).parent().unwrap()));
        for bad in [
            "/run/netns/x".to_owned(),
            format!("/h/firecracker/leases/{id}/net"),
            format!("/h/leases/{id}/netns"),
            "/h/firecracker/leases/mine/netns".to_owned(),
            "netns".to_owned(),
        ] {
            assert!(lease_of_namespace(Path::new(&bad)).is_none(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn only_what_nothing_was_seen_of_is_given_up(locked: bool, directory: bool, process: bool, own: bool) {
            let sight = Sight { locked, directory, process };
            prop_assert!(sight.is_held(own) || !(locked || directory));
            prop_assert!(sight.is_held(false) || !process);
            prop_assert!(!Sight::default().is_held(own));
        }
    }
}
