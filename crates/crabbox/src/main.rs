//! Lease a throw-away Firecracker microVM, sync the working tree, run, give it back.

fn main() {}
