//! The guest's report of its boot: one `stage <name> <uptime>` line for each stage, then `ready <uptime>`, in decimal seconds.

/// The word in front of a stage.
pub const STAGE: &str = "stage";
/// The word in front of the last line.
pub const READY: &str = "ready";
