//! Garbage collection of images: a pure decision, with a reason for each image.
//!
//! It must never remove an image that a lease uses, or the one that the next lease would use.

use super::Image;

/// Limits for the images that may be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// Remove images older than this, in seconds, named or not.
    pub older_than_seconds: Option<i64>,
    /// Remove the oldest images until the total size is at most this, in bytes.
    pub max_bytes: Option<u64>,
}

/// Why an image is kept or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Kept: leases use it.
    InUse {
        /// Their ids.
        leases: Vec<String>,
    },
    /// Kept: a new lease would use it.
    Default,
    /// Kept: it has a name, and no limit is exceeded.
    Named,
    /// Removed: no name points to it.
    Unnamed,
    /// Removed: it is older than the limit.
    TooOld,
    /// Removed: the total size exceeds the limit.
    TooMuch,
}

impl Reason {
    /// Whether the image is removed.
    pub const fn goes(&self) -> bool {
        matches!(self, Self::Unnamed | Self::TooOld | Self::TooMuch)
    }
}

/// Decides about each of `images`, newest first as the store lists them. `pins` lists the leases that use an
/// image.
///
/// Without limits, images without a name are removed.
pub fn plan<'a>(
    images: &'a [Image],
    default: Option<&str>,
    pins: &dyn Fn(&Image) -> Vec<String>,
    policy: Policy,
    now_unix: i64,
) -> Vec<(&'a Image, Reason)> {
    let decide = |image: &Image| {
        let leases = pins(image);
        if !leases.is_empty() {
            return Reason::InUse { leases };
        }
        if default == Some(image.manifest.digest.as_str()) {
            return Reason::Default;
        }
        let age = now_unix.saturating_sub(image.manifest.created_unix);
        if policy.older_than_seconds.is_some_and(|limit| age > limit) {
            Reason::TooOld
        } else if image.names.is_empty() {
            Reason::Unnamed
        } else {
            Reason::Named
        }
    };
    let mut plan: Vec<_> = images.iter().map(|image| (image, decide(image))).collect();
    if let Some(limit) = policy.max_bytes {
        let staying = plan.iter().filter(|(_, reason)| !reason.goes());
        let mut total: u64 = staying.map(|(image, _)| image.bytes()).sum();
        for (image, reason) in plan.iter_mut().rev() {
            if total > limit && *reason == Reason::Named {
                *reason = Reason::TooMuch;
                total = total.saturating_sub(image.bytes());
            }
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{self, FileFacts, GuestContract, Init, Manifest};
    use std::collections::BTreeMap;

    fn image(digest: &str, created_unix: i64, names: &[&str]) -> Image {
        let facts = FileFacts {
            sha256: String::new(),
            bytes: 100,
        };
        Image {
            dir: digest.into(),
            manifest: Manifest {
                version: manifest::VERSION,
                digest: digest.to_owned(),
                created_unix,
                arch: "x86_64".to_owned(),
                suite: String::new(),
                kernel_release: String::new(),
                init: Init::Ours,
                provenance: BTreeMap::new(),
                guest: GuestContract::default(),
                files: [(manifest::BASE.to_owned(), facts)].into(),
                packages: BTreeMap::new(),
            },
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn decided(policy: Policy) -> Vec<(String, Reason)> {
        let images = [
            image("default", 90, &["default"]),
            image("used", 80, &[]),
            image("named", 50, &["x"]),
            image("old", 10, &[]),
        ];
        let pins = |image: &Image| match image.manifest.digest.as_str() {
            "used" => vec!["cbx_1".to_owned()],
            _ => Vec::new(),
        };
        let plan = plan(&images, Some("default"), &pins, policy, 100);
        plan.into_iter()
            .map(|(image, reason)| (image.manifest.digest.clone(), reason))
            .collect()
    }

    #[test]
    fn without_limits_only_what_nobody_names_goes() {
        let decided = decided(Policy::default());
        let reasons: Vec<_> = decided.iter().map(|(_, reason)| reason.clone()).collect();
        let used = Reason::InUse {
            leases: vec!["cbx_1".to_owned()],
        };
        assert_eq!(reasons, [Reason::Default, used, Reason::Named, Reason::Unnamed]);
    }

    #[test]
    fn no_limit_reaches_what_is_in_use_or_the_default() {
        for policy in [
            Policy {
                older_than_seconds: Some(0),
                max_bytes: None,
            },
            Policy {
                older_than_seconds: None,
                max_bytes: Some(0),
            },
        ] {
            let decided = decided(policy);
            assert!(!decided[0].1.goes() && !decided[1].1.goes(), "{decided:?}");
            assert!(decided[2].1.goes() && decided[3].1.goes(), "{decided:?}");
        }
    }

    #[test]
    fn what_is_younger_than_the_limit_stays() {
        let images = [
            image("young", 90, &["a"]),
            image("just", 70, &["b"]),
            image("old", 69, &["c"]),
        ];
        let policy = Policy {
            older_than_seconds: Some(30),
            max_bytes: None,
        };
        let plan = plan(&images, None, &|_| Vec::new(), policy, 100);
        let reasons: Vec<_> = plan.iter().map(|(_, reason)| reason).collect();
        assert_eq!(reasons, [&Reason::Named, &Reason::Named, &Reason::TooOld]);
    }

    #[test]
    fn the_oldest_go_first_and_only_as_many_as_must() {
        let images = [
            image("a", 3, &["a"]),
            image("b", 2, &["b"]),
            image("c", 1, &["c"]),
        ];
        let policy = Policy {
            older_than_seconds: None,
            max_bytes: Some(200),
        };
        let plan = plan(&images, None, &|_| Vec::new(), policy, 100);
        let going: Vec<_> = plan.iter().filter(|(_, reason)| reason.goes()).collect();
        assert_eq!(going.len(), 1);
        assert_eq!(going[0].0.manifest.digest, "c");
    }
}
