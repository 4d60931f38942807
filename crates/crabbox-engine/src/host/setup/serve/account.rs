//! The account that owners from afar log in to: looked for, made, taken away.
//!
//! Only one that setup made is ever taken away, and no account is changed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_host::clock;
use crabbox_host::command::{Cmd, CommandError};

use super::{ACCOUNT, Ground, ServeSetupError, sessions};

/// What stands in the account's field for a person's name, by which setup knows its own.
const NAME: &str = "leases for owners from afar (crabbox setup)";

/// How long one of the programs may take that change accounts: they wait for each other's locks.
const LIMIT: Duration = Duration::from_mins(1);

/// How long a process that has ended may be waited for by its parent.
const GRACE: Duration = Duration::from_secs(5);

/// getent(1) found nothing.
const NOT_FOUND: i32 = 2;

/// An account as passwd(5) has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) home: PathBuf,
    pub(super) shell: String,
    name: String,
}

impl Account {
    /// Whether it is the one that setup makes.
    pub(super) fn is_of_setup(&self, home: &Path) -> bool {
        // One that was made root since is no account that anything may be ended in.
        self.name == NAME && self.home == home && self.uid != 0
    }

    /// Whether its shell runs commands, which a forced one is.
    pub(super) fn runs_commands(&self) -> bool {
        let shell = Path::new(&self.shell).file_name().unwrap_or_default();
        !matches!(shell.to_str(), Some("nologin" | "false" | "true" | "sync"))
    }
}

/// The account, where there is one.
pub(super) fn find(ground: &Ground) -> Result<Option<Account>, ServeSetupError> {
    named(ground, ACCOUNT)
}

/// The account of this name, from whatever the host has its accounts.
pub(super) fn named(ground: &Ground, name: &str) -> Result<Option<Account>, ServeSetupError> {
    let looked = Cmd::new(ground.tool("getent")?)
        .args(["passwd", name])
        .limit(LIMIT)
        .capture()?;
    match looked.status.code() {
        Some(0) => {}
        Some(NOT_FOUND) => return Ok(None),
        _ => {
            return Err(ServeSetupError::Accounts {
                said: looked.stderr_text().trim().to_owned(),
            });
        }
    }
    let text = looked.stdout_text();
    let line = text.lines().next().unwrap_or_default();
    parse(line).map(Some).ok_or_else(|| ServeSetupError::Accounts {
        said: line.to_owned(),
    })
}

fn parse(line: &str) -> Option<Account> {
    let fields: Vec<&str> = line.split(':').collect();
    let [_, _, uid, gid, name, home, shell] = fields.as_slice() else {
        return None;
    };
    Some(Account {
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        home: PathBuf::from(home),
        shell: (*shell).to_owned(),
        name: (*name).to_owned(),
    })
}

/// Makes it: of the system, without a password, with a shell for the one command that its keys run.
pub(super) fn make(ground: &Ground) -> Result<(), ServeSetupError> {
    let made = Cmd::new(ground.tool("useradd")?)
        .args(["--system", "--user-group", "--no-create-home", "--home-dir"])
        .arg(&ground.home)
        // No password is that hash; `!` would be a locked account to an sshd without PAM.
        .args([
            "--shell",
            "/bin/sh",
            "--password",
            "*",
            "--comment",
            NAME,
            ACCOUNT,
        ])
        .limit(LIMIT)
        .run();
    made.map(drop).map_err(|source| ServeSetupError::Account {
        attempt: "make",
        source,
    })
}

/// Ends its processes, if its number is its own: with another account's, they would be that one's.
pub(super) fn end_sessions(ground: &Ground, account: &Account) -> Result<(), ServeSetupError> {
    let uid = account.uid.to_string();
    let named = Cmd::new(ground.tool("getent")?)
        .args(["passwd", &uid])
        .limit(LIMIT)
        .capture()?;
    let named = named.stdout_text();
    let name = named.split(':').next().unwrap_or_default();
    if name != ACCOUNT {
        return Err(ServeSetupError::SharedNumber {
            uid: account.uid,
            other: name.to_owned(),
        });
    }
    Ok(sessions::end(&ground.processes, account.uid)?)
}

/// Takes it away, and ends the sessions that are still open in it.
pub(super) fn remove(ground: &Ground, account: &Account) -> Result<(), ServeSetupError> {
    end_sessions(ground, account)?;
    // One that has ended is still the account's until its parent has heard of it.
    let is_gone = || (!sessions::any(&ground.processes, account.uid)).then_some(());
    clock::poll_until(GRACE, is_gone);
    let removed = Cmd::new(ground.tool("userdel")?).arg(ACCOUNT).limit(LIMIT).run();
    removed
        .map(drop)
        .map_err(|source: CommandError| ServeSetupError::Account {
            attempt: "remove",
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_setups_by_its_name_and_home_and_never_root_s() {
        let home = Path::new("/var/lib/crabbox-serve");
        let ours = parse(&format!(
            "crabbox:x:998:998:{NAME}:/var/lib/crabbox-serve:/bin/sh"
        ))
        .unwrap();
        assert!(ours.is_of_setup(home) && ours.runs_commands());
        for line in [
            "crabbox:x:998:998:Somebody:/var/lib/crabbox-serve:/bin/sh".to_owned(),
            format!("crabbox:x:998:998:{NAME}:/home/crabbox:/bin/sh"),
            format!("crabbox:x:0:0:{NAME}:/var/lib/crabbox-serve:/bin/sh"),
        ] {
            assert!(!parse(&line).unwrap().is_of_setup(home), "{line}");
        }
        let none = parse("crabbox:x:998:998::/h:/usr/sbin/nologin").unwrap();
        assert!(!none.runs_commands());
        for line in ["", "crabbox:x:998", "crabbox:x:many:998::/h:/bin/sh"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
