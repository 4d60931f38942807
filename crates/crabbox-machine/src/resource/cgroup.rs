//! The mount point of control groups. The jailer makes a lease's groups there, teardown and cleanup remove them;
//! nothing here may change one.

/// Where control groups are mounted.
pub(crate) const CGROUPS: &str = "/sys/fs/cgroup";
