//! Removes what lets a host serve remote owners.
//!
//! What was changed since is reported and kept; so is everything that existed before.

use std::path::Path;

use crabbox_host::digest;
use crabbox_host::files;
use crabbox_machine::context::Engine;
use crabbox_machine::failpoint::{self, Phase, Who};

use super::super::record::{Made, Record};
use super::super::remove::Removal;
use super::authorized::{self, Added};
use super::{Ground, ServeSetupError, account, is_made, new_of, read_keys, read_text, replace, sessions};

/// Whether `made` is part of serving remote owners.
pub(in super::super) fn is_of_serving(record: &Record, made: &Made) -> bool {
    match made {
        Made::Account { .. } | Made::KeyFile { .. } | Made::Key { .. } | Made::Sudoers { .. } => true,
        // Parent directories of the `authorized_keys` file; each is only removed once it is empty.
        Made::Directory { path } => record
            .made()
            .iter()
            .any(|made| matches!(made, Made::Key { path: keys, .. } | Made::KeyFile { path: keys } if keys.starts_with(path))),
        _ => false,
    }
}

/// Whether owners get access through it.
pub(in super::super) fn lets_in(made: &Made) -> bool {
    matches!(
        made,
        Made::KeyFile { .. } | Made::Key { .. } | Made::Sudoers { .. }
    )
}

/// Ends the server processes and all other sessions of the account. None can come back, because everything
/// that `lets_in` has been removed.
pub(in super::super) fn end_sessions(
    engine: &Engine,
    ground: &Ground,
    record: &Record,
) -> Result<(), ServeSetupError> {
    if !record.made().iter().any(|made| is_of_serving(record, made)) {
        return Ok(());
    }
    sessions::end_servers(&ground.processes, &engine.exe, &|_| true)?;
    if let Some(account) = account::find(ground)?.filter(|account| is_made(account, record)) {
        account::end_sessions(ground, &account)?;
    }
    Ok(())
}

/// What to do with a recorded thing; empty if it no longer exists.
pub(in super::super) fn decide(ground: &Ground, made: &Made) -> Result<Vec<Removal>, ServeSetupError> {
    let mut removals = Vec::new();
    match made {
        Made::Account { home } => {
            let account = account::find(ground)?.filter(|account| account.is_of_setup(home));
            removals.extend(account.map(|_| Removal::Account));
        }
        Made::KeyFile { path } => {
            let removal = Removal::KeyFile { path: path.clone() };
            removals.extend(
                path.exists()
                    .then_some(removal)
                    .filter(|_| read_keys(path).is_ok()),
            );
        }
        Made::Key {
            path, owner, line, ..
        } => {
            // An unreadable file gives no access either, because the sudoers rule has been removed before.
            let lines = match read_keys(path) {
                Ok(lines) => lines,
                Err(error) => {
                    return Ok(vec![Removal::KeysLeft {
                        path: path.clone(),
                        why: crabbox_core::fault::chain(&error),
                    }]);
                }
            };
            removals.extend(half_written(path));
            let key = authorized::key_of(line).unwrap_or_default();
            if lines.has(line) {
                removals.push(Removal::Key {
                    path: path.clone(),
                    owner: owner.clone(),
                });
            } else if lines.with_key(key).is_some() {
                removals.push(Removal::ChangedKey {
                    path: path.clone(),
                    owner: owner.clone(),
                });
            }
        }
        Made::Sudoers { path, sha256 } => {
            removals.extend(half_written(path));
            if let Some(text) = read_text(path)? {
                let is_ours = sha256.contains(&digest::sha256(text.as_bytes()));
                let path = path.clone();
                removals.push(if is_ours {
                    Removal::File { path }
                } else {
                    Removal::Changed { path }
                });
            }
        }
        _ => {}
    }
    Ok(removals)
}

/// The leftover of an interrupted write.
fn half_written(path: &Path) -> Option<Removal> {
    let path = new_of(path);
    std::fs::symlink_metadata(&path)
        .is_ok()
        .then_some(Removal::File { path })
}

/// Carries out a decision about `made`; whole files have been removed already.
pub(in super::super) fn carry_out(
    engine: &Engine,
    ground: &Ground,
    (made, removal): (&Made, &Removal),
) -> Result<(), ServeSetupError> {
    let hit = |step: &str| failpoint::hit(&engine.failpoint, Who::Cli, step, Phase::Done);
    match (made, removal) {
        (Made::Account { home }, Removal::Account) => {
            // Check again, because some time has passed since the decision.
            if let Some(account) = account::find(ground)?.filter(|account| account.is_of_setup(home)) {
                account::remove(ground, &account)?;
            }
            hit("unserve-account");
        }
        (
            Made::Key {
                path, line, ended, ..
            },
            Removal::Key { .. },
        ) => {
            let mut lines = read_keys(path)?;
            lines.take_out(line, Added { ended: *ended });
            replace(path, &lines.text(), 0o644, &|_| Ok(()))?;
            hit("unserve-keys");
        }
        (_, Removal::KeyFile { path }) => {
            let lines = read_keys(path)?;
            if lines.is_empty() {
                files::remove_tree(path)?;
            }
        }
        (Made::Sudoers { .. }, Removal::File { .. }) => hit("unserve-sudoers"),
        _ => {}
    }
    Ok(())
}
