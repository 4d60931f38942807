//! What sudo is told: which commands the account may run as root, each with all of its words.
//!
//! The file must never let the account choose a word of a command.

use std::collections::BTreeSet;
use std::path::Path;

use super::ACCOUNT;

/// The name of the list of commands, which every file of sudo shares.
const ALIAS: &str = "CRABBOX_SERVE";

/// Where the commands find programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The file for `owners`; `None` without any, since a list of no commands is none to sudo.
pub(super) fn text(exe: &Path, owners: &BTreeSet<String>) -> Option<String> {
    let commands: Vec<String> = owners
        .iter()
        .map(|owner| format!("{} __serve --as {owner}", exe.display()))
        .collect();
    // Its streams are pipes: a terminal of its own would only stand in their way. Of the environment nothing comes along, whatever else the
    // host's sudo lets through or looks at first.
    (!commands.is_empty()).then(|| {
        format!(
            "# Written by `crabbox setup firecracker --serve`, which writes it anew when an owner comes or goes.\n\
             Cmnd_Alias {ALIAS} = {}\n\
             Defaults!{ALIAS} !use_pty, !requiretty, env_reset, !env_keep, !env_check, always_set_home, !setenv, \
             secure_path=\"{PATH}\"\n\
             {ACCOUNT} ALL=(root) NOPASSWD: {ALIAS}\n",
            commands.join(", \\\n    ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_owner_is_one_command_with_all_of_its_words() {
        let owners = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let exe = Path::new("/usr/local/bin/crabbox");
        assert_eq!(text(exe, &owners(&[])), None);
        let two = text(exe, &owners(&["bob", "alice"])).unwrap();
        let (_, rules) = two.split_once('\n').unwrap();
        assert_eq!(
            rules,
            "Cmnd_Alias CRABBOX_SERVE = /usr/local/bin/crabbox __serve --as alice, \\\n    \
             /usr/local/bin/crabbox __serve --as bob\n\
             Defaults!CRABBOX_SERVE !use_pty, !requiretty, env_reset, !env_keep, !env_check, always_set_home, !setenv, \
             secure_path=\"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\"\n\
             crabbox ALL=(root) NOPASSWD: CRABBOX_SERVE\n"
        );
    }
}
