//! Version 1: a run that succeeded. The signature covers the object's fields, sorted by name, without the
//! signature.
//!
//! It must never sign a field that is missing, or leave out one that exists.

use serde_json::{Map, Value};

use super::text::{self, Field};
use super::{ReceiptError, Sealed, count, decode, encode, is_digest, refuse_others, said};
use crate::timestamp;

const VERSION: i64 = 1;

/// Every field of the format, in signing and file order.
const FIELDS: [&str; 13] = [
    "actions_url",
    "command",
    "command_ms",
    "exit_code",
    "generated_at",
    "lease_id",
    "log_sha256",
    "provider",
    "public_key",
    "run_id",
    "schema_version",
    "signature",
    "slug",
];

/// The contents of a receipt of a successful run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunReceipt<'a> {
    /// Time of creation, in RFC 3339.
    pub generated_at: &'a str,
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
    /// Its exit code.
    pub exit_code: i64,
    /// Its duration, in milliseconds.
    pub command_ms: i64,
    /// `sha256:` and the digest of both of its streams in order of arrival.
    pub log_sha256: &'a str,
}

impl<'a> RunReceipt<'a> {
    /// The bytes that the owner of `public_key` has to sign.
    pub fn signed(&self, public_key: &[u8; 32]) -> Vec<u8> {
        text::compact(&self.fields(&encode(public_key), None)).into_bytes()
    }

    /// The file, with the signature.
    pub fn file(&self, public_key: &[u8; 32], signature: &[u8; 64]) -> Vec<u8> {
        let (key, signature) = (encode(public_key), encode(signature));
        text::indented(&self.fields(&key, Some(&signature))).into_bytes()
    }

    /// The fields in order; an empty field is left out if the format permits it.
    fn fields<'b>(&self, key: &'b str, signature: Option<&'b str>) -> Vec<(&'static str, Field<'b>)>
    where
        'a: 'b,
    {
        let some = |name, text: &'b str| (!text.is_empty()).then_some((name, Field::Text(text)));
        [
            Some(("command", Field::Text(self.command))),
            Some(("command_ms", Field::Number(self.command_ms))),
            Some(("exit_code", Field::Number(self.exit_code))),
            Some(("generated_at", Field::Text(self.generated_at))),
            some("lease_id", self.lease_id),
            some("log_sha256", self.log_sha256),
            Some(("provider", Field::Text(self.provider))),
            Some(("public_key", Field::Text(key))),
            some("run_id", self.run_id),
            Some(("schema_version", Field::Number(VERSION))),
            signature.map(|signature| ("signature", Field::Text(signature))),
            some("slug", self.slug),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Validates the fields of a receipt of this version, or of an unknown one.
pub(super) fn parse(fields: &Map<String, Value>) -> Result<Sealed, ReceiptError> {
    refuse_others(fields, &FIELDS)?;
    match count(fields, "schema_version")? {
        VERSION => {}
        other => return Err(ReceiptError::Version(other)),
    }
    let generated = said(fields, "generated_at")?;
    if !timestamp::is_rfc3339(generated) {
        return Err(ReceiptError::Invalid("generated_at"));
    }
    said(fields, "provider")?;
    said(fields, "command")?;
    for name in ["lease_id", "slug", "run_id", "actions_url"] {
        if fields.contains_key(name) {
            said(fields, name)?;
        }
    }
    count(fields, "exit_code")?;
    count(fields, "command_ms")?;
    if fields.contains_key("log_sha256") && !is_digest(said(fields, "log_sha256")?) {
        return Err(ReceiptError::Invalid("log_sha256"));
    }
    let public_key = decode("public_key", said(fields, "public_key")?)?;
    let signature = decode("signature", said(fields, "signature")?)?;
    let mut signed = Vec::new();
    for name in FIELDS.iter().filter(|name| **name != "signature") {
        let field = match fields.get(*name) {
            Some(Value::String(text)) => Field::Text(text),
            Some(Value::Number(number)) => Field::Number(number.as_i64().ok_or(ReceiptError::Invalid(name))?),
            Some(_) => return Err(ReceiptError::Invalid(name)),
            None => continue,
        };
        signed.push((*name, field));
    }
    Ok(Sealed {
        signed: text::compact(&signed).into_bytes(),
        public_key,
        signature,
        signer: None,
        exit_code: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receipt;

    fn receipt() -> RunReceipt<'static> {
        RunReceipt {
            generated_at: "2026-08-01T00:00:00Z",
            provider: "ssh",
            lease_id: "cbx_abc123",
            slug: "jade-krill",
            run_id: "run_1",
            command: "sh -c 'a && b > \"c\"'",
            exit_code: 0,
            command_ms: 12,
            log_sha256: "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        }
    }

    #[test]
    fn what_is_signed_is_the_object_without_its_signature_and_reads_back_so() {
        let key = [7; 32];
        let signed = receipt().signed(&key);
        let text = String::from_utf8(signed.clone()).unwrap();
        assert_eq!(
            text,
            "{\"command\":\"sh -c 'a \\u0026\\u0026 b \\u003e \\\"c\\\"'\",\"command_ms\":12,\"exit_code\":0,\
             \"generated_at\":\"2026-08-01T00:00:00Z\",\"lease_id\":\"cbx_abc123\",\"log_sha256\":\
             \"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\",\"provider\":\"ssh\",\"public_key\":\
             \"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\",\"run_id\":\"run_1\",\"schema_version\":1,\"slug\":\"jade-krill\"}"
        );
        let file = receipt().file(&key, &[9; 64]);
        let sealed = receipt::parse(&file).unwrap();
        assert_eq!(
            (sealed.signed, sealed.public_key, sealed.signature),
            (signed, key, [9; 64])
        );
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let file = String::from_utf8(receipt().file(&[7; 32], &[9; 64])).unwrap();
        let told = |from: &str, to: &str| {
            assert!(file.contains(from), "{from}");
            receipt::parse(file.replacen(from, to, 1).as_bytes())
                .unwrap_err()
                .to_string()
        };
        for (from, to, wanted) in [
            (
                "\"schema_version\": 1",
                "\"schema_version\": 3",
                "unsupported schema_version 3",
            ),
            (
                "\"schema_version\": 1",
                "\"schema_version\": \"1\"",
                "invalid schema_version",
            ),
            ("\"slug\"", "\"slog\"", "unknown field \"slog\""),
            ("\"slug\"", "\"run_id\"", "duplicate key"),
            ("  \"provider\": \"ssh\",\n", "", "missing provider"),
            ("\"ssh\"", "\" \"", "invalid provider"),
            ("\"exit_code\": 0", "\"exit_code\": -1", "invalid exit_code"),
            ("\"exit_code\": 0", "\"exit_code\": 0.5", "invalid exit_code"),
            ("2026-08-01T00:00:00Z", "yesterday", "invalid generated_at"),
            ("sha256:e3", "sha256:zz", "invalid log_sha256"),
            ("BwcHBwc", "BwcHBwcH", "invalid public_key"),
            ("CQkJCQk", "CQkJ", "invalid signature"),
        ] {
            assert_eq!(told(from, to), format!("malformed receipt: {wanted}"), "{to}");
        }
        assert!(receipt::parse(b"[]").is_err());
        assert!(receipt::parse(&file.as_bytes()[..50]).is_err());
    }
}
