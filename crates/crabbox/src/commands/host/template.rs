//! A newly made template as a line and as JSON, shared by `image warm` and `setup`.

use std::path::PathBuf;

use crabbox_core::timestamp;
use crabbox_engine::host::warm;
use schemars::JsonSchema;
use serde::Serialize;

use crate::context::Ctx;

/// A template as `image warm --json` prints it, and `setup --json` beside what else was done.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct WarmView<'a> {
    /// The digest of all that the template depends on.
    key: &'a str,
    /// The digest of its image.
    image: &'a str,
    /// Its directory.
    path: PathBuf,
    /// What its files take up.
    allocated_bytes: u64,
    /// When it was made, RFC 3339 in UTC.
    made_at: String,
    /// How long that took, the two machines included that were tried.
    seconds: f64,
}

impl<'a> WarmView<'a> {
    /// The view of a newly made template.
    pub(super) fn new(made: &'a warm::Made) -> Self {
        let template = &made.template;
        Self {
            key: &template.key,
            image: &template.about.image,
            path: template.dir.clone(),
            allocated_bytes: template.allocated,
            made_at: timestamp::rfc3339(template.about.made_at),
            seconds: made.took.as_secs_f64(),
        }
    }
}

/// Warns about leftovers of the machines that the template was made with.
pub(super) fn tell_leftovers(ctx: &Ctx<'_>, made: &warm::Made) {
    if !made.leftovers.is_empty() {
        ctx.printer.warn(format_args!(
            "a part of a machine is left over ({}); `crabbox cleanup --provider firecracker` tries again",
            made.leftovers.join("; ")
        ));
    }
}

/// A new template as one line.
pub(super) fn line(made: &warm::Made) -> String {
    let template = &made.template;
    format!(
        "template={} image={} {} made in {:.1}s",
        abbreviated(&template.key),
        abbreviated(&template.about.image),
        mebibytes(template.allocated),
        made.took.as_secs_f64()
    )
}

/// Bytes in MiB, rounded up.
pub(super) fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// A digest shortened to what is needed to tell it apart.
pub(super) fn abbreviated(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}
