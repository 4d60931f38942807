//! `/etc/passwd`, `/etc/group` and `/etc/shadow` as text: finds the lease user, or adds it.
//!
//! Pure functions on text. They must never change another user's line; a line that they cannot parse is kept
//! as it is.

use crabbox_guest_protocol::accounts;
pub(crate) use crabbox_guest_protocol::accounts::{Account, find};

/// The three files, before or after an addition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Databases {
    pub(crate) passwd: String,
    pub(crate) group: String,
    pub(crate) shadow: String,
}

/// Adds `name` with its own group, a home under `/home` and no password. `None` if all ids for people are
/// taken.
pub(crate) fn add(databases: &mut Databases, name: &str, shell: &str) -> Option<Account> {
    let account = accounts::new(&databases.passwd, &databases.group, name)?;
    let Account { uid, gid, home } = &account;
    if accounts::group_of(&databases.group, name).is_none() {
        append(&mut databases.group, &format!("{name}:x:{gid}:"));
    }
    append(
        &mut databases.passwd,
        &format!("{name}:x:{uid}:{gid}:crabbox lease:{home}:{shell}"),
    );
    // `*` sets no password without locking the account: sshd without PAM refuses accounts whose field begins
    // with `!`.
    append(&mut databases.shadow, &format!("{name}:*:19000:0:99999:7:::"));
    Some(account)
}

/// `/etc/shadow` with the account `name` unlocked, so that it can log in with a key where PAM is off; `None`
/// if it is not locked.
pub(crate) fn unlock(shadow: &str, name: &str) -> Option<String> {
    let locked = |line: &&str| {
        line.split_once(':')
            .is_some_and(|(user, rest)| user == name && rest.starts_with('!'))
    };
    let old = shadow.lines().find(locked)?;
    let rest = old.splitn(3, ':').nth(2).unwrap_or("19000:0:99999:7:::");
    Some(
        shadow
            .lines()
            .fold(String::with_capacity(shadow.len()), |mut text, line| {
                append(
                    &mut text,
                    if line == old {
                        format!("{name}:*:{rest}")
                    } else {
                        line.to_owned()
                    }
                    .as_str(),
                );
                text
            }),
    )
}

fn append(text: &mut String, line: &str) {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(line);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crabbox_guest_protocol::accounts::{FIRST_ID, LAST_ID};

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\ncrabbox:x:1000:1000::/home/crabbox:/bin/bash\n";

    fn databases() -> Databases {
        Databases {
            passwd: PASSWD.to_owned(),
            group: "root:x:0:\ncrabbox:x:1000:\nstaff:x:1001:\n".to_owned(),
            shadow: "root:*:19000:0:99999:7:::\ncrabbox:!:19000:0:99999:7:::\n".to_owned(),
        }
    }

    #[test]
    fn an_account_is_found_by_its_whole_name() {
        assert_eq!(find(PASSWD, "crabbox").map(|account| account.uid), Some(1000));
        assert_eq!(find(PASSWD, "crab"), None);
        assert_eq!(find("crabbox:x:many:0:::\nnonsense\n", "crabbox"), None);
    }

    #[test]
    fn a_new_account_gets_an_id_free_in_both_files() {
        let mut files = databases();
        let account = add(&mut files, "runner", "/bin/bash").unwrap();
        assert_eq!(
            (account.uid, account.gid, account.home.as_str()),
            (1002, 1002, "/home/runner")
        );
        assert_eq!(find(&files.passwd, "runner"), Some(account));
        assert!(files.passwd.starts_with(PASSWD), "other lines are kept");
        assert!(files.group.ends_with("\nrunner:x:1002:\n"));
        assert!(files.shadow.ends_with("\nrunner:*:19000:0:99999:7:::\n"));
    }

    #[test]
    fn a_group_of_that_name_is_used() {
        let mut files = databases();
        let account = add(&mut files, "staff", "/bin/sh").unwrap();
        assert_eq!((account.uid, account.gid), (1001, 1001));
        assert_eq!(files.group, databases().group);
    }

    #[test]
    fn a_missing_last_newline_does_not_join_lines() {
        let mut files = Databases {
            passwd: "root:x:0:0::/root:/bin/sh".to_owned(),
            ..Databases::default()
        };
        add(&mut files, "runner", "/bin/sh").unwrap();
        assert_eq!(files.passwd.lines().count(), 2);
    }

    #[test]
    fn only_a_lock_is_taken_off() {
        let shadow = databases().shadow;
        let unlocked = unlock(&shadow, "crabbox").unwrap();
        assert_eq!(
            unlocked,
            "root:*:19000:0:99999:7:::\ncrabbox:*:19000:0:99999:7:::\n"
        );
        assert_eq!(unlock(&unlocked, "crabbox"), None);
        assert_eq!(unlock(&shadow, "crab"), None);
    }

    #[test]
    fn no_free_id_is_said() {
        let lines: Vec<_> = (FIRST_ID..=LAST_ID)
            .map(|id| format!("u{id}:x:{id}:{id}::/:/bin/sh"))
            .collect();
        let passwd = lines.join("\n");
        let mut files = Databases {
            passwd,
            ..Databases::default()
        };
        assert_eq!(add(&mut files, "runner", "/bin/sh"), None);
    }

    proptest! {
        #[test]
        fn whatever_the_files_hold_an_added_account_is_found(passwd in "[a-z:0-9\n]{0,200}", group in "[a-z:0-9\n]{0,200}") {
            prop_assume!(find(&passwd, "runner").is_none());
            let mut files = Databases { passwd: passwd.clone(), group, ..Databases::default() };
            let account = add(&mut files, "runner", "/bin/sh").unwrap();
            prop_assert!(files.passwd.starts_with(&passwd));
            prop_assert_eq!(find(&files.passwd, "runner"), Some(account));
        }
    }
}
