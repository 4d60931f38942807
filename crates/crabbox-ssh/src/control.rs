//! Where the socket of the shared connection is.
//!
//! The Go program uses `/tmp/crabbox-ssh-<8hex>-%C`: in a directory where every user may write. Ours is
//! `<private directory>/<16hex>`, in a directory that only its owner may enter, and without `%C`, so that this program can
//! speak to the socket itself. It must never accept a directory that somebody else can write to.

use std::path::{Path, PathBuf};

use crabbox_host::digest;
use crabbox_host::files::{self, FileError};

use crate::target::Target;

/// Longest path for the socket, in bytes. An address holds 107 bytes on Linux and 103 on macOS; OpenSSH first listens
/// under a name with 17 more characters and then renames it.
pub const PATH_LIMIT: usize = 103 - 17;

/// Why there is no place for the socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The directory could not be made or is not ours alone.
    #[error("cannot use {} for shared SSH connections", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        #[source]
        source: FileError,
    },
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
}

/// The directory for sockets: `<runtime>/crabbox` where the caller has a runtime directory (`$XDG_RUNTIME_DIR`), else
/// `/tmp/crabbox-ssh-<uid>`. It is made with mode 0700 and refused when it is a link or another user's.
pub fn directory(runtime: Option<&Path>) -> Result<PathBuf, ControlError> {
    let dir = match runtime {
        Some(runtime) => runtime.join("crabbox"),
        None => PathBuf::from(format!(
            "/tmp/crabbox-ssh-{}",
            rustix::process::geteuid().as_raw()
        )),
    };
    files::create_private_dir(&dir).map_err(|source| ControlError::Directory {
        dir: dir.clone(),
        source,
    })?;
    Ok(dir)
}

/// The socket in `dir` for exactly this user, host, port, key, host key file and proxy: two targets share a connection only
/// when all of these are the same.
pub fn path(dir: &Path, target: &Target) -> Result<PathBuf, ControlError> {
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
    let path = dir.join(&digest::sha256(facts.as_bytes())[..16]);
    let length = path.as_os_str().len();
    if length > PATH_LIMIT {
        return Err(ControlError::TooLong { path, length });
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn target() -> Target {
        Target::new("crabbox", "10.0.0.2", 22, Path::new("/k/known_hosts")).unwrap()
    }

    #[test]
    fn every_fact_that_makes_a_connection_another_one_changes_the_path() {
        let base = target();
        let dir = Path::new("/run/user/1000/crabbox");
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
        let long = PathBuf::from(format!("/run/{}", "d".repeat(70)));
        assert!(matches!(
            path(&long, &target()),
            Err(ControlError::TooLong { length: 92, .. })
        ));
    }

    #[test]
    fn the_directory_is_private_and_a_planted_link_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = directory(Some(tmp.path())).unwrap();
        assert_eq!(
            std::fs::metadata(&dir).unwrap().permissions().mode() & 0o7777,
            0o700
        );
        std::fs::remove_dir(&dir).unwrap();
        std::fs::create_dir(tmp.path().join("theirs")).unwrap();
        symlink(tmp.path().join("theirs"), &dir).unwrap();
        assert!(matches!(
            directory(Some(tmp.path())),
            Err(ControlError::Directory { .. })
        ));
    }
}
