//! Prepares a host for owners who come over SSH: one account, one `authorized_keys` line per key, one sudo
//! command per owner.
//!
//! The holder of a key may run `__serve` as that owner and nothing else. It must never change an account, a
//! line or a file that it did not write, or leave one half-written.

mod account;
mod authorized;
mod barrier;
mod error;
mod home;
mod owners;
mod sessions;
mod steps;
mod sudoers;
mod undo;
mod way;

pub use barrier::{Barrier, barriers};
pub use error::ServeSetupError;
pub use home::{check_home, served_home};
pub(super) use steps::apply;
pub(super) use undo::{carry_out, decide, end_sessions, is_of_serving, lets_in};

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_host::command::find_on_path;
use crabbox_host::digest;
use crabbox_host::files::{self, FileError};
use crabbox_machine::context::Engine;

use self::authorized::Lines;
use super::record::{Made, Record};

/// The account that owners log in to.
pub const ACCOUNT: &str = "crabbox";

/// The time limit for visudo.
const CHECK_LIMIT: Duration = Duration::from_secs(30);

/// The longest `authorized_keys` file that is changed, in bytes.
const LIMIT: u64 = 1 << 20;

/// Directories of system programs that may be missing from the user's `PATH`.
const SYSTEM: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// The places on a host that this works with.
#[derive(Debug, Clone)]
pub struct Ground {
    /// The home for the account, if there is none yet.
    pub(super) home: PathBuf,
    /// The sudoers rule.
    pub(super) sudoers: PathBuf,
    /// The search path for programs.
    pub(super) path: std::ffi::OsString,
    /// The proc(5) directory.
    pub(super) processes: PathBuf,
}

impl Ground {
    /// This host.
    pub fn of(engine: &Engine) -> Self {
        let mut path = engine.path.clone();
        path.push(":");
        path.push(SYSTEM);
        Self {
            home: "/var/lib/crabbox-serve".into(),
            sudoers: "/etc/sudoers.d/crabbox".into(),
            path,
            processes: "/proc".into(),
        }
    }

    /// The system program `name`.
    pub(super) fn tool(&self, name: &'static str) -> Result<PathBuf, ServeSetupError> {
        let package = match name {
            "sudo" | "visudo" => "sudo",
            "sshd" => "openssh-server",
            "getent" => "libc-bin",
            "setpriv" => "util-linux",
            _ => "passwd",
        };
        find_on_path(name.as_ref(), &self.path).ok_or(ServeSetupError::Program {
            program: name,
            package,
        })
    }
}

/// Whom to serve from now on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServeRequest {
    /// Owners to add, each as `NAME=KEY` or `NAME=FILE`.
    pub owners: Vec<String>,
    /// Owners to remove.
    pub removed: Vec<String>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServeStep {
    /// Create the account.
    Account {
        /// Its home.
        home: PathBuf,
    },
    /// Remove a line from the `authorized_keys` file.
    Expel {
        /// The file.
        path: PathBuf,
        /// Whose key it is.
        owner: String,
        /// The line.
        line: String,
    },
    /// Replace a line of the `authorized_keys` file, because the program has moved.
    Rewrite {
        /// The file.
        path: PathBuf,
        /// Whose key it is.
        owner: String,
        /// The current line.
        old: String,
        /// The new line.
        line: String,
    },
    /// End the server processes of an owner who lost a key, and all connections to the account, since any of
    /// them may have used that key.
    End {
        /// The owner.
        owner: String,
    },
    /// Remove the record of a removed line. Comes after all consequences of the removal, so that a killed
    /// set-up repeats them.
    Forget {
        /// Whose key it is.
        owner: String,
        /// The line.
        line: String,
    },
    /// Write the sudoers rule, after visudo has accepted it.
    Sudoers {
        /// The file.
        path: PathBuf,
        /// The whole text.
        text: String,
    },
    /// Remove the sudoers rule, because no owner is left.
    NoSudoers {
        /// The file.
        path: PathBuf,
    },
    /// Add a line to the `authorized_keys` file.
    Admit {
        /// The file.
        path: PathBuf,
        /// Whose key it is.
        owner: String,
        /// The line.
        line: String,
    },
}

/// The current state of a host.
struct Found {
    keys: PathBuf,
    lines: Lines,
    has_account: bool,
    sudoers: Option<String>,
}

/// A recorded line that setup put into the file.
#[derive(Clone, Copy)]
struct Known<'a> {
    owner: &'a str,
    line: &'a str,
    key: &'a str,
}

fn known(record: &Record) -> Vec<Known<'_>> {
    let keys = record.made().iter().filter_map(|made| match made {
        Made::Key { owner, line, .. } => Some(Known {
            owner,
            line,
            key: authorized::key_of(line)?,
        }),
        _ => None,
    });
    keys.collect()
}

fn is_recorded(known: &[Known<'_>], line: &str) -> bool {
    known.iter().any(|known| known.line == line)
}

/// The plan for the recorded lines.
#[derive(Default)]
struct Standing {
    expelled: Vec<ServeStep>,
    rewritten: Vec<ServeStep>,
    /// Lines that are gone or will be removed, with their owners.
    gone: Vec<(String, String)>,
    /// Owners who have access, each with a key.
    served: Vec<(String, String)>,
}

fn standing(
    engine: &Engine,
    found: &Found,
    known: &[Known<'_>],
    removed: &[String],
) -> Result<Standing, ServeSetupError> {
    let mut standing = Standing::default();
    for &Known { owner, line, key } in known {
        let (path, owned) = (found.keys.clone(), owner.to_owned());
        let is_there = found.lines.has(line);
        if removed.contains(&owned) {
            if is_there {
                standing.expelled.push(ServeStep::Expel {
                    path,
                    owner: owned.clone(),
                    line: line.to_owned(),
                });
            } else if let Some(number) = found.lines.serving(owner, &|there| is_recorded(known, there)) {
                // If we forgot it, its holder would get in again as soon as the owner returns with another
                // key.
                return Err(ServeSetupError::ChangedLine {
                    owner: owned,
                    path,
                    line: number,
                });
            }
            standing.gone.push((owned, line.to_owned()));
            continue;
        }
        let wanted = authorized::moved(line, &engine.exe, owner).unwrap_or_default();
        match found.lines.with_key(key) {
            _ if is_there => {
                if wanted != line {
                    standing.rewritten.push(ServeStep::Rewrite {
                        path,
                        owner: owned.clone(),
                        old: line.to_owned(),
                        line: wanted,
                    });
                }
                standing.served.push((owned, key.to_owned()));
            }
            // A line that was changed by hand is the user's. It lets its owner in as long as it names the
            // same command as the sudoers rule.
            Some((number, there)) if !is_recorded(known, there) && authorized::serves(there, owner) => {
                if !there.contains(&authorized::command(&engine.exe, owner)) {
                    return Err(ServeSetupError::ChangedLine {
                        owner: owned,
                        path,
                        line: number,
                    });
                }
                standing.served.push((owned, key.to_owned()));
            }
            _ => standing.gone.push((owned, line.to_owned())),
        }
    }
    Ok(standing)
}

/// Inspects the host and plans the steps.
pub(super) fn plan(
    engine: &Engine,
    ground: &Ground,
    record: &Record,
    wanted: &ServeRequest,
) -> Result<Vec<ServeStep>, ServeSetupError> {
    let owners = owners::read(&wanted.owners)?;
    // Removing an owner must work even if the host lacks the programs by now.
    if !owners.is_empty() || wanted.removed.is_empty() {
        for tool in ["sudo", "visudo", "sshd", "useradd", "userdel"] {
            ground.tool(tool)?;
        }
        check_exe(&engine.exe)?;
    }
    let found = look(ground, record)?;
    let known = known(record);
    let names: BTreeSet<_> = known.iter().map(|known| known.owner.to_owned()).collect();
    if let Some(name) = wanted.removed.iter().find(|name| !names.contains(*name)) {
        return Err(ServeSetupError::UnknownOwner {
            name: name.clone(),
            known: names.into_iter().collect(),
        });
    }
    let Standing {
        expelled,
        rewritten,
        mut gone,
        mut served,
    } = standing(engine, &found, &known, &wanted.removed)?;
    let mut steps = Vec::new();
    if !found.has_account {
        let home = ground.home.clone();
        steps.push(ServeStep::Account { home });
    }
    let admitted = admitted(engine, &found, &known, owners, &expelled, &mut served)?;
    let names: BTreeSet<_> = served.into_iter().map(|(owner, _)| owner).collect();
    steps.extend(expelled);
    steps.extend(rule(engine, ground, record, &found, &names)?);
    // A line that is added or rewritten stays on record.
    for step in rewritten.iter().chain(&admitted) {
        if let ServeStep::Rewrite { line, .. } | ServeStep::Admit { line, .. } = step {
            gone.retain(|(_, going)| going != line);
        }
    }
    steps.extend(rewritten);
    steps.extend(admitted);
    // This includes an owner who keeps or gets another key: connections made with the removed key must end.
    let leaving: BTreeSet<_> = gone.iter().map(|(owner, _)| owner).collect();
    steps.extend(
        leaving
            .into_iter()
            .map(|owner| ServeStep::End { owner: owner.clone() }),
    );
    steps.extend(
        gone.into_iter()
            .map(|(owner, line)| ServeStep::Forget { owner, line }),
    );
    Ok(steps)
}

/// The lines to add for owners who are not served yet. Adds those owners to `served`.
fn admitted(
    engine: &Engine,
    found: &Found,
    known: &[Known<'_>],
    owners: Vec<(String, String)>,
    expelled: &[ServeStep],
    served: &mut Vec<(String, String)>,
) -> Result<Vec<ServeStep>, ServeSetupError> {
    let path = || found.keys.clone();
    let is_expelled = |line: &str| {
        let is_it = |step: &ServeStep| matches!(step, ServeStep::Expel { line: going, .. } if going == line);
        expelled.iter().any(is_it)
    };
    let mut admitted = Vec::new();
    for (owner, key) in owners {
        let line = authorized::line(&engine.exe, &owner, &key);
        let body = authorized::key_of(&line).unwrap_or_default().to_owned();
        match served.iter().find(|(_, key)| *key == body) {
            Some((other, _)) if *other == owner => continue,
            Some((other, _)) => {
                let other = other.clone();
                return Err(ServeSetupError::OtherOwner { owner, other });
            }
            None => {}
        }
        if let Some((line, _)) = found
            .lines
            .with_key(&body)
            .filter(|(_, there)| !is_expelled(there))
        {
            let path = path();
            return Err(ServeSetupError::ForeignLine { owner, path, line });
        }
        // A line with a key that setup does not know would give somebody else access as this owner.
        let is_known = |there: &str| {
            known
                .iter()
                .any(|known| authorized::key_of(there) == Some(known.key))
        };
        if let Some(line) = found.lines.serving(&owner, &is_known) {
            let path = path();
            return Err(ServeSetupError::ForeignLine { owner, path, line });
        }
        served.push((owner.clone(), body));
        admitted.push(ServeStep::Admit {
            path: path(),
            owner,
            line,
        });
    }
    Ok(admitted)
}

/// The step that makes the sudoers rule fit these owners, if it does not.
fn rule(
    engine: &Engine,
    ground: &Ground,
    record: &Record,
    found: &Found,
    owners: &BTreeSet<String>,
) -> Result<Option<ServeStep>, ServeSetupError> {
    let path = ground.sudoers.clone();
    let wanted = sudoers::text(&engine.exe, owners);
    let is_ours = |text: &str| record.wrote(&path, &digest::sha256(text.as_bytes()));
    match (wanted, &found.sudoers) {
        (None, None) => Ok(None),
        (Some(text), Some(there)) if text == *there && is_ours(there) => Ok(None),
        (_, Some(there)) if !is_ours(there) => Err(ServeSetupError::Changed { path }),
        (None, Some(_)) => Ok(Some(ServeStep::NoSudoers { path })),
        (Some(text), _) => Ok(Some(ServeStep::Sudoers { path, text })),
    }
}

fn look(ground: &Ground, record: &Record) -> Result<Found, ServeSetupError> {
    let account = account::find(ground)?;
    // In an account of another purpose, its processes could run every owner's command, and write where root
    // writes.
    if let Some(account) = account.as_ref().filter(|account| !is_made(account, record)) {
        let home = account.home.clone();
        return Err(ServeSetupError::ForeignAccount { home });
    }
    if let Some(account) = account.as_ref().filter(|account| !account.runs_commands()) {
        let shell = account.shell.clone();
        return Err(ServeSetupError::Shell { shell });
    }
    let home = account.as_ref().map_or(&ground.home, |account| &account.home);
    let keys = home.join(".ssh/authorized_keys");
    Ok(Found {
        lines: read_keys(&keys)?,
        keys,
        has_account: account.is_some(),
        sudoers: read_text(&ground.sudoers)?,
    })
}

/// Whether setup made this account, according to both the record and the account itself.
fn is_made(account: &account::Account, record: &Record) -> bool {
    let is_it = |made: &Made| matches!(made, Made::Account { home } if account.is_of_setup(home));
    record.made().iter().any(is_it)
}

/// The lines of the `authorized_keys` file; empty if there is no file.
fn read_keys(path: &Path) -> Result<Lines, ServeSetupError> {
    way::check(path)?;
    Ok(Lines::of(&read_text(path)?.unwrap_or_default()))
}

fn read_text(path: &Path) -> Result<Option<String>, ServeSetupError> {
    let unreadable = |source| ServeSetupError::Unreadable {
        path: path.to_owned(),
        source,
    };
    match files::read_regular(path, LIMIT) {
        Ok(bytes) => String::from_utf8(bytes)
            .map(Some)
            .map_err(|error| unreadable(std::io::Error::other(error))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(error)),
    }
}

/// Checks that other users may run the program at `exe` as root: only root (or our own user) may be able to
/// replace it, and its path must be a single plain word to sshd, a shell and sudo.
fn check_exe(exe: &Path) -> Result<(), ServeSetupError> {
    let refuse = |path: &Path, why| {
        Err(ServeSetupError::Exe {
            path: path.to_owned(),
            why,
        })
    };
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._+-".contains(byte);
    if !exe.is_absolute() || !exe.as_os_str().as_encoded_bytes().iter().all(is_plain) {
        return refuse(exe, "its path has other characters than letters, digits and ._+-");
    }
    let us = crabbox_host::process::euid();
    for part in exe.ancestors() {
        let found =
            std::fs::symlink_metadata(part).map_err(|source| FileError::io("inspect", part, source))?;
        if let Some(why) = way::loose(found.uid(), found.mode(), us, found.is_dir()) {
            return refuse(part, why);
        }
    }
    Ok(())
}

fn is_line(made: &Made, owner: &str, line: &str) -> bool {
    matches!(made, Made::Key { owner: whose, line: there, .. } if whose == owner && there == line)
}

/// Creates `dir` and its missing parents: owned by root, but readable for sshd acting as the account.
fn open_dirs(dir: &Path) -> Result<(), FileError> {
    let mut missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
    missing.reverse();
    for dir in missing {
        std::fs::create_dir(dir).map_err(|source| FileError::io("create directory", dir, source))?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))
            .map_err(|source| FileError::io("open directory to all", dir, source))?;
    }
    Ok(())
}

/// The temporary file that replaces `path`. sudo ignores files with a dot in their name.
fn new_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".crabbox-new");
    path.with_file_name(name)
}

/// Replaces the content of `path` by `text` once `check` has accepted the new file. Ownership and mode of an
/// existing file are kept.
fn replace(
    path: &Path,
    text: &str,
    mode: u32,
    check: &dyn Fn(&Path) -> Result<(), ServeSetupError>,
) -> Result<(), ServeSetupError> {
    let new = new_of(path);
    let failed = |source| FileError::io("write", path, source);
    // Remove the leftover of a killed set-up.
    files::remove_tree(&new)?;
    let written = (|| {
        let mut file = std::fs::File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        let mode = match std::fs::symlink_metadata(path) {
            Ok(found) => {
                std::os::unix::fs::fchown(&file, Some(found.uid()), Some(found.gid()))?;
                found.mode() & 0o7777
            }
            Err(_) => mode,
        };
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.sync_all()
    })();
    let outcome = written
        .map_err(|source| failed(source).into())
        .and_then(|()| check(&new));
    if outcome.is_err() {
        files::remove_tree(&new).ok();
        return outcome;
    }
    std::fs::rename(&new, path).map_err(failed)?;
    files::sync_dir(path.parent().unwrap_or(path))?;
    Ok(())
}

#[cfg(test)]
mod tests;
