//! Identifiers: lease ids, slugs, run ids and the names derived from them.
//!
//! The formats are the Go program's, so that both programs can read each other's state. Nothing here may draw
//! random numbers: callers pass the bytes in.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The maximum length of a requested slug, after normalising.
pub(crate) const SLUG_LIMIT: usize = 41;

const ADJECTIVES: [&str; 14] = [
    "amber", "blue", "brisk", "coral", "crimson", "golden", "harbor", "jade", "pearl", "quick", "silver",
    "swift", "tidal", "violet",
];
const NOUNS: [&str; 8] = [
    "barnacle", "crab", "crayfish", "hermit", "krill", "lobster", "prawn", "shrimp",
];

/// Number of suffixes tried for a slug that is in use.
const SLUG_ATTEMPTS: u32 = 20;

/// `cbx_` and twelve lowercase hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LeaseId(String);

/// The error for a text that is not a lease id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a lease id: expected cbx_ and 12 lowercase hexadecimal digits")]
pub struct LeaseIdError {
    /// The text as it was given.
    pub text: String,
}

impl LeaseId {
    /// The id from six random bytes.
    pub fn from_random(bytes: [u8; 6]) -> Self {
        Self(format!("cbx_{}", hex(&bytes)))
    }

    /// Parses an id; the whole text must match `^cbx_[a-f0-9]{12}$`.
    pub fn parse(text: &str) -> Result<Self, LeaseIdError> {
        let digits = text.strip_prefix("cbx_").unwrap_or_default();
        let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if digits.len() == 12 && digits.bytes().all(lower_hex) {
            Ok(Self(text.to_owned()))
        } else {
            Err(LeaseIdError {
                text: text.to_owned(),
            })
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Eight hexadecimal digits that identify the lease's objects on the host (link names have at most 15
    /// bytes).
    pub fn tag(&self) -> String {
        format!("{:08x}", fnv1a32(self.0.as_bytes()))
    }

    /// The name of the lease's machine: `crabbox-<slug>-<8 hex>`.
    pub fn vm_name(&self, slug: &Slug) -> String {
        format!("crabbox-{slug}-{}", self.tag())
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for LeaseId {
    type Error = LeaseIdError;
    fn try_from(text: String) -> Result<Self, LeaseIdError> {
        Self::parse(&text)
    }
}

impl From<LeaseId> for String {
    fn from(id: LeaseId) -> Self {
        id.0
    }
}

/// `run_` and twelve lowercase hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunId(String);

impl RunId {
    /// The id from six random bytes.
    pub fn from_random(bytes: [u8; 6]) -> Self {
        Self(format!("run_{}", hex(&bytes)))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A readable name: `[a-z0-9]+(-[a-z0-9]+)*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slug(String);

/// Why a slug is not available.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlugError {
    /// Nothing is left after normalising.
    #[error("slug {text:?} has no letter or digit")]
    Empty {
        /// The text as it was given.
        text: String,
    },
    /// Longer than [`SLUG_LIMIT`].
    #[error("slug {text:?} is longer than {SLUG_LIMIT} characters")]
    TooLong {
        /// The text after normalising.
        text: String,
    },
    /// Every suffix tried is in use.
    #[error("could not allocate a unique lease slug for {base}")]
    Exhausted {
        /// The requested slug.
        base: String,
    },
}

impl Slug {
    /// Normalises a user's text: lower case, each run of other characters becomes one `-`, none at the ends.
    pub fn requested(text: &str) -> Result<Self, SlugError> {
        let slug = normalise(text);
        if slug.is_empty() {
            Err(SlugError::Empty {
                text: text.to_owned(),
            })
        } else if slug.len() > SLUG_LIMIT {
            Err(SlugError::TooLong { text: slug })
        } else {
            Ok(Self(slug))
        }
    }

    /// The default slug of a lease: an adjective and a noun selected by the id.
    pub fn for_lease(id: &LeaseId) -> Self {
        let hash = fnv1a32(id.as_str().as_bytes()) as usize;
        let (adjective, noun) = (
            ADJECTIVES[hash % ADJECTIVES.len()],
            NOUNS[(hash / ADJECTIVES.len()) % NOUNS.len()],
        );
        Self(format!("{adjective}-{noun}"))
    }

    /// This slug if it is free, otherwise with a free suffix; `in_use` says which are taken.
    pub fn unique(self, id: &LeaseId, in_use: impl Fn(&str) -> bool) -> Result<Self, SlugError> {
        if !in_use(&self.0) {
            return Ok(self);
        }
        (1..=SLUG_ATTEMPTS)
            .map(|attempt| {
                let seed = fnv1a32(format!("{id}-{attempt}").as_bytes()) & 0xffff;
                let base = &self.0[..self.0.len().min(SLUG_LIMIT - 5)];
                format!("{}-{seed:04x}", base.trim_end_matches('-'))
            })
            .find(|candidate| !in_use(candidate))
            .map(Self)
            .ok_or(SlugError::Exhausted { base: self.0 })
    }

    /// The slug as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Lower case, other characters than `[a-z0-9]` replaced by single dashes, no dash at the ends.
pub fn normalise(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars().flat_map(char::to_lowercase) {
        if character.is_ascii_alphanumeric() {
            out.push(character);
        } else if !out.is_empty() && !out.ends_with('-') {
            out.push('-');
        }
    }
    out.trim_end_matches('-').to_owned()
}

/// FNV-1a, 32 bits.
pub(crate) fn fnv1a32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

/// Lowercase hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value & 15)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(*byte)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> LeaseId {
        LeaseId::parse("cbx_0123456789ab").unwrap()
    }

    #[test]
    fn fnv_matches_the_published_vectors() {
        assert_eq!(fnv1a32(b""), 0x811c_9dc5);
        assert_eq!(fnv1a32(b"a"), 0xe40c_292c);
        assert_eq!(fnv1a32(b"foobar"), 0xbf9c_f968);
    }

    #[test]
    fn only_exact_ids_are_ids() {
        assert_eq!(
            LeaseId::from_random([0, 1, 2, 0xab, 0xcd, 0xef]).as_str(),
            "cbx_000102abcdef"
        );
        for bad in [
            "",
            "cbx_",
            "cbx_0123456789AB",
            "cbx_0123456789abc",
            "xcbx_0123456789ab",
            "cbx_0123456789a/",
        ] {
            assert!(LeaseId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn slugs_are_normalised_and_bounded() {
        assert_eq!(Slug::requested("  My Box__2! ").unwrap().as_str(), "my-box-2");
        assert!(matches!(Slug::requested("--"), Err(SlugError::Empty { .. })));
        assert!(matches!(
            Slug::requested(&"x".repeat(42)),
            Err(SlugError::TooLong { .. })
        ));
    }

    #[test]
    fn a_taken_slug_gets_a_suffix_and_stays_within_the_limit() {
        let long = Slug::requested(&"x".repeat(41)).unwrap();
        let other = long
            .clone()
            .unique(&lease(), |slug| slug == long.as_str())
            .unwrap();
        assert_eq!(other.as_str().len(), SLUG_LIMIT);
        assert!(matches!(
            long.unique(&lease(), |_| true),
            Err(SlugError::Exhausted { .. })
        ));
    }

    #[test]
    fn the_machine_name_fits_the_jailer() {
        let slug = Slug::requested(&"x".repeat(41)).unwrap();
        let name = lease().vm_name(&slug);
        assert!(
            name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'),
            "{name}"
        );
    }
}
