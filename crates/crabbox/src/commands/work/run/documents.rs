//! The document that a failed run leaves in its bundle.

use schemars::JsonSchema;
use serde::Serialize;

/// `crabbox-run.json` of a failure bundle.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct BundledRun<'a> {
    pub(super) provider: &'a str,
    pub(super) lease_id: &'a str,
    pub(super) slug: &'a str,
    pub(super) run_id: &'a str,
    pub(super) command: String,
    pub(super) workdir: &'a str,
    pub(super) exit_code: i32,
    pub(super) actions_run_url: &'static str,
    pub(super) capture_on_fail_flag: bool,
}
