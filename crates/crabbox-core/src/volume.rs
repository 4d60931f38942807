//! Cache volumes: drives that outlive their leases, as named in a configuration.
//!
//! This module only describes and checks them. A path that would hide files that a guest needs for logins
//! must never become a [`MountPath`].

use serde::{Deserialize, Serialize};

/// Default size in GiB.
pub const DEFAULT_GIB: u32 = 10;
/// Largest size in GiB; a larger value is a typing error.
pub const MAX_GIB: u32 = 1024;
/// Maximum number of volumes of one lease: Firecracker has 24 interrupts, one per device, and a lease needs
/// four anyway.
pub const MOST: usize = 8;
/// Longest name or key in bytes.
pub const MAX_WORD: usize = 200;
/// Longest path in bytes.
pub const MAX_PATH: usize = 255;

/// Directories of a guest at and below which no volume may be mounted.
const SYSTEM: [&str; 15] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/var/lib/crabbox",
    "/var/lock",
    "/var/run",
];

/// Directories with files that a guest needs: a volume may be mounted below them, but not over them.
const SHARED: [&str; 11] = [
    "/",
    "/home",
    "/mnt",
    "/opt",
    "/root",
    "/srv",
    "/tmp",
    "/var",
    "/var/cache",
    "/var/lib",
    "/var/log",
];

/// Why a part of a volume's description is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invalid {
    /// The name or key.
    Word,
    /// The path is not absolute and plain.
    Path,
    /// The path belongs to the system.
    System,
    /// The size is out of range.
    Size,
    /// It does not have the form `NAME=KEY:PATH` or `KEY:PATH`.
    Spec,
    /// A volume of the same lease has the same key.
    SameKey,
    /// A volume of the same lease has this path, or one above or below it.
    SamePath,
    /// There are too many volumes.
    TooMany,
}

impl Invalid {
    /// What is expected instead.
    pub const fn expectation(self) -> &'static str {
        match self {
            Self::Word => "a text of at most 200 visible ASCII characters without = and ,",
            Self::Path => {
                "an absolute path without dots, blanks, commas and colons, of at most 255 ASCII characters"
            }
            Self::System => {
                "a path below no directory of the system, in place of none that is shared (/home, /tmp, /var), and with no .ssh in it"
            }
            Self::Size => "a number of GiB from 1 to 1024",
            Self::Spec => "NAME=KEY:PATH or KEY:PATH",
            Self::SameKey => "a key that no other volume of the lease has",
            Self::SamePath => "a path that is not, and does not lie in or around, that of another volume",
            Self::TooMany => "at most 8 volumes",
        }
    }
}

/// The path in a guest at which a volume is mounted. [`MountPath::parse`] is the only way to make one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MountPath(String);

impl MountPath {
    /// Checks `text`. Links inside the guest are not considered.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let is_plain =
            |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b',' | b':' | b'\\' | b'"' | b'\'');
        let mut parts = text.split('/').skip(1);
        if text.len() > MAX_PATH || !text.starts_with('/') || !text.bytes().all(is_plain) {
            return Err(Invalid::Path);
        }
        if text != "/" && parts.any(|part| matches!(part, "" | "." | "..")) {
            return Err(Invalid::Path);
        }
        let is_home = text
            .strip_prefix("/home/")
            .is_some_and(|rest| !rest.contains('/'));
        let hides_keys = text.split('/').any(|part| part == ".ssh");
        if is_home || hides_keys || SHARED.contains(&text) || SYSTEM.iter().any(|dir| lies_in(text, dir)) {
            return Err(Invalid::System);
        }
        Ok(Self(text.to_owned()))
    }

    /// The path itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the two paths are equal or one is inside the other.
    pub fn meets(&self, other: &str) -> bool {
        lies_in(&self.0, other) || lies_in(other, &self.0)
    }
}

impl TryFrom<String> for MountPath {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).map_err(Invalid::expectation)
    }
}

impl From<MountPath> for String {
    fn from(path: MountPath) -> Self {
        path.0
    }
}

/// Whether `path` is `dir` or below it.
fn lies_in(path: &str, dir: &str) -> bool {
    let rest = path.strip_prefix(dir.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A volume that a lease is to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its display name; the key if it has none.
    pub name: String,
    /// Its identity: leases with the same key get the same volume.
    pub key: String,
    /// Its mount point in the guest.
    pub path: MountPath,
    /// Its minimum size in GiB: a smaller volume is grown, a larger one stays.
    pub size_gib: u32,
    /// Whether a lease must not be created without it.
    pub required: bool,
}

impl Volume {
    /// Checks all parts.
    pub fn new(
        name: Option<&str>,
        key: &str,
        path: &str,
        size_gib: Option<i64>,
        required: bool,
    ) -> Result<Self, Invalid> {
        let name = name.unwrap_or(key);
        if !is_word(name) || !is_word(key) {
            return Err(Invalid::Word);
        }
        Ok(Self {
            name: name.to_owned(),
            key: key.to_owned(),
            path: MountPath::parse(path)?,
            size_gib: size(size_gib)?,
            required,
        })
    }

    /// Reads `NAME=KEY:PATH` or `KEY:PATH`, the form of a flag or variable.
    pub fn from_spec(text: &str, required: bool) -> Result<Self, Invalid> {
        let text = text.trim();
        let (named, path) = text.rsplit_once(':').ok_or(Invalid::Spec)?;
        let (name, key) = match named.split_once('=') {
            Some((name, key)) => (Some(name.trim()), key.trim()),
            None => (None, named.trim()),
        };
        if key.is_empty() || name == Some("") {
            return Err(Invalid::Spec);
        }
        Self::new(name, key, path.trim(), None, required)
    }

    /// The form that [`Volume::from_spec`] reads.
    pub fn spec(&self) -> String {
        let Self { name, key, path, .. } = self;
        if name == key {
            format!("{key}:{}", path.as_str())
        } else {
            format!("{name}={key}:{}", path.as_str())
        }
    }

    /// Its minimum size in MiB.
    pub fn size_mib(&self) -> u64 {
        u64::from(self.size_gib) * 1024
    }
}

fn is_word(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'=' | b',');
    (1..=MAX_WORD).contains(&text.len()) && text.bytes().all(is_plain)
}

fn size(found: Option<i64>) -> Result<u32, Invalid> {
    // As in the Go program, 0 means "not set".
    let Some(found) = found.filter(|size| *size != 0) else {
        return Ok(DEFAULT_GIB);
    };
    u32::try_from(found)
        .ok()
        .filter(|size| *size <= MAX_GIB)
        .ok_or(Invalid::Size)
}

/// Checks whether one lease can have all of `volumes`: no drive may be attached twice, and no mount may be
/// below another. The error has the index of the first that conflicts with those before it.
pub fn check_set(volumes: &[Volume]) -> Result<(), (usize, Invalid)> {
    for (at, volume) in volumes.iter().enumerate() {
        let before = volumes.get(..at).unwrap_or_default();
        if before.iter().any(|other| other.key == volume.key) {
            return Err((at, Invalid::SameKey));
        }
        if before.iter().any(|other| other.path.meets(volume.path.as_str())) {
            return Err((at, Invalid::SamePath));
        }
        if at >= MOST {
            return Err((at, Invalid::TooMany));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_of_the_system_or_one_that_climbs_is_refused() {
        for good in [
            "/data",
            "/var/cache/crabbox/pnpm",
            "/var/lib/docker",
            "/home/crabbox/.cache",
            "/root/.cargo",
            "/tmp/ccache",
            "/usrlocal",
            "/libs/x",
        ] {
            assert_eq!(MountPath::parse(good).unwrap().as_str(), good);
        }
        for (bad, why) in [
            ("", Invalid::Path),
            ("data", Invalid::Path),
            ("/data/../etc", Invalid::Path),
            ("/data/./x", Invalid::Path),
            ("//data", Invalid::Path),
            ("/data/", Invalid::Path),
            ("/da ta", Invalid::Path),
            ("/da:ta", Invalid::Path),
            ("/da,ta", Invalid::Path),
            ("/da\nta", Invalid::Path),
            ("/d\u{e4}ta", Invalid::Path),
            ("/", Invalid::System),
            ("/etc", Invalid::System),
            ("/etc/ssh", Invalid::System),
            ("/usr/local/lib", Invalid::System),
            ("/var/run/x", Invalid::System),
            ("/var/lib/crabbox/x", Invalid::System),
            ("/var/lib", Invalid::System),
            ("/home/crabbox", Invalid::System),
            ("/home/crabbox/.ssh", Invalid::System),
            ("/data/.ssh/x", Invalid::System),
            ("/root", Invalid::System),
            ("/tmp", Invalid::System),
        ] {
            assert_eq!(MountPath::parse(bad), Err(why), "{bad:?}");
        }
        assert_eq!(
            MountPath::parse(&format!("/{}", "x".repeat(MAX_PATH))),
            Err(Invalid::Path)
        );
    }

    #[test]
    fn a_spec_is_read_in_both_forms_and_written_back() {
        let volume = Volume::from_spec("pnpm=app-lock1:/var/cache/crabbox/pnpm", true).unwrap();
        assert_eq!(
            (
                volume.name.as_str(),
                volume.key.as_str(),
                volume.size_gib,
                volume.required
            ),
            ("pnpm", "app-lock1", DEFAULT_GIB, true)
        );
        assert_eq!(volume.spec(), "pnpm=app-lock1:/var/cache/crabbox/pnpm");
        // A key may contain colons, as in the Go program.
        let bare = Volume::from_spec("app:lock1:/data", false).unwrap();
        assert_eq!(
            (bare.name.as_str(), bare.key.as_str()),
            ("app:lock1", "app:lock1")
        );
        assert_eq!(bare.spec(), "app:lock1:/data");
        for (bad, why) in [
            ("", Invalid::Spec),
            ("key", Invalid::Spec),
            (":/data", Invalid::Spec),
            ("=key:/data", Invalid::Spec),
            ("key:data", Invalid::Path),
            ("a b:/data", Invalid::Word),
            ("a=b=c:/data", Invalid::Word),
            ("key:/etc/x", Invalid::System),
        ] {
            assert_eq!(Volume::from_spec(bad, false), Err(why), "{bad:?}");
        }
    }

    #[test]
    fn sizes_are_bounded() {
        let sized = |size| Volume::new(None, "k", "/d", size, false).map(|volume| volume.size_gib);
        assert_eq!(sized(None), Ok(DEFAULT_GIB));
        assert_eq!(sized(Some(0)), Ok(DEFAULT_GIB));
        assert_eq!(sized(Some(1)), Ok(1));
        assert_eq!(sized(Some(1024)), Ok(MAX_GIB));
        for bad in [-1, 1025, i64::MAX, i64::MIN] {
            assert_eq!(sized(Some(bad)), Err(Invalid::Size), "{bad}");
        }
    }

    #[test]
    fn one_lease_has_each_drive_once_and_no_mount_below_another() {
        let set = |specs: &[&str]| {
            let volumes: Vec<_> = specs
                .iter()
                .map(|spec| Volume::from_spec(spec, false).unwrap())
                .collect();
            check_set(&volumes)
        };
        assert_eq!(set(&["a:/a", "b:/ab", "c:/c/d"]), Ok(()));
        assert_eq!(set(&["a:/a", "n=a:/b"]), Err((1, Invalid::SameKey)));
        for other in ["/a", "/a/b", "/a/b/c"] {
            assert_eq!(
                set(&["x:/a/b", &format!("y:{other}")]),
                Err((1, Invalid::SamePath))
            );
        }
        let many: Vec<String> = (0..=MOST).map(|n| format!("k{n}:/p{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(set(&many), Err((MOST, Invalid::TooMany)));
        assert_eq!(set(&many[..MOST]), Ok(()));
    }

    #[test]
    fn a_request_with_a_path_of_the_system_is_not_read() {
        let volume = Volume::from_spec("k:/data", false).unwrap();
        let text = serde_json::to_string(&volume).unwrap();
        assert_eq!(serde_json::from_str::<Volume>(&text).unwrap(), volume);
        assert!(serde_json::from_str::<Volume>(&text.replace("/data", "/etc")).is_err());
    }

    proptest! {
        #[test]
        fn an_accepted_path_stays_one_word_on_a_line(text in "[/a-z. ,:\\n]{0,40}") {
            if let Ok(path) = MountPath::parse(&text) {
                prop_assert!(path.as_str().starts_with('/') && !path.as_str().contains([' ', '\n', ':', ',']));
                prop_assert!(path.as_str().split('/').all(|part| part != ".."));
            }
        }
    }
}
