//! The account that owners from afar log in to: looked for, made, taken away.
//!
//! Only one that setup made is ever taken away, and no account is changed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_host::clock;
use crabbox_host::command::{Cmd, CommandError};
use crabbox_host::process::{self, ProcessError};

use super::{ACCOUNT, Ground, ServeSetupError};

/// What stands in the account's field for a person's name, by which setup knows its own.
const NAME: &str = "leases for owners from afar (crabbox setup)";

/// How long one of the programs may take that change accounts: they wait for each other's locks.
const LIMIT: Duration = Duration::from_mins(1);

/// How long a session may take to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// getent(1) found nothing.
const NOT_FOUND: i32 = 2;

/// An account as passwd(5) has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) home: PathBuf,
    pub(super) shell: String,
    name: String,
}

impl Account {
    /// Whether it is the one that setup makes.
    pub(super) fn is_of_setup(&self, home: &Path) -> bool {
        self.name == NAME && self.home == home
    }

    /// Whether its shell runs commands, which a forced one is.
    pub(super) fn runs_commands(&self) -> bool {
        let shell = Path::new(&self.shell).file_name().unwrap_or_default();
        !matches!(shell.to_str(), Some("nologin" | "false" | "true" | "sync"))
    }
}

/// The account, where there is one, from whatever the host has its accounts.
pub(super) fn find(ground: &Ground) -> Result<Option<Account>, ServeSetupError> {
    let looked = Cmd::new(ground.tool("getent")?)
        .args(["passwd", ACCOUNT])
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
    let [_, _, uid, _, name, home, shell] = fields.as_slice() else {
        return None;
    };
    Some(Account {
        uid: uid.parse().ok()?,
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

/// Takes it away, and ends the sessions that are still open in it.
pub(super) fn remove(ground: &Ground, account: &Account) -> Result<(), ServeSetupError> {
    for pid in processes(&ground.processes, account.uid) {
        end(pid)?;
    }
    // One that has ended is still the account's until its parent has heard of it.
    let is_gone = || processes(&ground.processes, account.uid).is_empty().then_some(());
    clock::poll_until(GRACE, is_gone);
    let removed = Cmd::new(ground.tool("userdel")?).arg(ACCOUNT).limit(LIMIT).run();
    removed
        .map(drop)
        .map_err(|source: CommandError| ServeSetupError::Account {
            attempt: "remove",
            source,
        })
}

/// The processes that are the account's by any of their uids. Whose the directory of one in proc(5) is says nothing of a process that has
/// changed them.
fn processes(proc: &Path, uid: u32) -> Vec<u32> {
    let entries = std::fs::read_dir(proc).into_iter().flatten();
    let pids = entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let status = std::fs::read_to_string(proc.join(pid.to_string()).join("status")).unwrap_or_default();
        is_of(&status, uid)
    })
    .collect()
}

/// Whether proc(5)'s `status` is one of a process of `uid`.
fn is_of(status: &str, uid: u32) -> bool {
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uids.is_some_and(|uids| uids.split_whitespace().any(|word| word.parse() == Ok(uid)))
}

fn end(pid: u32) -> Result<(), ProcessError> {
    let Some(id) = process::identify(pid)? else {
        return Ok(());
    };
    match process::open(&id)? {
        Some(handle) => handle.terminate(GRACE).map(drop),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_the_account_s_by_any_of_its_uids() {
        let status = |uids: &str| format!("Name:\tsshd\nUid:\t{uids}\nGid:\t998\t998\t998\t998\n");
        assert!(is_of(&status("998\t998\t998\t998"), 998) && is_of(&status("998\t0\t0\t0"), 998));
        assert!(!is_of(&status("0\t0\t0\t0"), 998) && !is_of("", 998));
    }

    #[test]
    fn an_account_is_setups_by_its_name_and_home_alone() {
        let home = Path::new("/var/lib/crabbox-serve");
        let ours = parse(&format!(
            "crabbox:x:998:998:{NAME}:/var/lib/crabbox-serve:/bin/sh"
        ))
        .unwrap();
        assert!(ours.is_of_setup(home) && ours.runs_commands());
        for line in [
            "crabbox:x:998:998:Somebody:/var/lib/crabbox-serve:/bin/sh".to_owned(),
            format!("crabbox:x:998:998:{NAME}:/home/crabbox:/bin/sh"),
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
