//! The lease's user among the users of an image. Its builder gives files to the user, and its first process
//! finds or adds the user: both must come to the same id.
//!
//! Pure functions on the text of `/etc/passwd` and `/etc/group`.

/// The first user id for people on Debian (`UID_MIN` of `login.defs`).
pub const FIRST_ID: u32 = 1000;

/// The last user id for people (`UID_MAX`).
pub const LAST_ID: u32 = 60_000;

/// What is needed of a line of `/etc/passwd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The user's id.
    pub uid: u32,
    /// The id of its first group.
    pub gid: u32,
    /// Its home directory, an absolute path.
    pub home: String,
}

/// The account called `name`.
pub fn find(passwd: &str, name: &str) -> Option<Account> {
    passwd.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let &[user, _, uid, gid, _, home, _] = fields.as_slice() else {
            return None;
        };
        (user == name && home.starts_with('/')).then_some(())?;
        Some(Account {
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home: home.to_owned(),
        })
    })
}

/// The account that `name` gets if it has none: the first id that is free among users and groups, or the
/// group of its name, and a home under `/home`. `None` if all ids for people are taken.
pub fn new(passwd: &str, group: &str, name: &str) -> Option<Account> {
    let own_group = group_of(group, name);
    let ids = |text: &str| text.lines().filter_map(id).collect::<Vec<_>>();
    let (users, groups) = (ids(passwd), ids(group));
    let free = |id: &u32| !users.contains(id) && (own_group.is_some() || !groups.contains(id));
    let uid = (FIRST_ID..=LAST_ID).find(free)?;
    Some(Account {
        uid,
        gid: own_group.unwrap_or(uid),
        home: format!("/home/{name}"),
    })
}

/// The id of the group called `name`.
pub fn group_of(group: &str, name: &str) -> Option<u32> {
    let line = group
        .lines()
        .find(|line| line.split(':').next() == Some(name) && id(line).is_some());
    line.and_then(id)
}

/// The id in a line of either file.
fn id(line: &str) -> Option<u32> {
    line.split(':').nth(2)?.parse().ok()
}
