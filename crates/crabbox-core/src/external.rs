//! The identity of a lease in another program that requested it: its id, slug and name there, stored in the
//! labels of the lease.
//!
//! All three come from the other program, so each must be a valid label value. They must never be used as
//! this program's own id, because the claims of both programs would then be the same file.

use serde::{Deserialize, Serialize};

use crate::id::{LeaseId, normalise};
use crate::labels::{Labels, sanitise};

/// Maximum length of a label's value in bytes.
const TEXT_LIMIT: usize = 63;

const LEASE: &str = "external_lease";
const SLUG: &str = "external_slug";
const NAME: &str = "external_name";

/// Another program's identity of one of our leases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Words", into = "Words")]
pub struct External {
    lease: LeaseId,
    slug: String,
    name: String,
}

/// Why another program's identity is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExternalError {
    /// The id is invalid.
    #[error("leaseId must be cbx_ and 12 lowercase hexadecimal digits")]
    Lease,
    /// The slug is invalid.
    #[error("slug must be 1 to {TEXT_LIMIT} of a-z, 0-9 and single dashes between them")]
    Slug,
    /// The name is not a valid label value.
    #[error(
        "name must be 1 to {TEXT_LIMIT} of A-Z, a-z, 0-9, '_', '.' and '-', with a letter or digit at both ends"
    )]
    Name,
}

impl External {
    /// Checks these values.
    pub fn new(lease: &str, slug: &str, name: &str) -> Result<Self, ExternalError> {
        let lease = LeaseId::parse(lease).map_err(|_| ExternalError::Lease)?;
        if slug.is_empty() || slug.len() > TEXT_LIMIT || normalise(slug) != slug {
            return Err(ExternalError::Slug);
        }
        if name.is_empty() || sanitise(name) != name {
            return Err(ExternalError::Name);
        }
        Ok(Self {
            lease,
            slug: slug.to_owned(),
            name: name.to_owned(),
        })
    }

    /// The identity in the labels of a lease; `None` if no other program requested it.
    pub fn of(labels: &Labels) -> Option<Self> {
        let label = |name: &str| labels.get(name).map(String::as_str);
        Self::new(label(LEASE)?, label(SLUG)?, label(NAME)?).ok()
    }

    /// Writes it to `labels`.
    pub fn put(&self, labels: &mut Labels) {
        for (label, word) in [
            (LEASE, self.lease.as_str()),
            (SLUG, &self.slug),
            (NAME, &self.name),
        ] {
            labels.insert(label.to_owned(), word.to_owned());
        }
    }

    /// Its id in the other program.
    pub fn lease(&self) -> &LeaseId {
        &self.lease
    }

    /// Its slug in the other program.
    pub fn slug(&self) -> &str {
        &self.slug
    }

    /// Its machine's name in the other program.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Our own slug of the lease: the other program's id. So no slug is claimed by both programs, and no
    /// second lease is made for the same id.
    pub fn slug_here(&self) -> String {
        normalise(self.lease.as_str())
    }
}

/// The values in their serialised form.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Words {
    lease: String,
    slug: String,
    name: String,
}

impl TryFrom<Words> for External {
    type Error = ExternalError;

    fn try_from(words: Words) -> Result<Self, ExternalError> {
        Self::new(&words.lease, &words.slug, &words.name)
    }
}

impl From<External> for Words {
    fn from(external: External) -> Self {
        Self {
            lease: external.lease.to_string(),
            slug: external.slug,
            name: external.name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "cbx_0123456789ab";

    #[test]
    fn labels_give_back_the_words_that_they_were_given() {
        let external = External::new(ID, "jade-krill", "crabbox-jade-krill-1a2b3c4d").unwrap();
        let mut labels = Labels::new();
        assert_eq!(External::of(&labels), None);
        external.put(&mut labels);
        assert_eq!(External::of(&labels), Some(external.clone()));
        for (label, word) in &labels {
            assert_eq!(*word, sanitise(word), "{label}");
        }
        assert_eq!(external.slug_here(), "cbx-0123456789ab");
        labels.remove(NAME);
        assert_eq!(External::of(&labels), None);
    }

    #[test]
    fn what_no_label_holds_unchanged_is_refused() {
        for (lease, slug, name, error) in [
            ("cbx_0123456789AB", "a", "a", ExternalError::Lease),
            ("static_box", "a", "a", ExternalError::Lease),
            ("", "a", "a", ExternalError::Lease),
            (ID, "", "a", ExternalError::Slug),
            (ID, "A", "a", ExternalError::Slug),
            (ID, "a--b", "a", ExternalError::Slug),
            (ID, &"a".repeat(64), "a", ExternalError::Slug),
            (ID, "a", "", ExternalError::Name),
            (ID, "a", "a b", ExternalError::Name),
            (ID, "a", "../a", ExternalError::Name),
            (ID, "a", "a\n", ExternalError::Name),
            (ID, "a", &"a".repeat(64), ExternalError::Name),
        ] {
            assert_eq!(
                External::new(lease, slug, name),
                Err(error),
                "{lease} {slug} {name}"
            );
        }
    }

    #[test]
    fn what_travels_is_judged_again_where_it_arrives() {
        let text = r#"{"lease":"cbx_0123456789ab","slug":"a","name":"b"}"#;
        let external: External = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&external).unwrap(), text);
        assert!(serde_json::from_str::<External>(&text.replace("\"b\"", "\"b c\"")).is_err());
    }
}
