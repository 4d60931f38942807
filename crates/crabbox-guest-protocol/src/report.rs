//! The guest's report of its boot: one `stage <name> <uptime>` line for each stage, then `ready <uptime>`, in
//! decimal seconds.

/// The first word of a stage's line.
pub const STAGE: &str = "stage";
/// The first word of the last line.
pub const READY: &str = "ready";
