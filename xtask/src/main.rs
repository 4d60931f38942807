//! Developer tasks: demo, test, lab, bench, arch, docs.

fn main() {}
