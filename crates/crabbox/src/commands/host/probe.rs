//! `__probe`: whether this machine's KVM boots a guest; the developers' tasks decide by it where to make
//! leases.
//!
//! It prints one line of JSON, which is not a contract with users. It must judge only by an actual boot, and
//! leave nothing but the verdict in the given cache directory.

use std::fs;
use std::time::Duration;

use crabbox_core::fault::{Fault, Kind};
use crabbox_engine::host::probe::{self, Probe, ProbeError};
use crabbox_host::files::FileError;
use serde::Serialize;

use crate::args::ProbeArgs;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// The verdict, as the developers' tasks read it.
#[derive(Debug, Serialize)]
struct JudgedView {
    works: bool,
    /// The verdict for a person.
    words: String,
    /// Whether it is a cached verdict from earlier in this boot of the host.
    remembered: bool,
}

/// The probe could not be carried out.
#[derive(Debug, thiserror::Error)]
#[error("cannot find out whether this machine's KVM boots a guest")]
enum Error {
    File(#[from] FileError),
    Probe(#[from] ProbeError),
    Json(#[from] serde_json::Error),
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// Boots a guest that does nothing but report, or returns the cached verdict.
pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &ProbeArgs) -> Result<Exit, CommandError> {
    let judged = judge(args).and_then(|judged| Ok(serde_json::to_string(&judged)?))?;
    ctx.printer.line(judged);
    Ok(Exit::SUCCESS)
}

fn judge(args: &ProbeArgs) -> Result<JudgedView, Error> {
    let guest = fs::read(&args.guest).map_err(|source| FileError::io("read", &args.guest, source))?;
    let judged = probe::verdict(&Probe {
        cache: &args.cache,
        firecracker: &args.firecracker,
        kernel: &args.kernel,
        guest: &guest,
        limit: Duration::from_millis(args.limit_millis),
    })?;
    Ok(JudgedView {
        works: judged.verdict.works(),
        words: judged.verdict.to_string(),
        remembered: judged.remembered,
    })
}
