//! The key with which this user signs receipts of runs: an ed25519 key in PKCS#8, as the Go program keeps it.
//!
//! It is generated in this process and written with access for its owner only. It must never be printed, put
//! into an error, or read from a file that other users could access.

use std::fmt;
use std::path::{Path, PathBuf};

use crabbox_core::receipt::{self, Sealed};
use crabbox_host::digest;
use crabbox_host::private_file::{self, PrivateFileError};
use ed25519_dalek::{Signature, Signer as _, SigningKey, Verifier as _, VerifyingKey};

/// The path of the key below the configuration directory.
pub const KEY_PATH: &str = "attest/id_ed25519.pem";

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";

/// The DER bytes before the 32 key bytes of an ed25519 key in PKCS#8: version 1, the algorithm's OID, an
/// octet string in another (RFC 8410, section 7).
const DER: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// The offset of the version.
const DER_VERSION: usize = 4;
/// The offsets of bytes that may differ in another version: the total length and the version.
const DER_FREE: [usize; 2] = [1, DER_VERSION];

/// Why there is no key to sign with.
#[derive(Debug, thiserror::Error)]
pub enum AttestKeyError {
    /// Its file cannot be read or created.
    #[error("attest key")]
    File(#[from] PrivateFileError),
    /// Its file holds something else.
    #[error("attest key {} {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// No random bytes are available.
    #[error("cannot make an attest key")]
    Random(#[source] std::io::Error),
}

/// A key to sign with.
pub struct AttestKey(SigningKey);

impl fmt::Debug for AttestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AttestKey")
            .field(&fingerprint(&self.public()))
            .finish()
    }
}

impl AttestKey {
    /// The key in the file `path`, which must exist.
    pub fn load(path: &Path) -> Result<Self, AttestKeyError> {
        let text = private_file::read(path)?;
        let seed = read(&text).map_err(|why| AttestKeyError::Content {
            path: path.to_owned(),
            why,
        })?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// The key in the file `path`; a new one is made if it does not exist.
    pub fn ensure(path: &Path) -> Result<Self, AttestKeyError> {
        match Self::load(path) {
            Err(AttestKeyError::File(error)) if error.is_absent() => {}
            other => return other,
        }
        let seed = crabbox_host::random::bytes().map_err(AttestKeyError::Random)?;
        private_file::make(path, written(&seed).as_bytes())?;
        // Another process may have been first; then its key is this user's key.
        Self::load(path)
    }

    /// The public half.
    pub fn public(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

/// The seed in the text of a key's file.
fn read(text: &[u8]) -> Result<[u8; 32], &'static str> {
    let text = str::from_utf8(text).map_err(|_| "is not PEM encoded")?;
    let (kind, rest) = text
        .trim_start()
        .strip_prefix("-----BEGIN ")
        .and_then(|text| text.split_once("-----"))
        .ok_or("is not PEM encoded")?;
    if kind != "PRIVATE KEY" {
        return Err("is not a PKCS8 private key");
    }
    let (body, rest) = rest.split_once(END).ok_or("is not PEM encoded")?;
    if !rest.trim().is_empty() {
        return Err("has trailing data");
    }
    let body: String = body.split_ascii_whitespace().collect();
    let der = receipt::decode_base64(&body).ok_or("is not PEM encoded")?;
    // Version 2 has the public key after the seed.
    let version = der.get(DER_VERSION).copied();
    let seed = der.get(DER.len()..DER.len() + 32);
    let like = |at: usize| der.get(at) == DER.get(at);
    match (version, seed) {
        (Some(0 | 1), Some(seed)) if (0..DER.len()).all(|at| DER_FREE.contains(&at) || like(at)) => {
            seed.try_into().map_err(|_| "is not an ed25519 key")
        }
        _ => Err("is not an ed25519 key"),
    }
}

/// The text of a key's file.
fn written(seed: &[u8; 32]) -> String {
    let der = [&DER[..], seed].concat();
    format!("{BEGIN}\n{}\n{END}\n", receipt::encode(&der))
}

/// The fingerprint that users see: `sha256:` and the digest of the public key.
pub fn fingerprint(public: &[u8; 32]) -> String {
    digest_of(public)
}

/// A digest in the form used in receipts.
pub fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", digest::sha256(bytes))
}

/// Whether the signature of a receipt is valid for the key in it.
pub fn is_signed(sealed: &Sealed) -> bool {
    let signature = Signature::from_bytes(&sealed.signature);
    VerifyingKey::from_bytes(&sealed.public_key)
        .is_ok_and(|key| key.verify(&sealed.signed, &signature).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by OpenSSL's `genpkey -algorithm ed25519`; `pkey -pubout` said the public half.
    const OPENSSL: &str = "MC4CAQAwBQYDK2VwBCIEIOZxWGYKmazW6gUxp+xy0pANsd7u6OnQgraBjRRpsA8c";
    const PUBLIC: &str = "kV1gzYZwnp9mJ2KbR30ascDSVqFJmhQ38pTg7r7yAug=";

    fn openssl() -> String {
        format!("{BEGIN}\n{OPENSSL}\n{END}\n")
    }

    fn write(dir: &Path, text: &str) -> PathBuf {
        let path = dir.join("key.pem");
        std::fs::remove_file(&path).ok();
        private_file::make(&path, text.as_bytes()).unwrap();
        path
    }

    #[test]
    fn a_key_that_openssl_made_is_read_and_written_back_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let key = AttestKey::load(&write(dir.path(), &openssl())).unwrap();
        assert_eq!(receipt::encode(&key.public()), PUBLIC);
        assert_eq!(written(&read(openssl().as_bytes()).unwrap()), openssl());
        assert!(!format!("{key:?}").contains("SigningKey"), "{key:?}");
    }

    #[test]
    fn a_key_is_made_once_and_its_signatures_hold_for_their_bytes_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("crabbox").join(KEY_PATH);
        std::fs::create_dir(dir.path().join("crabbox")).unwrap();
        let key = AttestKey::ensure(&path).unwrap();
        assert_eq!(AttestKey::ensure(&path).unwrap().public(), key.public());
        let mut sealed = Sealed {
            signed: b"said".to_vec(),
            public_key: key.public(),
            signature: key.sign(b"said"),
            signer: None,
            exit_code: None,
        };
        assert!(is_signed(&sealed));
        sealed.signed = b"sayd".to_vec();
        assert!(!is_signed(&sealed));
        sealed.signed = b"said".to_vec();
        sealed.public_key = AttestKey::ensure(&dir.path().join("other/key.pem"))
            .unwrap()
            .public();
        assert!(!is_signed(&sealed));
    }

    #[test]
    fn what_is_no_ed25519_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let seed = "MC4CAQAwBQYDK2VwBCIEIA==";
        for (text, why) in [
            (String::new(), "is not PEM encoded"),
            (
                openssl().replace("PRIVATE KEY", "OPENSSH PRIVATE KEY"),
                "is not a PKCS8 private key",
            ),
            (openssl().repeat(2), "has trailing data"),
            (format!("{BEGIN}\n{seed}\n{END}\n"), "is not an ed25519 key"),
            // The OID of X25519 instead of ed25519.
            (
                openssl().replace("AwBQYDK2Vw", "AwBQYDK2Vu"),
                "is not an ed25519 key",
            ),
        ] {
            let error = AttestKey::load(&write(dir.path(), &text)).unwrap_err();
            assert!(error.to_string().ends_with(why), "{error}");
        }
    }
}
