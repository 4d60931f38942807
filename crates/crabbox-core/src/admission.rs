//! Admission: whether a host has room for one more lease, decided from observed numbers before anything is
//! made.
//!
//! An admitted lease must never make the kernel's OOM killer end another process. Disks are sparse and may be
//! overcommitted, but never so far that the next lease cannot even start.

use crate::fault::{Fault, Kind};

/// Memory of a VMM in addition to its guest's, in MiB; the limit of a lease's control group is the sum.
pub const VMM_OVERHEAD_MIB: u64 = 128;
/// Disk space that a lease writes immediately, in MiB: kernel, private layer, keys, records and logs.
pub const LEASE_DISK_MIB: u64 = 256;

/// The administrator's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Limits {
    /// Maximum number of leases; 0 is no limit. `firecracker.maxLeases`.
    pub max_leases: u64,
    /// Memory in MiB reserved for the host. `firecracker.reserveMemoryMiB`.
    pub reserve_memory_mib: u64,
    /// Free disk space in MiB that a new lease must leave. `firecracker.reserveDiskMiB`.
    pub reserve_disk_mib: u64,
}

/// The administrator's limits for each remote owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Quota {
    /// Maximum number of leases; 0 is no limit. `firecracker.maxLeasesPerOwner`.
    pub max_leases: u64,
    /// Maximum total memory in MiB, including that of the VMMs; 0 is no limit.
    /// `firecracker.maxMemoryMiBPerOwner`.
    pub max_memory_mib: u64,
}

/// The resources of one owner.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OwnerUsage {
    /// Number of leases, including those in the making.
    pub leases: u64,
    /// Memory limit of all of them in MiB, including that of the VMMs.
    pub memory_mib: u64,
}

/// The needs of a new lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Memory of the guest in MiB.
    pub memory_mib: u64,
    /// Data that is copied for its disk, in MiB; 0 if blocks are shared.
    pub copied_mib: u64,
}

/// The resources of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Number of leases, including those in the making.
    pub leases: u64,
    /// `MemAvailable` of the kernel, in MiB.
    pub available_mib: u64,
    /// Memory in MiB that existing leases may still allocate.
    pub promised_mib: u64,
    /// Free disk space for leases, in MiB.
    pub free_disk_mib: u64,
}

/// Why there is no room.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The maximum number of leases exists.
    #[error("no room for another lease (lease_limit): {leases} of {max} leases are in use")]
    Leases {
        /// Number of leases.
        leases: u64,
        /// `firecracker.maxLeases`.
        max: u64,
    },
    /// There is not enough memory.
    #[error(
        "no room for another lease (insufficient_memory): it may take {needed_mib} MiB, and of {available_mib} MiB available {promised_mib} MiB \
         are promised to other leases and {reserve_mib} MiB stay with the host"
    )]
    Memory {
        /// Guest and VMM.
        needed_mib: u64,
        /// Available memory of the host.
        available_mib: u64,
        /// Memory that other leases may still allocate.
        promised_mib: u64,
        /// `firecracker.reserveMemoryMiB`.
        reserve_mib: u64,
    },
    /// The owner has the maximum number of leases.
    #[error("no further lease for {owner} (quota_exceeded): {leases} of {max} leases are in use")]
    OwnersLeases {
        /// The owner.
        owner: String,
        /// Number of leases of the owner.
        leases: u64,
        /// `firecracker.maxLeasesPerOwner`.
        max: u64,
    },
    /// The owner has the maximum of memory.
    #[error(
        "no further lease for {owner} (quota_exceeded): it may take {needed_mib} MiB, and {had_mib} of {max_mib} MiB are in use"
    )]
    OwnersMemory {
        /// The owner.
        owner: String,
        /// Guest and VMM.
        needed_mib: u64,
        /// Memory limit of the owner's leases.
        had_mib: u64,
        /// `firecracker.maxMemoryMiBPerOwner`.
        max_mib: u64,
    },
    /// A volume of the lease could fill the disk.
    #[error(
        "no room for cache volume {name:?} (insufficient_disk): it may grow by {growth_mib} MiB, and of {free_mib} MiB free \
         that no other volume may take {reserve_mib} MiB are to stay free"
    )]
    Volume {
        /// The volume's name.
        name: String,
        /// The part of its size that it does not occupy yet.
        growth_mib: u64,
        /// Free space, minus the space that other volumes may still occupy.
        free_mib: u64,
        /// `firecracker.reserveDiskMiB`.
        reserve_mib: u64,
    },
    /// There is not enough disk space.
    #[error(
        "no room for another lease (insufficient_disk): it writes {needed_mib} MiB at once, and of {free_mib} MiB free {reserve_mib} MiB are to \
         stay free"
    )]
    Disk {
        /// Disk space that the lease writes immediately.
        needed_mib: u64,
        /// Free space.
        free_mib: u64,
        /// `firecracker.reserveDiskMiB`.
        reserve_mib: u64,
    },
}

/// The requester that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// A user of the host itself.
    Here,
    /// A remote owner over SSH, who has no access to the host's configuration, its other leases and its disk.
    Afar,
}

impl Asker {
    /// What this requester can do to make room.
    pub fn can_stop(self) -> &'static str {
        match self {
            Self::Here => {
                "stop a lease that `crabbox list` shows, or run `crabbox cleanup --provider firecracker`"
            }
            Self::Afar => {
                "stop one of your leases (`crabbox list` shows them), or wait for another owner's to end"
            }
        }
    }
}

impl Refusal {
    /// Hints for `asker`.
    pub fn hints_for(&self, asker: Asker) -> Vec<String> {
        let stop = match asker {
            Asker::Afar if self.is_of_the_owner() => "stop one of your leases (`crabbox list` shows them)",
            asker => asker.can_stop(),
        };
        let less = |fits: u64| format!("ask for less: --firecracker-memory-mib {fits}");
        let other = match (self, asker) {
            (Self::Volume { .. }, _) => {
                return vec![
                    "free some space, or remove a volume that `crabbox cache volumes` shows; a smaller sizeGB counts only for one that is not made yet".to_owned(),
                ];
            }
            (Self::Leases { .. }, Asker::Here) => {
                "raise firecracker.maxLeases in your own configuration".to_owned()
            }
            (Self::Leases { .. }, Asker::Afar) => {
                "the administrator of that host sets firecracker.maxLeases there".to_owned()
            }
            (Self::OwnersLeases { .. }, _) => {
                "the administrator of that host sets firecracker.maxLeasesPerOwner".to_owned()
            }
            (Self::OwnersMemory { had_mib, max_mib, .. }, _) => {
                match max_mib.saturating_sub(had_mib + VMM_OVERHEAD_MIB) {
                    0 => return vec![stop.to_owned()],
                    fits => less(fits),
                }
            }
            (
                Self::Memory {
                    available_mib,
                    promised_mib,
                    reserve_mib,
                    ..
                },
                _,
            ) => {
                let fits = available_mib
                    .saturating_sub(promised_mib + reserve_mib)
                    .saturating_sub(VMM_OVERHEAD_MIB);
                if fits == 0 {
                    return vec![stop.to_owned()];
                }
                less(fits)
            }
            (Self::Disk { .. }, Asker::Here) => {
                "free some space: `crabbox image gc` removes images that no lease uses".to_owned()
            }
            (Self::Disk { .. }, Asker::Afar) => {
                "the administrator of that host can free some space there".to_owned()
            }
        };
        vec![stop.to_owned(), other]
    }

    /// Whether it is the owner's quota: then the end of other owners' leases does not help.
    pub fn is_of_the_owner(&self) -> bool {
        matches!(self, Self::OwnersLeases { .. } | Self::OwnersMemory { .. })
    }

    /// The reason's name, for programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Leases { .. } => "lease_limit",
            Self::OwnersLeases { .. } | Self::OwnersMemory { .. } => "quota_exceeded",
            Self::Memory { .. } => "insufficient_memory",
            Self::Disk { .. } | Self::Volume { .. } => "insufficient_disk",
        }
    }
}

impl Fault for Refusal {
    fn kind(&self) -> Kind {
        Kind::Unavailable
    }

    fn hints(&self) -> Vec<String> {
        self.hints_for(Asker::Here)
    }
}

/// Admits one more lease of `owner`, who already uses `had`, or returns the reason against it.
pub fn admit_owner(quota: &Quota, owner: &str, had: &OwnerUsage, demand: &Demand) -> Result<(), Refusal> {
    let owner = || owner.to_owned();
    if quota.max_leases > 0 && had.leases >= quota.max_leases {
        return Err(Refusal::OwnersLeases {
            owner: owner(),
            leases: had.leases,
            max: quota.max_leases,
        });
    }
    let needed_mib = demand.memory_mib + VMM_OVERHEAD_MIB;
    if quota.max_memory_mib > 0 && needed_mib + had.memory_mib > quota.max_memory_mib {
        return Err(Refusal::OwnersMemory {
            owner: owner(),
            needed_mib,
            had_mib: had.memory_mib,
            max_mib: quota.max_memory_mib,
        });
    }
    Ok(())
}

/// Admits a volume that may still grow by `growth_mib`, if `free_mib` are free and not promised to another
/// volume. Unlike the disk of a lease it is counted in full: data on a volume stays when its lease ends, so a
/// full host would have nothing to stop.
pub fn admit_volume(name: &str, growth_mib: u64, free_mib: u64, limits: &Limits) -> Result<(), Refusal> {
    let reserve_mib = limits.reserve_disk_mib;
    if growth_mib.saturating_add(reserve_mib) > free_mib {
        return Err(Refusal::Volume {
            name: name.to_owned(),
            growth_mib,
            free_mib,
            reserve_mib,
        });
    }
    Ok(())
}

/// Admits a lease, or returns the reason against it.
pub fn admit(limits: &Limits, demand: &Demand, room: &Room) -> Result<(), Refusal> {
    if limits.max_leases > 0 && room.leases >= limits.max_leases {
        return Err(Refusal::Leases {
            leases: room.leases,
            max: limits.max_leases,
        });
    }
    let needed_mib = demand.memory_mib + VMM_OVERHEAD_MIB;
    if needed_mib + room.promised_mib + limits.reserve_memory_mib > room.available_mib {
        return Err(Refusal::Memory {
            needed_mib,
            available_mib: room.available_mib,
            promised_mib: room.promised_mib,
            reserve_mib: limits.reserve_memory_mib,
        });
    }
    let needed_mib = demand.copied_mib + LEASE_DISK_MIB;
    if needed_mib + limits.reserve_disk_mib > room.free_disk_mib {
        return Err(Refusal::Disk {
            needed_mib,
            free_mib: room.free_disk_mib,
            reserve_mib: limits.reserve_disk_mib,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        max_leases: 3,
        reserve_memory_mib: 100,
        reserve_disk_mib: 50,
    };
    const DEMAND: Demand = Demand {
        memory_mib: 1000,
        copied_mib: 10,
    };
    /// Exactly enough of everything.
    const ROOM: Room = Room {
        leases: 2,
        available_mib: 1000 + VMM_OVERHEAD_MIB + 100 + 500,
        promised_mib: 500,
        free_disk_mib: 10 + LEASE_DISK_MIB + 50,
    };

    #[test]
    fn an_owner_from_afar_is_not_sent_to_what_is_the_host_s() {
        let refusals = [
            Refusal::Leases { leases: 2, max: 2 },
            Refusal::OwnersLeases {
                owner: "alice".to_owned(),
                leases: 2,
                max: 2,
            },
            Refusal::Disk {
                needed_mib: 2,
                free_mib: 1,
                reserve_mib: 0,
            },
        ];
        for refusal in refusals {
            let told = refusal.hints_for(Asker::Afar).join("; ");
            for here in ["your own configuration", "crabbox cleanup", "image gc"] {
                assert!(!told.contains(here), "{told}");
            }
            assert!(
                told.contains("the administrator of that host") && told.contains("one of your leases"),
                "{told}"
            );
        }
        let full = Refusal::Leases { leases: 2, max: 2 };
        assert!(full.hints().join("; ").contains("your own configuration"));
    }

    #[test]
    fn a_volume_is_counted_by_what_it_can_grow_to() {
        assert_eq!(admit_volume("n", 100, 150, &LIMITS), Ok(()));
        let refusal = admit_volume("n", 101, 150, &LIMITS).unwrap_err();
        assert_eq!(refusal.reason(), "insufficient_disk");
        assert!(refusal.to_string().contains("cache volume \"n\"") && refusal.kind() == Kind::Unavailable);
        assert!(admit_volume("n", u64::MAX, 150, &LIMITS).is_err());
    }

    #[test]
    fn exactly_enough_is_enough_and_one_less_is_not() {
        assert_eq!(admit(&LIMITS, &DEMAND, &ROOM), Ok(()));
        for (room, reason) in [
            (Room { leases: 3, ..ROOM }, "lease_limit"),
            (
                Room {
                    available_mib: ROOM.available_mib - 1,
                    ..ROOM
                },
                "insufficient_memory",
            ),
            (
                Room {
                    promised_mib: 501,
                    ..ROOM
                },
                "insufficient_memory",
            ),
            (
                Room {
                    free_disk_mib: ROOM.free_disk_mib - 1,
                    ..ROOM
                },
                "insufficient_disk",
            ),
        ] {
            let refusal = admit(&LIMITS, &DEMAND, &room).unwrap_err();
            assert_eq!(refusal.reason(), reason);
            assert!(refusal.to_string().contains(reason) && !refusal.hints().is_empty());
        }
        let no_limit = Limits {
            max_leases: 0,
            ..LIMITS
        };
        assert_eq!(admit(&no_limit, &DEMAND, &Room { leases: 99, ..ROOM }), Ok(()));
    }

    #[test]
    fn an_owner_has_as_much_as_the_quota_says_and_not_one_mebibyte_more() {
        let quota = Quota {
            max_leases: 2,
            max_memory_mib: 2 * (1000 + VMM_OVERHEAD_MIB),
        };
        let had = |leases, memory_mib| OwnerUsage { leases, memory_mib };
        let ask = |had: &OwnerUsage| admit_owner(&quota, "alice", had, &DEMAND);
        let one = had(1, 1000 + VMM_OVERHEAD_MIB);
        assert_eq!(ask(&one), Ok(()));
        for over in [had(2, 0), had(1, one.memory_mib + 1)] {
            let refusal = ask(&over).unwrap_err();
            assert!(refusal.is_of_the_owner());
            assert_eq!(
                (refusal.reason(), refusal.kind()),
                ("quota_exceeded", Kind::Unavailable)
            );
            assert!(refusal.to_string().contains("alice") && refusal.to_string().contains("quota_exceeded"));
        }
        let none = Quota {
            max_leases: 0,
            max_memory_mib: 0,
        };
        assert_eq!(admit_owner(&none, "alice", &had(99, 1 << 40), &DEMAND), Ok(()));
    }

    #[test]
    fn the_size_in_the_hint_is_let_in() {
        let room = Room {
            available_mib: 900,
            ..ROOM
        };
        let hints = admit(&LIMITS, &DEMAND, &room).unwrap_err().hints();
        let fits: u64 = hints[1].rsplit(' ').next().unwrap().parse().unwrap();
        let smaller = Demand {
            memory_mib: fits,
            ..DEMAND
        };
        assert_eq!(admit(&LIMITS, &smaller, &room), Ok(()));
    }
}
