//! A signed receipt of a run: its fields, the signed bytes, and the validation of a file, in the Go program's
//! formats.
//!
//! Nothing here signs or verifies a signature. It must never treat a field as signed that the signature does
//! not cover.

mod run;
mod terminal;
mod text;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::strict_json::{self, Limits, StrictJsonError};

pub use run::RunReceipt;
pub use terminal::{TerminalReceipt, command_bytes};

/// Maximum size of a file, in bytes.
pub const FILE_LIMIT: u64 = 16 << 20;

/// Limits of the JSON: a receipt is a flat object.
const LIMITS: Limits = Limits { depth: 2, values: 64 };

/// Why a text is not a valid receipt.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptError {
    /// It is invalid or ambiguous JSON.
    #[error("malformed receipt: {0}")]
    Json(#[from] StrictJsonError),
    /// It is another JSON value.
    #[error("malformed receipt: not a JSON object")]
    NoObject,
    /// A field is missing.
    #[error("malformed receipt: missing {0}")]
    Missing(&'static str),
    /// A field is unknown.
    #[error("malformed receipt: unknown field {0:?}")]
    Unknown(String),
    /// The value of a field is invalid.
    #[error("malformed receipt: invalid {0}")]
    Invalid(&'static str),
    /// Another version of the format.
    #[error("malformed receipt: unsupported schema_version {0}")]
    Version(i64),
    /// A text exceeds the limit of the format.
    #[error("malformed receipt: {name} exceeds {limit} bytes")]
    Long {
        /// The field.
        name: &'static str,
        /// The limit, in bytes.
        limit: usize,
    },
    /// Two fields contradict each other.
    #[error("malformed receipt: {0}")]
    Contradiction(&'static str),
}

/// A receipt that is valid except for its signature, which has not been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The bytes that the signature covers.
    pub signed: Vec<u8>,
    /// The signer's ed25519 key.
    pub public_key: [u8; 32],
    /// Its signature.
    pub signature: [u8; 64],
    /// The signer's fingerprint, if the receipt contains it.
    pub signer: Option<String>,
    /// The run's exit code, in a format that also covers failed runs.
    pub exit_code: Option<i64>,
}

/// Parses the text of a receipt of either version.
pub fn parse(text: &[u8]) -> Result<Sealed, ReceiptError> {
    let Value::Object(fields) = strict_json::parse(text, LIMITS)? else {
        return Err(ReceiptError::NoObject);
    };
    match fields.get("schema_version").and_then(Value::as_i64) {
        Some(terminal::VERSION) => terminal::parse(text.len(), &fields),
        _ => run::parse(&fields),
    }
}

/// A key or a signature in the encoding of receipts.
pub fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Decodes base64 as in receipts.
pub fn decode_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// The bytes of a key or a signature; `name` is its field.
fn decode<const N: usize>(name: &'static str, text: &str) -> Result<[u8; N], ReceiptError> {
    decode_base64(text)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(ReceiptError::Invalid(name))
}

/// The text of a required field, which must not be empty.
fn said<'a>(fields: &'a serde_json::Map<String, Value>, name: &'static str) -> Result<&'a str, ReceiptError> {
    let value = fields.get(name).ok_or(ReceiptError::Missing(name))?;
    let text = value.as_str().filter(|text| !text.trim().is_empty());
    text.ok_or(ReceiptError::Invalid(name))
}

/// The integer of a required field, zero or more.
fn count(fields: &serde_json::Map<String, Value>, name: &'static str) -> Result<i64, ReceiptError> {
    let value = fields.get(name).ok_or(ReceiptError::Missing(name))?;
    let number = value.as_i64().filter(|number| *number >= 0);
    number.ok_or(ReceiptError::Invalid(name))
}

/// Whether `text` is `sha256:` and 64 hexadecimal digits.
fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn refuse_others(fields: &serde_json::Map<String, Value>, known: &[&str]) -> Result<(), ReceiptError> {
    match fields.keys().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(ReceiptError::Unknown(name.clone())),
        None => Ok(()),
    }
}
