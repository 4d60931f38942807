//! The text types of a proof. Each has a closed form: a value that could name a host must be impossible.

use serde::{Deserialize, Serialize};

use super::redact::Redactor;

/// A text that does not have the form of its field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {0}")]
pub struct ShapeError(&'static str);

macro_rules! shape {
    ($(#[$doc:meta])+ $name:ident, $words:literal, $is:expr) => {
        $(#[$doc])+
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = ShapeError;

            fn try_from(text: String) -> Result<Self, ShapeError> {
                let is: fn(&str) -> bool = $is;
                if is(&text) { Ok(Self(text)) } else { Err(ShapeError($words)) }
            }
        }

        impl From<$name> for String {
            fn from(shape: $name) -> Self {
                shape.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str(&self.0)
            }
        }
    };
}

shape! {
    /// SHA-256: 64 hexadecimal digits in lower case.
    Sha256, "SHA-256 of 64 hexadecimal digits",
    |text| text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

shape! {
    /// Two or three short numbers with dots; an address has four.
    Version, "version of two or three numbers",
    |text| {
        let parts: Vec<&str> = text.split('.').collect();
        let is_number = |part: &&str| (1..=5).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        (2..=3).contains(&parts.len()) && parts.iter().all(is_number)
    }
}

shape! {
    /// A time in UTC, to the second.
    Moment, "time like 2026-08-01T00:00:00Z",
    |text| text.len() == 20 && text.ends_with('Z') && crate::timestamp::is_rfc3339(text)
}

shape! {
    /// A line of output that the redactor has filtered.
    Line, "redacted line",
    |text| Redactor::default().is_clean(text)
}

impl Version {
    /// The numbers at the start of `text`, a kernel release or a program's version output, without the rest.
    pub fn leading(text: &str) -> Option<Self> {
        let text = text.trim().trim_start_matches('v');
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let parts: Vec<&str> = text[..end]
            .split('.')
            .filter(|part| !part.is_empty())
            .take(3)
            .collect();
        Self::try_from(parts.join(".")).ok()
    }
}

impl Line {
    /// `line`, filtered by `redactor`.
    pub fn seen(redactor: &Redactor, line: &str) -> Self {
        Self(redactor.line(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_what_comes_before_anybody_s_own_words() {
        let leading = |text: &str| Version::leading(text).map(String::from);
        assert_eq!(leading("6.1.0-alice-laptop"), Some("6.1.0".to_owned()));
        assert_eq!(leading("v1.12.1"), Some("1.12.1".to_owned()));
        assert_eq!(leading("6.18.44+"), Some("6.18.44".to_owned()));
        assert_eq!(leading("10.0.0.7"), Some("10.0.0".to_owned()));
        assert_eq!(leading("alice"), None);
    }

    #[test]
    fn what_has_not_the_shape_of_its_field_cannot_be_made() {
        assert!(Version::try_from("10.0.0.7".to_owned()).is_err());
        assert!(Sha256::try_from("0".repeat(63)).is_err());
        assert!(Moment::try_from("2026-08-01T00:00:00+02:00".to_owned()).is_err());
        assert!(Line::try_from("at /home/alice".to_owned()).is_err());
        assert!(Line::try_from("two\nlines".to_owned()).is_err());
        let read: Result<Line, _> = serde_json::from_str("\"10.0.0.1\"");
        assert!(
            read.unwrap_err()
                .to_string()
                .contains("not a valid redacted line")
        );
    }
}
