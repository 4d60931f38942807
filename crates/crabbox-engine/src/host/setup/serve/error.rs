//! Why a host could not be prepared for owners from afar, or not be put back.
//!
//! Facts and hints only; nothing of a private key that somebody gave by mistake may be repeated.

use std::path::PathBuf;

use crabbox_core::fault::{Fault, Kind};
use crabbox_host::command::CommandError;
use crabbox_host::files::FileError;
use crabbox_host::lock::LockError;
use crabbox_host::process::ProcessError;
use crabbox_ssh::keys::KeyError;

use super::super::record::RecordError;
use super::ACCOUNT;

/// Why it could not be done.
#[derive(Debug, thiserror::Error)]
pub enum ServeSetupError {
    /// Only root makes accounts.
    #[error("owners from afar are set up, and taken away again, by root")]
    NotRoot,
    /// What is served is not at this place.
    #[error("owners from afar are served what is root's own, with {what} in {}, and this would use {}", served.display(), found.display())]
    Elsewhere {
        /// What is meant.
        what: &'static str,
        /// Where it is for whoever is served.
        served: PathBuf,
        /// Where it is here.
        found: PathBuf,
        /// Root's home directory.
        home: PathBuf,
    },
    /// A program is not there.
    #[error("{program} is not installed, which owners from afar need")]
    Program {
        /// Its name.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// An owner is not written as one.
    #[error("--owner is NAME=KEY or NAME=FILE, found {text:?}")]
    OwnerForm {
        /// What stands before the first `=`, or all.
        text: String,
    },
    /// The owner's name is none.
    #[error("an owner is named by up to 32 letters, digits and any of -_. between them, found {name:?}")]
    OwnerName {
        /// The name.
        name: String,
    },
    /// What was given is the half that is to stay where it is.
    #[error("--owner has a private key, which is to stay with its owner; here the public one is wanted")]
    PrivateText,
    /// What was given is no one line.
    #[error("--owner has more than one line, or characters that no key and no name of a file has")]
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
    /// It is the half that is to stay where it is.
    #[error("the file {file:?} has a private key; {owner} is known by the public one")]
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
    /// The key is none.
    #[error("the key of {owner} cannot be used")]
    Key {
        /// The owner.
        owner: String,
        /// Why.
        #[source]
        source: KeyError,
    },
    /// sshd takes no such key.
    #[error("the key of {owner} is of the kind {kind}, which sshd does not take")]
    Kind {
        /// The owner.
        owner: String,
        /// Its kind.
        kind: String,
    },
    /// The key is somebody else's already.
    #[error("the key of {owner} is the key of {other} already: one key is one owner")]
    OtherOwner {
        /// Who was to have it.
        owner: String,
        /// Who has it.
        other: String,
    },
    /// A line that is not ours has the key, or serves the owner.
    #[error("line {line} of {}, which setup did not write, lets {owner} into the account {ACCOUNT} already, or whoever has its key", path.display())]
    ForeignLine {
        /// The owner.
        owner: String,
        /// The file of authorised keys.
        path: PathBuf,
        /// The line.
        line: usize,
    },
    /// A line of ours that somebody changed would not let its owner in any more.
    #[error("line {line} of {}, with a key of {owner}, was changed by hand and does not run what sudo would let it run", path.display())]
    ChangedLine {
        /// The owner.
        owner: String,
        /// The file of authorised keys.
        path: PathBuf,
        /// The line.
        line: usize,
    },
    /// There is no such owner.
    #[error("no owner {name:?} is set up here{}", among(.known))]
    UnknownOwner {
        /// The name.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// The account that is there is somebody else's.
    #[error("there is an account {ACCOUNT} already, with the home {}, which setup did not make", home.display())]
    ForeignAccount {
        /// Its home.
        home: PathBuf,
    },
    /// The account that setup made runs nothing any more.
    #[error("the shell {shell} of the account {ACCOUNT} runs no command")]
    Shell {
        /// Its shell.
        shell: String,
    },
    /// The accounts of this host cannot be read.
    #[error("cannot tell whether there is an account {ACCOUNT}: {said}")]
    Accounts {
        /// What getent said.
        said: String,
    },
    /// The account could not be made or taken away.
    #[error("cannot {attempt} the account {ACCOUNT}")]
    Account {
        /// What was tried.
        attempt: &'static str,
        /// What the program said.
        #[source]
        source: CommandError,
    },
    /// The account's number is another one's as well.
    #[error(
        "the number {uid} of the account {ACCOUNT} is that of {other:?}, whose processes would be ended with it"
    )]
    SharedNumber {
        /// The number.
        uid: u32,
        /// Whose it is, first of all.
        other: String,
    },
    /// What serves owners could not be ended.
    #[error("cannot end what serves owners from afar")]
    Session(#[from] ProcessError),
    /// Our own program is not one that root should run for somebody else.
    #[error("{} cannot be what others run as root: {why}", path.display())]
    Exe {
        /// Our program, or a directory above it.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// Somebody else than root can say where a part of the way to the file of authorised keys leads.
    #[error("{} cannot lead to the keys of owners: {why}", path.display())]
    Way {
        /// The part.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// The file of authorised keys is no text, or too long.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// It.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The rule of sudo is not as setup wrote it.
    #[error("{} is not as setup wrote it, and stays", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// visudo does not take what was to be written.
    #[error("visudo refuses what {} was to be; nothing was changed there", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: CommandError,
    },
    /// What was shown is not what would be done by now.
    #[error("something changed since this was planned; nothing more was done")]
    Moved,
    /// Another setup is at work.
    #[error("another setup is at work on this host")]
    Busy,
    /// A program could not be run.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A file could not be read, written or removed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The lock cannot be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// What setup made is not known.
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
                format!("`apt-get install {package}`, or what your system calls it")
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
                    "give each owner a key of their own, or take the other out first: --remove-owner {other}"
                )
            }
            Self::UnknownOwner { known, .. } if known.is_empty() => {
                "nobody is set up here; add somebody with --owner NAME=KEY".to_owned()
            }
            Self::UnknownOwner { .. } => "see who is in the file of sudo, /etc/sudoers.d/crabbox".to_owned(),
            Self::ChangedLine { .. } => {
                "take that line out by hand, then try again; an owner who is to stay is named again with --owner".to_owned()
            }
            Self::ForeignLine { .. } => "take that line out by hand, then try again".to_owned(),
            Self::ForeignAccount { .. } => format!(
                "rename it or remove it (`usermod --login NEW {ACCOUNT}`, `userdel {ACCOUNT}`): owners need an account of that name in which nothing else runs"
            ),
            Self::Way { path, .. } => format!(
                "make it root's alone: `chown root: {0}` and `chmod go-w {0}`; a link goes, with what it leads to in its place",
                path.display()
            ),
            Self::Shell { .. } => format!("give it one that does: `usermod --shell /bin/sh {ACCOUNT}`"),
            Self::Exe { .. } => {
                "install the program where only root writes, for example in /usr/local/bin, and run that one"
                    .to_owned()
            }
            Self::Changed { path } => format!("put {} aside, and try again", path.display()),
            Self::Moved => "look at what it would do now, with --dry-run, and try again".to_owned(),
            Self::Busy => "it may be making an image, for minutes: wait until it has ended, then try again".to_owned(),
            Self::Session(_) => format!(
                "see `ps -u {ACCOUNT}` and `pgrep -af '__serve --as'`, end what is there, then run the same command again"
            ),
            Self::SharedNumber { .. } => {
                format!("give the account a number of its own: `usermod --uid NUMBER {ACCOUNT}`")
            }
            Self::Account { .. } => format!(
                "where a group {ACCOUNT} is left and nobody's, `groupdel {ACCOUNT}`; then run the same command again"
            ),
            Self::Unreadable { path, .. } => {
                format!("make {} plain UTF-8 text below 1 MiB, or put it aside", path.display())
            }
            _ => return Vec::new(),
        };
        vec![hint]
    }
}
