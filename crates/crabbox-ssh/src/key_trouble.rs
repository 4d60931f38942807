//! Finds out why a private key cannot be used, after a server has refused a login, because ssh then says only
//! `Permission denied`.
//!
//! OpenSSH itself checks the file, so the result matches what ssh did. It must never ask for a passphrase,
//! and never blame a key that an agent holds, because that key was offered.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_host::command::Cmd;
use crabbox_host::environment::Environment;

/// Time limit, so that a file on a stalled file system does not hold up the message.
const LIMIT: Duration = Duration::from_secs(10);
/// The beginnings of public keys in OpenSSH's text form (RFC 4253 section 6.6, RFC 5656, PROTOCOL.u2f); a
/// private key begins with a PEM header.
const PUBLIC_PREFIXES: [&[u8]; 3] = [b"ssh-", b"ecdsa-sha2-", b"sk-"];

/// Why ssh cannot log in with a key file.
#[derive(Debug, thiserror::Error)]
pub enum KeyTrouble {
    /// The file holds the public half.
    #[error("{} is the public half of a key; give the private one, usually the same name without .pub", path.display())]
    PublicHalf {
        /// The file.
        path: PathBuf,
    },
    /// Others may read the file, so ssh does not.
    #[error("{said} ssh ignores such a key; `chmod 600` it", said = said.trim_end())]
    OpenToOthers {
        /// What OpenSSH said, with the mode and the file.
        said: String,
    },
    /// It has a passphrase, which cannot be asked for.
    #[error(
        "{} is encrypted with a passphrase and not loaded in an ssh-agent; `ssh-add` it first, or give a key without one",
        path.display()
    )]
    Passphrase {
        /// The file.
        path: PathBuf,
    },
    /// OpenSSH cannot read the file for another reason.
    #[error("{said}")]
    Unreadable {
        /// What OpenSSH said, with the file.
        said: String,
    },
}

impl KeyTrouble {
    /// What is wrong with `key`, if anything is. `agent` is the socket of the agent that ssh asks, `none` for
    /// no agent, and `None` for the one of the environment.
    pub(crate) fn of(key: &Path, agent: Option<&str>) -> Option<Self> {
        if held_by_agent(key, agent) {
            return None;
        }
        let path = key.to_owned();
        // Checked first, because public keys are usually readable by others, which is fine.
        if is_public_half(key) {
            return Some(Self::PublicHalf { path });
        }
        let judged = keygen(["-y", "-P", ""], key)?;
        if judged.status.success() {
            return None;
        }
        let said = judged.stderr_text();
        if let Some(line) = said.lines().find(|line| line.contains("are too open")) {
            return Some(Self::OpenToOthers {
                said: line.to_owned(),
            });
        }
        if said.contains("incorrect passphrase") {
            return Some(Self::Passphrase { path });
        }
        let said = said.lines().last()?.to_owned();
        Some(Self::Unreadable { said })
    }
}

/// Runs `ssh-keygen` on a file; `None` if it cannot be run.
fn keygen<const N: usize>(args: [&str; N], key: &Path) -> Option<crabbox_host::command::Captured> {
    Cmd::new("ssh-keygen")
        .args(args)
        .arg("-f")
        .arg(key)
        .limit(LIMIT)
        .capture()
        .ok()
}

fn is_public_half(key: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(key).and_then(|file| file.take(16).read_to_end(&mut start));
    read.is_ok() && PUBLIC_PREFIXES.iter().any(|prefix| start.starts_with(prefix))
}

/// What the agent lists of its keys; `None` if it has none or there is no agent.
pub(crate) fn held(agent: Option<&str>) -> Option<String> {
    let mut command = Cmd::new("ssh-add").arg("-l").environment(Environment::Login);
    match agent {
        Some("none") => return None,
        Some(socket) => command = command.env("SSH_AUTH_SOCK", socket),
        None => {}
    }
    let listed = command.limit(LIMIT).capture().ok()?;
    listed.status.success().then(|| listed.stdout_text())
}

/// Whether an ssh-agent holds `key`, judged by its fingerprint, which can be read without the passphrase.
fn held_by_agent(key: &Path, agent: Option<&str>) -> bool {
    let Some(listed) = held(agent) else {
        return false;
    };
    let Some(shown) = keygen(["-l"], key) else {
        return false;
    };
    // `256 SHA256:… comment (ED25519)`
    let fingerprint = |line: &str| line.split(' ').nth(1).map(str::to_owned);
    let Some(ours) = fingerprint(&shown.stdout_text()) else {
        return false;
    };
    listed
        .lines()
        .any(|line| fingerprint(line).as_ref() == Some(&ours))
}
