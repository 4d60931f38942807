//! The account that remote owners log in to: finding, creating and removing it.
//!
//! Only an account that setup made is ever removed, and no account is modified.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_host::clock;
use crabbox_host::command::{Cmd, CommandError};

use super::{ACCOUNT, Ground, ServeSetupError, sessions};

/// The account's comment field, by which setup recognises its own account.
const NAME: &str = "leases for remote owners (crabbox setup)";

/// The time limit for programs that change accounts, which wait for each other's locks.
const LIMIT: Duration = Duration::from_mins(1);

/// How long to wait until the parent of an ended process has reaped it.
const GRACE: Duration = Duration::from_secs(5);

/// The exit code of getent(1) if nothing was found.
const NOT_FOUND: i32 = 2;

/// An account, with the fields of passwd(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) home: PathBuf,
    pub(super) shell: String,
    name: String,
}

impl Account {
    /// Whether it is the account that setup makes.
    pub(super) fn is_of_setup(&self, home: &Path) -> bool {
        // An account whose uid was changed to root's must never have its processes ended.
        self.name == NAME && self.home == home && self.uid != 0
    }

    /// Whether its shell runs commands, which a forced command needs.
    pub(super) fn runs_commands(&self) -> bool {
        let shell = Path::new(&self.shell).file_name().unwrap_or_default();
        !matches!(shell.to_str(), Some("nologin" | "false" | "true" | "sync"))
    }
}

/// Finds the account, if it exists.
pub(super) fn find(ground: &Ground) -> Result<Option<Account>, ServeSetupError> {
    named(ground, ACCOUNT)
}

/// Finds the account with this name in all account databases of the host.
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

/// Creates it: a system account without a password, with a shell for the one command that its keys run.
pub(super) fn make(ground: &Ground) -> Result<(), ServeSetupError> {
    let made = Cmd::new(ground.tool("useradd")?)
        .args(["--system", "--user-group", "--no-create-home", "--home-dir"])
        .arg(&ground.home)
        // No password hashes to `*`. With `!`, an sshd without PAM would regard the account as locked.
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

/// Ends its processes, provided that no other account shares its uid, because those processes would be ended,
/// too.
pub(super) fn end_sessions(ground: &Ground, account: &Account) -> Result<(), ServeSetupError> {
    let uid = account.uid.to_string();
    let getent = ground.tool("getent")?;
    // A lookup by uid returns only the first account, and some databases are not enumerable, so do both.
    for words in [&["passwd", uid.as_str()][..], &["passwd"]] {
        let looked = Cmd::new(&getent).args(words).limit(LIMIT).capture()?;
        if !looked.status.success() {
            return Err(ServeSetupError::Accounts {
                said: looked.stderr_text().trim().to_owned(),
            });
        }
        let text = looked.stdout_text();
        let others = text.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, number) = (fields.next()?, fields.nth(1)?);
            (number == uid && name != ACCOUNT).then_some(name)
        });
        if let Some(other) = others.into_iter().next() {
            return Err(ServeSetupError::SharedNumber {
                uid: account.uid,
                other: other.to_owned(),
            });
        }
    }
    Ok(sessions::end(&ground.processes, account.uid)?)
}

/// Removes it, and ends its open sessions.
pub(super) fn remove(ground: &Ground, account: &Account) -> Result<(), ServeSetupError> {
    end_sessions(ground, account)?;
    // An ended process counts as the account's until its parent has reaped it.
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
