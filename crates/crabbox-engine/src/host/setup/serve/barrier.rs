//! Finds what locks out remote owners although they are set up: other settings of the host's sshd and sudo.
//!
//! Both are asked for their decision about the account. Nothing of theirs may be changed here: it is the host
//! owner's choice.

use std::fmt;
use std::path::{Path, PathBuf};

use crabbox_host::command::Cmd;
use crabbox_machine::context::Engine;

use super::super::record::Record;
use super::account::{self, Account};
use super::{ACCOUNT, CHECK_LIMIT, Ground, ServeSetupError, known};

/// Something that locks owners out, or that cannot be determined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Barrier {
    /// A setting of sshd.
    Sshd {
        /// The keyword of sshd_config(5).
        keyword: &'static str,
        /// Its value for the account.
        value: String,
        /// The required value.
        wanted: String,
    },
    /// sshd does not report its settings.
    Silent {
        /// Its error output.
        said: String,
    },
    /// sudo does not run an owner's command.
    Sudo {
        /// The owner.
        owner: String,
        /// The output in place of a greeting.
        said: String,
    },
}

impl fmt::Display for Barrier {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sshd {
                keyword,
                value,
                wanted,
            } => write!(
                out,
                "sshd keeps the owners out: it has `{keyword} {value}` for the account {ACCOUNT}, and {wanted} is needed; see `sshd -T -C \
                 user={ACCOUNT},host=localhost,addr=127.0.0.1` and /etc/ssh/sshd_config, then reload sshd"
            ),
            Self::Silent { said } => write!(
                out,
                "whether sshd lets the account {ACCOUNT} in is not known: {said}; `sshd -T` shows it where sshd has started once"
            ),
            Self::Sudo { owner, said } => write!(
                out,
                "sudo does not serve {owner}: {said}; see `sudo -l -U {ACCOUNT}` for a rule behind that in /etc/sudoers.d/crabbox"
            ),
        }
    }
}

/// Asks sshd and sudo about the owners on record.
pub fn barriers(engine: &Engine, ground: &Ground) -> Result<Vec<Barrier>, ServeSetupError> {
    let record = Record::read(&engine.places)?;
    let Some(account) = account::find(ground)? else {
        return Ok(Vec::new());
    };
    let mut owners: Vec<&str> = known(&record).iter().map(|known| known.owner).collect();
    owners.sort_unstable();
    owners.dedup();
    if owners.is_empty() {
        return Ok(Vec::new());
    }
    let mut barriers = ask_sshd(ground, &account)?;
    for owner in owners {
        barriers.extend(ask_sudo(engine, ground, &account, owner)?);
    }
    Ok(barriers)
}

fn ask_sshd(ground: &Ground, account: &Account) -> Result<Vec<Barrier>, ServeSetupError> {
    // The clients' addresses are unknown, so settings for other addresses are not considered.
    let whom = format!("user={ACCOUNT},host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport=22");
    let asked = Cmd::new(ground.tool("sshd")?)
        .args(["-T", "-C", &whom])
        .limit(CHECK_LIMIT)
        .capture()?;
    if !asked.status.success() {
        let said = last_line(&asked.stderr_text());
        return Ok(vec![Barrier::Silent { said }]);
    }
    // Includes groups that somebody has added the account to.
    let groups = Cmd::new(ground.tool("id")?)
        .args(["-nG", ACCOUNT])
        .limit(CHECK_LIMIT)
        .capture()?;
    let groups = groups.stdout_text();
    let groups: Vec<&str> = groups.split_whitespace().collect();
    Ok(judge(&asked.stdout_text(), &account.home, &groups))
}

/// Runs an owner's command as the account would, with empty input: it greets and ends.
fn ask_sudo(
    engine: &Engine,
    ground: &Ground,
    account: &Account,
    owner: &str,
) -> Result<Option<Barrier>, ServeSetupError> {
    let (uid, gid) = (account.uid.to_string(), account.gid.to_string());
    let asked = Cmd::new(ground.tool("setpriv")?)
        .args(["--reuid", &uid, "--regid", &gid, "--init-groups"])
        .args(["env", "-i", "PATH=/usr/local/bin:/usr/bin:/bin"])
        .arg(ground.tool("sudo")?)
        .arg("-n")
        .arg(&engine.exe)
        .args(["__serve", "--as", owner])
        .limit(CHECK_LIMIT)
        .capture()?;
    let greeted = asked.status.success() && asked.stdout_text().contains("\"crabbox-serve\"");
    Ok((!greeted).then(|| Barrier::Sudo {
        owner: owner.to_owned(),
        said: last_line(&asked.stderr_text()),
    }))
}

fn last_line(text: &str) -> String {
    let last = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
    last.unwrap_or("nothing was said").to_owned()
}

/// The settings, in the output of `sshd -T`, that lock out a key holder of the account with this home and
/// these groups.
fn judge(config: &str, home: &Path, groups: &[&str]) -> Vec<Barrier> {
    let values = |keyword: &str| -> Vec<String> {
        let lines = config.lines().filter_map(|line| line.split_once(' '));
        lines
            .filter(|(word, _)| word.eq_ignore_ascii_case(keyword))
            .map(|(_, value)| value.trim().to_owned())
            .collect()
    };
    let mut barriers = Vec::new();
    let mut bar = |keyword, value: String, wanted: &str| {
        barriers.push(Barrier::Sshd {
            keyword,
            value,
            wanted: wanted.to_owned(),
        });
    };
    for (keyword, bad, wanted) in [
        ("PubkeyAuthentication", "no", "`PubkeyAuthentication yes`"),
        ("RefuseConnection", "yes", "`RefuseConnection no`"),
        ("MaxSessions", "0", "one session at least"),
    ] {
        if values(keyword).iter().any(|value| value == bad) {
            bar(keyword, bad.to_owned(), wanted);
        }
    }
    for (keyword, wanted) in [
        ("ForceCommand", "no forced command but those of the keys"),
        ("ChrootDirectory", "no other root directory"),
    ] {
        if let Some(value) = values(keyword).into_iter().find(|value| value != "none") {
            bar(keyword, value, wanted);
        }
    }
    let methods = values("AuthenticationMethods").join(" ");
    let suffices = |method: &str| matches!(method, "any" | "publickey");
    if !methods.is_empty() && !methods.split_whitespace().any(suffices) {
        bar("AuthenticationMethods", methods, "`publickey` as one of them");
    }
    let keys = home.join(".ssh/authorized_keys");
    let files = values("AuthorizedKeysFile").join(" ");
    if !files.split_whitespace().any(|file| expanded(file, home) == keys) {
        let wanted = format!("{} among them", keys.display());
        bar("AuthorizedKeysFile", files, &wanted);
    }
    for (keyword, denied, called) in [
        ("DenyUsers", true, &[ACCOUNT][..]),
        ("DenyGroups", true, groups),
        ("AllowUsers", false, &[ACCOUNT]),
        ("AllowGroups", false, groups),
    ] {
        let patterns = values(keyword).join(" ");
        let mut names = patterns.split_whitespace().peekable();
        let is_called = |pattern: &str| called.iter().any(|name| matches(pattern, name));
        // Whether a pattern with a host matches depends on where the client comes from.
        let is_meant = |pattern: &str| match pattern.split_once('@') {
            Some((name, _)) => !denied && is_called(name),
            None => is_called(pattern),
        };
        if names.peek().is_some() && names.any(is_meant) == denied {
            let wanted = if denied {
                "no pattern of it that is the account"
            } else {
                "the account among them"
            };
            bar(keyword, patterns.clone(), wanted);
        }
    }
    barriers
}

/// The path of an `authorized_keys` file with the tokens of sshd_config(5) expanded.
fn expanded(file: &str, home: &Path) -> PathBuf {
    let (mut path, mut rest) = (String::new(), file);
    while let Some((before, behind)) = rest.split_once('%') {
        path.push_str(before);
        let mut token = behind.chars();
        match token.next() {
            Some('h') => path.push_str(&home.to_string_lossy()),
            Some('u') => path.push_str(ACCOUNT),
            Some(other) => path.push(other),
            None => {}
        }
        rest = token.as_str();
    }
    path.push_str(rest);
    // A relative path is relative to the home.
    home.join(path)
}

/// Whether a pattern of ssh_config(5) matches this name.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.chars().next() {
        None => name.is_empty(),
        Some('*') => {
            let rest = &pattern[1..];
            name.char_indices()
                .map(|(at, _)| at)
                .chain([name.len()])
                .any(|at| matches(rest, &name[at..]))
        }
        Some(first) => {
            let is_it = |c: char| first == '?' || c == first;
            name.chars().next().is_some_and(is_it)
                && matches(
                    &pattern[first.len_utf8()..],
                    &name[name.chars().next().map_or(0, char::len_utf8)..],
                )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: &str = "port 22\npubkeyauthentication yes\nmaxsessions 10\nforcecommand none\nchrootdirectory none\n\
        authenticationmethods any\nauthorizedkeysfile .ssh/authorized_keys .ssh/authorized_keys2\n";

    fn barred(from: &str, to: &str) -> Vec<&'static str> {
        let config = if from.is_empty() {
            format!("{USUAL}{to}\n")
        } else {
            USUAL.replace(from, to)
        };
        let found = judge(
            &config,
            Path::new("/var/lib/crabbox-serve"),
            &["crabbox", "ssh-users"],
        );
        let keyword = |barrier: &Barrier| match barrier {
            Barrier::Sshd { keyword, .. } => *keyword,
            other => panic!("{other:?}"),
        };
        found.iter().map(keyword).collect()
    }

    #[test]
    fn what_sshd_was_told_lets_the_account_in_or_is_named() {
        let files = ".ssh/authorized_keys .ssh/authorized_keys2";
        for (from, to) in [
            ("", ""),
            (files, "%h/.ssh/authorized_keys"),
            (files, "/etc/keys/%u /var/lib/%u-serve/.ssh/authorized_keys"),
            ("methods any", "methods publickey,password publickey"),
            ("", "allowusers alice\nallowusers c?ab*"),
            ("", "allowusers crabbox@10.0.0.0/8"),
            ("", "denyusers crabbox@10.0.0.0/8"),
            ("", "denyusers crab rabbox crabbox2"),
            ("", "allowgroups sudo crabbox"),
            ("", "allowgroups sudo ssh-*"),
            ("", "allowusers alice crabbox"),
            ("", "refuseconnection no"),
        ] {
            assert_eq!(barred(from, to), [""; 0], "{to}");
        }
        for (from, to, keyword) in [
            (files, "none", "AuthorizedKeysFile"),
            (files, "/etc/ssh/authorized_keys/%u", "AuthorizedKeysFile"),
            (files, "%%h/.ssh/authorized_keys", "AuthorizedKeysFile"),
            (
                "pubkeyauthentication yes",
                "pubkeyauthentication no",
                "PubkeyAuthentication",
            ),
            ("maxsessions 10", "maxsessions 0", "MaxSessions"),
            ("forcecommand none", "forcecommand internal-sftp", "ForceCommand"),
            (
                "chrootdirectory none",
                "chrootdirectory /srv/%u",
                "ChrootDirectory",
            ),
            (
                "methods any",
                "methods publickey,keyboard-interactive",
                "AuthenticationMethods",
            ),
            ("", "allowusers alice bob", "AllowUsers"),
            ("", "denyusers *", "DenyUsers"),
            ("", "denygroups crab*", "DenyGroups"),
            ("", "denygroups ssh-users", "DenyGroups"),
            ("", "allowusers ssh-users", "AllowUsers"),
            ("", "allowgroups sudo", "AllowGroups"),
            ("", "refuseconnection yes", "RefuseConnection"),
        ] {
            assert_eq!(barred(from, to), [keyword], "{to}");
        }
    }
}
