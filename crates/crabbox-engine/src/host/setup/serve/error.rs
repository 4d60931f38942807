//! Why a host could not be prepared for remote owners, or that could not be undone.
//!
//! Facts and hints only. No part of a private key that was given by mistake may be repeated.

use std::path::PathBuf;

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::labels::OwnerNameError;
use crabbox_host::command::CommandError;
use crabbox_host::files::FileError;
use crabbox_host::lock::LockError;
use crabbox_host::process::ProcessError;
use crabbox_ssh::keys::KeyError;
use crabbox_ssh::quote;

use super::super::record::RecordError;
use super::ACCOUNT;

/// Why it failed.
#[derive(Debug, thiserror::Error)]
pub enum ServeSetupError {
    /// Only root can create accounts.
    #[error("only root can add or remove remote owners")]
    NotRoot,
    /// Set-up would use another place than the one that is served.
    #[error("remote owners are served with root's own {what} ({}), but this command would use {}", served.display(), found.display())]
    Elsewhere {
        /// Which data.
        what: &'static str,
        /// The place from which remote owners are served.
        served: PathBuf,
        /// The place that set-up would use.
        found: PathBuf,
        /// Root's home directory.
        home: PathBuf,
    },
    /// A program is missing.
    #[error("{program} is not installed; remote owners need it")]
    Program {
        /// Its name.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// An owner argument has the wrong form.
    #[error("--owner expects NAME=KEY or NAME=FILE, found {text:?}")]
    OwnerForm {
        /// The part before the first `=`, or all of it.
        text: String,
    },
    /// The owner's name is not valid.
    #[error(transparent)]
    OwnerName(#[from] OwnerNameError),
    /// The argument contains a private key, which must stay with its owner.
    #[error("--owner has a private key; give the public key, and keep the private one secret")]
    PrivateText,
    /// The argument is more than one line, or has control characters.
    #[error("--owner has more than one line, or characters that are invalid in a key or file name")]
    SeveralLines,
    /// The key's file cannot be read.
    #[error("cannot read the key of {owner} from the file {file:?}")]
    KeyFile {
        /// The owner.
        owner: String,
        /// The file's name.
        file: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file has a private key, which must stay with its owner.
    #[error("the file {file:?} has a private key; give the public key of {owner}")]
    PrivateKey {
        /// The owner.
        owner: String,
        /// The file's name.
        file: String,
    },
    /// A file has no key.
    #[error("the file {file:?} has no key for {owner}")]
    NoKey {
        /// The owner.
        owner: String,
        /// The file's name.
        file: String,
    },
    /// The key is not valid.
    #[error("the key of {owner} cannot be used")]
    Key {
        /// The owner.
        owner: String,
        /// Why.
        #[source]
        source: KeyError,
    },
    /// sshd does not accept keys of this type.
    #[error("the key of {owner} has the type {kind}, which sshd does not accept")]
    Kind {
        /// The owner.
        owner: String,
        /// The key's type.
        kind: String,
    },
    /// The key already belongs to another owner.
    #[error("the key of {owner} is already in use by {other}: each key belongs to one owner")]
    OtherOwner {
        /// The new owner.
        owner: String,
        /// The present owner.
        other: String,
    },
    /// A line that setup did not write has the key, or serves the owner.
    #[error("line {line} of {}, which setup did not write, already admits {owner}, or the holder of the same key, to the account {ACCOUNT}", path.display())]
    ForeignLine {
        /// The owner.
        owner: String,
        /// The `authorized_keys` file.
        path: PathBuf,
        /// The line.
        line: usize,
    },
    /// A line that setup wrote was changed by hand and no longer matches the sudoers rule.
    #[error("line {line} of {}, with a key of {owner}, was changed by hand and no longer runs the command that sudo allows", path.display())]
    ChangedLine {
        /// The owner.
        owner: String,
        /// The `authorized_keys` file.
        path: PathBuf,
        /// The line.
        line: usize,
    },
    /// There is no such owner.
    #[error("no owner {name:?} is set up here{}", among(.known))]
    UnknownOwner {
        /// The name.
        name: String,
        /// The owners that exist.
        known: Vec<String>,
    },
    /// The existing account was not made by setup.
    #[error("account {ACCOUNT} already exists (home {}) and was not created by setup", home.display())]
    ForeignAccount {
        /// Its home.
        home: PathBuf,
    },
    /// The account's shell does not run commands any more.
    #[error("the shell {shell} of the account {ACCOUNT} runs no commands")]
    Shell {
        /// Its shell.
        shell: String,
    },
    /// The host's accounts cannot be read.
    #[error("cannot tell whether there is an account {ACCOUNT}: {said}")]
    Accounts {
        /// The error output of getent.
        said: String,
    },
    /// The account could not be created or removed.
    #[error("cannot {attempt} the account {ACCOUNT}")]
    Account {
        /// The attempted action.
        attempt: &'static str,
        /// The program's error.
        #[source]
        source: CommandError,
    },
    /// Another account has the same uid.
    #[error(
        "the account {ACCOUNT} has the same uid {uid} as {other:?}, whose processes would be ended with it"
    )]
    SharedNumber {
        /// The uid.
        uid: u32,
        /// The first other account with it.
        other: String,
    },
    /// The server processes of owners could not be ended.
    #[error("cannot stop the sessions of remote owners")]
    Session(#[from] ProcessError),
    /// It is not safe for root to run our own program on behalf of others.
    #[error("others must not run {} as root: {why}", path.display())]
    Exe {
        /// The program, or one of its parent directories.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// A user other than root can redirect part of the path to the `authorized_keys` file.
    #[error("{} is not a safe path to the keys of owners: {why}", path.display())]
    Way {
        /// That part of the path.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// The `authorized_keys` file is not text, or is too long.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The sudoers rule is not as setup wrote it.
    #[error("{} is not as setup wrote it; it was not changed", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// visudo rejects the new text.
    #[error("visudo rejected the new {}; the file is unchanged", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// Its error output.
        #[source]
        source: CommandError,
    },
    /// The host changed after the plan was shown.
    #[error("the host changed after this was planned; nothing more was done")]
    Moved,
    /// Another setup is at work.
    #[error("another setup is running on this host")]
    Busy,
    /// A program could not be run.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A file could not be read, written or removed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The lock cannot be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The record of what setup made cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
}

fn among(known: &[String]) -> String {
    match known {
        [] => String::new(),
        known => format!("; those that are: {}", known.join(", ")),
    }
}

impl Fault for ServeSetupError {
    fn kind(&self) -> Kind {
        match self {
            Self::Busy | Self::Moved | Self::Session(_) => Kind::Unavailable,
            _ => Kind::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::NotRoot => "run it as root, for example with sudo".to_owned(),
            Self::Elsewhere { home, .. } => format!(
                "run it with HOME={} and without XDG_CONFIG_HOME, XDG_STATE_HOME, XDG_CACHE_HOME and CRABBOX_REGISTRY_DIR, as in a shell of `sudo -i`",
                home.display()
            ),
            Self::Program { package, .. } => {
                format!("`apt-get install {package}`, or your system's equivalent")
            }
            Self::OwnerForm { .. } => {
                "for example --owner alice=alice.pub, or --owner 'alice=ssh-ed25519 AAAA...'".to_owned()
            }
            Self::PrivateText
            | Self::SeveralLines
            | Self::KeyFile { .. }
            | Self::PrivateKey { .. }
            | Self::NoKey { .. }
            | Self::Key { .. } => {
                "name the file that ends in .pub, or give the key itself as `ssh-ed25519 AAAA...`".to_owned()
            }
            Self::Kind { .. } => "make another one: `ssh-keygen -t ed25519`".to_owned(),
            Self::OtherOwner { other, .. } => {
                format!(
                    "give each owner a key of their own, or remove the other owner first: --remove-owner {other}"
                )
            }
            Self::UnknownOwner { known, .. } if known.is_empty() => {
                "no owner is set up here; add one with --owner NAME=KEY".to_owned()
            }
            Self::UnknownOwner { .. } => "see the owners in sudo's file /etc/sudoers.d/crabbox".to_owned(),
            Self::ChangedLine { .. } => {
                "remove that line by hand and retry; name an owner who is to stay again with --owner".to_owned()
            }
            Self::ForeignLine { .. } => "remove that line by hand and retry".to_owned(),
            Self::ForeignAccount { .. } => format!(
                "rename it or remove it (`usermod --login NEW {ACCOUNT}`, `userdel {ACCOUNT}`): owners need an account of that name in which nothing else runs"
            ),
            Self::Way { path, .. } => {
                let path = path.display().to_string();
                format!(
                    "make it writable by root only: `{}` and `{}`; replace a link by its target",
                    quote::line(["chown", "root:", &path]),
                    quote::line(["chmod", "go-w", &path])
                )
            }
            Self::Shell { .. } => format!("give it one that does: `usermod --shell /bin/sh {ACCOUNT}`"),
            Self::Exe { .. } => {
                "install the program where only root can write, for example in /usr/local/bin, and run that one"
                    .to_owned()
            }
            Self::Changed { path } => format!("put {} aside, and try again", path.display()),
            Self::Moved => "see what it would do now with --dry-run, and try again".to_owned(),
            Self::Busy => "it may be building an image, which takes minutes: wait until it has ended, then try again".to_owned(),
            Self::Session(_) => format!(
                "see `ps -u {ACCOUNT}` and `pgrep -af '__serve --as'`, end those processes, then run the same command again"
            ),
            Self::SharedNumber { .. } => {
                format!("give the account a uid of its own: `usermod --uid UID {ACCOUNT}`")
            }
            Self::Account { .. } => format!(
                "if an unused group {ACCOUNT} is left, remove it with `groupdel {ACCOUNT}`; then run the same command again"
            ),
            Self::Unreadable { path, .. } => {
                format!("make {} plain UTF-8 text below 1 MiB, or put it aside", path.display())
            }
            _ => return Vec::new(),
        };
        vec![hint]
    }
}
