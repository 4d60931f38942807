//! Observes the host's resources and the promises made to its leases, so that `core` can decide whether one
//! more fits. Runs under the allocation lock; it must never create or change anything.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crabbox_core::admission::{Demand, Room, VMM_OVERHEAD_MIB};
use crabbox_core::journal::Journal;
use crabbox_host::files::{self, FileError};
use crabbox_host::{memory, process};
use crabbox_store::places::Places;

use crate::request::{AcquireRequest, GuestSource, Start};

/// `f_type` of file systems that share the blocks of a copied file (`statfs(2)`).
const SHARE_BLOCKS: [i64; 2] = [0x9123_683E, 0x5846_5342];

/// Disk space of a template in addition to the memory, in MiB.
const TEMPLATE_MIB: u64 = 64;

/// Why a machine is not snapshotted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no room for a template (insufficient_disk): it writes {needed_mib} MiB at once, and of {free_mib} MiB free {reserve_mib} MiB are to stay \
     free"
)]
#[expect(clippy::struct_field_names, reason = "units stand in names")]
pub struct NoRoomForTemplate {
    /// What is written at once: the machine's memory, and its disk if the file system does not share blocks.
    needed_mib: u64,
    /// Free space.
    free_mib: u64,
    /// `firecracker.reserveDiskMiB`.
    reserve_mib: u64,
}

/// Whether the disk has room for a snapshot of the machine of `request` now, including all that was written
/// to its private disk `layer`.
pub(crate) fn fits_frozen(
    places: &Places,
    request: &AcquireRequest,
    layer: &Path,
) -> Result<(), NoRoomForTemplate> {
    // `st_blocks` counts units of 512 bytes, without holes (stat(2)).
    let layer_mib = std::fs::metadata(layer).map_or(0, |facts| (facts.blocks() * 512).div_ceil(1 << 20));
    let needed_mib = u64::from(request.machine.memory_mib) + layer_mib + TEMPLATE_MIB;
    // If the free space is unknown, let the first write fail instead.
    let Ok(free) = files::free_bytes(&places.state) else {
        return Ok(());
    };
    let free_mib = free >> 20;
    let reserve_mib = request.limits.reserve_disk_mib;
    if needed_mib + reserve_mib > free_mib {
        return Err(NoRoomForTemplate {
            needed_mib,
            free_mib,
            reserve_mib,
        });
    }
    Ok(())
}

/// The needs of `request`.
pub(crate) fn demand(places: &Places, request: &AcquireRequest) -> Demand {
    let copied_mib = match &request.guest {
        GuestSource::Foreign { rootfs, .. } if !shares_blocks(&places.state) => {
            // `st_blocks` counts units of 512 bytes, without holes (stat(2)).
            std::fs::metadata(rootfs).map_or(0, |meta| meta.blocks() * 512 / (1 << 20))
        }
        _ => match request.start {
            Start::Freeze { .. } => u64::from(request.machine.memory_mib) + TEMPLATE_MIB,
            Start::Boot | Start::Restore { .. } => 0,
        },
    };
    Demand {
        memory_mib: request.most_memory_mib() - VMM_OVERHEAD_MIB,
        copied_mib,
    }
}

/// Whether the file system of `dir` shares the blocks of a copied file (reflink).
pub(crate) fn shares_blocks(dir: &Path) -> bool {
    rustix::fs::statfs(dir).is_ok_and(|fs| SHARE_BLOCKS.contains(&fs.f_type))
}

/// The host's resources, given the journals of all leases on it and whether each is still being made.
pub(crate) fn room<'a>(
    places: &Places,
    leases: impl Iterator<Item = (&'a Journal, bool)>,
) -> Result<Room, FileError> {
    let mut room = Room {
        leases: 0,
        // If the kernel does not report its free memory, admission does not limit memory.
        available_mib: memory::available_mib().unwrap_or(u64::MAX / 2),
        promised_mib: 0,
        free_disk_mib: files::free_bytes(&places.state)? >> 20,
    };
    for (journal, busy) in leases {
        room.leases += 1;
        room.promised_mib += promised(journal, busy);
    }
    Ok(room)
}

/// What a lease may still consume: everything while it is being made, the remainder while it runs, nothing
/// after its machine has ended.
fn promised(journal: &Journal, busy: bool) -> u64 {
    let all = journal.memory_mib.unwrap_or(0);
    match journal.process("vmm") {
        Some(vmm) if process::is_alive(vmm) => all.saturating_sub(memory::private_mib(vmm.pid).unwrap_or(0)),
        None if busy => all,
        Some(_) | None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crabbox_core::journal::{Entry, Step, VERSION};
    use crabbox_host::process::ProcessId;

    fn journal(vmm: Option<ProcessId>) -> Journal {
        let mut journal = Journal::default();
        let open = Entry::Open {
            version: VERSION,
            lease: "cbx_0123456789ab".into(),
            at: 1,
            uid: None,
            subnet: None,
            memory_mib: Some(1_000_000),
        };
        journal.apply(open).unwrap();
        if vmm.is_some() {
            let step = Step::Vmm {
                vmid: "v".into(),
                dir: "/d".into(),
            };
            journal.apply(Entry::Begin { seq: 0, step }).unwrap();
            journal.apply(Entry::Done { seq: 0, process: vmm }).unwrap();
        }
        journal
    }

    #[test]
    fn a_lease_is_promised_what_it_has_not_taken_yet() {
        let alive = process::identify(std::process::id()).unwrap().unwrap();
        let taken = vec![1_u8; 16 << 20];
        let running = promised(&journal(Some(alive.clone())), false);
        assert!(running <= 1_000_000 - 16 && running > 900_000, "{running}");
        drop(taken);
        let dead = ProcessId {
            boot_id: "another boot".into(),
            ..alive
        };
        assert_eq!(promised(&journal(Some(dead)), true), 0);
        assert_eq!(promised(&journal(None), true), 1_000_000);
        assert_eq!(promised(&journal(None), false), 0);
    }
}
