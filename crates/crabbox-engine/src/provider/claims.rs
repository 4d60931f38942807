//! The local claims for `crabbox claims list`: only files are read, no provider is asked.

pub use crabbox_core::claim::Claim;
use crabbox_core::fault::{Fault, Kind};
pub use crabbox_store::claims::{ClaimError, Listing, Problem};
use crabbox_store::places::Places;

/// The claims cannot be listed at all.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ListError(#[from] ClaimError);

impl Fault for ListError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// Every claim, and every other file in their directory.
pub fn list(places: &Places) -> Result<Listing, ListError> {
    Ok(crabbox_store::claims::list(places)?)
}

/// A short code for the problem of a claim file, for programs; the codes are the Go program's.
pub fn code(error: &ClaimError) -> &'static str {
    match error {
        ClaimError::Decode { .. } => "invalid_json",
        ClaimError::NotAFile { .. } => "non_regular_file",
        ClaimError::TooLarge { .. } => "claim_too_large",
        ClaimError::NoLease { .. } => "empty_lease_id",
        ClaimError::Misplaced { .. } => "lease_id_mismatch",
        ClaimError::InvalidId { .. } => "invalid_filename",
        ClaimError::Read { .. }
        | ClaimError::Lock(_)
        | ClaimError::Changed { .. }
        | ClaimError::Write(_)
        | ClaimError::Random(_) => "read_error",
    }
}
