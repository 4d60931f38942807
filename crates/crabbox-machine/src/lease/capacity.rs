//! The upper limit for one file of a lease: the size of its disks and its memory together.
//!
//! It bounds each file that a guest sends, so it must never be less than a guest can legitimately have. If
//! any part is unknown, there is no limit.

use std::path::Path;

use crabbox_core::journal::Journal;
use crabbox_core::record::LeaseRecord;
use crabbox_store::journal;
use crabbox_store::places::LeaseDir;

use crate::resource::disk::SHARED_BASE;

/// The maximum number of bytes that the lease of `record` can hold; `None` if unknown, as for leases of the
/// Go program.
pub fn of(record: &LeaseRecord) -> Option<u64> {
    let journal = journal::read(&LeaseDir::at(&record.state_dir).journal()).ok()??;
    of_parts(record, &journal)
}

fn of_parts(record: &LeaseRecord, journal: &Journal) -> Option<u64> {
    // A compromised VMM may replace its disk, but the file-size limit of its jail bounds the length of any
    // file.
    let disk = length(&record.rootfs_path)?;
    let base = if journal.note("disk")? == SHARED_BASE {
        length(&record.source_rootfs)?
    } else {
        // The disk is a copy of the base, so the base adds nothing.
        0
    };
    // Count memory too, because the guest can have file systems in memory.
    let memory = journal.memory_mib?.checked_mul(1 << 20)?;
    let volumes = journal.volumes_mib().checked_mul(1 << 20)?;
    disk.checked_add(base)?.checked_add(memory)?.checked_add(volumes)
}

/// The length of a regular file that is not a link.
fn length(path: &str) -> Option<u64> {
    let facts = Path::new(path).symlink_metadata().ok()?;
    facts.is_file().then_some(facts.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    use crabbox_core::journal::{Entry, Step, VERSION};

    #[test]
    fn a_lease_holds_what_its_disks_and_its_memory_do_and_no_link_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, base) = (dir.path().join("disk.ext4"), dir.path().join("base.ext4"));
        File::create(&disk).unwrap().set_len(64 << 20).unwrap();
        File::create(&base).unwrap().set_len(16 << 20).unwrap();
        let record = LeaseRecord {
            state_dir: dir.path().to_string_lossy().into_owned(),
            rootfs_path: disk.to_string_lossy().into_owned(),
            source_rootfs: base.to_string_lossy().into_owned(),
            ..LeaseRecord::default()
        };
        let open = Entry::Open {
            version: VERSION,
            lease: "cbx_0123456789ab".into(),
            at: 1,
            uid: None,
            subnet: None,
            memory_mib: Some(128),
        };
        let mut journal = Journal::default();
        journal.apply(open).unwrap();
        assert_eq!(
            of_parts(&record, &journal),
            None,
            "nobody knows how its disk was made"
        );
        journal.notes = vec![("disk".to_owned(), SHARED_BASE.to_owned())];
        assert_eq!(of_parts(&record, &journal), Some((64 + 16 + 128) << 20));
        let step = Step::Volume {
            dir: "/v".into(),
            link: "volume-0.ext4".into(),
            size_mib: 1024,
        };
        journal.apply(Entry::Begin { seq: 0, step }).unwrap();
        assert_eq!(of_parts(&record, &journal), Some((64 + 16 + 128 + 1024) << 20));
        journal.apply(Entry::Undone { seq: 0 }).unwrap();
        journal.notes = vec![("disk".to_owned(), "reflink".to_owned())];
        assert_eq!(of_parts(&record, &journal), Some((64 + 128) << 20));
        std::fs::remove_file(&disk).unwrap();
        std::os::unix::fs::symlink("/proc/kcore", &disk).unwrap();
        assert_eq!(of_parts(&record, &journal), None);
        assert_eq!(of(&record), None, "it has no journal");
    }
}
