//! First process inside crabbox's own guest images: static, tiny.

fn main() {}
