//! Where the socket of the shared connection is.
//!
//! The Go program uses `/tmp/crabbox-ssh-<8hex>-%C`, in a world-writable directory. Ours is
//! `<private directory>/<16hex>`, in a [`PrivateDir`], and without `%C`, so that this program can speak to
//! the socket itself. It must never accept a directory that another user can write to or replace.

use std::path::{Path, PathBuf};

use crabbox_core::fault::{Fault, Kind};
use crabbox_host::digest;
use crabbox_host::private_dir::{self, PrivateDir, PrivateDirError};

use crate::target::Target;

/// Longest path for the socket, in bytes. An address holds 107 bytes on Linux and 103 on macOS; OpenSSH first
/// listens under a name with 17 more characters and then renames it.
pub const PATH_LIMIT: usize = 103 - 17;

/// Why there is no place for the socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The directory could not be made or is not ours alone.
    #[error("there is no private directory for shared SSH connections")]
    Directory(#[from] PrivateDirError),
    /// The path would not fit into a socket address.
    #[error(
        "the SSH control path {} has {length} bytes and OpenSSH can use {PATH_LIMIT}; \
         set XDG_RUNTIME_DIR to a shorter directory", path.display()
    )]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// A record names a path that [`path`] never makes. Nothing there is touched.
    #[error("{} is not the control socket of a lease", path.display())]
    Foreign {
        /// The path.
        path: PathBuf,
    },
}

impl Fault for ControlError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Directory(error) => vec![match error {
                PrivateDirError::NotADirectory { path }
                | PrivateDirError::OpenToOthers { path, .. }
                | PrivateDirError::ForeignOwner { path, .. }
                | PrivateDirError::Relative { path }
                | PrivateDirError::Io { path, .. } => format!(
                    "remove {} if it is not in use, or set XDG_RUNTIME_DIR to your own directory with mode 0700",
                    path.display()
                ),
            }],
            Self::TooLong { .. } | Self::Foreign { .. } => Vec::new(),
        }
    }
}

/// Root's directory. No other user can create names in `/run`.
const OF_ROOT: &str = "/run/crabbox";

/// The directory for sockets: `<runtime>/crabbox` where the caller's runtime directory (`$XDG_RUNTIME_DIR`)
/// is the caller's own, closed to writers, and short enough for a socket; otherwise `/run/crabbox` for root,
/// and `/tmp/crabbox-ssh-<uid>` for others.
///
/// Any other runtime directory is skipped instead of refused: `sudo -E` and `su` leave another user's in the
/// environment, and root must not put its sockets there.
pub fn directory(runtime: Option<&Path>) -> Result<PrivateDir, ControlError> {
    let user = rustix::process::geteuid();
    if let Some(runtime) = runtime.filter(|dir| private_dir::can_hold_one(dir)) {
        let dir = runtime.join("crabbox");
        if fits(&dir) {
            return Ok(PrivateDir::create(&dir)?);
        }
    }
    let path = if user.is_root() {
        PathBuf::from(OF_ROOT)
    } else {
        PathBuf::from(format!("/tmp/crabbox-ssh-{}", user.as_raw()))
    };
    Ok(PrivateDir::create(&path)?)
}

/// Whether a socket in `dir` is short enough for OpenSSH.
fn fits(dir: &Path) -> bool {
    dir.as_os_str().len() + 1 + NAME_LENGTH <= PATH_LIMIT
}

/// Characters of a socket's name.
const NAME_LENGTH: usize = 16;

/// The socket in `dir` for exactly this user, host, port, key, host key file and proxy: two targets share a
/// connection only when all of these are the same.
pub fn path(dir: &PrivateDir, target: &Target) -> Result<PathBuf, ControlError> {
    let port = target.port.to_string();
    let key = target
        .key
        .as_deref()
        .unwrap_or(Path::new(""))
        .to_string_lossy()
        .into_owned();
    let facts = [
        target.user.as_str(),
        &target.host,
        &port,
        &key,
        &target.known_hosts.to_string_lossy(),
        if target.host_key_pinned { "pinned" } else { "" },
        target.proxy_command.as_deref().unwrap_or(""),
    ]
    .join("\0");
    let path = dir.join(&digest::sha256(facts.as_bytes())[..NAME_LENGTH]);
    let length = path.as_os_str().len();
    if length > PATH_LIMIT {
        return Err(ControlError::TooLong { path, length });
    }
    Ok(path)
}

/// A socket's path as a record has it. Records can be damaged or made by others: a path is accepted only if
/// it is one that [`path`] can have made, 16 hex digits in a directory that is this user's alone. `None` if
/// that directory is gone, and the socket with it.
pub fn recorded(path: &Path) -> Result<Option<PathBuf>, ControlError> {
    let foreign = || ControlError::Foreign {
        path: path.to_owned(),
    };
    let name = path.file_name().and_then(std::ffi::OsStr::to_str);
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let name = name.filter(|name| name.len() == NAME_LENGTH && name.bytes().all(is_digit));
    let (Some(name), Some(dir), true) = (name, path.parent(), path.is_absolute()) else {
        return Err(foreign());
    };
    match PrivateDir::open(dir) {
        Ok(dir) => Ok(Some(dir.join(name))),
        Err(PrivateDirError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    fn target() -> Target {
        Target::new("crabbox", "10.0.0.2", 22, Path::new("/k/known_hosts")).unwrap()
    }

    #[test]
    fn every_fact_that_makes_a_connection_another_one_changes_the_path() {
        let base = target();
        let tmp = tempfile::tempdir().unwrap();
        let dir = &PrivateDir::create(&tmp.path().join("d")).unwrap();
        let mut seen = vec![path(dir, &base).unwrap()];
        let others = [
            Target {
                user: "u".to_owned(),
                ..base.clone()
            },
            Target {
                host: "h".to_owned(),
                ..base.clone()
            },
            Target {
                port: 23,
                ..base.clone()
            },
            Target {
                key: Some("/k".into()),
                ..base.clone()
            },
            Target {
                known_hosts: "/x".into(),
                ..base.clone()
            },
            Target {
                host_key_pinned: true,
                ..base.clone()
            },
            Target {
                proxy_command: Some("nc".to_owned()),
                ..base.clone()
            },
        ];
        for other in others {
            let path = path(dir, &other).unwrap();
            assert!(!seen.contains(&path), "{other:?}");
            seen.push(path);
        }
    }

    #[test]
    fn a_path_that_openssh_cannot_use_is_refused_before_it_is_tried() {
        let tmp = tempfile::tempdir().unwrap();
        let long = PrivateDir::create(&tmp.path().join("d".repeat(70))).unwrap();
        assert!(matches!(
            path(&long, &target()),
            Err(ControlError::TooLong { length, .. }) if length == long.as_os_str().len() + 17
        ));
    }

    /// Where sockets go if `$XDG_RUNTIME_DIR` cannot be used.
    fn fallback() -> PathBuf {
        directory(None).unwrap().path().to_owned()
    }

    #[test]
    fn a_runtime_directory_of_our_own_is_used_and_a_planted_link_in_it_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = directory(Some(tmp.path())).unwrap();
        assert_eq!(dir.path(), tmp.path().join("crabbox"));
        assert_eq!(
            std::fs::metadata(&*dir).unwrap().permissions().mode() & 0o7777,
            0o700
        );
        std::fs::remove_dir(&*dir).unwrap();
        std::fs::create_dir(tmp.path().join("theirs")).unwrap();
        symlink(tmp.path().join("theirs"), &*dir).unwrap();
        let error = directory(Some(tmp.path())).unwrap_err();
        assert!(matches!(error, ControlError::Directory { .. }));
        assert!(
            error.hints()[0].contains(&dir.display().to_string()),
            "{:?}",
            error.hints()
        );
    }

    #[test]
    fn root_s_sockets_are_in_run_and_others_in_a_directory_named_after_them() {
        let expected = match rustix::process::geteuid().as_raw() {
            0 => "/run/crabbox".to_owned(),
            user => format!("/tmp/crabbox-ssh-{user}"),
        };
        assert_eq!(fallback(), Path::new(&expected));
    }

    #[test]
    fn a_runtime_directory_that_is_foreign_open_long_relative_or_missing_is_passed_over() {
        let tmp = tempfile::tempdir().unwrap();
        let make = |name: &str, mode| {
            let path = tmp.path().join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let foreign = make("foreign", 0o700);
        chown(&foreign, Some(65_534), None).expect("tests run as root");
        let open = make("open", 0o777);
        let below_open = open.join("deep");
        std::fs::create_dir(&below_open).unwrap();
        let link = tmp.path().join("link");
        symlink(&foreign, &link).unwrap();
        let long = make(&"d".repeat(70), 0o700);
        for runtime in [
            &foreign,
            &open,
            &below_open,
            &link,
            &long,
            Path::new("run"),
            Path::new("/no/such"),
        ] {
            assert_eq!(
                directory(Some(runtime)).unwrap().path(),
                fallback(),
                "{}",
                runtime.display()
            );
            assert!(!runtime.join("crabbox").exists());
        }
    }
}
