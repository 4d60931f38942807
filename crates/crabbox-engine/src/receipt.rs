//! A receipt of a run in a file, verified: whether it says what its signer signed.
//!
//! Who the signer is, nobody here knows: the key is in the receipt itself. It must never call one good that it cannot read whole.

use std::path::{Path, PathBuf};

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::receipt::{self, ReceiptError};
use crabbox_host::files;
use crabbox_ssh::attest;

/// What a receipt is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The fingerprint of the key in it.
    pub signer: String,
    /// Whether all of it is as that key's owner signed it.
    pub is_signed: bool,
    /// The run's exit code, where the format tells of runs that failed too.
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
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is no receipt.
    #[error(transparent)]
    Receipt(#[from] ReceiptError),
    /// It names another signer than the owner of its key.
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
    let signer = attest::fingerprint(&sealed.public_key);
    if sealed.signer.as_ref().is_some_and(|named| *named != signer) {
        return Err(VerifyError::Signer);
    }
    Ok(Verdict {
        signer,
        is_signed: attest::is_signed(&sealed),
        exit_code: sealed.exit_code,
    })
}
