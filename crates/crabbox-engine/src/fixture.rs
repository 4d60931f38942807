//! The test fixture of this crate. Only tests may use it.

use std::path::Path;

use crabbox_machine::context::Engine;
use crabbox_store::places::Places;

/// An engine with all of its places below `root`, which cannot start any program.
pub(crate) fn engine(root: &Path) -> Engine {
    Engine {
        places: Places::below(root),
        exe: "/nonexistent".into(),
        path: "/nonexistent".into(),
        runtime: Some(root.to_owned()),
        failpoint: String::new(),
    }
}
