//! Computes which unclaimed leases would have to end to make room for a refused lease, and whether ending all
//! of them would be enough.
//!
//! It only observes. It must never count resources of a claimed lease.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crabbox_core::admission;
use crabbox_core::journal::Journal;
use crabbox_core::network::NetworkMode;
use crabbox_host::{memory, process};
use crabbox_store::leases::StoredLease;
use crabbox_store::places::Places;
use crabbox_store::registry::Registry;
use crabbox_store::{journal, locks};
use ipnet::Ipv4Net;

use crate::lease::admission::{demand, room, shares_blocks};
use crate::lease::allocate::{self, AllocateError};
use crate::lease::holders;
use crate::request::AcquireRequest;
use crate::resource::network;

/// An unclaimed lease and its resources.
struct Spare {
    stored: StoredLease,
    journal: Journal,
}

impl Spare {
    /// `None` if its journal cannot be read, so that its resources are unknown.
    fn look(stored: StoredLease) -> Option<Self> {
        let journal = journal::read(&stored.dir.journal()).ok()??;
        Some(Self { stored, journal })
    }

    /// Memory used by its machine, in MiB.
    fn memory_mib(&self) -> u64 {
        let vmm = self.journal.process("vmm").filter(|vmm| process::is_alive(vmm));
        vmm.and_then(|vmm| memory::private_mib(vmm.pid)).unwrap_or(0)
    }

    /// Disk space that its end frees, in MiB; `st_blocks` counts 512-byte units (stat(2)). On file systems
    /// with shared blocks that number includes blocks of the image, which stay; there the value is 0.
    fn disk_mib(&self) -> u64 {
        if shares_blocks(Path::new(&self.stored.record.rootfs_path)) {
            return 0;
        }
        let disk = std::fs::symlink_metadata(&self.stored.record.rootfs_path);
        disk.map_or(0, |facts| facts.blocks() * 512 / (1 << 20))
    }

    /// Whether its uid is in the range of `request`.
    fn has_uid_for(&self, request: &AcquireRequest) -> bool {
        let jail = request.programs.jailer.as_ref();
        jail.zip(self.journal.uid).is_some_and(|(jail, uid)| {
            (jail.first_uid..jail.first_uid.saturating_add(jail.uid_count)).contains(&uid)
        })
    }

    /// Whether its address block is in the range of `request`.
    fn has_block_for(&self, request: &AcquireRequest) -> bool {
        let block = self.journal.subnet.as_deref();
        let block = block.and_then(|block| block.parse::<Ipv4Net>().ok());
        block.is_some_and(|block| request.network.nat_range.contains(&block))
    }
}

/// The leases of `spare` whose end helps `request`, which was refused with `error`, in the same order; empty
/// if it would be refused even if all of them ended.
pub(crate) fn useful(
    places: &Places,
    request: &AcquireRequest,
    error: &AllocateError,
    spare: Vec<StoredLease>,
) -> Result<Vec<StoredLease>, AllocateError> {
    let mut spare: Vec<Spare> = spare.into_iter().filter_map(Spare::look).collect();
    if !suffices(places, request, &spare)? {
        return Ok(Vec::new());
    }
    spare.retain(|member| match error {
        AllocateError::NoUid { .. } => member.has_uid_for(request),
        AllocateError::Subnet(_) => member.has_block_for(request),
        _ => true,
    });
    Ok(spare.into_iter().map(|member| member.stored).collect())
}

/// Whether `request` would be admitted if all of `spare` ended.
fn suffices(places: &Places, request: &AcquireRequest, spare: &[Spare]) -> Result<bool, AllocateError> {
    let _allocation = locks::allocation(places)?;
    let journals = allocate::journals(places);
    let kept = journals
        .iter()
        .filter(|(journal, _)| !spare.iter().any(|member| member.journal.lease == journal.lease));
    let mut room = room(places, kept.map(|(journal, busy)| (journal, *busy)))?;
    room.available_mib += spare.iter().map(Spare::memory_mib).sum::<u64>();
    room.free_disk_mib += spare.iter().map(Spare::disk_mib).sum::<u64>();
    if admission::admit(&request.limits, &demand(places, request), &room).is_err() {
        return Ok(false);
    }
    let registry = Registry::lock(places)?;
    let held = holders::look(places, &registry.list()?)?;
    drop(registry);
    let has_uid =
        spare.iter().any(|member| member.has_uid_for(request)) || allocate::free_uid(request, &held).is_ok();
    let has_block = request.network.mode != NetworkMode::Nat
        || spare.iter().any(|member| member.has_block_for(request))
        || network::choose_subnet(request.network.nat_range, &held.blocks).is_ok();
    Ok(has_uid && has_block)
}
