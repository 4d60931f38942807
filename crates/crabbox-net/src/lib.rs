//! The network of a lease: namespace, tap, address mapping, policy; drives CNI.
