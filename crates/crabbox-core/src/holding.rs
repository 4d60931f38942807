//! The exclusive resources of one lease on this host, across all state directories: the entry in the host's
//! registry, and the decision whether the lease still exists.
//!
//! A pure module. It must never treat an entry as released because of its age, or while anything of its lease
//! was seen.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::id::LeaseId;

/// An entry of the registry. Unknown fields of later versions are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The lease. Its tag, from which its objects on the host are named, is derived from the id.
    pub lease: LeaseId,
    /// The state directory of the lease.
    pub owner: Owner,
    /// uid and gid of its VMM, if it is jailed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its address block with built-in NAT, as `10.213.0.0/30`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<String>,
}

/// A state directory, distinguished from others that have the same path in another mount namespace or had it
/// at another time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Its path, with links resolved.
    pub state: PathBuf,
    /// `st_dev` of the directory.
    pub device: u64,
    /// `st_ino` of the directory.
    pub inode: u64,
}

/// Why a text is not a valid entry.
#[derive(Debug, thiserror::Error)]
pub enum HoldingError {
    /// Its format is invalid.
    #[error("not an entry of the registry")]
    Form(#[source] serde_json::Error),
    /// It names another lease than its file.
    #[error("it is the entry of lease {found}")]
    Misplaced {
        /// The lease that it names.
        found: LeaseId,
    },
    /// Its address block is invalid.
    #[error("{block:?} is not a block of IPv4 addresses")]
    Block {
        /// The text of the block.
        block: String,
    },
    /// Its owner is not an absolute path.
    #[error("{} is not the path of a state directory", state.display())]
    Owner {
        /// The path.
        state: PathBuf,
    },
}

impl Holding {
    /// Parses the entry of `lease`.
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

/// The observed state of a lease with an entry. The lock is checked before the directory, because a lease's
/// maker holds the lock until the directory exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sight {
    /// A process holds its lock: the lease is being made or torn down.
    pub locked: bool,
    /// Its directory exists, or its existence could not be checked.
    pub directory: bool,
    /// A process runs under its uid, or is its machine by name.
    pub process: bool,
}

impl Sight {
    /// Whether the lease still has the resources in its entry. `own` says that the entry belongs to the
    /// observing state directory: then the path of the lease's directory is reliable, and a process that
    /// outlived the directory no longer protects the entry. The path of another state directory may be
    /// invisible here (a missing mount, another mount namespace), so there a process counts.
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

/// The lease whose namespace is mounted at `mount`: `<state>/firecracker/leases/<id>/netns`, the path in
/// every version.
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
