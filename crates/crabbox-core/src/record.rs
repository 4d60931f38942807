//! The record of a lease, `metadata.json`: exactly the fields of the Go program (schema 1), in the same
//! order.
//!
//! Other programs read the record. Data for our own teardown is in the journal, which the Go program never
//! rewrites; so no field of our own may be added here.

use serde::{Deserialize, Serialize};

use crate::labels::Labels;
use crate::process::ProcessId;

/// The schema version that both programs write.
pub const SCHEMA_VERSION: u32 = 1;

/// One lease of the `firecracker` provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct LeaseRecord {
    /// Always [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// `cbx_…`; the directory's name if it is empty.
    #[serde(rename = "leaseID")]
    pub lease_id: String,
    /// The lease's slug.
    pub slug: String,
    /// The machine's name.
    pub name: String,
    /// The machine's id, the same as its name; the lease id if both are empty.
    pub vmid: String,
    /// `firecracker`.
    pub provider: String,
    /// The lease directory.
    pub state_dir: String,
    /// Firecracker's API socket.
    pub socket_path: String,
    /// Firecracker's log.
    pub log_path: String,
    /// The writable disk.
    pub rootfs_path: String,
    /// The seed.
    pub cloud_init_path: String,
    /// The lease's network namespace, bind-mounted.
    pub netns_path: String,
    /// Cache directory of the CNI attachment.
    pub cni_cache_dir: String,
    /// The address under which the host reaches the guest.
    #[serde(rename = "guestIP", skip_serializing_if = "String::is_empty")]
    pub guest_ip: String,
    /// User to log in as.
    pub ssh_user: String,
    /// Port of the guest's sshd, as text.
    pub ssh_port: String,
    /// The Firecracker binary as configured.
    pub binary_path: String,
    /// The guest kernel as configured.
    pub kernel_path: String,
    /// The root file system from which the disk was made.
    pub source_rootfs: String,
    /// CNI network name.
    pub cni_network: String,
    /// CNI configuration directory.
    pub cni_conf_dir: String,
    /// CNI plugin directory.
    pub cni_bin_dir: String,
    /// The VMM's process id; 0 if there is none.
    #[serde(skip_serializing_if = "is_zero")]
    pub pid: u32,
    /// The VMM's start time, field 22 of `/proc/<pid>/stat`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub process_started: String,
    /// Boot id of the host when the VMM was started.
    #[serde(rename = "bootID", skip_serializing_if = "String::is_empty")]
    pub boot_id: String,
    /// Whether releasing the lease deletes its directory.
    pub delete_on_release: bool,
    /// The lease's labels.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// RFC 3339 with nanoseconds, UTC.
    pub created_at: String,
    /// RFC 3339 with nanoseconds, UTC.
    pub updated_at: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(pid: &u32) -> bool {
    *pid == 0
}

impl LeaseRecord {
    /// A record with all optional fields: its JSON contains the names of all fields that belong to us.
    pub fn full() -> Self {
        let text = || "x".to_owned();
        Self {
            guest_ip: text(),
            pid: 1,
            process_started: text(),
            boot_id: text(),
            labels: Labels::from([(text(), text())]),
            ..Self::default()
        }
    }

    /// The VMM in the record; `None` if one of its three fields is missing.
    pub fn process(&self) -> Option<ProcessId> {
        let whole = self.pid > 0 && !self.process_started.is_empty() && !self.boot_id.is_empty();
        whole.then(|| ProcessId {
            pid: self.pid,
            started: self.process_started.clone(),
            boot_id: self.boot_id.clone(),
        })
    }

    /// Sets the VMM in the record, or clears it.
    pub fn set_process(&mut self, process: Option<ProcessId>) {
        (self.pid, self.process_started, self.boot_id) = process.map_or_else(
            || (0, String::new(), String::new()),
            |id| (id.pid, id.started, id.boot_id),
        );
    }

    /// Fills empty fields from the record's directory, as the Go program does on reading.
    #[must_use]
    pub fn placed_in(mut self, dir: &str) -> Self {
        let dir_name = dir.rsplit('/').next().unwrap_or_default();
        if self.lease_id.is_empty() {
            dir_name.clone_into(&mut self.lease_id);
        }
        if self.vmid.is_empty() {
            self.vmid = if self.name.is_empty() {
                self.lease_id.clone()
            } else {
                self.name.clone()
            };
        }
        dir.clone_into(&mut self.state_dir);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_optional_fields_are_left_out() {
        let text = serde_json::to_string(&LeaseRecord::default()).unwrap();
        for absent in ["guestIP", "pid", "processStarted", "bootID", "labels"] {
            assert!(!text.contains(absent), "{absent} in {text}");
        }
        assert!(
            text.starts_with(r#"{"schemaVersion":0,"leaseID":"","slug":"","name":"","vmid":"""#),
            "{text}"
        );
    }

    #[test]
    fn a_record_of_the_go_program_is_read_and_unknown_fields_do_not_hurt() {
        let text = r#"{"schemaVersion":1,"leaseID":"cbx_0123456789ab","pid":42,"processStarted":"7","bootID":"b",
            "labels":{"state":"ready"},"deleteOnRelease":true,"fromTheFuture":[1]}"#;
        let record: LeaseRecord = serde_json::from_str(text).unwrap();
        assert_eq!((record.pid, record.process_started.as_str()), (42, "7"));
        assert_eq!(record.labels["state"], "ready");
    }

    #[test]
    fn blanks_are_filled_from_the_directory() {
        let record = LeaseRecord::default().placed_in("/s/leases/cbx_0123456789ab");
        assert_eq!(
            (record.lease_id.as_str(), record.vmid.as_str()),
            ("cbx_0123456789ab", "cbx_0123456789ab")
        );
        assert_eq!(record.state_dir, "/s/leases/cbx_0123456789ab");
    }
}
