//! A host for owners who come over SSH: one account, one line a key, one command of sudo an owner.
//!
//! Whoever has a key may run `__serve` for themselves and nothing else. It must never change an account, a line or a file that it did not
//! write, and never let one be written half.

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

/// How long visudo may take.
const CHECK_LIMIT: Duration = Duration::from_secs(30);

/// The longest file of authorised keys that is changed, in bytes.
const LIMIT: u64 = 1 << 20;

/// Where programs of the system are that are on no user's `PATH`.
const SYSTEM: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Where on a host all of it goes.
#[derive(Debug, Clone)]
pub struct Ground {
    /// The home of the account, where there is none yet.
    pub(super) home: PathBuf,
    /// The rule of sudo.
    pub(super) sudoers: PathBuf,
    /// Where programs are looked for.
    pub(super) path: std::ffi::OsString,
    /// Where processes are seen.
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

    /// The program `name` of the system.
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

/// Who is to be served.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantedServe {
    /// Owners to come, each as `NAME=KEY` or `NAME=FILE`.
    pub owners: Vec<String>,
    /// Owners to go.
    pub removed: Vec<String>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServeStep {
    /// Make the account.
    Account {
        /// Its home.
        home: PathBuf,
    },
    /// Take a line out of the file of authorised keys.
    Expel {
        /// The file.
        path: PathBuf,
        /// Whose key it is.
        owner: String,
        /// The line.
        line: String,
    },
    /// Put another line in the place of one in the file of authorised keys: the program has moved.
    Rewrite {
        /// The file.
        path: PathBuf,
        /// Whose key it is.
        owner: String,
        /// The line that is there.
        old: String,
        /// The line.
        line: String,
    },
    /// End what serves an owner one of whose keys is gone, and all connections to the account, of which one may have been opened by it.
    End {
        /// The owner.
        owner: String,
    },
    /// Take a line that is gone off the record; after all that is to follow from its going.
    Forget {
        /// Whose key it is.
        owner: String,
        /// The line.
        line: String,
    },
    /// Write the rule of sudo, once visudo has taken it.
    Sudoers {
        /// The file.
        path: PathBuf,
        /// All of it.
        text: String,
    },
    /// Take the rule of sudo away: there is no owner any more.
    NoSudoers {
        /// The file.
        path: PathBuf,
    },
    /// Add a line to the file of authorised keys.
    Admit {
        /// The file.
        path: PathBuf,
        /// Whose key it is.
        owner: String,
        /// The line.
        line: String,
    },
}

/// What there is on a host.
struct Found {
    keys: PathBuf,
    lines: Lines,
    has_account: bool,
    sudoers: Option<String>,
}

/// A line that setup put into the file, by its record.
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

/// What is to become of the lines on record.
#[derive(Default)]
struct Standing {
    expelled: Vec<ServeStep>,
    rewritten: Vec<ServeStep>,
    /// Lines that are gone, or will be, with their owners.
    gone: Vec<(String, String)>,
    /// Who may come, with the key.
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
                // Forgotten, it would let its holder in again as soon as the owner comes back with another key.
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
            // One that somebody changed by hand is theirs, and lets its owner in as long as it names what the rule does.
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

/// Looks at the host and tells what has to be done.
pub(super) fn plan(
    engine: &Engine,
    ground: &Ground,
    record: &Record,
    wanted: &WantedServe,
) -> Result<Vec<ServeStep>, ServeSetupError> {
    let owners = owners::read(&wanted.owners)?;
    for tool in ["sudo", "visudo", "sshd", "useradd", "userdel"] {
        ground.tool(tool)?;
    }
    check_exe(&engine.exe)?;
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
    // What comes, or comes back, stays on record.
    for step in rewritten.iter().chain(&admitted) {
        if let ServeStep::Rewrite { line, .. } | ServeStep::Admit { line, .. } = step {
            gone.retain(|(_, going)| going != line);
        }
    }
    steps.extend(rewritten);
    steps.extend(admitted);
    // Also of an owner who stays, or comes back, with another key: whoever came in with the one that is gone is to go.
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

/// The lines to be added for owners who are not served yet, who are then among `served`.
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
        // By a key of which setup knows nothing, somebody would come in with this owner.
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

/// What is to become of the rule of sudo, for these owners.
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
    // In anybody else's account, whatever runs there could run every owner's command, and write where root does.
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

/// Whether setup made this account, by its record and by the account itself.
fn is_made(account: &account::Account, record: &Record) -> bool {
    let is_it = |made: &Made| matches!(made, Made::Account { home } if account.is_of_setup(home));
    record.made().iter().any(is_it)
}

/// The lines of the file of authorised keys; none when it is not there.
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

/// Whether others may run the program at `exe` as root: nobody but root (or whoever we are) may be able to put another one there, and its
/// path must be a word to sshd, to a shell and to sudo alike.
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
            std::fs::symlink_metadata(part).map_err(|source| FileError::io("look at", part, source))?;
        if let Some(why) = way::loose(found.uid(), found.mode(), us, found.is_dir()) {
            return refuse(part, why);
        }
    }
    Ok(())
}

fn is_line(made: &Made, owner: &str, line: &str) -> bool {
    matches!(made, Made::Key { owner: whose, line: there, .. } if whose == owner && there == line)
}

/// Makes `dir` and those above it that are missing: root's, and for sshd to be read as the account.
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

/// The file that `path` is written as first. Its name has a dot, for which sudo passes over it.
fn new_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".crabbox-new");
    path.with_file_name(name)
}

/// Replaces `path` by `text` once `check` has taken the new file; whose it is and who may read it stays as it is.
fn replace(
    path: &Path,
    text: &str,
    mode: u32,
    check: &dyn Fn(&Path) -> Result<(), ServeSetupError>,
) -> Result<(), ServeSetupError> {
    let new = new_of(path);
    let failed = |source| FileError::io("write", path, source);
    // What one that was killed left.
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
