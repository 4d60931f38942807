//! Key pairs of leases and hosts, and the file that pins a host key. All are ed25519 and made in this
//! process.
//!
//! A private key is written once, for its owner alone. It must never be printed, put into an error, or
//! written through a symbolic link.

use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crabbox_host::files::{self, FileError};
use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, LineEnding, PrivateKey, PublicKey};

/// Name of the private key in a lease's key directory; the Go program uses the same.
pub(crate) const PRIVATE_KEY: &str = "id_ed25519";

/// Name of the public key in a lease's key directory.
pub(crate) const PUBLIC_KEY: &str = "id_ed25519.pub";

/// A key pair in OpenSSH's text forms.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// `-----BEGIN OPENSSH PRIVATE KEY-----` and so on, without a passphrase, ending with a line feed.
    pub private_openssh: String,
    /// `ssh-ed25519 AAAA… comment`, without a line feed.
    pub public_openssh: String,
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("KeyPair")
            .field("public_openssh", &self.public_openssh)
            .finish_non_exhaustive()
    }
}

/// Why a key could not be made, written or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The random source or the encoder failed.
    #[error("cannot make an ed25519 key")]
    Generate {
        /// What the library said.
        #[source]
        source: ssh_key::Error,
    },
    /// A file holds no usable key.
    #[error("{} contains no usable SSH key", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the library said.
        #[source]
        source: ssh_key::Error,
    },
    /// A public key that came from elsewhere is not valid.
    #[error("not an OpenSSH public key")]
    Public {
        /// What the library said.
        #[source]
        source: ssh_key::Error,
    },
    /// A host key to be pinned is not valid.
    #[error("the host key for {host} is not an OpenSSH public key")]
    HostKey {
        /// The host.
        host: String,
        /// What the library said.
        #[source]
        source: ssh_key::Error,
    },
    /// A part of the path is a symbolic link, so another user could decide where the key ends up.
    #[error("{} is a symbolic link, which is refused for private keys; replace it by a directory", path.display())]
    Symlink {
        /// The link.
        path: PathBuf,
    },
    /// A file of the pair could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file or directory could not be written.
    #[error("cannot store SSH keys")]
    Write {
        /// What went wrong.
        #[from]
        source: FileError,
    },
}

/// A fresh key pair. Takes about 0.2 ms.
pub fn generate(comment: &str) -> Result<KeyPair, KeyError> {
    let failed = |source| KeyError::Generate { source };
    let mut key = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).map_err(failed)?;
    key.set_comment(comment);
    pair_of(&key).map_err(failed)
}

/// The public key in `text`, re-encoded with `comment`: only the key itself is kept, so that the text cannot
/// bring options or further lines into an `authorized_keys` file.
pub fn public(text: &str, comment: &str) -> Result<String, KeyError> {
    let failed = |source| KeyError::Public { source };
    let mut key = PublicKey::from_openssh(text.trim()).map_err(failed)?;
    key.set_comment(comment);
    key.to_openssh().map_err(failed)
}

fn pair_of(key: &PrivateKey) -> Result<KeyPair, ssh_key::Error> {
    Ok(KeyPair {
        private_openssh: key.to_openssh(LineEnding::LF)?.to_string(),
        public_openssh: key.public_key().to_openssh()?,
    })
}

/// Writes `pair` into `dir` as [`PRIVATE_KEY`] (0600) and [`PUBLIC_KEY`] (0644); makes `dir` with mode 0700.
///
/// `dir` and its parent may not be links. (Links further up are the user's own arrangement of their home.)
pub fn write_pair(dir: &Path, pair: &KeyPair) -> Result<(), KeyError> {
    refuse_links(dir)?;
    files::create_private_dir(dir)?;
    files::write_atomic(&dir.join(PRIVATE_KEY), pair.private_openssh.as_bytes(), 0o600)?;
    let public = format!("{}\n", pair.public_openssh);
    files::write_atomic(&dir.join(PUBLIC_KEY), public.as_bytes(), 0o644)?;
    Ok(())
}

/// The pair in `dir`, or `None` when there is no private key. The public key follows from the private one.
pub fn load(dir: &Path) -> Result<Option<KeyPair>, KeyError> {
    refuse_links(dir)?;
    let path = dir.join(PRIVATE_KEY);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(KeyError::Read { path, source }),
    };
    let key = PrivateKey::from_openssh(text.trim()).and_then(|key| pair_of(&key));
    key.map(Some).map_err(|source| KeyError::Parse { path, source })
}

/// The pair in `dir`; if there is none, a new one is made and written. Wrong modes and a missing public key
/// are repaired.
pub fn ensure(dir: &Path, comment: &str) -> Result<KeyPair, KeyError> {
    let Some(pair) = load(dir)? else {
        let pair = generate(comment)?;
        write_pair(dir, &pair)?;
        return Ok(pair);
    };
    let private = std::fs::metadata(dir.join(PRIVATE_KEY))
        .is_ok_and(|found| matches!(found.permissions().mode() & 0o777, 0o600 | 0o400));
    if !private || !dir.join(PUBLIC_KEY).exists() {
        write_pair(dir, &pair)?;
    }
    Ok(pair)
}

/// Makes `known_hosts` (0600) hold exactly the key `public_key` for `host` and `port`. The comment of the key
/// is dropped.
pub fn pin(known_hosts: &Path, host: &str, port: u16, public_key: &str) -> Result<(), KeyError> {
    let failed = |source| KeyError::HostKey {
        host: host.to_owned(),
        source,
    };
    let mut key = PublicKey::from_openssh(public_key.trim()).map_err(failed)?;
    key.set_comment("");
    let key = key.to_openssh().map_err(failed)?;
    let name = if port == 22 {
        host.to_owned()
    } else {
        format!("[{host}]:{port}")
    };
    files::write_atomic(
        known_hosts,
        format!("{name} {}\n", key.trim_end()).as_bytes(),
        0o600,
    )?;
    Ok(())
}

fn refuse_links(dir: &Path) -> Result<(), KeyError> {
    let (private, public) = (dir.join(PRIVATE_KEY), dir.join(PUBLIC_KEY));
    let parts = [dir.parent(), Some(dir), Some(&private), Some(&public)];
    for path in parts.into_iter().flatten() {
        if path.symlink_metadata().is_ok_and(|found| found.is_symlink()) {
            return Err(KeyError::Symlink {
                path: path.to_owned(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crabbox_host::command::Cmd;
    use std::os::unix::fs::symlink;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_written_pair_has_the_modes_and_the_form_that_openssh_wants() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("testboxes/cbx_0123456789ab");
        let pair = ensure(&dir, "crabbox cbx_0123456789ab").unwrap();
        let private = dir.join(PRIVATE_KEY);
        assert_eq!(
            [mode(&dir), mode(&private), mode(&dir.join(PUBLIC_KEY))],
            [0o700, 0o600, 0o644]
        );
        // OpenSSH itself derives the same public key, with the comment.
        let derived = Cmd::new("ssh-keygen")
            .args(["-y", "-f"])
            .arg(&private)
            .run()
            .unwrap();
        assert_eq!(derived.stdout_text(), pair.public_openssh);
        assert!(
            pair.public_openssh.ends_with(" crabbox cbx_0123456789ab"),
            "{pair:?}"
        );
        assert!(!format!("{pair:?}").contains("PRIVATE KEY"));
    }

    #[test]
    fn of_a_public_key_from_elsewhere_only_the_key_is_left() {
        let pair = generate("from a laptop").unwrap();
        let (key, _) = pair
            .public_openssh
            .split_at(pair.public_openssh.find(" from").unwrap());
        assert_eq!(
            public(&pair.public_openssh, "alice").unwrap(),
            format!("{key} alice")
        );
        for bad in [
            "",
            "ssh-ed25519 AAAA",
            &format!("command=\"sh\" {}", pair.public_openssh),
            &pair.private_openssh,
        ] {
            assert!(
                matches!(public(bad, "x"), Err(KeyError::Public { .. })),
                "{bad:?}"
            );
        }
        let two = format!("{key} a\n{key} b");
        assert!(!public(&two, "alice").unwrap_or_default().contains('\n'));
    }

    #[test]
    fn an_existing_pair_is_used_again_and_repaired() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("k");
        let pair = ensure(&dir, "first").unwrap();
        std::fs::remove_file(dir.join(PUBLIC_KEY)).unwrap();
        std::fs::set_permissions(dir.join(PRIVATE_KEY), std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(ensure(&dir, "second").unwrap(), pair);
        assert_eq!(mode(&dir.join(PRIVATE_KEY)), 0o600);
        assert!(dir.join(PUBLIC_KEY).exists());
    }

    #[test]
    fn links_are_refused_at_every_place_where_a_key_could_be_led_astray() {
        let tmp = tempfile::tempdir().unwrap();
        let at = |name: &str| tmp.path().join(name);
        std::fs::create_dir_all(at("real/lease")).unwrap();
        symlink(at("real"), at("linked-parent")).unwrap();
        symlink(at("real/lease"), at("linked-dir")).unwrap();
        std::fs::create_dir_all(at("boxes/lease")).unwrap();
        symlink(at("elsewhere"), at("boxes/lease").join(PRIVATE_KEY)).unwrap();
        for dir in ["linked-parent/lease", "linked-dir", "boxes/lease"] {
            let error = ensure(&at(dir), "c").unwrap_err();
            assert!(matches!(error, KeyError::Symlink { .. }), "{dir}: {error:?}");
        }
        assert!(!at("elsewhere").exists());
    }

    #[test]
    fn a_pinned_key_is_found_by_openssh_under_the_name_it_looks_for() {
        let tmp = tempfile::tempdir().unwrap();
        let file = tmp.path().join("known_hosts");
        let key = generate("host comment").unwrap().public_openssh;
        for (host, port, name) in [
            ("10.0.0.2", 22, "10.0.0.2"),
            ("10.0.0.2", 2222, "[10.0.0.2]:2222"),
            ("fd00::2", 22, "fd00::2"),
            ("fd00::2", 2222, "[fd00::2]:2222"),
        ] {
            pin(&file, host, port, &key).unwrap();
            let found = Cmd::new("ssh-keygen")
                .args(["-F", name, "-f"])
                .arg(&file)
                .run()
                .unwrap()
                .stdout_text();
            assert!(found.contains(key.split(' ').nth(1).unwrap()), "{name}: {found}");
            assert_eq!(
                std::fs::read_to_string(&file).unwrap().lines().count(),
                1,
                "the old pin is replaced"
            );
            assert_eq!(mode(&file), 0o600);
        }
        assert!(matches!(
            pin(&file, "h", 22, "ssh-ed25519 nonsense"),
            Err(KeyError::HostKey { .. })
        ));
    }
}
