//! Firecracker API types, a thin client over any Read + Write, version table, jailer and VMM arguments.
