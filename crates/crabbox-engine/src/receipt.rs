//! Verifies the receipt of a run in a file: whether it is what its signer signed.
//!
//! We do not know who the signer is, since the key is in the receipt itself. It must never accept a receipt
//! that it cannot parse completely.

use std::path::{Path, PathBuf};

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::receipt::{self, ReceiptError};
use crabbox_host::files;

pub mod signature;

/// The result of verifying a receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The fingerprint of the receipt's key.
    pub signer: String,
    /// Whether the signature is valid for the whole receipt.
    pub is_signed: bool,
    /// The run's exit code, if the receipt's format includes it.
    pub exit_code: Option<i64>,
}

/// Why a receipt cannot be verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// There is no such file, or it cannot be read.
    #[error("read receipt {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// It is not a receipt.
    #[error(transparent)]
    Receipt(#[from] ReceiptError),
    /// It names a signer other than the owner of its key.
    #[error("malformed receipt: signer does not match public_key")]
    Signer,
}

impl Fault for VerifyError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// Verifies the receipt in the file `path`.
pub fn verify(path: &Path) -> Result<Verdict, VerifyError> {
    let text = files::read_regular(path, receipt::FILE_LIMIT).map_err(|source| VerifyError::Read {
        path: path.to_owned(),
        source,
    })?;
    let sealed = receipt::parse(&text)?;
    let signer = signature::fingerprint(&sealed.public_key);
    if sealed.signer.as_ref().is_some_and(|named| *named != signer) {
        return Err(VerifyError::Signer);
    }
    Ok(Verdict {
        signer,
        is_signed: signature::is_signed(&sealed),
        exit_code: sealed.exit_code,
    })
}
