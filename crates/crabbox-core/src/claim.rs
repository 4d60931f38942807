//! Claims: the small files that tie a lease to the repository that uses it, in the Go program's format.
//!
//! Claims are shared with other programs, so the store must preserve fields that are not ours.

use serde::{Deserialize, Serialize};

use crate::labels::Labels;

/// One claim; empty fields are left out of the file, except the four that the Go program always writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Claim {
    /// The lease; must equal the file's name.
    #[serde(rename = "leaseID")]
    pub lease_id: String,
    /// 32 hex digits, newly drawn at every change.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub revision: String,
    /// The lease's slug.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub slug: String,
    /// The provider that made the lease.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub provider: String,
    /// The location of the machine if it is not this host: the KVM host, as `ssh://user@host:port`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub provider_scope: String,
    /// The provider's name for the machine.
    #[serde(rename = "cloudID", skip_serializing_if = "String::is_empty")]
    pub cloud_id: String,
    /// Host of a static lease.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub static_host: String,
    /// User of a static lease.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub static_user: String,
    /// Port of a static lease.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub static_port: String,
    /// Work root of a static lease.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub static_work_root: String,
    /// Operating system of the machine.
    #[serde(rename = "targetOS", skip_serializing_if = "String::is_empty")]
    pub target_os: String,
    /// Windows mode; empty for Linux.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub windows_mode: String,
    /// Pond name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pond: String,
    /// Root of the repository that has claimed the lease.
    pub repo_root: String,
    /// RFC 3339, UTC.
    pub claimed_at: String,
    /// RFC 3339, UTC.
    pub last_used_at: String,
    /// Idle timeout in seconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub idle_timeout_seconds: i64,
    /// Address of the machine's sshd.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ssh_host: String,
    /// Port of the machine's sshd.
    #[serde(skip_serializing_if = "is_zero")]
    pub ssh_port: i64,
    /// The lease's labels at the time of the last write.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

impl Claim {
    /// A claim with all fields: its JSON contains the names of all fields that belong to us.
    pub fn full() -> Self {
        let text = || "x".to_owned();
        Self {
            lease_id: text(),
            revision: text(),
            slug: text(),
            provider: text(),
            provider_scope: text(),
            cloud_id: text(),
            static_host: text(),
            static_user: text(),
            static_port: text(),
            static_work_root: text(),
            target_os: text(),
            windows_mode: text(),
            pond: text(),
            repo_root: text(),
            claimed_at: text(),
            last_used_at: text(),
            idle_timeout_seconds: 1,
            ssh_host: text(),
            ssh_port: 1,
            labels: Labels::from([(text(), text())]),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

/// Whether `id` can be the name of a claim file, by the Go program's rule: a name that every supported system
/// can store, Windows included.
pub fn is_valid_claim_id(id: &str) -> bool {
    const RESERVED: [&str; 4] = ["con", "prn", "aux", "nul"];
    let stem = id.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let numbered = stem.len() == 4
        && (stem.starts_with("com") || stem.starts_with("lpt"))
        && stem.ends_with(|c: char| c.is_ascii_digit() && c != '0');
    !id.is_empty()
        && !id.contains(|c: char| c.is_control() || "<>:\"/\\|?*".contains(c))
        && !id.ends_with(['.', ' '])
        && !RESERVED.contains(&stem.as_str())
        && !numbered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_fields_are_always_there() {
        let text = serde_json::to_string(&Claim::default()).unwrap();
        assert_eq!(
            text,
            r#"{"leaseID":"","repoRoot":"","claimedAt":"","lastUsedAt":""}"#
        );
    }

    #[test]
    fn ids_that_could_leave_the_directory_are_refused() {
        for good in ["cbx_0123456789ab", "static_host-1", "a.b", "command"] {
            assert!(is_valid_claim_id(good), "{good}");
        }
        for bad in [
            "", "../x", "a/b", "a\\b", "a:b", "a\nb", "trail.", "trail ", "CON", "com1", "lpt9.txt", "a*",
        ] {
            assert!(!is_valid_claim_id(bad), "{bad}");
        }
    }
}
