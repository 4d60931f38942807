//! Where control groups are mounted; the jailer makes a lease's groups below it, teardown and cleanup remove them.

/// Where control groups are mounted.
pub(crate) const CGROUPS: &str = "/sys/fs/cgroup";
