//! `verify`: whether a run's receipt is what its signer signed.
//!
//! It must never claim more than that: the signer is known only by a fingerprint, and each line says so.

use crabbox_core::fault::{Fault, Kind};
use crabbox_engine::receipt;

use crate::args::VerifyArgs;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// No receipt was named, or more than one.
#[derive(Debug, thiserror::Error)]
#[error("usage: crabbox verify <receipt.json>")]
struct Usage;

impl Fault for Usage {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &VerifyArgs) -> Result<Exit, CommandError> {
    let [path] = args.receipts.as_slice() else {
        return Err(Usage.into());
    };
    let verdict = receipt::verify(path)?;
    let summary = format!("{} signer={} trust=self-signed", path.display(), verdict.signer);
    if !verdict.is_signed {
        ctx.printer
            .line(format_args!("FAIL {summary}: signature mismatch"));
        return Ok(Exit::passed_through(Kind::Problems.exit_code()));
    }
    match verdict.exit_code {
        Some(code) => ctx.printer.line(format_args!("PASS {summary} exit={code}")),
        None => ctx.printer.line(format_args!("PASS {summary}")),
    }
    Ok(Exit::SUCCESS)
}
