//! Lease, claim and journal records on disk; locks; versions.
