//! Version 2: a run that ended, with any exit code. The signature covers the fields' texts, each preceded by
//! its length.
//!
//! The text of one field must never extend into the next, which the lengths prevent.

use serde_json::{Map, Value};

use super::text::{self, Field};
use super::{ReceiptError, Sealed, count, decode, encode, is_digest, refuse_others, said};
use crate::timestamp;

pub(super) const VERSION: i64 = 2;
const TYPE: &str = "terminal";
/// Maximum size of a file, in bytes.
const FILE: usize = 16 * 1024;
/// Maximum length of a text, in bytes.
const TEXT: usize = 4 * 1024;
/// Maximum length of a lease's name, in bytes.
const IDENTITY: usize = 256;

/// Every field of the format, in signing and file order.
const FIELDS: [&str; 20] = [
    "schema_version",
    "receipt_type",
    "started_at",
    "ended_at",
    "provider",
    "lease_id",
    "slug",
    "run_id",
    "command",
    "command_sha256",
    "exit_code",
    "sync_ms",
    "command_ms",
    "duration_ms",
    "log_sha256",
    "retained_log_sha256",
    "log_truncated",
    "public_key",
    "signer",
    "signature",
];

/// The contents of a receipt of a run that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalReceipt<'a> {
    /// Start of the command, in RFC 3339 with a fraction.
    pub started_at: &'a str,
    /// End of the run, `duration_ms` later.
    pub ended_at: &'a str,
    /// The provider.
    pub provider: &'a str,
    /// The lease.
    pub lease_id: &'a str,
    /// The lease's slug.
    pub slug: &'a str,
    /// The run.
    pub run_id: &'a str,
    /// The command as displayed.
    pub command: &'a str,
    /// `sha256:` and the digest of its words, see [`command_bytes`].
    pub command_sha256: &'a str,
    /// The run's exit code.
    pub exit_code: i64,
    /// Duration of the sync, in milliseconds.
    pub sync_ms: i64,
    /// Duration of the command, in milliseconds.
    pub command_ms: i64,
    /// Time between start and end, in milliseconds.
    pub duration_ms: i64,
    /// `sha256:` and the digest of both of its streams in order of arrival.
    pub log_sha256: &'a str,
    /// The fingerprint of the signing key.
    pub signer: &'a str,
}

impl TerminalReceipt<'_> {
    /// The bytes that the owner of `public_key` has to sign.
    pub fn signed(&self, public_key: &[u8; 32]) -> Vec<u8> {
        let key = encode(public_key);
        self.with_fields(&key, None, |fields| {
            signed(fields.iter().map(|(_, field)| *field))
        })
    }

    /// The file, with the signature.
    pub fn file(&self, public_key: &[u8; 32], signature: &[u8; 64]) -> Vec<u8> {
        let (key, signature) = (encode(public_key), encode(signature));
        self.with_fields(&key, Some(&signature), |fields| {
            let mut written = fields.to_vec();
            // Empty names of a lease are left out.
            written
                .retain(|(name, field)| !(["lease_id", "slug"].contains(name) && *field == Field::Text("")));
            text::indented(&written).into_bytes()
        })
    }

    fn with_fields<T>(
        &self,
        key: &str,
        signature: Option<&str>,
        then: impl FnOnce(&[(&'static str, Field<'_>)]) -> T,
    ) -> T {
        let shown = shown(self.command, self.command_sha256);
        let values = [
            Field::Number(VERSION),
            Field::Text(TYPE),
            Field::Text(self.started_at),
            Field::Text(self.ended_at),
            Field::Text(self.provider),
            Field::Text(self.lease_id),
            Field::Text(self.slug),
            Field::Text(self.run_id),
            Field::Text(&shown),
            Field::Text(self.command_sha256),
            Field::Number(self.exit_code),
            Field::Number(self.sync_ms),
            Field::Number(self.command_ms),
            Field::Number(self.duration_ms),
            Field::Text(self.log_sha256),
            // We do not keep the log, so it cannot be truncated.
            Field::Text(self.log_sha256),
            Field::Truth(false),
            Field::Text(key),
            Field::Text(self.signer),
        ];
        let values = values.into_iter().chain(signature.map(Field::Text));
        then(&FIELDS.into_iter().zip(values).collect::<Vec<_>>())
    }
}

/// A command as displayed in a receipt; if it is too long, its digest.
fn shown(command: &str, digest: &str) -> String {
    // The length in the file: Go's JSON writes some characters as six.
    let written = command.chars().map(|c| match c {
        '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => 6,
        '"' | '\\' => 2,
        c if c.is_control() => 6,
        c => c.len_utf8(),
    });
    if written.sum::<usize>() <= TEXT {
        return command.to_owned();
    }
    format!("[command display omitted; exact argv bound by {digest}]")
}

/// The bytes over which the digest of a command's words is computed.
pub fn command_bytes<'a>(words: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    prefixed(b"crabbox-command-v1\0", words)
}

fn signed<'a>(fields: impl Iterator<Item = Field<'a>>) -> Vec<u8> {
    let texts: Vec<String> = fields
        .map(|field| match field {
            Field::Text(text) => text.to_owned(),
            Field::Number(number) => number.to_string(),
            Field::Truth(truth) => truth.to_string(),
        })
        .collect();
    prefixed(b"crabbox-terminal-receipt-v2\0", texts.iter().map(String::as_str))
}

/// `prefix`, then each text preceded by its length in four bytes, big-endian.
fn prefixed<'a>(prefix: &[u8], texts: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let mut out = prefix.to_vec();
    for text in texts {
        // No argument vector or receipt has a text of 4 GiB.
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(text.as_bytes());
    }
    out
}

/// Validates the fields of a receipt of this version, whose file has `length` bytes.
pub(super) fn parse(length: usize, fields: &Map<String, Value>) -> Result<Sealed, ReceiptError> {
    let long = |name, limit| ReceiptError::Long { name, limit };
    if length > FILE {
        return Err(long("terminal receipt", FILE));
    }
    refuse_others(fields, &FIELDS)?;
    if said(fields, "receipt_type")? != TYPE {
        return Err(ReceiptError::Invalid("receipt_type"));
    }
    for name in [
        "started_at",
        "ended_at",
        "provider",
        "run_id",
        "command",
        "command_sha256",
        "log_sha256",
        "retained_log_sha256",
        "public_key",
        "signer",
        "signature",
    ] {
        if said(fields, name)?.len() > TEXT {
            return Err(long(name, TEXT));
        }
    }
    for name in ["lease_id", "slug"] {
        let text = fields.get(name).map_or(Some(""), Value::as_str);
        if text.ok_or(ReceiptError::Invalid(name))?.len() > IDENTITY {
            return Err(long(name, IDENTITY));
        }
    }
    let time = |name| timestamp::parse_nano(said(fields, name)?).ok_or(ReceiptError::Invalid(name));
    let (started, ended) = (time("started_at")?, time("ended_at")?);
    if ended < started {
        return Err(ReceiptError::Invalid("ended_at"));
    }
    for name in ["exit_code", "sync_ms", "command_ms"] {
        count(fields, name)?;
    }
    if i128::from(count(fields, "duration_ms")?) != (ended - started) / 1_000_000 {
        return Err(ReceiptError::Contradiction(
            "duration_ms does not match timestamps",
        ));
    }
    for name in ["command_sha256", "log_sha256", "retained_log_sha256", "signer"] {
        if !is_digest(said(fields, name)?) {
            return Err(ReceiptError::Invalid(name));
        }
    }
    let mut values = Vec::new();
    for name in FIELDS.iter().filter(|name| **name != "signature") {
        values.push(match fields.get(*name) {
            Some(Value::String(text)) => Field::Text(text),
            Some(Value::Bool(truth)) if *name == "log_truncated" => Field::Truth(*truth),
            Some(Value::Number(number)) if *name != "log_truncated" => {
                Field::Number(number.as_i64().ok_or(ReceiptError::Invalid(name))?)
            }
            None if ["lease_id", "slug"].contains(name) => Field::Text(""),
            Some(_) => return Err(ReceiptError::Invalid(name)),
            None => return Err(ReceiptError::Missing(name)),
        });
    }
    Ok(Sealed {
        signed: signed(values.into_iter()),
        public_key: decode("public_key", said(fields, "public_key")?)?,
        signature: decode("signature", said(fields, "signature")?)?,
        signer: Some(said(fields, "signer")?.to_owned()),
        exit_code: Some(count(fields, "exit_code")?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receipt;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn receipt() -> TerminalReceipt<'static> {
        TerminalReceipt {
            started_at: "2026-08-01T00:00:00.5Z",
            ended_at: "2026-08-01T00:00:02.25Z",
            provider: "ssh",
            lease_id: "cbx_abc123",
            slug: "",
            run_id: "run_1",
            command: "false",
            command_sha256: DIGEST,
            exit_code: 17,
            sync_ms: 1,
            command_ms: 12,
            duration_ms: 1750,
            log_sha256: DIGEST,
            signer: DIGEST,
        }
    }

    #[test]
    fn every_field_is_signed_behind_its_length_and_reads_back_so() {
        let key = [7; 32];
        let signed = receipt().signed(&key);
        let begin =
            b"crabbox-terminal-receipt-v2\0\0\0\0\x012\0\0\0\x08terminal\0\0\0\x162026-08-01T00:00:00.5Z";
        assert!(signed.starts_with(begin), "{signed:?}");
        let file = receipt().file(&key, &[9; 64]);
        let text = String::from_utf8(file.clone()).unwrap();
        assert!(!text.contains("slug"), "{text}");
        let sealed = receipt::parse(&file).unwrap();
        assert_eq!(
            (sealed.signed, sealed.exit_code, sealed.signer.as_deref()),
            (signed.clone(), Some(17), Some(DIGEST))
        );
        // Moving the border between two fields gives a different receipt.
        let moved = TerminalReceipt {
            provider: "sshc",
            lease_id: "bx_abc123",
            ..receipt()
        };
        assert_ne!(moved.signed(&key), signed);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let file = String::from_utf8(receipt().file(&[7; 32], &[9; 64])).unwrap();
        let long = format!("\"{}\"", "x".repeat(5000));
        for (from, to, wanted) in [
            ("\"terminal\"", "\"other\"", "invalid receipt_type"),
            (
                "\"log_truncated\": false",
                "\"log_truncated\": 0",
                "invalid log_truncated",
            ),
            ("\"exit_code\": 17", "\"exit_code\": \"17\"", "invalid exit_code"),
            ("1750", "1751", "duration_ms does not match timestamps"),
            ("02.25Z", "00.25Z", "invalid ended_at"),
            ("\"exit_code\": 17", "\"exit_code\": -1", "invalid exit_code"),
            ("\"false\"", long.as_str(), "command exceeds 4096 bytes"),
            ("\"run_id\"", "\"id\"", "unknown field \"id\""),
        ] {
            assert!(file.contains(from), "{from}");
            let error = receipt::parse(file.replacen(from, to, 1).as_bytes());
            assert_eq!(
                error.unwrap_err().to_string(),
                format!("malformed receipt: {wanted}")
            );
        }
    }

    #[test]
    fn a_command_too_long_to_be_shown_is_bound_by_its_digest() {
        let long = "x".repeat(TEXT + 1);
        let receipt = TerminalReceipt {
            command: &long,
            ..receipt()
        };
        let text = String::from_utf8(receipt.file(&[7; 32], &[9; 64])).unwrap();
        assert!(text.contains("[command display omitted; exact argv bound by sha256:e3b0"));
        assert_eq!(
            command_bytes(["a", "bc"]),
            b"crabbox-command-v1\0\0\0\0\x01a\0\0\0\x02bc"
        );
    }
}
