//! The runtime side of the CNI specification. Knows nothing of crabbox.
